/** A mask drawn over a picture: what is painted is made anew, the rest is kept. */

import { byId } from "./dom.js";

const COLOR = "rgb(224 36 94)";
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
  const pixels = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let at = 0; at < pixels.data.length; at += 4) {
    pixels.data[at + 3] = pixels.data[at] * pixels.data[at + 3] >= 128 * 255 ? 255 : 0;
  }
  context.putImageData(pixels, 0, 0);
  fill(context, "source-in", COLOR);
}

/** White where to paint and black elsewhere, as the data URL of a PNG; null where nothing is painted. */
export function toUrl() {
  const { width, height } = canvas;
  const { data } = context.getImageData(0, 0, width, height);
  if (!new Uint32Array(data.buffer).some(Boolean)) return null;
  const flat = Object.assign(document.createElement("canvas"), { width, height });
  const flatContext = flat.getContext("2d");
  flatContext.drawImage(canvas, 0, 0);
  fill(flatContext, "source-in", "white");
  fill(flatContext, "destination-over", "black");
  return flat.toDataURL("image/png");
}

/** All of a canvas in a colour, which `operation` joins with what is there. */
function fill(target, operation, color) {
  target.globalCompositeOperation = operation;
  target.fillStyle = color;
  target.fillRect(0, 0, canvas.width, canvas.height);
  target.globalCompositeOperation = "source-over";
}

/** Where the stroke is that is being drawn. */
let last = null;

/** Goes on with the stroke to where the pointer is, as thick as the brush's part of the picture's width. */
function draw(event) {
  const scale = canvas.width / canvas.getBoundingClientRect().width;
  const point = [event.offsetX * scale, event.offsetY * scale];
  const isErasing = document.querySelector("[name=tool]:checked").value === "erase";
  context.globalCompositeOperation = isErasing ? "destination-out" : "source-over";
  context.strokeStyle = COLOR;
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
