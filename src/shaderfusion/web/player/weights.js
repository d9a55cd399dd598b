/** An export's files: fetched with progress, resumed after a cut, checked, and kept by the browser for the next visit. */
import { ModelError } from "./errors.js";

const CACHE = "shaderfusion-files";

/** Files are {path, bytes, sha256}, as the manifest lists them, beside the manifest at `base`. */
export class Files {
  constructor(base) {
    this.base = base;
    this.kept = new Map(); // where there is no Cache Storage, or no room in it
    this.cache = globalThis.caches?.open(CACHE).catch(() => null) ?? null;
  }

  /** The file's Blob, checked; `onBytes` is told how many are there so far. */
  async get(file, { onBytes = () => {}, signal } = {}) {
    let blob = await this.#kept(file);
    if (!blob) {
      blob = await this.#fetch(file, onBytes, signal);
      await this.#keep(file, blob);
    }
    onBytes(file.bytes);
    return blob;
  }

  async json(file, options) {
    return JSON.parse(await (await this.get(file, options)).text());
  }

  /** Drops what is kept of this export and none of `files`: those of an earlier one. */
  async dropOthers(files) {
    const cache = await this.cache, wanted = new Set(files.flatMap((file) => [this.#key(file), this.#key(file, "&part")]));
    for (const { url } of (await cache?.keys()) ?? [])
      if (url.startsWith(this.base) && !wanted.has(url)) await cache.delete(url);
  }

  #key = ({ path, sha256 }, part = "") => `${new URL(path, this.base)}?sha256=${sha256}${part}`;

  async #kept(file, part) {
    const key = this.#key(file, part), response = await (await this.cache)?.match(key);
    return response ? response.blob() : this.kept.get(key);
  }

  async #keep(file, blob, part) {
    const key = this.#key(file, part);
    try {
      await (await this.cache).put(key, new Response(blob));
    } catch {
      this.kept.set(key, blob);
    }
  }

  async #dropPart(file) {
    this.kept.delete(this.#key(file, "&part"));
    await (await this.cache)?.delete(this.#key(file, "&part"));
  }

  async #fetch(file, onBytes, signal) {
    const bytes = new Uint8Array(file.bytes), part = await this.#kept(file, "&part");
    let length = 0, cause;
    if (part) {
      bytes.set(new Uint8Array(await part.arrayBuffer()));
      length = part.size;
    }
    const begun = length;
    for (let tries = 0; tries < 3 && length < file.bytes && !signal?.aborted; tries++) {
      try {
        const headers = length ? { Range: `bytes=${length}-` } : {};
        const response = await fetch(new URL(file.path, this.base), { headers, signal, cache: "no-store" });
        if (!response.ok) throw new ModelError(`${file.path}: the server answers ${response.status}; export the model again`);
        if (response.status !== 206) length = 0; // a server that knows no ranges sends all of it
        for (const reader = response.body.getReader(); ; ) {
          const { done, value } = await reader.read();
          if (done) break;
          if (length + value.length > file.bytes) throw wrong(file, `has more than ${file.bytes} bytes`);
          bytes.set(value, length);
          onBytes((length += value.length));
        }
      } catch (error) {
        if (error instanceof ModelError) throw error;
        cause = error;
      }
    }
    if (length < file.bytes) {
      if (length) await this.#keep(file, new Blob([bytes.subarray(0, length)]), "&part");
      signal?.throwIfAborted();
      throw new ModelError(
        `${file.path}: the download broke off after ${length} of ${file.bytes} bytes; load again to go on from there`,
        { cause },
      );
    }
    await this.#dropPart(file);
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    const hash = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
    if (hash === file.sha256) return new Blob([bytes]);
    if (begun) return this.#fetch(file, onBytes, signal); // what was kept was of another file
    throw wrong(file, "has another SHA-256 than the manifest says");
  }
}

const wrong = ({ path }, what) =>
  new ModelError(`${path}: ${what}, so it is damaged or of another export; reload, or export the model again`);
