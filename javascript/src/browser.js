/** Bundles behind URLs, for browsers: fetched once, then kept in the Cache API under their hashes. */
import { BundleError } from "./errors.js";

export const CACHE = "onnxport";
export const runtime = () => import("onnxruntime-web");

export class Store {
  #cache;
  #progress;

  /** url: the bundle's folder. cache: keep files. progress: called with {file, loaded, total}, in bytes, as files arrive. */
  constructor(url, { cache = true, progress } = {}) {
    this.where = new URL(url, globalThis.location?.href).href.replace(/\/*$/, "/");
    this.#progress = progress;
    // Outside of secure contexts (https, localhost) there is no Cache API: files are fetched anew.
    this.#cache = cache && globalThis.caches ? caches.open(CACHE).catch(() => null) : null;
  }

  /** A file's bytes. entry: what the manifest says of it; absent for the manifest itself, which is never kept. */
  async read(name, entry) {
    const url = this.#url(name);
    if (!entry) return this.#bytes(name, await this.#fetch(url, { cache: "no-cache" }));
    const cache = await this.#cache;
    const key = `${url}?sha256=${entry.sha256}`;
    const kept = await cache?.match(key);
    if (kept) {
      const bytes = new Uint8Array(await kept.arrayBuffer());
      this.#progress?.({ file: name, loaded: bytes.length, total: entry.bytes });
      if (bytes.length === entry.bytes) return bytes;
    }
    const bytes = await this.#bytes(name, await this.#fetch(url, {}), entry.bytes);
    if (bytes.length !== entry.bytes) {
      throw new BundleError(`${this.where}: ${name} has ${bytes.length} bytes, expected ${entry.bytes}; publish the bundle again`);
    }
    await cache?.put(key, new Response(bytes)).catch(() => {}); // no room: it is fetched again next time
    return bytes;
  }

  /** Keep a file no longer. */
  async forget(name, entry) {
    await (await this.#cache)?.delete(`${this.#url(name)}?sha256=${entry.sha256}`);
  }

  /** SHA-256 of bytes in hexadecimal. */
  async hash(name, bytes) {
    if (!globalThis.crypto?.subtle) {
      throw new BundleError(`${this.where}: hashes can be checked in secure contexts only; serve the page by https or from localhost`);
    }
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  }

  /** Forget files of this folder that are no longer in it. files: those of the manifest. */
  async tidy(files) {
    const cache = await this.#cache;
    const known = new Set(Object.entries(files).map(([name, entry]) => `${this.#url(name)}?sha256=${entry.sha256}`));
    for (const { url } of (await cache?.keys()) ?? []) {
      if (url.startsWith(this.where) && !known.has(url)) await cache.delete(url);
    }
  }

  #url(name) {
    return this.where + name.split("/").map(encodeURIComponent).join("/");
  }

  async #fetch(url, options) {
    const response = await fetch(url, options).catch((error) => {
      throw new BundleError(`${url} cannot be fetched (${error.message}); look at the network, and at CORS on other hosts`);
    });
    if (!response.ok) throw new BundleError(`${url} cannot be fetched (status ${response.status}); give the URL of a bundle's folder`);
    return response;
  }

  async #bytes(name, response, total) {
    if (!total || !this.#progress || !response.body) return new Uint8Array(await response.arrayBuffer());
    const bytes = new Uint8Array(total);
    let loaded = 0;
    for (const reader = response.body.getReader(); ; ) {
      const { done, value } = await reader.read();
      if (done) return bytes.subarray(0, loaded);
      if (loaded + value.length > total) throw new BundleError(`${this.where}: ${name} has more than ${total} bytes; publish the bundle again`);
      bytes.set(value, loaded);
      loaded += value.length;
      this.#progress({ file: name, loaded, total });
    }
  }
}
