/** An export's files: fetched with progress, resumed after a cut, checked, and kept for the next visit. */
import { breath } from "./breath.js";
import { ModelError } from "./errors.js";

/** Files are {path, bytes, sha256}, as the manifest at `base` lists them. */
export class Files {
  constructor(base) {
    this.base = base;
    this.cache = caches.open(`shaderfusion-files ${base}`).catch(() => null);
    this.memory = new Map(); // where the browser keeps nothing, or has no room
  }

  /** A file, checked: a Blob. `onBytes` is told how many of its bytes are there. */
  async get(file, { onBytes = () => {}, signal } = {}) {
    let blob = await this.kept(file);
    if (!blob) await this.#keep(file, "", (blob = await this.#fetch(file, onBytes, signal)));
    onBytes(file.bytes);
    return blob;
  }

  /** Forgets what is kept but none of `files`, such as an earlier export's. */
  async forgetOthers(files) {
    const cache = await this.cache, wanted = files.map((file) => this.#key(file));
    for (const { url } of (await cache?.keys()) ?? [])
      if (!wanted.some((key) => url.startsWith(key))) await cache.delete(url);
  }

  #key = ({ path, sha256 }, part = "") => `${this.base}${path}?sha256=${sha256}${part}`;

  /** A file that is there already, or its part: a Blob, or undefined. */
  async kept(file, part) {
    const key = this.#key(file, part);
    return this.memory.get(key) ?? (await (await this.cache)?.match(key))?.blob();
  }

  async #keep(file, part, blob) {
    const key = this.#key(file, part);
    try {
      await (await this.cache).put(key, new Response(blob));
    } catch {
      this.memory.set(key, blob);
    }
  }

  async #fetch(file, onBytes, signal) {
    const { path, bytes: size } = file, resumed = await this.kept(file, "&part");
    let parts = resumed ? [resumed] : [], length = resumed?.size ?? 0, cause;
    for (let tries = 0; tries < 3 && length < size && !signal?.aborted; tries++) {
      try {
        const headers = length ? { Range: `bytes=${length}-` } : {};
        const response = await fetch(this.base + path, { headers, signal, cache: "no-store" });
        if (response.status === 416) break; // its file ends here
        if (!response.ok) throw new ModelError(`${path}: the server answers ${response.status}; export it again`);
        if (response.status !== 206) [parts, length] = [[], 0]; // it knows no ranges, and sends all
        const reader = response.body.getReader();
        for (let chunk; !(chunk = await reader.read()).done; await breath()) {
          parts.push(new Blob([chunk.value])); // a copy of all at once would drop frames
          onBytes((length += chunk.value.length));
        }
      } catch (error) {
        if (error instanceof ModelError) throw error;
        cause = error;
      }
    }
    const blob = new Blob(parts);
    if (length < size && (cause || signal?.aborted)) { // else the server's file is a shorter one
      if (length) await this.#keep(file, "&part", blob);
      signal?.throwIfAborted();
      const rest = `the download broke off after ${length} of ${size} bytes; reload to go on from there`;
      throw new ModelError(`${path}: ${rest}`, { cause });
    }
    this.memory.delete(this.#key(file, "&part"));
    await (await this.cache)?.delete(this.#key(file, "&part"));
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", await blob.arrayBuffer()));
    const sha256 = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
    if (sha256 === file.sha256) return blob;
    if (resumed) return this.#fetch(file, onBytes, signal); // what was kept may have been damaged
    const found = `of ${length} bytes, SHA-256 ${sha256.slice(0, 8)}...`;
    throw new ModelError(`${path} (${found}) is not the manifest's; reload, or export the model again`);
  }
}
