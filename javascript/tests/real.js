/**
 * Real bundles in Node and in a headless Chromium beside Python's answers (tests/support/javascript_real.py): `node tests/real.js FOLDER [THREADS]`.
 *
 * A table of how many answers are the same, the largest distance of numbers, and the time; it ends with 1 where an answer differs, or where a
 * stream's pieces do not join to the answer.
 */
import { readFile } from "node:fs/promises";

process.env.ONNXPORT_BUNDLES = process.argv[2];
const threads = Number(process.argv[3] ?? 2);
const { chromium: playwright } = await import("playwright-core");
const web = await import("onnxruntime-web");
const { load } = await import("../src/index.js");
const { TextTokenizer } = await import("../src/tokenizer.js");
const { ANSWERS, TEXTS, bundle, distance } = await import("./answers.js");
const { chromium } = await import("./chromium.js");
const { serve } = await import("./server.js");

/** Answers of a model to cases, with seconds to load and to answer. It runs in the page too. */
async function answers([load, place, options, cases]) {
  const begun = performance.now();
  const model = await load(place, options);
  const loaded = performance.now();
  const found = [];
  for (const { call, input, options } of cases) found.push(await model[call](input, options));
  const done = performance.now();
  const streamed = cases[0].call === "encode" ? [] : [0, cases.length - 1]; // of a language model ids and, where it talks, a conversation
  for (const i of streamed) {
    let text = "";
    for await (const piece of model.stream(cases[i].input, cases[i].options)) text += piece;
    if (text !== found[i].text) throw new Error(`a stream wrote ${JSON.stringify(text)}, the answer is ${JSON.stringify(found[i].text)}`);
  }
  await model.close();
  return { found: found.map((one) => (one instanceof Float32Array ? { vector: [...one] } : one)), load: loaded - begun, answer: done - loaded };
}

let failed = false;
const sameTokens = (one, other) => one.text === other.text && String(one.tokens) === String(other.tokens);

/**
 * A row of the table. Every answer must be Python's. WebAssembly's kernels do not round activations beside int8 weights: there it must be
 * Python's without that rounding, and the tokens that are Python's with it are counted too.
 */
function tell(name, precision, where, cases, { found, load, answer }) {
  const encodes = cases[0].call === "encode";
  const rounded = precision === "int8" && !where.endsWith("onnxruntime-node");
  const expected = cases.map(({ answer, unrounded }) => (rounded && unrounded) || answer);
  const numbers = (one) => one.vector ?? one.tokenLogprobs;
  const far = cases.map((_, i) => distance(numbers(found[i]), numbers(expected[i])));
  const same = cases.map((_, i) => (encodes ? far[i] < (precision === "fp32" ? 2e-4 : 2e-3) : sameTokens(expected[i], found[i])));
  const besides = rounded && !encodes ? `, with Python's rounding ${cases.filter(({ answer }, i) => sameTokens(answer, found[i])).length}` : "";
  const count = encodes ? found.length : found.reduce((sum, one) => sum + one.tokens.length, 0);
  const rate = `${((1000 * count) / answer).toFixed(1)} ${encodes ? "texts" : "tokens"}/s`;
  const told = encodes || same.every(Boolean) ? Math.max(...far).toExponential(1) : "";
  console.log(`| ${name} ${precision} | ${where} | ${same.filter(Boolean).length} of ${cases.length}${besides} | ${told} | ${(load / 1000).toFixed(1)} s | ${rate} |`);
  same.forEach((one, i) => {
    if (!one && !encodes) console.error(`${JSON.stringify(cases[i].input)}: ${JSON.stringify(found[i].text)}, Python: ${JSON.stringify(expected[i].text)}`);
  });
  failed ||= !same.every(Boolean);
}

/** Ids and texts of a bundle's tokenizer are Python's. */
async function tokenizers(name) {
  const tokenizer = new TextTokenizer(JSON.parse(await readFile(`${bundle(name)}/tokenizer.json`, "utf8")), name);
  const same = TEXTS[name].filter(([text, ids, back]) => String(tokenizer.read(text).ids) === String(ids) && tokenizer.decode(ids) === back);
  console.error(`${name}: ${same.length} of ${TEXTS[name].length} texts have Python's ids, and these Python's text`);
  failed ||= same.length < TEXTS[name].length;
}

const executablePath = chromium();
const server = await serve();
const browser = await playwright.launch({ executablePath, args: ["--no-sandbox"] });
const page = await browser.newPage();
await page.goto(`${server.url}/javascript/tests/wasm.html`);
console.log("| bundle | where | same answers | largest distance | load | speed |\n| --- | --- | --- | --- | --- | --- |");
for (const [name, all] of Object.entries(ANSWERS)) {
  await tokenizers(name);
  for (const precision of new Set(all.map((one) => one.precision))) {
    const cases = all.filter((one) => one.precision === precision);
    tell(name, precision, "Node, onnxruntime-node", cases, await answers([load, bundle(name), { precision, threads, verify: true }, cases]));
    tell(name, precision, "Node, onnxruntime-web", cases, await answers([load, bundle(name), { precision, ort: web, threads }, cases]));
    const body = `async ([place, options, cases]) => (${answers})([(await import("onnxport")).load, place, options, cases])`;
    const found = await page.evaluate(`(${body})(${JSON.stringify([`/bundles/${name}`, { precision, verify: true }, cases])})`);
    tell(name, precision, "Chromium, WebAssembly", cases, found);
  }
}
await browser.close();
await server.close();
process.exit(failed ? 1 : 0);
