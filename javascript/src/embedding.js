/** Embeddings: what stands behind a Transformer in sentence-transformers. */
import { BundleError, OnnxportError, TextError, UsageError } from "./errors.js";
import { tensors } from "./engine.js";
import { readLayers, unit } from "./layers.js";
import { check } from "./options.js";

const STATE = "last_hidden_state";
const SHARED = 128; // tokens that neighbouring windows of a long text share, at most half a window

const weighted = (hidden, weights, total) => {
  const sum = new Float64Array(hidden[0].length);
  hidden.forEach((row, i) => row.forEach((value, j) => (sum[j] += value * weights[i])));
  return sum.map((value) => value / total);
};
// hidden states, a row a token, and the place of the first of them in its text → a vector; as in sentence-transformers
const POOL = {
  mean: (hidden) => weighted(hidden, hidden.map(() => 1), hidden.length),
  cls: (hidden) => Float64Array.from(hidden[0]),
  last: (hidden) => Float64Array.from(hidden.at(-1)),
  max: (hidden) => Float64Array.from(hidden[0], (_, j) => hidden.reduce((most, row) => Math.max(most, row[j]), -Infinity)),
  mean_sqrt_len: (hidden) => weighted(hidden, hidden.map(() => 1), Math.sqrt(hidden.length)),
  weightedmean: (hidden, first) => {
    const weights = hidden.map((_, i) => first + i + 1);
    return weighted(hidden, weights, weights.reduce((a, b) => a + b));
  },
};
const TEXT = [(value) => typeof value === "string", "a text"];
const OPTIONS = {
  prompt: TEXT,
  promptName: TEXT,
  normalize: [(value) => typeof value === "boolean", "true or false"],
  truncateDim: [(value) => Number.isSafeInteger(value) && value > 0, "a whole number from 1"],
};

export class Embedder {
  /** session: of the bundle's one graph. layers: functions of vectors behind the pooling. */
  constructor(ort, bundle, session, tokenizer, layers) {
    this.config = bundle.manifest.encoding ?? {};
    this.poolings = (this.config.pooling ?? "mean").split("+");
    const unknown = this.poolings.find((name) => !(name in POOL));
    if (unknown) throw new BundleError(`encoding.pooling is ${unknown}, expected one of ${Object.keys(POOL).join(", ")}; upgrade onnxport`);
    Object.assign(this, { make: tensors(ort), session, tokenizer, layers });
  }

  static async open(ort, bundle, session, tokenizer) {
    const { encoding, layers } = bundle.manifest;
    const found = encoding?.layers?.length ? await readLayers(encoding.layers, await bundle.bytes(layers)) : [];
    return new Embedder(ort, bundle, session, tokenizer, found);
  }

  /** The vector of a text, Float32Array. A text that is longer than the model is read in windows, whose means count by their tokens. */
  async encode(text, options) {
    check(options, OPTIONS);
    if (typeof text !== "string") throw new TextError(`input is ${typeof text}, expected a text`);
    if (!text.trim()) throw new TextError("the text is empty, expected some words; leave it out");
    const { config } = this;
    const prefix = options.prompt ?? this.#prompt(options.promptName ?? config.default_prompt);
    const whole = prefix + text;
    const skip = config.include_prompt === false && prefix ? this.#promptTokens(prefix) : 0;
    const windows = this.#windows(config.lower ? whole.toLowerCase() : whole);
    const parts = [];
    let tokens = 0;
    for (const [i, window] of windows.entries()) {
      const first = i === 0 ? skip : 0;
      const count = window.ids.length - first;
      if (count < 1) throw new TextError(`the prompt has ${first} tokens, which leaves no room for a text in ${window.ids.length}; shorten it`);
      const hidden = (await this.#hidden(window)).slice(first);
      parts.push(this.poolings.flatMap((name) => [...POOL[name](hidden, first)]).map((value) => value * count));
      tokens += count;
    }
    let vector = weighted(parts, parts.map(() => 1), tokens);
    for (const layer of this.layers) vector = layer(vector);
    if (config.normalize ?? true) vector = unit(vector);
    vector = vector.slice(0, options.truncateDim ?? config.truncate_dim ?? undefined);
    return Float32Array.from(options.normalize ? unit(vector) : vector);
  }

  #prompt(name) {
    if (name == null) return "";
    const prompts = this.config.prompts ?? {};
    if (!(name in prompts)) throw new UsageError(`promptName is ${name}, this bundle's prompts are: ${Object.keys(prompts).join(", ") || "none"}`);
    return prompts[name];
  }

  /** Tokens of a prompt with the special tokens before it, not those behind it. */
  #promptTokens(prompt) {
    const text = this.config.lower ? prompt.toLowerCase() : prompt;
    const [whole, bare] = [this.tokenizer.read(text).ids, this.tokenizer.read(text, false).ids];
    return whole.length - (whole.length > bare.length && whole.at(-1) !== bare.at(-1) ? 1 : 0);
  }

  /** A text as the model reads it, in as many windows as it takes. */
  #windows(text) {
    const whole = this.tokenizer.read(text);
    const most = this.config.max_length ?? Infinity;
    if (whole.ids.length <= most) return [whole];
    const bare = this.tokenizer.read(text, false).ids;
    const special = whole.ids.length - bare.length;
    let before = 0; // special tokens before the text
    while (!bare.every((id, i) => id === whole.ids[before + i])) before++;
    const room = most - special;
    const step = room - Math.min(SHARED, room >> 1);
    const windows = [];
    for (let start = 0, end = 0; end < bare.length; start += step) {
      end = Math.min(start + room, bare.length);
      const ids = [...whole.ids.slice(0, before), ...bare.slice(start, end), ...whole.ids.slice(before + bare.length)];
      windows.push({ ids, types: ids.map(() => 0) });
    }
    return windows;
  }

  /** The hidden states of a window, a Float32Array a token. */
  async #hidden({ ids, types }) {
    const shape = [1, ids.length];
    const known = {
      input_ids: ids,
      attention_mask: ids.map(() => 1),
      token_type_ids: (this.config.kinds ?? true) && types ? types : ids.map(() => this.config.pad_type_id ?? 0),
    };
    const unknown = this.session.inputNames.find((name) => !(name in known));
    if (unknown) throw new UsageError(`the model reads ${unknown}, which texts do not give; use run`);
    const feeds = Object.fromEntries(this.session.inputNames.map((name) => [name, this.make.int64(known[name], shape)]));
    const { data, dims } = (await this.session.run(feeds, [STATE]))[STATE];
    if (!data.every(Number.isFinite)) throw new OnnxportError("the model answers NaN or infinity; try another precision, such as fp32");
    return Array.from(ids, (_, i) => data.subarray(i * dims[2], (i + 1) * dims[2]));
  }
}
