/** The page: reads the form, shows what the player tells, and keeps the page for visits without network. */
import { measureAblation, toMarkdown } from "./ablation.js";
import { Pipeline } from "./pipeline.js";
import { infotext, toPng } from "./png.js";
import { colourLatents, fitColours } from "./preview.js";

const PREVIEW_MS = 250; // at most so often

const $ = (id) => document.getElementById(id);
const megabytes = (bytes) => `${(bytes / 1e6).toLocaleString("en", { maximumFractionDigits: bytes < 1e7 ? 1 : 0 })} MB`;

let pipeline = null;
let running = null; // the AbortController of what is under way
let isReady = false;
let isSpent = false; // a download was cancelled, or failed
let colours = null; // of previews, once a picture was decoded
let pictureUrl = null;

// ---------------------------------------------------------------------------------------- what is shown

function say(status, time = "") {
  if ($("status").textContent !== status) $("status").textContent = status; // a screen reader says it once
  $("time").textContent = time;
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function progress(done) {
  if (done === null) $("progress").removeAttribute("value");
  else $("progress").value = done;
}

function showFacts(extra = {}) {
  const { manifest, device } = pipeline, { memory, name, dtype } = device.variant, { width, height } = manifest.size;
  const planned = memory.weights + memory.tensors;
  const facts = {
    Model: `${manifest.model.name}, ${width} x ${height}`,
    GPU: gpuName(),
    Precision: name === dtype ? dtype : `${dtype}, kernels for a ${name.toUpperCase()}`,
    Memory: `${megabytes(planned)} planned: ${megabytes(memory.weights)} weights, ${megabytes(memory.tensors)} tensors`,
    Browser: browserName(),
    ...extra,
  };
  const rows = Object.entries(facts).flatMap(([term, text]) => [element("dt", term), element("dd", text)]);
  $("facts").replaceChildren(...rows);
}

const element = (name, text) => Object.assign(document.createElement(name), { textContent: text });

function gpuName() {
  const { vendor, architecture, device, description } = pipeline.device.adapter.info;
  const names = new Set([vendor, architecture, device, description].filter(Boolean));
  return [...names].join(", ") || "not named by the browser";
}

function browserName() {
  const brands = navigator.userAgentData?.brands.filter(({ brand }) => !/not.a.brand/i.test(brand));
  if (!brands?.length) return navigator.userAgent;
  const names = brands.map(({ brand, version }) => `${brand} ${version}`);
  return `${names.join(", ")} on ${navigator.userAgentData.platform}`;
}

/** While something is under way the first button stops it. */
function setRunning(controller, label) {
  running = controller;
  $("start").textContent = controller ? "Cancel" : label;
  $("start").classList.toggle("primary", !controller);
  $("measure").disabled = Boolean(controller) || !isReady;
}

/** Runs something that can be cancelled, and says how it ended. */
async function attempt(action) {
  const controller = new AbortController();
  notice("");
  setRunning(controller, "");
  const lock = navigator.wakeLock?.request("screen").catch(() => null); // a phone whose screen goes off would stop
  try {
    await action(controller.signal);
  } catch (error) {
    const wasCancelled = error.name === "AbortError";
    if (!wasCancelled) notice(sentence(error));
    say(wasCancelled ? "Cancelled" : "Stopped");
    progress(0);
  }
  (await lock)?.release();
  setRunning(null, isReady ? "Make a picture" : startLabel());
}

function sentence({ name, message }) {
  const isOurs = /^(Input|Model|NotFinite|Device)Error$/.test(name);
  const begun = message.replace(/^[a-z]+ /, (word) => word.charAt(0).toUpperCase() + word.slice(1)); // not a path
  return `${begun}${isOurs ? "." : ` (${name}).`}`;
}

const neededBytes = () => pipeline.needed.reduce((sum, { bytes }) => sum + bytes, 0);
const startLabel = () => `Download ${megabytes(neededBytes())}`;

// ---------------------------------------------------------------------------------------- what is done

async function open() {
  try {
    pipeline = await Pipeline.open("./");
  } catch (error) {
    notice(sentence(error));
    return say("This page cannot run here");
  }
  const { manifest } = pipeline, { defaults, size } = manifest, [min, max] = manifest.scheduler.steps;
  document.title = $("name").textContent = manifest.model.name;
  Object.assign($("canvas"), { width: size.width, height: size.height * size.batch }); // one below the other
  Object.assign($("steps"), { value: defaults.steps, min, max });
  $("guidance").value = defaults.guidance_scale;
  $("ablation").hidden = !pipeline.device.variant.ablation;
  showFacts();
  $("start").disabled = false;
  setRunning(null, startLabel());
  say("Ready to download");
  const kept = await Promise.all(pipeline.needed.map((file) => pipeline.files.kept(file)));
  if (kept.every(Boolean)) await load();
}

async function load() {
  await attempt(async (signal) => {
    if (isSpent) pipeline = await Pipeline.open("./", { signal });
    isSpent = false;
    navigator.storage?.persist?.();
    await warnIfFull();
    const begun = performance.now();
    await pipeline.fetch({ signal, onProgress: (event) => showLoading(event, begun) });
    isReady = true;
    progress(0);
    say("Ready");
  });
  if (isReady) return;
  pipeline.close(); // it may have half of its buffers: the next try begins anew
  isSpent = true;
}

/** A model that does not fit beside the page's other files is downloaded again at the next visit. */
async function warnIfFull() {
  const { quota, usage } = (await navigator.storage?.estimate?.()) ?? {};
  if (quota - usage < neededBytes())
    notice(`The browser keeps only ${megabytes(quota - usage)}, so the model is downloaded again each time.`);
}

function showLoading({ stage, bytes, numBytes, step, numSteps }, begun) {
  if (stage === "download") {
    progress(bytes / numBytes);
    say("Downloading", `${megabytes(bytes)} of ${megabytes(numBytes)}`);
  } else if (stage === "compile") {
    progress(null);
    say("Compiling shaders");
  } else {
    progress(step / numSteps);
    say("Preparing weights", `${Math.round((performance.now() - begun) / 1000)} s`);
  }
}

async function makePicture() {
  const settings = {
    prompt: $("prompt").value,
    negativePrompt: $("negative").value,
    seed: $("seed").value,
    steps: Number($("steps").value),
    guidanceScale: Number($("guidance").value),
  };
  $("download").setAttribute("aria-disabled", "true");
  $("download").removeAttribute("href");
  await attempt(async (signal) => {
    let lastPreview = -Infinity, msPerStep = 0, latents = null;
    progress(null);
    say("Reading the prompt");
    const onProgress = async (event) => {
      if (event.stage === "text") showDropped(event.numDropped);
      if (event.stage === "decode") say("Decoding");
      if (event.stage !== "denoise") return;
      ({ msPerStep } = event);
      const seconds = ((event.numSteps - event.step) * msPerStep) / 1000;
      progress(event.step / event.numSteps);
      say("Denoising", `step ${event.step} of ${event.numSteps}, ${seconds.toFixed(seconds < 10 ? 1 : 0)} s left`);
      const isLast = event.step === event.numSteps;
      if (isLast || (performance.now() - lastPreview > PREVIEW_MS && $("previews").checked)) {
        latents = await event.latents();
        if (!isLast) await showPreview(latents, event);
        lastPreview = performance.now();
      }
    };
    const begun = performance.now();
    const pictures = [await pipeline.generate(settings.prompt, { ...settings, signal, onProgress })].flat();
    learnColours(latents, pictures[0]);
    showPicture(pictures, settings);
    progress(1);
    say("Done", `${((performance.now() - begun) / 1000).toFixed(1)} s`);
    showFacts({ Speed: `${msPerStep.toFixed(msPerStep < 100 ? 1 : 0)} ms an iteration` });
    await offer(settings);
  });
}

function showDropped(numDropped) {
  $("dropped").hidden = !numDropped;
  $("dropped").textContent = `The model does not read the last ${numDropped} tokens of this prompt.`;
}

/** The first preview of all is decoded; the others are a linear map of the latents, fitted to the last picture. */
async function showPreview(latents, event) {
  if (!colours) learnColours(latents, [await event.preview()].flat()[0]);
  const { latents: { shape: [, height, width] }, size } = pipeline.manifest;
  const small = await createImageBitmap(colourLatents(colours, latents, height, width));
  $("canvas").getContext("2d").drawImage(small, 0, 0, size.width, size.height);
}

function learnColours(latents, picture) {
  const [, height, width, channels] = pipeline.manifest.latents.shape;
  colours = fitColours(latents.subarray(0, height * width * channels), height, width, picture);
}

function showPicture(pictures, { prompt }) {
  const canvas = $("canvas");
  for (const [i, picture] of pictures.entries()) canvas.getContext("2d").putImageData(picture, 0, i * picture.height);
  canvas.setAttribute("aria-label", `Picture of: ${prompt}`);
}

async function offer({ prompt, negativePrompt, steps, seed, guidanceScale }) {
  const { manifest } = pipeline, { width, height } = manifest.size, { sampler, schedule_type } = manifest.scheduler;
  const text = infotext({
    prompt, negativePrompt, Steps: steps, Sampler: sampler, ...(schedule_type && { "Schedule type": schedule_type }),
    "CFG scale": guidanceScale, Seed: seed, Size: `${width}x${height}`, Model: manifest.model.name, RNG: "CPU",
  });
  if (pictureUrl) URL.revokeObjectURL(pictureUrl);
  pictureUrl = URL.createObjectURL(await toPng($("canvas"), text));
  const words = prompt.toLowerCase().match(/[\p{L}\p{N}]+/gu) ?? ["picture"];
  Object.assign($("download"), { href: pictureUrl, download: `${words.join("-").slice(0, 60)}-${seed}.png` });
  $("download").setAttribute("aria-disabled", "false");
}

async function measure() {
  await attempt(async (signal) => {
    const onProgress = ({ stage, step, numSteps }) => {
      progress(stage === "compile" ? null : step / numSteps);
      say(stage === "compile" ? "Compiling shaders" : `Measuring: ${stage}`);
    };
    const rows = await measureAblation(pipeline, { signal, onProgress });
    const { made_by, model, size } = pipeline.manifest;
    $("table").textContent = toMarkdown(rows, [
      `${made_by}, ${model.name}, ${size.width} x ${size.height}, ${pipeline.device.variant.dtype}`,
      `GPU: ${gpuName()}`,
      `Browser: ${browserName()}`,
    ]);
    $("table").hidden = false;
    $("copy").disabled = false;
    progress(1);
    say("Measured");
  });
}

$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (running) return;
  if (isReady) makePicture();
  else load();
});
$("start").addEventListener("click", (event) => {
  if (!running) return;
  event.preventDefault(); // whatever the form holds
  running.abort();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});
$("dice").addEventListener("click", () => ($("seed").value = crypto.getRandomValues(new Uint32Array(1))[0]));
$("measure").addEventListener("click", measure);
$("copy").addEventListener("click", async () => {
  await navigator.clipboard.writeText($("table").textContent);
  say("Copied");
});
navigator.serviceWorker?.register("sw.js").catch(() => {}); // without it the page needs the network
open();
