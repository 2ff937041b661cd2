/** What stands between pooling and the vector in some embedding models: Dense, LayerNorm, Normalize. Their weights are in an .npz file. */
import { BundleError } from "./errors.js";

const TINY = 1e-12; // of a length that vectors are divided by

/** erf by its series of positive terms (Abramowitz and Stegun, 7.1.6). */
function erf(x) {
  if (Math.abs(x) > 6) return Math.sign(x);
  let [term, sum] = [x, x];
  for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(sum); n++) sum += term *= (2 * x * x) / (2 * n + 1);
  return (2 / Math.sqrt(Math.PI)) * Math.exp(-x * x) * sum;
}

const sigmoid = (x) => 0.5 * (1 + Math.tanh(x / 2));
const ACTIVATIONS = {
  identity: (x) => x,
  tanh: Math.tanh,
  relu: (x) => Math.max(x, 0),
  gelu: (x) => x * 0.5 * (1 + erf(x / Math.SQRT2)),
  sigmoid,
  silu: (x) => x * sigmoid(x),
};

/** A vector of length 1. */
export function unit(vector) {
  const length = Math.max(Math.sqrt(vector.reduce((sum, value) => sum + value * value, 0)), TINY);
  return vector.map((value) => value / length);
}

const product = (x, { data, shape: [, columns] }) => {
  const y = new Float64Array(columns);
  x.forEach((value, i) => y.forEach((_, j) => (y[j] += value * data[i * columns + j])));
  return y;
};
const KINDS = {
  normalize: () => unit,
  norm: ({ eps = 1e-5 }, { weight, bias }) => (x) => {
    const mean = x.reduce((a, b) => a + b) / x.length;
    const scale = Math.sqrt(x.reduce((sum, value) => sum + (value - mean) ** 2, 0) / x.length + eps);
    return x.map((value, i) => ((value - mean) / scale) * weight.data[i] + bias.data[i]);
  },
  dense: ({ activation = "identity", residual: adds = false }, { weight, bias, residual }) => (x) => {
    const y = product(x, weight).map((value, i) => ACTIVATIONS[activation](value + (bias?.data[i] ?? 0)));
    const added = residual ? product(x, residual) : x;
    return adds ? y.map((value, i) => value + added[i]) : y;
  },
};

/** Functions of vectors, for the entries of `encoding.layers`. bytes: of the .npz file. BundleError. */
export async function readLayers(layers, bytes) {
  const arrays = await readNpz(bytes);
  return layers.map((layer, i) => {
    const known = layer.kind in KINDS && (layer.activation ?? "identity") in ACTIVATIONS;
    if (!known) throw new BundleError(`encoding.layers.${i} is ${JSON.stringify(layer)}, which this module cannot do; upgrade onnxport`);
    const own = Object.fromEntries([...arrays].filter(([name]) => name.startsWith(`${i}/`)).map(([name, array]) => [name.split("/")[1], array]));
    const absent = { dense: ["weight"], norm: ["weight", "bias"] }[layer.kind]?.find((name) => !(name in own));
    if (absent) throw new BundleError(`layer ${i} behind the pooling has no ${absent}; export the model again`);
    return KINDS[layer.kind](layer, own);
  });
}

/** Arrays float32 of an .npz file, in a Map: name → { data, shape }. */
async function readNpz(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const [u16, u32] = [(at) => view.getUint16(at, true), (at) => view.getUint32(at, true)];
  const ascii = (from, length) => String.fromCharCode(...bytes.subarray(from, from + length));
  const end = bytes.length - 22; // NumPy writes no comment behind the directory
  const found = new Map();
  if (u32(end) !== 0x06054b50) throw new BundleError("the layers' file is no .npz file; export the model again");
  for (let [at, left] = [u32(end + 16), u16(end + 10)]; left > 0; left--) {
    const [method, size, name, start] = [u16(at + 10), u32(at + 20), ascii(at + 46, u16(at + 28)), u32(at + 42)];
    const from = start + 30 + u16(start + 26) + u16(start + 28);
    found.set(name.replace(/\.npy$/, ""), readNpy(await inflated(bytes.subarray(from, from + size), method)));
    at += 46 + u16(at + 28) + u16(at + 30) + u16(at + 32);
  }
  return found;
}

async function inflated(bytes, method) {
  if (method === 0) return bytes;
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

function readNpy(bytes) {
  const from = 10 + bytes[8] + 256 * bytes[9];
  const header = String.fromCharCode(...bytes.subarray(10, from));
  const shape = header.match(/'shape': \(([^)]*)\)/)?.[1].split(",").filter((size) => size.trim()).map(Number);
  if (bytes[6] !== 1 || !header.includes("'<f4'") || !header.includes("'fortran_order': False") || !shape) {
    throw new BundleError(`the layers' file holds ${header.slice(0, 60)}, expected float32 in rows; export the model again`);
  }
  return { data: new Float32Array(bytes.slice(from).buffer), shape };
}
