/** The whole story: a prompt -> token ids -> embeddings -> latents, denoised step by step -> a picture. */
import { Device } from "./device.js";
import { InputError, ModelError, NotFiniteError } from "./errors.js";
import { arrayOf, Programs } from "./program.js";
import { NormalGenerator } from "./random.js";
import { Tokenizer } from "./tokenizer.js";
import { Files } from "./weights.js";

const VERSION = 1, f32 = Math.fround;

export class Pipeline {
  /** Opens an export by the address of its folder, and gets it ready. */
  static async load(url, options) {
    const pipeline = await Pipeline.open(url, options);
    await pipeline.fetch(options).catch((error) => {
      pipeline.close();
      throw error;
    });
    return pipeline;
  }

  /** Reads the manifest and opens the GPU, before any download. `dtype`: f16 or f32, else what the GPU can run. */
  static async open(url, { dtype, signal } = {}) {
    const base = new URL(`${url}`.replace(/\/*$/, "/"), document.baseURI).href;
    const answer = fetch(`${base}manifest.json`, { signal, cache: "no-cache" }).then((response) => response.json());
    const manifest = await answer.catch(() => null), { format, version } = manifest ?? {};
    signal?.throwIfAborted();
    if (format !== "shaderfusion-web")
      throw new ModelError(`${base} has no export of shaderfusion, or is out of reach; check it`);
    if (version !== VERSION)
      throw new ModelError(`manifest.json has version ${version}, and this player reads ${VERSION}; export it again`);
    return new Pipeline(manifest, await Device.open(manifest.variants, dtype), new Files(base));
  }

  constructor(manifest, device, files) {
    const { tokenizers, scheduler, shards } = manifest;
    Object.assign(this, { manifest, device, files, programs: new Programs(device), isBusy: false });
    this.needed = [device.variant.program, tokenizers.text_encoder, scheduler.file, ...shards];
  }

  /** Frees all memory of the GPU. Nothing can be run any more. */
  close() {
    this.device.handle.destroy();
  }

  /**
   * Gets the model ready. `onProgress` is told {stage: "download", bytes, numBytes}, {stage: "compile"} and {stage:
   * "prepare", step, numSteps}.
   */
  async fetch({ onProgress = () => {}, signal } = {}) {
    const [program, tokenizer, schedules, ...shards] = this.needed;
    const numBytes = this.needed.reduce((sum, { bytes }) => sum + bytes, 0);
    let before = 0;
    const get = async (file) => {
      const onBytes = (bytes) => onProgress({ stage: "download", bytes: before + bytes, numBytes });
      const blob = await this.files.get(file, { onBytes, signal });
      before += file.bytes;
      return blob;
    };
    const getJson = async (file) => JSON.parse(await (await get(file)).text());
    await this.files.forgetOthers(this.manifest.files);
    const recorded = await getJson(program), compiled = this.programs.add(recorded); // while the weights come
    compiled.catch(() => {}); // until it is awaited
    this.tokenizer = new Tokenizer(await getJson(tokenizer));
    this.schedules = await getJson(schedules);
    const parts = Object.values(this.manifest.tables).flatMap((table) => table.parts);
    for (const [index, shard] of shards.entries()) {
      const blob = await get(shard);
      for (const part of parts) if (part.shard === index) part.blob = blob; // the browser may drop what it keeps
    }
    onProgress({ stage: "compile" });
    const aborted = new Promise((_, reject) => signal?.addEventListener("abort", () => reject(signal.reason)));
    await Promise.race([compiled, aborted]);
    await this.prepare(recorded, onProgress, signal);
  }

  /** Makes the weights of a file of programs. */
  async prepare({ prepare }, onProgress, signal) {
    const { shards } = this.manifest;
    for (const [index, shard] of shards.entries()) {
      signal?.throwIfAborted();
      await this.programs.prepare(prepare, index, await (await this.files.get(shard)).arrayBuffer());
      onProgress({ stage: "prepare", step: index + 1, numSteps: shards.length });
    }
    await this.device.wait();
    for (const index of prepare.temporary) this.programs.buffers[index].destroy();
  }

  /**
   * The picture of a prompt, as Python makes it of that seed: ImageData, or a list where the export makes several.
   * `onProgress` is awaited: {stage: "text", numDropped}; after each step {stage: "denoise", step, numSteps, msPerStep,
   * latents, preview}, with functions that read the latents so far and decode them; {stage: "decode"}.
   */
  async generate(prompt, options = {}) {
    if (this.isBusy) throw new InputError("a picture is being made; await it, or abort it, before the next");
    this.isBusy = true;
    return this.#generate(prompt, options).finally(() => (this.isBusy = false));
  }

  async #generate(prompt, { negativePrompt = "", seed, steps, guidanceScale, onProgress = () => {}, signal }) {
    const { defaults, scheduler, coefficients } = this.manifest, { unet } = this.programs.networks;
    const asked = steps ?? defaults.steps, scale = guidanceScale ?? defaults.guidance_scale;
    const schedule = this.schedules[asked], [least, most] = scheduler.steps;
    if (!schedule) throw new InputError(`steps (=${asked}) must be a whole number from ${least} to ${most}`);
    const { init_noise_sigma, first_input_scale, timesteps } = schedule, numSteps = timesteps.length;
    if (!Number.isFinite(scale)) throw new InputError(`guidanceScale (=${scale}) must be a number`);
    for (const [name, text] of Object.entries({ prompt, negativePrompt }))
      if (!text?.isWellFormed?.()) throw new InputError(`${name} (=${text}) must be text`);
    const generator = new NormalGenerator(seed ?? crypto.getRandomValues(new Uint32Array(1))[0]);

    await onProgress({ stage: "text", numDropped: await this.#condition([negativePrompt, prompt], signal) });
    const x = this.#noise(generator).map((value) => f32(init_noise_sigma) * value), zeros = x.map(() => 0);
    const latents = x.map((value) => f32(first_input_scale) * value);
    unet.write("x_t", x);
    unet.write("latents", [...latents, ...latents]); // of both halves
    unet.write("x_saved", zeros);
    unet.write("history", [...zeros, ...zeros, ...zeros]);
    const columns = { ...schedule.coefficients, guidance_scale: timesteps.map(() => Math.max(scale, 1)) };
    const begun = performance.now();
    for (const [i, timestep] of timesteps.entries()) {
      unet.write("coefficients", coefficients.map((name) => columns[name]?.[i] ?? 0));
      unet.write("timestep", [timestep]);
      if (columns.c_noise?.[i]) unet.write("noise", this.#noise(generator));
      await unet.run({ again: i > 0, signal });
      const step = i + 1, msPerStep = (performance.now() - begun) / step;
      const latents = () => unet.read("x_t"), preview = () => this.#decode(signal);
      await onProgress({ stage: "denoise", step, numSteps, msPerStep, latents, preview });
    }
    await onProgress({ stage: "decode" });
    return this.#decode(signal);
  }

  /** Has the UNet's halves read these texts; how many tokens of the last one were dropped. */
  async #condition(texts, signal) {
    const { text_encoder, unet } = this.programs.networks, halves = [];
    const [[input, table]] = Object.entries(text_encoder.tables);
    let tokens;
    for (const text of texts) {
      tokens = this.tokenizer.tokenize(text);
      text_encoder.write(input, await this.#tableRows(this.manifest.tables[table], tokens.ids));
      await text_encoder.run({ signal });
      const embedding = await text_encoder.read("embedding");
      halves.push(...Array(this.manifest.size.batch).fill(embedding));
    }
    unet.write("embedding", halves.flatMap((embedding) => [...embedding]));
    return tokens.numDropped;
  }

  /** Rows of a table, which stays in its file. */
  async #tableRows({ dtype, row_bytes, parts }, ids) {
    const rows = [];
    for (const id of ids) {
      const part = parts.findLast(({ first_row }) => first_row <= id);
      const start = part.offset + (id - part.first_row) * row_bytes;
      rows.push(...arrayOf(dtype, await part.blob.slice(start, start + row_bytes).arrayBuffer()));
    }
    return rows;
  }

  /** The next noise, (B, H, W, C), drawn in torch's order, (B, C, H, W). */
  #noise(generator) {
    const [B, H, W, C] = this.manifest.latents.shape, cells = H * W, drawn = generator.randn(B * C * cells);
    const at = (i) => Math.floor(i / C / cells) * C * cells + (i % C) * cells + (Math.floor(i / C) % cells);
    return drawn.map((_, i) => drawn[at(i)]);
  }

  /** The pictures of the latents as they are. */
  async #decode(signal) {
    const { unet, vae } = this.programs.networks, { width, height, batch } = this.manifest.size;
    const latents = await unet.read("x_t"), size = latents.length / batch, images = [];
    for (let start = 0; start < latents.length; start += size) {
      vae.write("latents", latents.subarray(start, start + size));
      await vae.run({ signal });
      images.push(toImage(await vae.read("image"), width, height));
    }
    return batch > 1 ? images : images[0];
  }
}

/** Of pixels in -1..1: ImageData rounds to the nearest byte, halves to the even one, as Python does. */
function toImage(pixels, width, height) {
  const image = new ImageData(width, height);
  for (let at = 0, i = 0; at < image.data.length; at++) {
    const value = at % 4 === 3 ? 255 : f32(f32(pixels[i++] * 127.5) + 127.5);
    if (!Number.isFinite(value)) throw new NotFiniteError("the picture is not finite; load the model in f32");
    image.data[at] = value;
  }
  return image;
}
