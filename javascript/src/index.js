/** Runs onnxport's bundles in Node and in browsers. See README.md, and docs/graphs.md for what is beneath. */
import { Template } from "@huggingface/jinja";

import { Bundle } from "./bundle.js";
import { Embedder } from "./embedding.js";
import { Engine } from "./engine.js";
import { BundleError, TextError, UsageError } from "./errors.js";
import { Generator, Stream } from "./generation.js";
import { TextTokenizer } from "./tokenizer.js";

export { BundleError, OnnxportError, TextError, UsageError } from "./errors.js";

const DEVICES = { cpu: { node: "cpu", web: "wasm" }, webgpu: { node: "webgpu", web: "webgpu" } };

/**
 * Load a bundle: the path of its folder in Node, its URL in browsers.
 *
 * precision: a variant's name; for `int8` the variant `int8@web` is taken where there is one. By default the bundle's own.
 * device: "cpu" (in browsers WebAssembly) or "webgpu". threads: of one operator. verify: check the hash of every file that is read.
 * cache: in browsers, keep files in the Cache API (true). progress: in browsers, called with { file, loaded, total } as files arrive.
 * ort: another ONNX Runtime than the imported onnxruntime-node or onnxruntime-web.
 * Errors: BundleError, UsageError.
 */
export async function load(location, { precision, device = "cpu", threads, verify = false, cache = true, progress, ort } = {}) {
  if (!(device in DEVICES)) throw new UsageError(`device is ${device}, expected one of ${Object.keys(DEVICES).join(", ")}`);
  const inNode = Boolean(globalThis.process?.versions?.node);
  const place = await (inNode ? import("./node.js") : import("./browser.js"));
  ort ??= await place.runtime();
  const bundle = await Bundle.open(new place.Store(location, { cache, progress }), ort, verify);
  const variant = bundle.variant(precision, device);
  if (device === "webgpu" && bundle.manifest.generation?.kind !== "causal" && bundle.manifest.task !== "tensor") {
    throw new UsageError("ONNX Runtime's attention takes no padding mask on WebGPU, so only language models run there; use device cpu");
  }
  const provider = DEVICES[device][ort.env.versions.node ? "node" : "web"];
  const options = { executionProviders: [provider], logSeverityLevel: 3, ...(threads ? { intraOpNumThreads: threads } : {}) };
  if (threads && ort.env.wasm) ort.env.wasm.numThreads = threads;
  const tokenizers = {};
  for (const [role, name] of Object.entries(bundle.manifest.tokenizers ?? {})) {
    const same = Object.entries(bundle.manifest.tokenizers).find(([other, path]) => path === name && tokenizers[other]);
    tokenizers[role] = same ? tokenizers[same[0]] : new TextTokenizer(JSON.parse(await bundle.text(name)), `${bundle.where}: ${name}`);
  }
  const { chat, generation } = bundle.manifest;
  const template = chat ? { text: await bundle.text(chat.template), tokens: chat.tokens } : null;
  if (generation) {
    const engine = await Engine.open(ort, bundle, variant, options, device);
    return new Model(bundle, variant, { generator: new Generator(engine, tokenizers.source, tokenizers.target), template });
  }
  const role = ["model", "encoder"].find((name) => name in variant.graphs);
  if (!role) throw new BundleError(`${bundle.where}: variant ${variant.name} has neither a model nor an encoder graph; export the model again`);
  const session = await bundle.session(variant.graphs[role], options, variant);
  const embedder = bundle.manifest.task === "embedding" && tokenizers.source ? await Embedder.open(ort, bundle, session, tokenizers.source) : null;
  return new Model(bundle, variant, { session, embedder });
}

/** A loaded variant of a bundle. */
export class Model {
  #generator;
  #template;
  #session;
  #embedder;

  constructor(bundle, variant, { generator, template, session, embedder }) {
    [this.#generator, this.#template, this.#session, this.#embedder] = [generator, template, session, embedder];
    this.task = bundle.manifest.task;
    this.precision = variant.name;
    this.manifest = bundle.manifest;
  }

  /**
   * The answer to an input: { text, tokens, tokenLogprobs, score, finishReason }. Of a list of inputs, a list of answers.
   *
   * An input is a text, a list of token ids, or a conversation, a list of { role, content }. Greedy, unless temperature, topK or topP are
   * given, or are the model's own. Options: maxNewTokens, minNewTokens, temperature, topK, topP, repetitionPenalty, noRepeatNgram, seed
   * (the same draws as Python's for one input), stop, stopTokenIds, srcLang, tgtLang, signal (an AbortSignal).
   */
  async generate(input, options = {}) {
    const generator = this.#generating();
    if (!isList(input)) return generator.generate(this.#single(input), options);
    const answers = [];
    for (const one of input) answers.push(await generator.generate(this.#single(one), options));
    return answers;
  }

  /** The pieces of one answer's text, for `for await`; afterwards `result` of what is returned is the whole answer. Options as above. */
  stream(input, options = {}) {
    return new Stream(this.#generating(), this.#single(input), options);
  }

  /** The next answer of a conversation, by the bundle's chat template. messages: a list of { role, content }. */
  async chat(messages, options = {}) {
    return this.#generating().generate(this.prompt(messages), options);
  }

  /** The token ids that the model is given for a conversation. */
  prompt(messages) {
    const { source } = this.#generating();
    if (!this.#template || !source) throw new UsageError("this bundle has no chat template; use generate with a text");
    const wrong = Array.isArray(messages) && messages.length ? messages.findIndex((one) => !isMessage(one)) : 0;
    if (wrong >= 0) throw new TextError(`message ${wrong} has not both role and content as texts; give a list of { role, content }`);
    let text;
    try {
      const template = new Template(this.#template.text);
      text = template.render({ messages, tools: null, documents: null, add_generation_prompt: true, ...this.#template.tokens });
    } catch (error) {
      throw new TextError(`the chat template refuses these messages (${error.message}); change them, or use generate`);
    }
    return source.read(text, false).ids;
  }

  /** The vector of a text, a Float32Array; of a list of texts, a list of vectors. Options: prompt, promptName, normalize, truncateDim. */
  async encode(texts, options = {}) {
    if (!this.#embedder) throw new UsageError(`this bundle's task is ${this.task}, expected embedding; use generate or run`);
    if (!Array.isArray(texts)) return this.#embedder.encode(texts, options);
    const vectors = [];
    for (const text of texts) vectors.push(await this.#embedder.encode(text, options));
    return vectors;
  }

  /** Outputs by name for tensors by name, of a model that answers in one pass. */
  async run(feeds) {
    if (!this.#session) throw new UsageError("this bundle generates; use generate or stream");
    return this.#session.run(feeds);
  }

  /** Free the sessions. */
  async close() {
    await this.#generator?.engine.release();
    await this.#session?.release();
  }

  #single(input) {
    if (typeof input === "string") return input;
    if (Array.isArray(input) || ArrayBuffer.isView(input)) return isMessage(input[0]) ? this.prompt(input) : input;
    throw new TextError(`input is ${input === null ? "null" : typeof input}, expected a text, a list of token ids, or a list of messages`);
  }

  #generating() {
    if (!this.#generator) throw new UsageError(`this bundle's task is ${this.task}, so it generates no text; use encode or run`);
    return this.#generator;
  }
}

const isMessage = (value) => typeof value?.role === "string" && typeof value.content === "string";
/** Whether a list holds several inputs, not token ids or messages. */
const isList = (input) => Array.isArray(input) && (!input.length || typeof input[0] === "string" || Array.isArray(input[0]));
