/** A bundle: its manifest, its files, and the sessions of its graphs. */
import { BundleError, UsageError } from "./errors.js";

const FORMAT = 2;
const MANIFEST = "bundle.json";
// What of `requires` this module knows; a bundle that requires something else would be answered wrongly.
const KNOWN = new Set([
  "encoding.default_prompt",
  "encoding.layers",
  "encoding.lower",
  "encoding.truncate_dim",
  "generation.caches",
  "generation.encoder_no_repeat_ngram",
  "generation.max_total_tokens",
  "generation.min_total_tokens",
  "variants.whole_caches",
]);

export class Bundle {
  #store;
  #ort;
  #verify;
  #checked = new Map();

  constructor(store, ort, manifest, verify) {
    [this.#store, this.#ort, this.#verify] = [store, ort, verify];
    this.manifest = manifest;
    this.where = store.where;
  }

  /** Read and check a manifest. verify: check the hash of every file that is read. BundleError. */
  static async open(store, ort, verify) {
    const raw = await store.read(MANIFEST);
    let manifest;
    try {
      manifest = JSON.parse(new TextDecoder().decode(raw));
    } catch (error) {
      throw new BundleError(`${store.where}: ${MANIFEST} is not valid JSON (${error.message}); export the model again`);
    }
    if (!(manifest.format >= 1 && manifest.format <= FORMAT)) {
      throw new BundleError(`${store.where}: bundle format ${manifest.format}, this module reads up to ${FORMAT}; upgrade onnxport`);
    }
    const unknown = (manifest.requires ?? []).filter((name) => !KNOWN.has(name));
    if (unknown.length) {
      throw new BundleError(`${store.where}: the bundle requires ${unknown.join(", ")}, which this module cannot do; use Python's onnxport`);
    }
    for (const name of Object.keys(manifest.files)) {
      if (!name || name.startsWith("/") || /[\\:\0]/.test(name) || name.split("/").includes("..")) {
        throw new BundleError(`${store.where}: path ${JSON.stringify(name)} leaves the bundle; do not use this bundle`);
      }
    }
    await store.tidy(manifest.files);
    return new Bundle(store, ort, manifest, verify);
  }

  /** The variant of a precision, as { name, ...entry }: for the web where there is one, else one that this ONNX Runtime has all kernels of. */
  variant(precision, device) {
    const { variants } = this.manifest;
    const asked = precision ?? this.manifest.default.split("@")[0];
    const name = [`${asked}@web`, asked].find((one) => one in variants);
    const makes = `make one with: onnxport quantize BUNDLE --precision ${asked.split("@")[0]}@web`;
    if (!name) throw new UsageError(`precision is ${JSON.stringify(asked)}, this bundle has ${Object.keys(variants).join(", ")}; ${makes}`);
    const variant = { name, ...variants[name] };
    if (variant.target !== "web" && variant.target !== "any" && (variant.target !== "cpu" || device !== "cpu")) {
      throw new UsageError(`variant ${name} is made for ${variant.target}, asked for ${device}; ${makes}`);
    }
    const found = this.#ort.env.versions.node ?? this.#ort.env.versions.web;
    if (variant.min_onnxruntime && older(found, variant.min_onnxruntime)) {
      throw new BundleError(`variant ${name} needs ONNX Runtime ${variant.min_onnxruntime}, this is ${found}; ${makes}`);
    }
    return variant;
  }

  /** A file's bytes, as the manifest lists it. BundleError. */
  async bytes(name) {
    const entry = this.#entry(name);
    const bytes = await this.#store.read(name, entry);
    if (this.#verify) await this.#hash(name, entry, bytes);
    return bytes;
  }

  async text(name) {
    return new TextDecoder("utf-8", { fatal: true }).decode(await this.bytes(name));
  }

  /** A session, whose runs have their turns with those of all others. variant: whose files the graph may read its weights from. kept: those that other graphs read too, name → bytes. */
  async session(graph, options, variant, kept = new Map()) {
    const folder = graph.slice(0, graph.lastIndexOf("/") + 1);
    const weights = (variant?.files ?? []).filter((name) => name.startsWith(folder) && !/\.(onnx|json)$/.test(name));
    if (this.#ort.env.versions.node) {
      // onnxruntime-node maps the files itself
      for (const name of [graph, ...weights]) await this.#check(name);
      return inTurns(() => this.#ort.InferenceSession.create(this.#store.path(graph), options));
    }
    for (const name of weights) if (!kept.has(name)) kept.set(name, await this.bytes(name));
    const externalData = weights.map((name) => ({ path: name.slice(folder.length), data: kept.get(name) }));
    const content = await this.bytes(graph);
    return inTurns(() => this.#ort.InferenceSession.create(content, { ...options, externalData }));
  }

  async #check(name) {
    const entry = this.#entry(name);
    await this.#store.check(name, entry);
    if (this.#verify) await this.#hash(name, entry);
  }

  async #hash(name, entry, bytes) {
    if (!this.#checked.has(name)) this.#checked.set(name, await this.#store.hash(name, bytes));
    if (this.#checked.get(name) === entry.sha256) return;
    await this.#store.forget(name, entry);
    throw new BundleError(`${this.where}: ${name} has changed, its SHA-256 is not the one in ${MANIFEST}; copy or export the bundle again`);
  }

  #entry(name) {
    const entry = this.manifest.files[name];
    if (!entry) throw new BundleError(`${this.where}: ${JSON.stringify(name)} is used but not listed under files; export the model again`);
    return entry;
  }
}

// ONNX Runtime's WebAssembly can be in one call at a time, whatever the session.
let last = Promise.resolve();

function inTurn(work) {
  const done = last.then(work);
  last = done.catch(() => {});
  return done;
}

/** The session that `create` makes. */
async function inTurns(create) {
  const session = await inTurn(create);
  const { inputNames, inputMetadata } = session;
  return { inputNames, inputMetadata, run: (...feeds) => inTurn(() => session.run(...feeds)), release: () => inTurn(() => session.release()) };
}

function older(found, needed) {
  const [a, b] = [found, needed].map((version) => version.split(".").map(Number));
  for (let i = 0; i < b.length; i++) if ((a[i] ?? 0) !== b[i]) return (a[i] ?? 0) < b[i];
  return false;
}
