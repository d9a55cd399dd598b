/** A mask drawn over a picture: what is painted is made anew, the rest is kept. */

import { byId } from "./dom.js";

const PAINT = [224, 36, 94];
const canvas = byId("mask");
const context = canvas.getContext("2d", { willReadFrequently: true });

/** An empty mask of so many pixels. */
export function begin(width, height) {
  Object.assign(canvas, { width, height });
}

export function clear() {
  context.clearRect(0, 0, canvas.width, canvas.height);
}

/** Paints where a file is white, in place of what was drawn. */
export async function load(file) {
  const picture = await createImageBitmap(file);
  clear();
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  recolor(context, context, ([red, , , alpha]) => (red * alpha >= 128 * 255 ? [...PAINT, 255] : [0, 0, 0, 0]));
}

/** White where to paint and black elsewhere, as the data URL of a PNG; null where nothing is painted. */
export function toUrl() {
  const { width, height } = canvas;
  const flat = Object.assign(document.createElement("canvas"), { width, height });
  let isEmpty = true;
  recolor(context, flat.getContext("2d"), ([, , , alpha]) => {
    if (alpha < 128) return [0, 0, 0, 255];
    isEmpty = false;
    return [255, 255, 255, 255];
  });
  return isEmpty ? null : flat.toDataURL("image/png");
}

/** Each pixel, [red, green, blue, alpha], becomes another one. */
function recolor(source, target, change) {
  const pixels = source.getImageData(0, 0, canvas.width, canvas.height);
  for (let at = 0; at < pixels.data.length; at += 4) pixels.data.set(change(pixels.data.subarray(at, at + 4)), at);
  target.putImageData(pixels, 0, 0);
}

/** A stroke to where the pointer is, as thick as the brush's part of the picture's width. */
let last = null;

function draw(event) {
  const scale = canvas.width / canvas.getBoundingClientRect().width;
  const point = [event.offsetX * scale, event.offsetY * scale];
  const isErasing = document.querySelector("[name=tool]:checked").value === "erase";
  context.globalCompositeOperation = isErasing ? "destination-out" : "source-over";
  context.strokeStyle = `rgb(${PAINT})`;
  context.lineWidth = (byId("brush").valueAsNumber / 100) * canvas.width;
  context.lineCap = "round";
  context.beginPath();
  context.moveTo(...(last ?? point));
  context.lineTo(...point);
  context.stroke();
  context.globalCompositeOperation = "source-over";
  last = point;
}

canvas.addEventListener("pointerdown", (event) => {
  if (event.button !== 0) return;
  canvas.setPointerCapture(event.pointerId);
  draw(event);
});
canvas.addEventListener("pointermove", (event) => { if (last) draw(event); });
for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, () => { last = null; });
