/** Bundles that tests/support/javascript_bundles.py made, and what Python answers from them. */
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";

export const FOLDER = process.env.ONNXPORT_BUNDLES ?? fileURLToPath(new URL("../../build/javascript", import.meta.url));
export const ANSWERS = JSON.parse(readFileSync(`${FOLDER}/answers.json`, "utf8"));
export const TEXTS = JSON.parse(readFileSync(`${FOLDER}/texts.json`, "utf8"));
export const bundle = (name) => `${FOLDER}/${name}`;

/** The largest difference between two lists of numbers. */
export const distance = (a, b) => Math.max(0, ...Array.from(b, (value, i) => Math.abs(value - a[i])));

/** The cosine of two vectors. */
export function cosine(a, b) {
  const product = (x, y) => x.reduce((sum, value, i) => sum + value * y[i], 0);
  return product(a, b) / Math.sqrt(product(a, a) * product(b, b));
}
