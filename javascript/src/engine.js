/** The graphs of a model that generates, and the caches of an answer that grows. One row at a time; docs/graphs.md tells the inputs. */
import { BundleError } from "./errors.js";

const STEP = 64; // positions that a cache's growth is rounded up to
const FIRST_POSITIONS = 64; // room for new ones at first; then the cache doubles
const ARRAYS = { float32: Float32Array, float16: Uint16Array, int8: Int8Array };

/** Tensors of one ONNX Runtime. */
export const tensors = ({ Tensor }) => ({
  int64: (values, shape) => new Tensor("int64", BigInt64Array.from(values, BigInt), shape ?? [values.length]),
  int32: (values, shape) => new Tensor("int32", Int32Array.from(values), shape ?? [values.length]),
  float: (values, shape) => new Tensor("float32", Float32Array.from(values), shape ?? [values.length]),
  zeros: (type, shape) => new Tensor(type, new ARRAYS[type](shape.reduce((a, b) => a * b, 1)), shape),
});

export class Engine {
  #search = new Map();

  constructor(ort, bundle, variant, sessions, options) {
    const g = bundle.manifest.generation;
    Object.assign(this, { ort, bundle, options, config: g, ...sessions, make: tensors(ort), seq2seq: g.kind === "seq2seq" });
    const whole = Boolean(variant.whole_caches);
    const layers = g.caches ?? Array.from({ length: g.layers }, () => [g.kv_heads, g.head_size, g.window ?? null]);
    this.caches = layers.flatMap(([heads, size, window], i) =>
      ["key", "value"].map((part) => ({ past: `past_${part}_${i}`, present: `present_${part}_${i}`, heads, size, window: whole ? null : window })),
    );
    const types = new Map(this.decoder.inputMetadata.map(({ name, type }) => [name, type]));
    this.type = types.get(this.caches[0].past);
    if (!(this.type in ARRAYS)) throw new BundleError(`variant ${variant.name}: its cache is ${this.type}, expected ${Object.keys(ARRAYS).join(", ")}`);
    this.reads = new Set(this.decoder.inputNames);
    this.inPlace = Boolean(ort.env.versions.node); // only there an output can be written where an input was
  }

  /** device: "webgpu" keeps caches in the memory of the GPU. */
  static async open(ort, bundle, variant, options, device) {
    const { kind, layers } = bundle.manifest.generation;
    const kept = new Map();
    const open = (role, more) => bundle.session(graph(bundle, variant, role), { ...options, ...more }, variant, kept);
    const encoder = kind === "seq2seq" ? await open("encoder") : null;
    const presents = ["key", "value"].flatMap((part) => Array.from({ length: layers }, (_, i) => `present_${part}_${i}`));
    const preferredOutputLocation = Object.fromEntries(presents.map((name) => [name, "gpu-buffer"]));
    const decoder = await open("decoder", device === "webgpu" ? { preferredOutputLocation } : {});
    return new Engine(ort, bundle, variant, { encoder, decoder }, options);
  }

  /** Keys and values of a source, as the decoder reads them. */
  async encode(ids) {
    const source_mask = this.make.int32(ids.map(() => 1), [1, ids.length]);
    const cross = await this.encoder.run({ input_ids: this.make.int64(ids, [1, ids.length]), source_mask });
    return { ...cross, source_mask };
  }

  /** Run a search graph of the bundle. */
  async search(name, feeds) {
    const path = this.bundle.manifest.search?.[name];
    if (!path) throw new BundleError(`${this.bundle.where}: no search graph ${name}; export the model again`);
    if (!this.#search.has(name)) this.#search.set(name, this.bundle.session(path, { logSeverityLevel: this.options.logSeverityLevel }));
    return (await this.#search.get(name)).run(feeds);
  }

  async release() {
    const found = [this.encoder, this.decoder, ...(await Promise.all(this.#search.values()))];
    await Promise.all(found.map((session) => session?.release()));
  }
}

/** The decoder behind a text: its cache, and how much of that is filled. */
export class State {
  #engine;
  #cross;
  #past;
  #capacity;
  #length = 0;

  /** room: positions that are expected at least. */
  constructor(engine, cross, room) {
    [this.#engine, this.#cross] = [engine, cross];
    this.#capacity = rounded(room + FIRST_POSITIONS);
    this.#past = engine.caches.map((cache) => engine.make.zeros(engine.type, this.#shape(cache)));
  }

  /** Run ids behind what was run before; gives `token`, `logprob`, `kept` and with `logits` also these, of the last of them. */
  async run(ids, suppressed, logits) {
    const engine = this.#engine;
    const { int64, int32 } = engine.make;
    const [before, after] = [this.#length, this.#length + ids.length];
    if (after > this.#capacity && engine.caches.some(({ window }) => !window)) await this.#grow(Math.max(2 * this.#capacity, after));
    const feeds = {
      ...this.#cross,
      input_ids: int64(ids, [1, ids.length]),
      position_ids: int64(Array.from(ids, (_, i) => before + i), [1, ids.length]),
      logits_index: int64([ids.length - 1]),
      seqlens_k: int32([after - 1]),
      total_sequence_length: int32([after], []),
      query_seqlens: int32([ids.length]),
      candidates: int64([1]),
      suppressed: int64(suppressed),
    };
    for (const name in feeds) if (!engine.reads.has(name)) delete feeds[name];
    const fetches = { token: null, logprob: null, kept: null, ...(logits ? { logits: null } : {}) };
    engine.caches.forEach(({ past, present }, i) => {
      feeds[past] = this.#past[i];
      fetches[present] = engine.inPlace ? this.#past[i] : null;
    });
    const found = await engine.decoder.run(feeds, fetches);
    if (!engine.inPlace) {
      this.release();
      this.#past = engine.caches.map(({ present }) => found[present]);
    }
    this.#length = after;
    return found;
  }

  release() {
    this.#past.forEach(freed);
  }

  #shape({ heads, size, window }) {
    return [1, heads, window ?? this.#capacity, size];
  }

  async #grow(capacity) {
    const old = this.#capacity;
    this.#capacity = rounded(capacity);
    for (const [i, cache] of this.#engine.caches.entries()) {
      if (cache.window) continue;
      const data = await this.#past[i].getData();
      const grown = this.#engine.make.zeros(this.#engine.type, this.#shape(cache));
      for (let head = 0; head < cache.heads; head++) {
        const from = head * old * cache.size;
        grown.data.set(data.subarray(from, from + this.#length * cache.size), head * this.#capacity * cache.size);
      }
      freed(this.#past[i]);
      this.#past[i] = grown;
    }
  }
}

function graph(bundle, variant, role) {
  const found = variant.graphs[role];
  if (!found) throw new BundleError(`${bundle.where}: variant ${variant.name} has no ${role} graph; export the model again`);
  return found;
}

/** What lies outside of JavaScript's memory does not go by itself. */
function freed(tensor) {
  if (tensor.location !== "cpu") tensor.dispose();
}

const rounded = (capacity) => Math.ceil(capacity / STEP) * STEP;
