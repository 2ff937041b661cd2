/** The module answers in Node as Python does, on onnxruntime-node and on onnxruntime-web's WebAssembly. */
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import * as web from "onnxruntime-web";

import { load } from "../src/index.js";
import { ANSWERS, bundle, cosine, distance } from "./answers.js";

const RUNTIMES = { "onnxruntime-node": undefined, "onnxruntime-web": web };
const NEAR = { fp32: 2e-4, fp16: 2e-2, int8: 2e-3 }; // of log-probabilities and numbers of vectors

/** Whether the kernels are those of Python: WebAssembly's do not round activations beside int8 weights, so only clear answers are the same. */
const same = (precision, ort) => precision !== "int8" || !ort;
const clear = ({ call, input, options }, name) => call === "encode" || (name === "translator" && !Object.keys(options).length && /^[ -~]+$/.test(input));

for (const [runtime, ort] of Object.entries(RUNTIMES)) {
  for (const [name, cases] of Object.entries(ANSWERS)) {
    for (const precision of new Set(cases.map((one) => one.precision))) {
      const asked = cases.filter((one) => one.precision === precision && (same(precision, ort) || clear(one, name)));
      describe(`${name}, ${precision}, ${runtime}`, { skip: !asked.length }, () => {
        let model;
        before(async () => (model = await load(bundle(name), { precision, ort, verify: true, threads: 1 })));
        after(() => model.close());
        for (const { call, input, options, answer } of asked) {
          test(`${call} ${JSON.stringify(input).slice(0, 40)} ${JSON.stringify(options)}`, async () => {
            const found = await model[call](input, options);
            const near = same(precision, ort) ? NEAR[precision] : 3e-2;
            if (call === "encode") {
              assert.ok(cosine(found, answer.vector) > 0.999);
              return assert.ok(distance(found, answer.vector) < near);
            }
            if (answer.prompt) assert.deepEqual(model.prompt(input), answer.prompt);
            assert.deepEqual(found.tokens, answer.tokens);
            assert.equal(found.text, answer.text);
            assert.equal(found.finishReason, answer.finishReason);
            assert.equal(found.tokenLogprobs.length, answer.tokens.length);
            assert.ok(distance(found.tokenLogprobs, answer.tokenLogprobs) < near);
          });
        }
      });
    }
  }
}
