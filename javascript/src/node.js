/** Bundles in folders, for Node. */
import { createHash } from "node:crypto";
import { createReadStream } from "node:fs";
import { readFile, stat } from "node:fs/promises";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

import { BundleError } from "./errors.js";

export const runtime = () => import("onnxruntime-node");

export class Store {
  /** folder: its path, or a URL of the scheme file. */
  constructor(folder) {
    this.where = String(folder).startsWith("file:") ? fileURLToPath(folder) : String(folder);
  }

  path(name) {
    return join(this.where, name);
  }

  /** A file's bytes. entry: what the manifest says of it; absent for the manifest itself. */
  async read(name, entry) {
    if (entry) await this.check(name, entry);
    return readFile(this.path(name)).catch((error) => this.#refuse(name, error));
  }

  /** BundleError unless the file has the size that the manifest says. */
  async check(name, entry) {
    const found = await stat(this.path(name)).catch((error) => this.#refuse(name, error));
    if (found.size !== entry.bytes) {
      throw new BundleError(`${this.where}: ${name} has ${found.size} bytes, expected ${entry.bytes}; copy or export the bundle again`);
    }
  }

  /** SHA-256 in hexadecimal, read in pieces. */
  async hash(name) {
    const digest = createHash("sha256");
    for await (const piece of createReadStream(this.path(name))) digest.update(piece);
    return digest.digest("hex");
  }

  // Nothing is kept beside the folder.
  async forget() {}
  async tidy() {}

  #refuse(name, error) {
    throw new BundleError(`${this.where}: ${name} cannot be read (${error.code ?? error.message}); give the path of a bundle's folder`);
  }
}
