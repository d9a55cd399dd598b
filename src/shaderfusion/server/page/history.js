/** The session's pictures as a grid, and the dialog that shows one of them with its settings. */

import { byId, fillFacts, make } from "./dom.js";
import { FORGETFUL, openStore } from "./store.js";

/**
 * @typedef {{id: string, at: number, index: number, blob: Blob, width: number, height: number,
 *   settings: any, parameters: string, request: any, url?: string}} Picture
 * One that was made: its file, what made it, and the request that asked for it.
 */

/** Older pictures than these make room. */
const MOST = 200;

const grid = byId("history-grid");
const viewer = byId("viewer");
let store = FORGETFUL;

/** Oldest first. @type {Picture[]} */
let pictures = [];
let shown = null;

/**
 * Reads what a reload left, and connects the dialog's buttons.
 * @param {{again: Function, vary: Function, useStart: Function, useSettings: Function}} actions each gets a picture
 */
export async function openHistory(actions) {
  const buttons = { again: "again", vary: "vary", useStart: "use-start", useSettings: "use-settings" };
  for (const [action, id] of Object.entries(buttons)) {
    byId(id).addEventListener("click", () => {
      viewer.close();
      actions[action](shown);
    });
  }
  byId("viewer-close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("click", ({ target }) => { if (target === viewer) viewer.close(); });
  viewer.addEventListener("keydown", (event) => {
    const step = { ArrowRight: -1, ArrowLeft: 1 }[event.key];  // newest come first in the grid
    const next = step && pictures[pictures.indexOf(shown) + step];
    if (next) view(next);
  });
  byId("clear-history").addEventListener("click", clear);
  store = await openStore();
  for (const picture of await store.all()) place(picture);
  if (!store.isLasting) hint("This browser keeps no data here: pictures stay until you reload or close this page.");
}

/** Adds a picture that was made, and returns it with its URL. */
export async function addPicture(picture) {
  const placed = place(picture);
  try {
    await store.add(picture);
    if (pictures.length > MOST) await removeOldest();
  } catch (error) {
    hint(`The browser has no room for more pictures (${error.name}): new ones stay until you reload this page.`);
  }
  return placed;
}

function hint(text) {
  byId("history-hint").textContent = text;
}

function place(picture) {
  const placed = { ...picture, url: URL.createObjectURL(picture.blob) };
  pictures.push(placed);
  const image = make("img", { src: placed.url, alt: describe(placed), decoding: "async" });
  const button = make("button", { type: "button" }, image);
  button.addEventListener("click", () => view(placed));
  grid.prepend(make("li", {}, button));
  byId("clear-history").hidden = false;
  return placed;
}

async function removeOldest() {
  const [oldest] = pictures.splice(0, 1);
  grid.lastElementChild.remove();
  URL.revokeObjectURL(oldest.url);
  await store.remove([oldest.id]);
}

async function clear() {
  const count = pictures.length === 1 ? "this picture" : `these ${pictures.length} pictures`;
  if (!confirm(`Forget ${count}? What you downloaded stays.`)) return;
  await store.remove(pictures.map(({ id }) => id));
  for (const { url } of pictures) URL.revokeObjectURL(url);
  pictures = [];
  grid.replaceChildren();
  byId("clear-history").hidden = true;
  byId("prompt").focus();
}

export const describe = ({ settings }) => `${settings.prompt || "no prompt"}, seed ${settings.seed}`;

/** The dialog, which returns the focus to where it was when it closes. */
export function view(picture) {
  shown = picture;
  const { settings, url, parameters } = picture;
  const image = byId("viewer-image");
  image.style.setProperty("--ratio", `${picture.width} / ${picture.height}`);
  Object.assign(image, { src: url, alt: describe(picture), width: picture.width, height: picture.height });
  byId("viewer-prompt").textContent = settings.prompt;
  byId("viewer-parameters").textContent = parameters;
  Object.assign(byId("download"), { href: url, download: fileName(settings, picture.index) });
  fillFacts(byId("viewer-facts"), facts(settings));
  if (!viewer.open) viewer.showModal();
}

/** Rows of the dialog, what people compare first. */
function facts({ prompt, width, height, seed, steps, guidance_scale: guidance, scheduler, ...others }) {
  const plain = (value) => (typeof value === "object" ? JSON.stringify(value) : value);
  const named = Object.entries(others).map(([name, value]) => [name.replaceAll("_", " "), plain(value)]);
  return { size: `${width} × ${height}`, seed, steps, guidance, scheduler, ...Object.fromEntries(named) };
}

function fileName({ prompt = "", seed }, index) {
  const words = prompt.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "").slice(0, 60);
  return `${words || "picture"}-${seed}${index ? `-${index + 1}` : ""}.png`;
}
