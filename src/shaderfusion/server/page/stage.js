/** The picture that is being made: cells of its shape, previews, and how far it is. */

import { byId, make } from "./dom.js";

const frame = byId("frame");
const cells = byId("cells");
const PARTS = {
  loading: "loading the model",
  text: "reading the prompt",
  encode: "reading the picture",
  denoise: "denoising",
  hires: "second pass",
  decode: "decoding",
};

/** Reserves the place of so many pictures of that shape. */
export function reserve(width, height, count = 1) {
  const columns = Math.ceil(Math.sqrt(count));
  const rows = Math.ceil(count / columns);
  const ratio = width / height;
  const style = { ratio, columns, rows, "frame-ratio": (ratio * columns) / rows };
  for (const [name, value] of Object.entries(style)) frame.style.setProperty(`--${name}`, value);
  cells.replaceChildren(...Array.from({ length: count }, () => make("div", { className: "cell" })));
}

/** Pictures so far, one a cell; the same <img> is used again, so that nothing flickers. */
export function preview(images) {
  images.forEach((source, index) => {
    const cell = cells.children[index];
    if (!cell || cell.matches("button")) return;
    cell.classList.add("is-preview");
    if (!cell.firstChild) cell.append(make("img", { alt: "The picture so far" }));
    cell.firstChild.src = source;
  });
}

/** A finished picture, which opens when it is clicked. */
export async function finish(index, url, alt, open) {
  const image = make("img", { src: url, alt });
  await image.decode().catch(() => {});
  const cell = make("button", { type: "button", className: "cell", onclick: open }, image);
  cells.children[index]?.replaceWith(cell);
}

/** The bar, and the sentence under it. `done` is from 0 to 1, or null for waiting. */
export function show(text, done = 0) {
  const bar = byId("bar");
  if (done === null) bar.removeAttribute("value");
  else bar.value = done;
  byId("progress-text").textContent = text;
}

/** What a screen reader says; not every step. */
export function announce(text) {
  byId("milestone").textContent = text;
}

let halves = 0;

export function step({ step, steps, part, seconds_left: left }) {
  const words = step ? [`Step ${step} of ${steps}`, PARTS[part] ?? part] : ["Begun", PARTS[part] ?? part];
  if (left !== null && left !== undefined) words.push(`${duration(left)} left`);
  show(words.join(" · "), steps ? step / steps : 0);
  const half = Math.floor((2 * step) / steps);
  if (half === 1 && halves === 0) announce("Half done.");
  halves = half;
}

export function duration(seconds) {
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  return `${Math.floor(seconds / 60)} min ${Math.round(seconds % 60)} s`;
}
