/** The module in a headless Chromium: Python's answers, hashes, files that are kept, and the page of examples/browser. */
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import { chromium as playwright } from "playwright-core";

import { ANSWERS, distance } from "./answers.js";
import { chromium } from "./chromium.js";
import { serve } from "./server.js";

describe("in a browser", () => {
  let [server, browser, page] = [];
  before(async () => {
    const executablePath = chromium();
    server = await serve();
    const webgpu = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]; // on the processor
    browser = await playwright.launch({ executablePath, args: ["--no-sandbox", ...webgpu] });
  });
  after(async () => {
    await browser?.close();
    await server?.close();
  });

  /** A page, with what goes wrong in it. */
  async function open(path) {
    const opened = await (await browser.newContext({ viewport: { width: 1100, height: 700 } })).newPage();
    opened.wrong = [];
    opened.on("pageerror", (error) => opened.wrong.push(error.message));
    await opened.goto(server.url + path);
    return opened;
  }

  test("the page translates while one types, and says what it cannot load", async () => {
    page = await open("/examples/browser/?bundle=/bundles/translator");
    await page.getByText("Ready: int8@web").waitFor();
    await page.getByLabel("English").pressSequentially("How are you? I would like to learn German.", { delay: 5 });
    await page.getByText("Wie geht es dir? Ich möchte Deutsch lernen.").waitFor();
    await page.getByText(/\d+ tokens in/).waitFor();
    assert.deepEqual(page.wrong, []);
    const broken = await open("/examples/browser/?bundle=/bundles/nothing");
    await broken.getByText(/bundle.json cannot be fetched \(status 404\)/).waitFor();
  });

  test("files are kept: the second visit fetches the manifest alone, and a changed file is fetched again", async () => {
    const first = server.asked.filter((path) => path.startsWith("/bundles/translator")).length;
    assert.ok(first > 3);
    server.asked.length = 0;
    await page.reload();
    await page.getByText("Ready: int8@web").waitFor();
    assert.deepEqual(server.asked.filter((path) => path.startsWith("/bundles/")), ["/bundles/translator/bundle.json"]);
    const left = await page.evaluate(async () => {
      const cache = await caches.open("onnxport");
      const [weights] = (await cache.keys()).filter(({ url }) => url.includes("weights"));
      await cache.put(weights, new Response(new Uint8Array(Number((await (await cache.match(weights)).blob()).size))));
      const { load } = await import("onnxport");
      const failed = await load("/bundles/translator", { precision: "int8", verify: true }).catch((error) => error.message);
      await load("/bundles/translator", { precision: "int8", verify: true });
      await load("/bundles/translator", { precision: "int8", cache: false });
      return failed;
    });
    assert.match(left, /weights.bin has changed, its SHA-256/);
    assert.equal(server.asked.filter((path) => path.endsWith("weights.bin")).length, 2);
  });

  for (const [name, precision] of [
    ["translator", "fp32"],
    ["chat", "fp16"],
    ["mixed", "fp32"],
    ["embedder", "fp32"],
    ["layers", "fp32"],
  ]) {
    test(`${name}, ${precision}: the answers are Python's, also at the same time`, async () => {
      const cases = ANSWERS[name].filter((one) => one.precision === precision);
      const found = await page.evaluate(
        async ([name, precision, cases]) => {
          const { load } = await import("onnxport");
          const model = await load(`/bundles/${name}`, { precision });
          const answers = await Promise.all(cases.map(({ call, input, options }) => model[call](input, options)));
          await model.close();
          return answers.map((one) => (one instanceof Float32Array ? { vector: [...one] } : one));
        },
        [name, precision, cases],
      );
      cases.forEach(({ answer }, i) => {
        if (answer.vector) return assert.ok(distance(found[i].vector, answer.vector) < 2e-4);
        assert.deepEqual(found[i].tokens, answer.tokens);
        assert.equal(found[i].text, answer.text);
      });
    });
  }

  test("a language model on WebGPU gives Python's answers, and keeps its caches there", async () => {
    const opened = await open("/javascript/tests/webgpu.html");
    const adapter = await opened.evaluate(async () => Boolean(await navigator.gpu?.requestAdapter()));
    assert.ok(adapter, "this Chromium has no adapter for WebGPU on the processor (SwiftShader); take another one with CHROMIUM=PATH");
    const { input, options, answer } = ANSWERS.chat.findLast((one) => one.precision === "fp32" && one.options.minNewTokens === one.answer.tokens.length);
    const found = await opened.evaluate(
      async ([input, options]) => {
        const { load } = await import("onnxport");
        const model = await load("/bundles/chat", { precision: "fp32", device: "webgpu" });
        return model.generate(input, options);
      },
      [input, options],
    );
    assert.deepEqual(found.tokens, answer.tokens);
  });
});
