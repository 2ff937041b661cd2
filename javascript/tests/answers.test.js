/** The module answers in Node as Python does, on onnxruntime-node and on onnxruntime-web's WebAssembly. */
import assert from "node:assert/strict";
import { after, before, describe, test } from "node:test";
import * as web from "onnxruntime-web";

import { load } from "../src/index.js";
import { ANSWERS, bundle, cosine, distance } from "./answers.js";

const RUNTIMES = { "onnxruntime-node": undefined, "onnxruntime-web": web };
const NEAR = { fp32: 2e-4, fp16: 2e-2, int8: 2e-3 }; // of log-probabilities and numbers of vectors

/** Python's answer to a case; on WebAssembly that without rounded activations, which its kernels do not have beside int8 weights. */
const expected = ({ answer, unrounded }, ort) => (ort && unrounded) || answer;

for (const [runtime, ort] of Object.entries(RUNTIMES)) {
  for (const [name, cases] of Object.entries(ANSWERS)) {
    for (const precision of new Set(cases.map((one) => one.precision))) {
      const asked = cases.filter((one) => one.precision === precision);
      describe(`${name}, ${precision}, ${runtime}`, () => {
        let model;
        before(async () => (model = await load(bundle(name), { precision, ort, verify: true, threads: 1 })));
        after(() => model.close());
        for (const one of asked) {
          const { call, input, options } = one;
          const answer = expected(one, ort);
          test(`${call} ${JSON.stringify(input).slice(0, 40)} ${JSON.stringify(options)}`, async () => {
            const found = await model[call](input, options);
            const near = NEAR[precision];
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
