/** The whole story: a prompt -> token ids -> embeddings -> latents, denoised step by step -> a picture. */
import { Device } from "./device.js";
import { InputError, ModelError, NotFiniteError } from "./errors.js";
import { decode, Programs } from "./program.js";
import { NormalGenerator } from "./random.js";
import { COEFFICIENTS, makeSchedule } from "./schedulers.js";
import { Tokenizer } from "./tokenizer.js";
import { Files } from "./weights.js";

const FORMAT = "shaderfusion-web", VERSION = 1;
const f32 = Math.fround;

export class Pipeline {
  /**
   * Opens the export in a folder: `url` is the folder's, with a slash at its end, or its manifest's. `dtype` is f16 or f32,
   * or left out for the first that the GPU can run. `onProgress` is told {stage: "download", bytes, numBytes},
   * {stage: "compile"} and {stage: "prepare", step, numSteps}.
   */
  static async load(url, { dtype, onProgress = () => {}, signal } = {}) {
    const base = new URL(".", new URL(url, globalThis.location?.href)).href;
    const manifest = await readManifest(base, signal);
    const device = await Device.open(manifest.variants, dtype);
    const pipeline = new Pipeline(manifest, device, new Files(base));
    await pipeline.#load(onProgress, signal);
    return pipeline;
  }

  constructor(manifest, device, files) {
    Object.assign(this, { manifest, device, files, programs: new Programs(device), isBusy: false });
  }

  async #load(onProgress, signal) {
    const { manifest, files, programs, device } = this;
    const tokenizers = Object.entries(manifest.tokenizers), { program } = device.variant, { shards } = manifest;
    const needed = [program, ...tokenizers.map(([, { file }]) => file), ...shards];
    const numBytes = needed.reduce((sum, file) => sum + file.bytes, 0);
    let before = 0;
    const get = async (file) => {
      const blob = await files.get(file, { signal, onBytes: (bytes) => report(before + bytes) });
      before += file.bytes;
      return blob;
    };
    const report = (bytes) => onProgress({ stage: "download", bytes, numBytes });
    const json = async (file) => JSON.parse(await (await get(file)).text());

    await files.dropOthers(manifest.files);
    const recorded = await json(program);
    const compiled = programs.add(recorded); // while the weights come
    compiled.catch(() => {}); // told when it is awaited
    this.tokenizers = {};
    for (const [name, { file, ...ids }] of tokenizers)
      this.tokenizers[name] = new Tokenizer({ ...(await json(file)), ...ids });
    for (const shard of shards) await get(shard);
    onProgress({ stage: "compile" });
    await compiled;
    for (let index = 0; index < shards.length; index++) {
      onProgress({ stage: "prepare", step: index, numSteps: shards.length });
      signal?.throwIfAborted();
      await programs.prepare(recorded.prepare, index, await (await files.get(shards[index])).arrayBuffer());
    }
    for (const index of recorded.prepare.temporary) programs.buffers[index].destroy();
  }

  /**
   * The picture of a prompt: ImageData, or a list of them where the export makes several. The same seed gives Python's
   * picture. `onProgress` is told {stage: "text", numDropped}, after each step {stage: "denoise", step, numSteps,
   * msPerStep, preview}, where `preview()` decodes the picture so far, and {stage: "decode"}; it is awaited.
   */
  async generate(prompt, options = {}) {
    if (this.isBusy) throw new InputError("one picture is being made already; await it or abort it before the next");
    this.isBusy = true;
    try {
      return await this.#generate(prompt, options);
    } finally {
      this.isBusy = false;
    }
  }

  async #generate(prompt, { negativePrompt = "", seed, steps, guidanceScale, scheduler, onProgress = () => {}, signal }) {
    const { defaults, scheduler: own, size } = this.manifest, { unet } = this.programs.networks;
    const schedule = makeSchedule(own.config, steps ?? defaults.steps, scheduler ?? own.name);
    const generator = new NormalGenerator(seed ?? crypto.getRandomValues(new Uint32Array(1))[0]);
    const scale = guidanceScale ?? defaults.guidance_scale;
    if (!Number.isFinite(scale)) throw new InputError(`guidanceScale (=${scale}) must be a number`);

    signal?.throwIfAborted();
    const numDropped = await this.#condition([negativePrompt, prompt], signal);
    await onProgress({ stage: "text", numDropped });

    const x = this.#noise(generator).map((value) => f32(schedule.initNoiseSigma) * value);
    const scaled = x.map((value) => f32(schedule.inputScales[0] ?? 1) * value), latents = new Float32Array(2 * x.length);
    for (let row = 0; row < 2; row++) latents.set(scaled, row * x.length);
    unet.write("x_t", x);
    unet.write("latents", latents);
    unet.write("x_saved", new Float32Array(x.length));
    unet.write("history", new Float32Array(3 * x.length));

    const begun = performance.now(), numSteps = schedule.updates.length;
    for (const [i, update] of schedule.updates.entries()) {
      const values = { ...update, guidance_scale: Math.max(scale, 1), next_input_scale: schedule.inputScales[i + 1] ?? 1 };
      unet.write("coefficients", COEFFICIENTS.map((name) => values[name] ?? 0));
      unet.write("timestep", [schedule.timesteps[i]]);
      if (update.c_noise) unet.write("noise", this.#noise(generator));
      await unet.run({ again: i > 0, signal });
      const msPerStep = (performance.now() - begun) / (i + 1), preview = () => this.#decode(signal);
      await onProgress({ stage: "denoise", step: i + 1, numSteps, msPerStep, preview });
      signal?.throwIfAborted();
    }
    await onProgress({ stage: "decode" });
    return this.#decode(signal);
  }

  /** Has the UNet read these texts, half of its rows each; how many tokens of the last one were dropped. */
  async #condition(texts, signal) {
    const { text_encoder: encoder, unet } = this.programs.networks, { batch } = this.manifest.size;
    const [[input, name]] = Object.entries(encoder.tables), embedding = encoder.buffer("embedding");
    let numDropped;
    for (const [half, text] of texts.entries()) {
      const tokens = this.tokenizers.text_encoder.tokenize(text);
      ({ numDropped } = tokens);
      encoder.write(input, await this.#tableRows(this.manifest.tables[name], tokens.ids));
      await encoder.run({ signal });
      const commands = this.device.handle.createCommandEncoder(), bytes = encoder.bytes("embedding");
      for (let row = half * batch; row < (half + 1) * batch; row++)
        commands.copyBufferToBuffer(embedding, 0, unet.buffer("embedding"), row * bytes, bytes);
      await this.device.submit(commands);
    }
    return numDropped;
  }

  /** Rows of a table that stays in its file, such as those of token ids. */
  async #tableRows({ dtype, shape: [, channels], parts }, ids) {
    const rowBytes = channels * (dtype === "F16" ? 2 : 4);
    const rows = ids.map(async (id) => {
      const { shard, offset, first_row } = parts.find((part) => id >= part.first_row && id < part.first_row + part.rows);
      const start = offset + (id - first_row) * rowBytes;
      const blob = await this.files.get(this.manifest.shards[shard]);
      return decode(await blob.slice(start, start + rowBytes).arrayBuffer(), { shape: [channels], dtype: dtype.toLowerCase() });
    });
    return (await Promise.all(rows)).flatMap((row) => [...row]);
  }

  /** The next noise, (B, H, W, C), drawn in torch's order, (B, C, H, W). */
  #noise(generator) {
    const [B, H, W, C] = this.manifest.latents.shape, drawn = generator.randn(B * C * H * W);
    return drawn.map((_, i) => drawn[Math.floor(i / (C * H * W)) * C * H * W + (i % C) * H * W + (Math.floor(i / C) % (H * W))]);
  }

  /** The pictures of the latents as they are. */
  async #decode(signal) {
    const { unet, vae } = this.programs.networks, { width, height, batch } = this.manifest.size, images = [];
    const latents = await unet.read("x_t");
    for (let picture = 0; picture < batch; picture++) {
      const size = latents.length / batch;
      vae.write("latents", latents.subarray(picture * size, (picture + 1) * size));
      await vae.run({ signal });
      images.push(toImage(await vae.read("image"), width, height));
    }
    return batch === 1 ? images[0] : images;
  }
}

/** Pixels in -1..1 as bytes: a clamped array rounds to the nearest, and halves to even, as Python does. */
function toImage(pixels, width, height) {
  if (!pixels.every(Number.isFinite))
    throw new NotFiniteError("the picture is not finite: f16 has too small a range for this model; load it with dtype f32");
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = f32(f32(pixels[3 * i + c] * 127.5) + 127.5);
    image.data[4 * i + 3] = 255;
  }
  return image;
}

/** The manifest, of a format that this player knows. */
async function readManifest(base, signal) {
  const response = await fetch(new URL("manifest.json", base), { signal, cache: "no-cache" });
  const manifest = response.ok ? await response.json().catch(() => null) : null;
  if (manifest?.format !== FORMAT) throw new ModelError(`${base}manifest.json is no export of shaderfusion; check the address`);
  if (manifest.version !== VERSION)
    throw new ModelError(`manifest.json has version ${manifest.version}, and this player reads ${VERSION}; reload, or export again`);
  return manifest;
}
