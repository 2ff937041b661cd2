/** Calls that are no plain answer: streams, lists, cancelling, and what is refused. */
import assert from "node:assert/strict";
import { cp, mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";

import { BundleError, TextError, UsageError, load } from "../src/index.js";
import { TextTokenizer } from "../src/tokenizer.js";
import { ANSWERS, TEXTS, bundle } from "./answers.js";

const TEXT = "I would like to learn German.";

describe("answers", () => {
  let model;
  let talker;
  before(async () => {
    model = await load(bundle("translator"), { precision: "fp32" });
    talker = await load(bundle("chat"), { precision: "fp32" });
  });
  after(() => Promise.all([model.close(), talker.close()]));

  test("a stream's pieces join to the answer", async () => {
    for (const [one, input, options] of [
      [model, TEXT, {}],
      [model, TEXT, { stop: ["lern", "x"] }],
      [talker, "The names", { maxNewTokens: 60, temperature: 1, seed: 5 }],
      [talker, ANSWERS.chat[0].input, { maxNewTokens: 60 }],
    ]) {
      const stream = one.stream(input, options);
      const pieces = [];
      for await (const piece of stream) pieces.push(piece);
      const whole = await one.generate(input, options);
      assert.equal(pieces.join(""), whole.text);
      assert.ok(pieces.length > 1 && pieces.every(Boolean));
      assert.deepEqual(stream.result, whole);
    }
  });

  test("a stop text is cut off, its tokens are not", async () => {
    const found = await model.generate(TEXT, { stop: "lern" });
    assert.equal(found.finishReason, "stop");
    assert.equal(found.text, "Ich möchte Deutsch ");
  });

  test("lists are answered one by one, an empty text by an empty answer", async () => {
    const single = await model.generate(TEXT);
    assert.deepEqual(await model.generate([TEXT, ""]), [single, { text: "", tokens: [], tokenLogprobs: [], score: 0, finishReason: "empty" }]);
    assert.deepEqual(await model.generate([]), []);
  });

  test("calls at the same time do not disturb one another", async () => {
    const texts = [TEXT, "How are you?", "Where is the station?"];
    const alone = await model.generate(texts);
    assert.deepEqual(await Promise.all(texts.map((text) => model.generate(text))), alone);
  });

  test("a signal ends an answer between two tokens, and so does leaving its loop", async () => {
    const control = new AbortController();
    const stream = model.stream(TEXT, { signal: control.signal });
    await assert.rejects(async () => {
      for await (const _ of stream) control.abort();
    }, /AbortError/);
    assert.equal(stream.result, null);
    for await (const _ of model.stream(TEXT)) break;
  });

  test("what cannot be is refused", async () => {
    const refused = [
      [{ temprature: 1 }, UsageError, /temprature is not known, expected some of maxNewTokens/],
      [{ beam: 4 }, UsageError, /beam is not known/],
      [{ temperature: -1 }, UsageError, /temperature is -1, expected a number from/],
      [{ maxNewTokens: 0 }, UsageError, /maxNewTokens is 0, expected a whole number from 1/],
      [{ minNewTokens: 9, maxNewTokens: 3 }, UsageError, /at most maxNewTokens/],
      [{ stop: [""] }, UsageError, /stop is/],
      [{ stopTokenIds: [8000] }, UsageError, /expected ids below 8000/],
      [{ tgtLang: "de" }, UsageError, /names no languages/],
    ];
    for (const [options, kind, message] of refused) {
      await assert.rejects(model.generate(TEXT, options), (error) => error instanceof kind && message.test(error.message));
    }
    await assert.rejects(model.generate([5, 8000]), /8000 is outside the vocabulary of 8000/);
    await assert.rejects(model.generate(Array(257).fill(5)), /257 tokens, the model takes at most 256/);
    await assert.rejects(model.generate("\ud800"), TextError);
    await assert.rejects(model.generate(5), /input is number, expected a text/);
    await assert.rejects(model.chat([{ role: "user", content: "Hello" }]), /no chat template/);
    await assert.rejects(talker.chat([{ role: "user" }]), /message 0 has not both role and content/);
    await assert.rejects(model.encode("Hello"), /task is translation, expected embedding/);
    await assert.rejects(model.run({}), UsageError);
  });
});

test("the types name every option", async () => {
  const types = await readFile(new URL("../src/index.d.ts", import.meta.url), "utf8");
  const typed = (name) => Array.from(types.split(`interface ${name} {`)[1].split("}\n")[0].matchAll(/(\w+)\?:/g), ([, option]) => option);
  const known = (call) => call.then(assert.fail, ({ message }) => message.split("some of ")[1].split(", "));
  const [translator, embedder] = [await load(bundle("translator"), { precision: "fp32" }), await load(bundle("embedder"), { precision: "fp32" })];
  assert.deepEqual(typed("GenerateOptions"), await known(translator.generate(TEXT, { wrong: 1 })));
  assert.deepEqual(typed("EncodeOptions"), await known(embedder.encode(TEXT, { wrong: 1 })));
});

describe("tokenizers", () => {
  for (const [name, texts] of Object.entries(TEXTS)) {
    test(`${name}: ids and texts are those of Python's tokenizers`, async () => {
      const tokenizer = new TextTokenizer(JSON.parse(await readFile(join(bundle(name), "tokenizer.json"), "utf8")), name);
      for (const [text, ids, back] of texts) {
        assert.deepEqual(tokenizer.read(text).ids, ids, text);
        assert.equal(tokenizer.decode(ids), back);
      }
    });
  }
});

describe("bundles", () => {
  let folder;
  const changed = async (change) => {
    const copy = join(folder, "copy");
    await rm(copy, { recursive: true, force: true });
    await cp(bundle("embedder"), copy, { recursive: true });
    await change(copy);
    return copy;
  };
  const manifest = (edit) =>
    changed(async (copy) => {
      const value = JSON.parse(await readFile(join(copy, "bundle.json"), "utf8"));
      edit(value);
      await writeFile(join(copy, "bundle.json"), JSON.stringify(value));
    });
  const flip = (name) =>
    changed(async (copy) => {
      const bytes = await readFile(join(copy, name));
      bytes[bytes.length - 1] ^= 1;
      await writeFile(join(copy, name), bytes);
    });
  before(async () => (folder = await mkdtemp(join(tmpdir(), "onnxport-"))));
  after(() => rm(folder, { recursive: true }));

  test("a changed byte is found where hashes are checked", async () => {
    for (const name of ["int8@web/weights.bin", "tokenizer.json"]) {
      await assert.rejects(load(await flip(name), { precision: "int8", verify: true }), (error) => {
        return error instanceof BundleError && error.message.includes(`${name} has changed`);
      });
    }
  });

  test("a file of another size is found always", async () => {
    const shorter = await changed((copy) => writeFile(join(copy, "tokenizer.json"), "{}"));
    await assert.rejects(load(shorter), /tokenizer.json has 2 bytes, expected/);
  });

  test("foreign manifests are refused", async () => {
    const refused = [
      [(value) => (value.format = 3), /bundle format 3, this module reads up to 2/],
      [(value) => (value.requires = ["generation.magic"]), /requires generation.magic/],
      [(value) => (value.files["../x"] = { bytes: 1, sha256: "" }), /leaves the bundle/],
      [(value) => (value.variants["fp32@web"].min_onnxruntime = "99.1"), /needs ONNX Runtime 99.1, this is/],
      [(value) => delete value.files["tokenizer.json"], /is used but not listed/],
      [(value) => (value.encoding.pooling = "middle"), /pooling is middle/],
    ];
    for (const [edit, message] of refused) await assert.rejects(load(await manifest(edit), { precision: "fp32" }), message);
    await assert.rejects(load(await changed((copy) => writeFile(join(copy, "bundle.json"), "{"))), /not valid JSON/);
    await assert.rejects(load(join(folder, "nothing")), /bundle.json cannot be read \(ENOENT\)/);
  });

  test("a variant that is missing, or made for another device, is named with the command that makes it", async () => {
    await assert.rejects(load(bundle("embedder"), { precision: "int4" }), /has fp32@web, int8@web; make one with: onnxport quantize BUNDLE --precision int4@web/);
    const cuda = await manifest((value) => (value.variants = { fp32: { ...value.variants["fp32@web"], target: "cuda" } }));
    await assert.rejects(load(cuda, { precision: "fp32" }), /variant fp32 is made for cuda, asked for cpu/);
    await assert.rejects(load(bundle("embedder"), { precision: "fp32", device: "webgpu" }), /only language models run there/);
    await assert.rejects(load(bundle("embedder"), { device: "cuda" }), /device is cuda, expected one of cpu, webgpu/);
  });

  test("vectors: one for a text, a list for a list, shorter ones of length 1 where asked", async () => {
    const model = await load(bundle("embedder"), { precision: "fp32" });
    const [one, two] = await model.encode(["Hello.", "Well?"]);
    assert.deepEqual(await model.encode("Hello."), one);
    assert.notDeepEqual(one, two);
    const short = await model.encode("Hello.", { truncateDim: 8, normalize: true });
    assert.equal(short.length, 8);
    assert.ok(Math.abs(Math.hypot(...short) - 1) < 1e-6);
    await assert.rejects(model.encode(" "), /the text is empty/);
    await assert.rejects(model.encode("Hello.", { promptName: "query" }), /this bundle's prompts are: none/);
    await assert.rejects(model.generate("Hello."), /task is embedding, so it generates no text/);
    await model.close();
  });
});
