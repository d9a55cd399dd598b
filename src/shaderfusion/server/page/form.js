/** The form: settings read from it and written to it by their names in the API, and errors beside their fields. */

import { Refused } from "./api.js";
import { byId, make } from "./dom.js";

const form = byId("form");

/** How values are sent; what is empty is sent as null, which leaves it to the server. */
const TEXTS = ["prompt", "negative_prompt", "model", "rng", "seeds", "prompt_syntax", "emphasis"];
const NUMBERS = [
  "width", "height", "steps", "guidance_scale", "num_images", "strength", "eta", "clip_skip",
  "hires", "hires_steps", "hires_strength", "preview_every",
];
/** What a picture's settings do not reset: they say what to use, not what to make. */
const LASTING = ["model", "preview_every"];

const SAVED = "shaderfusion-form";
let options = { defaults: {}, limits: {}, schedulers: [], spacings: {} };
let models = [];

/** Fills the choices from `/api/options` and `/api/models`, then what the form held before a reload. */
export function fill(newOptions, newModels) {
  options = newOptions;
  models = newModels.models;
  for (const [name, limits] of Object.entries(options.limits)) {
    if (Array.isArray(limits) && form.elements[name]) form.elements[name].max = limits[1];
  }
  form.elements.scheduler.append(...options.schedulers.map((name) => new Option(name)));
  form.elements.model.append(...models.map(({ name }) => new Option(name)));
  if (newModels.current) form.elements.model.value = newModels.current;
  byId("optimization-list").replaceChildren(...options.optimizations.map(({ name, about }) => make(
    "label", { className: "choice" },
    make("input", { type: "checkbox", name: "optimization", value: name, checked: true }),
    about,
    make("small", { textContent: name === about ? "" : name }),
  )));
  const saved = sessionStorage.getItem(SAVED);
  reset();
  if (saved) write(JSON.parse(saved), { whole: false });
}

export const isFilled = () => models.length > 0;

const currentModel = () => models.find(({ name }) => name === form.elements.model.value);

/** All settings; Refused, as the server's refusals, for a number outside its rule. */
export function read() {
  const settings = values();
  for (const name of NUMBERS) {
    const input = form.elements[name];
    if (!isKept(input)) throw new Refused(rule(input), name);
  }
  if (settings.seed !== null && !/^\d{1,20}$/.test(settings.seed)) {
    throw new Refused("Seed must be a whole number below 2^64, or empty for another one each time.", "seed");
  }
  return settings;
}

function values() {
  const settings = {};
  for (const name of TEXTS) settings[name] = form.elements[name].value || null;
  for (const name of NUMBERS) {
    const input = form.elements[name];
    settings[name] = input.value === "" ? null : input.valueAsNumber;
  }
  settings.prompt ??= "";
  settings.seed = form.elements.seed.value.trim() || null;
  settings.scheduler = readScheduler();
  settings.optimizations = readOptimizations();
  return settings;
}

/** Whether a number is one, and within its range. What sides are multiples of, the server knows. */
function isKept({ validity, name }) {
  return validity.valid || (validity.stepMismatch && ["width", "height"].includes(name));
}

function rule(input) {
  const what = input.labels[0].textContent.trim();
  const kind = input.step === "any" ? "a number" : "a whole number";
  const range = input.max ? ` from ${input.min} to ${input.max}` : ` of at least ${input.min}`;
  return `${what} must be ${kind}${range}.`;
}

/** Settings by name into the form. With `whole` they are all of a picture's, and what they lack becomes its default. */
export function write(settings, { whole = true } = {}) {
  if (whole) reset({ keeps: LASTING });
  for (const [name, value] of Object.entries(settings)) {
    if (value === null || value === undefined) continue;
    if (name === "optimizations") writeOptimizations(value);
    if (name === "scheduler") writeScheduler(value);
    if (name === "model" && !models.some((model) => model.name === value)) continue;
    if (name === "seed" || TEXTS.includes(name) || NUMBERS.includes(name)) form.elements[name].value = value;
  }
  changed();
}

/** The defaults, those of the model among them; the prompt is left as it is unless a picture says it. */
export function reset({ keeps = [] } = {}) {
  const kept = ["prompt", ...keeps];
  for (const name of [...TEXTS, ...NUMBERS, "seed"]) {
    if (kept.includes(name) || name === "model") continue;
    form.elements[name].value = options.defaults[name] ?? form.elements[name].getAttribute("value") ?? "";
  }
  writeScheduler(options.defaults.scheduler ?? "");
  if (!keeps.length) writeOptimizations("all");
  takeModelDefaults();
}

/** What depends on several fields, after any of them changed. */
export function changed() {
  fillShapes();
  const chosen = readOptimizations();
  byId("optimizing-state").textContent = chosen.replaceAll(",", ", ");
  byId("strength-value").textContent = form.elements.strength.value;
  sessionStorage.setItem(SAVED, JSON.stringify(values()));
  form.dispatchEvent(new Event("settings"));
}

// Size

const SHAPES = { Square: [1, 1], "Portrait 3:4": [3, 4], "Portrait 2:3": [2, 3], "Tall 9:16": [9, 16],
  "Landscape 4:3": [4, 3], "Landscape 3:2": [3, 2], "Wide 16:9": [16, 9] };

/** The sides of a shape with about as many pixels as the model's own size. */
export function sidesOf(across, down) {
  const { width, height } = currentModel() ?? { width: 512, height: 512 };
  const unit = Math.min(width, height) >= 512 ? 64 : 8;
  const rounded = (side) => Math.max(unit, Math.round(side / unit) * unit);
  return [across / down, down / across].map((ratio) => rounded(Math.sqrt(width * height * ratio)));
}

function fillShapes() {
  const select = byId("shape");
  const sides = `${form.elements.width.value}x${form.elements.height.value}`;
  const shapes = Object.entries(SHAPES).map(([name, [across, down]]) => {
    const [width, height] = sidesOf(across, down);
    return new Option(name, `${width}x${height}`);
  });
  select.replaceChildren(...shapes, new Option("Other", ""));
  select.value = shapes.some(({ value }) => value === sides) ? sides : "";
}

export function setSize(width, height) {
  form.elements.width.value = width;
  form.elements.height.value = height;
  changed();
}

/** The size, steps and guidance that the model is for. */
function takeModelDefaults() {
  const { width, height, steps, guidance_scale } = currentModel() ?? {};
  Object.entries({ steps, guidance_scale }).forEach(([name, value]) => { form.elements[name].value = value ?? ""; });
  if (width) setSize(width, height);
}

export const size = () => [form.elements.width.valueAsNumber || 1, form.elements.height.valueAsNumber || 1];

// Schedulers: a name is a rule's, or that and a spacing's

function readScheduler() {
  return [form.elements.scheduler.value, form.elements.spacing.value].filter(Boolean).join("_") || null;
}

function writeScheduler(name) {
  const isOf = (rule) => name === rule || spacingsOf(rule).some((spacing) => name === `${rule}_${spacing}`);
  const rule = options.schedulers.find(isOf) ?? "";
  form.elements.scheduler.value = rule;
  fillSpacings(name.slice(rule.length + 1));
}

const spacingsOf = (rule) => options.spacings[rule] ?? [];

function fillSpacings(chosen = "") {
  const spacings = spacingsOf(form.elements.scheduler.value);
  const select = form.elements.spacing;
  select.replaceChildren(new Option("model’s own", ""), ...spacings.map((name) => new Option(name)));
  select.value = chosen;
  select.disabled = spacings.length === 0;
}

// Optimizations

const boxes = () => [...form.querySelectorAll("[name=optimization]")];

function readOptimizations() {
  const chosen = boxes().filter(({ checked }) => checked).map(({ value }) => value);
  if (chosen.length === boxes().length) return "all";
  return chosen.join(",") || "none";
}

function writeOptimizations(text) {
  const names = text.split(",").map((name) => name.trim());
  for (const box of boxes()) box.checked = text === "all" || names.includes(box.value);
}

// Errors

/** Fields that another control stands for. */
const PLACES = { mask: "mask-file" };

/** A sentence beside the field that it is about, opened if it is folded away; else at the top of the form. */
export function showError(message, field = null) {
  const input = field && form.elements[PLACES[field] ?? field];
  const place = input?.closest?.(".field");
  if (!place) {
    byId("problem").textContent = message;
    byId("problem").hidden = false;
    return;
  }
  const id = `${field}-error`;
  place.append(make("p", { className: "error", id, textContent: message }));
  const target = input.matches("input, select, textarea") ? input : place;
  target.setAttribute("aria-invalid", "true");
  target.setAttribute("aria-describedby", id);
  const fold = place.closest("details");
  if (fold) fold.open = true;
  (target === place ? place.querySelector("input, button") : target)?.focus();
}

export function clearErrors() {
  byId("problem").hidden = true;
  for (const error of form.querySelectorAll(".error")) error.remove();
  for (const input of form.querySelectorAll("[aria-invalid]")) {
    input.removeAttribute("aria-invalid");
    input.removeAttribute("aria-describedby");
  }
}

// Controls that change fields

form.addEventListener("input", ({ target }) => {
  if (target.id === "shape" && target.value) setSize(...target.value.split("x"));
  if (target.id === "model") takeModelDefaults();
  if (target.id === "scheduler") fillSpacings();
  changed();
});
byId("dice").addEventListener("click", () => {
  form.elements.seed.value = crypto.getRandomValues(new Uint32Array(1))[0];
  changed();
});
byId("optimize-all").addEventListener("click", () => { writeOptimizations("all"); changed(); });
byId("optimize-none").addEventListener("click", () => { writeOptimizations("none"); changed(); });
byId("reset").addEventListener("click", () => { clearErrors(); reset(); changed(); });
