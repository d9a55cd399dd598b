/** The page: a job at a time, from the form to the stage and the history. */

import * as api from "./api.js";
import { openDevice, refresh as refreshDevice } from "./device.js";
import { byId, make, toBlob } from "./dom.js";
import * as form from "./form.js";
import { addPicture, describe, openHistory, view } from "./history.js";
import * as stage from "./stage.js";
import * as start from "./start.js";
import { newId } from "./store.js";

/** The job that runs or waits. @type {{id: any, controller: AbortController, request: any, started: any} | null} */
let job = null;

// Jobs

function submit() {
  if (job) return;
  form.clearErrors();
  let settings;
  try {
    settings = form.read();
  } catch (error) {
    form.showError(error.message, error.field);
    return;
  }
  const { strength, ...others } = settings;
  generate({ ...others, ...start.request(strength) });
}

/** Runs a request to its end, whatever that is. */
async function generate(request) {
  if (job) return;
  job = { id: null, controller: new AbortController(), request, started: null };
  setBusy(true);
  form.clearErrors();
  byId("notice").hidden = true;
  byId("frame").scrollIntoView({ block: "nearest" });
  stage.show("Sent…", null);
  let isEnded = false;
  try {
    for await (const { name, data } of api.stream("api/generate", request, job.controller.signal)) {
      job.id = data.job ?? job.id;
      await ON[name]?.(data);
      isEnded ||= ["done", "cancelled", "error"].includes(name);
    }
    if (!isEnded) throw new api.Lost();
  } catch (error) {
    fail(error);
  }
  job = null;
  setBusy(false);
  refreshDevice();
}

const ON = {
  queued({ position }) {
    const text = position > 0 ? `Waiting: ${position} before it.` : "Starting…";
    stage.show(text, null);
    if (position > 0) stage.announce(text);
  },
  started(data) {
    job.started = data;
    stage.reserve(data.width, data.height, data.num_images);
    stage.announce("Started.");
  },
  step(data) {
    stage.step(data);
    document.title = `${data.step}/${data.steps} · shaderfusion`;
  },
  preview({ images }) {
    stage.preview(images);
  },
  async picture({ index, image, settings, parameters }) {
    const blob = toBlob(image);
    const bitmap = await createImageBitmap(blob);
    const { width, height } = bitmap;
    bitmap.close();
    const made = { id: newId(), at: Date.now(), index, blob, width, height, settings, parameters };
    const picture = await addPicture({ ...made, request: job.request });
    await stage.finish(index, picture.url, describe(picture), () => view(picture));
  },
  done({ seconds }) {
    const count = job.started.num_images;
    const text = `Done in ${stage.duration(seconds)}.`;
    stage.show(text, 1);
    stage.announce(`${text} ${count === 1 ? "One picture" : `${count} pictures`}.`);
  },
  cancelled() {
    stage.show("Cancelled.");
    stage.announce("Cancelled.");
  },
  error({ error, field }) {
    throw new api.Refused(error, field);
  },
};

function fail(error) {
  if (error.name === "AbortError") {
    ON.cancelled();
  } else if (error instanceof api.Refused) {
    stage.show("Not made.");
    form.showError(error.message, error.field);
  } else if (error instanceof api.Lost) {
    stage.show("The connection broke before the picture was done: press Generate again when the server answers.");
    lost();
  } else {
    stage.show("Not made.");
    form.showError(`The page failed: ${error.message}. Reload it, and report this if it comes again.`);
    console.error(error);
  }
}

async function cancel() {
  if (!job) return;
  stage.show("Cancelling…", null);
  const { id, controller } = job;
  try {
    if (id === null) controller.abort();
    else await api.post("api/cancel", { job: id });
  } catch {
    controller.abort();  // the server cancels the job of a client that goes away
  }
}

/** Buttons stay where they are, and the one that has the focus keeps it or gives it to its neighbour. */
function setBusy(isBusy) {
  byId("generate").setAttribute("aria-disabled", isBusy);
  if (!isBusy && document.activeElement === byId("cancel")) byId("generate").focus();
  byId("cancel").disabled = !isBusy;
  for (const id of ["again", "vary"]) byId(id).disabled = isBusy;
  if (!isBusy) document.title = "shaderfusion";
}

// The connection

let isLost = false;

/** Says that the server is away until it answers again. */
async function lost() {
  if (isLost) return;
  isLost = true;
  const banner = byId("connection");
  banner.hidden = false;
  while (isLost) {
    await new Promise((resolve) => { setTimeout(resolve, 2000); });
    isLost = !(await fetch("health", { cache: "no-store" }).then(({ ok }) => ok, () => false));
  }
  banner.hidden = true;
  if (form.isFilled()) refreshDevice();
  else begin();
}

/** Asks for the API key; again where the last one was wrong. */
function askKey(isWrong) {
  byId("key-wrong").hidden = !isWrong;
  const dialog = byId("key");
  dialog.showModal();
  return new Promise((resolve) => {
    const take = () => resolve(dialog.returnValue === "ok" ? byId("key-input").value : null);
    dialog.addEventListener("close", take, { once: true });
  });
}

// Pictures that are dropped or chosen

/** Takes the settings that a picture's file holds into the form, and says what it does not. */
async function takeSettings(file) {
  form.clearErrors();
  try {
    const { settings, missing = [] } = await api.post("api/inspect", file);
    if (settings) form.write(settings);
    const said = settings ? `The form has the settings of ${file.name}.` : `${file.name} holds no settings.`;
    const list = make("ul", {}, ...missing.map((textContent) => make("li", { textContent })));
    const asStart = button("Use it as start", () => start.use(file));
    byId("notice").replaceChildren(said, list, make("div", { className: "actions" }, asStart, button("OK")));
    byId("notice").hidden = false;
    byId("notice").scrollIntoView({ block: "nearest" });
  } catch (error) {
    if (error instanceof api.Lost) lost();
    else form.showError(error.message);
  }
}

/** A button of the notice, which it closes. */
function button(textContent, action = () => {}) {
  const onclick = () => {
    byId("notice").hidden = true;
    byId("prompt").focus();
    action();
  };
  return make("button", { type: "button", textContent, onclick });
}

let depth = 0;  // dragenter and dragleave come for every element on the way
const hasFiles = (event) => event.dataTransfer?.types.includes("Files");

function showDrop(change) {
  depth = Math.max(0, depth + change);
  byId("drop").hidden = depth === 0;
}

document.addEventListener("dragenter", (event) => { if (hasFiles(event)) showDrop(1); });
document.addEventListener("dragleave", (event) => { if (hasFiles(event)) showDrop(-1); });
document.addEventListener("dragover", (event) => { if (hasFiles(event)) event.preventDefault(); });
document.addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  showDrop(-depth);
  const file = event.dataTransfer.files[0];
  if (byId("start").contains(event.target)) start.use(file);
  else takeSettings(file);
});
byId("settings-file").addEventListener("change", ({ target }) => {
  if (target.files[0]) takeSettings(target.files[0]);
  target.value = "";
});

// Keys and buttons

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
byId("cancel").addEventListener("click", cancel);
document.addEventListener("keydown", (event) => {
  if (event.isComposing || document.querySelector("dialog[open]")) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();  // of what has the focus
    submit();
  }
  if (event.key === "Escape") cancel();
});
byId("form").addEventListener("settings", () => {
  if (!job && !document.querySelector(".cell img")) stage.reserve(...form.size());
});

// The beginning

/** Asks the server what there is. */
async function begin() {
  try {
    form.fill(...await Promise.all([api.get("api/options"), api.get("api/models")]));
    await refreshDevice();
  } catch (error) {
    if (error instanceof api.Lost) lost();
    else form.showError(error.message);
  }
}

api.onKeyNeeded(askKey);
stage.reserve(1, 1);
openHistory({
  again: ({ request, settings }) => generate({ ...request, seed: settings.seed }),
  vary: ({ request }) => generate({ ...request, seed: null }),
  useStart: (picture) => start.use(picture.blob, describe(picture)),
  useSettings({ request, settings }) {
    form.write({ ...request, seed: settings.seed });
    start.restore(request);
  },
});
openDevice(lost);
begin();
