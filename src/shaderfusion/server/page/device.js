/** The device panel: what runs the model, its memory and time, and the paper's ablation measured here. */

import * as api from "./api.js";
import { chart, milliseconds } from "./chart.js";
import { byId, fillFacts } from "./dom.js";

const POLL_MS = 3000;
const STOPPED = "Stopped.";
const BROKEN = "The connection broke. Run it again when the server answers.";
const panel = byId("device");
let ablation = null;
let onLost = () => {};

/**
 * Connects the panel, which reads the device every few seconds while it is open.
 * @param {() => void} lost is called where the server does not answer
 */
export function openDevice(lost) {
  onLost = lost;
  panel.addEventListener("toggle", refresh);
  setInterval(() => { if (panel.open && !document.hidden) refresh(); }, POLL_MS);
  byId("ablate").addEventListener("click", run);
  byId("ablate-stop").addEventListener("click", stop);
}

export async function refresh() {
  let device;
  try {
    device = await api.get("api/device");
  } catch (error) {
    if (error instanceof api.Lost) onLost();
    return;
  }
  byId("device-name").textContent = device.name;
  byId("summary").textContent = [device.model, device.name, device.dtype].filter(Boolean).join(" · ");
  const { planned_bytes: planned, used_bytes: used } = device.memory;
  fillFacts(byId("device-facts"), {
    Adapter: device.name,
    Driver: device.driver,
    Runtime: device.runtime,
    Precision: device.dtype,
    Model: device.model,
    "Memory planned": planned ? megabytes(planned) : "no model is loaded",
    "Memory used": used ? megabytes(used) : null,
    "An iteration": device.ms_per_step === null ? "not measured yet" : milliseconds(device.ms_per_step),
    Queue: `${device.queue.waiting} waiting, ${device.queue.running ? "one running" : "none running"}`,
  });
}

const megabytes = (bytes) => `${(bytes / 1e6).toLocaleString("en", { maximumFractionDigits: 0 })} MB`;

function say(text) {
  byId("ablation-state").textContent = text;
}

async function run() {
  if (ablation) return;
  ablation = { controller: new AbortController(), job: null };
  setRunning(true);
  say("Measuring, which takes a while…");
  const rows = [];
  const model = byId("model").value;
  let end = null;
  try {
    for await (const { name, data } of api.stream("api/ablation", { model }, ablation.controller.signal)) {
      ablation.job = data.job ?? ablation.job;
      if (name === "queued" && data.position > 0) say(`Waiting: ${data.position} before it.`);
      if (name === "row") {
        rows.push(data);
        byId("chart").replaceChildren(chart(rows, byId("chart").clientWidth));
        say(`${rows.length} measured…`);
      }
      if (["done", "cancelled", "error"].includes(name)) end = { name, data };
    }
    if (!end) throw new api.Lost();
    const done = `One iteration of the denoiser of ${model}; less is better.`;
    say({ done, cancelled: STOPPED }[end.name] ?? end.data.error);
  } catch (error) {
    if (error instanceof api.Lost) onLost();
    say(error.name === "AbortError" ? STOPPED : error.message || BROKEN);
  }
  ablation = null;
  setRunning(false);
  refresh();
}

function stop() {
  ablation?.controller.abort();  // the server cancels the job of a client that goes away
}

function setRunning(isRunning) {
  byId("ablate").setAttribute("aria-disabled", isRunning);
  if (!isRunning && document.activeElement === byId("ablate-stop")) byId("ablate").focus();
  byId("ablate-stop").disabled = !isRunning;
}
