/** The picture to start from, with its mask. */

import { byId, toBlob, toDataUrl } from "./dom.js";
import * as form from "./form.js";
import * as mask from "./mask.js";

/** What is sent as it is; other kinds, and larger pictures, are sent as JPEG, scaled down. */
const SENT = ["image/png", "image/jpeg", "image/webp"];
const LARGEST_BYTES = 6_000_000;
const LARGEST_SIDE = 2048;

/** As it is sent, with its sides in pixels. @type {{url: string, width: number, height: number} | null} */
let picture = null;

/** A file or blob becomes the start; a sentence beside the field says where it is no picture. */
export async function use(file, name = file.name) {
  form.clearErrors();
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    form.showError(`${name} is no picture that this browser can read; choose a PNG, JPEG or WebP file.`, "image");
    return;
  }
  const scale = Math.min(1, LARGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  const isSent = SENT.includes(file.type) && file.size <= LARGEST_BYTES && scale === 1;
  const [width, height] = [bitmap.width, bitmap.height].map((side) => Math.max(1, Math.round(side * scale)));
  picture = { url: isSent ? await toDataUrl(file) : redrawn(bitmap, width, height), width, height };
  Object.assign(byId("start-image"), { src: picture.url, width, height });
  mask.begin(width, height);
  byId("start").open = true;
  byId("start-tools").hidden = false;
  byId("start-state").textContent = name;
  compareShapes();
}

function redrawn(bitmap, width, height) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d");
  context.fillStyle = "white";  // what is transparent, as on the server
  context.fillRect(0, 0, width, height);
  context.drawImage(bitmap, 0, 0, width, height);
  return canvas.toDataURL("image/jpeg", 0.95);
}

export function remove() {
  picture = null;
  byId("image").value = byId("mask-file").value = "";
  byId("start-tools").hidden = true;
  byId("start-state").textContent = "none";
}

/** What a request has of it: image and mask as data URLs, and the strength; nothing without a picture. */
export function request(strength) {
  return picture ? { image: picture.url, mask: mask.toUrl(), strength } : {};
}

/** What `request` gave, put back. */
export async function restore({ image: before, mask: painted }) {
  if (!before) return remove();
  await use(toBlob(before), "as before");
  if (painted) await mask.load(toBlob(painted));
}

/** The server stretches a picture to width and height: say so where that shows. */
function compareShapes() {
  const [width, height] = form.size();
  const isSame = !picture || Math.abs(Math.log((width / height) / (picture.width / picture.height))) < 0.03;
  byId("stretch").hidden = isSame;
  byId("stretch").firstElementChild.textContent = `It is stretched to ${width} × ${height}.`;
}

byId("form").addEventListener("settings", compareShapes);
byId("image").addEventListener("change", ({ target }) => { if (target.files[0]) use(target.files[0]); });
byId("match").addEventListener("click", () => form.setSize(...form.sidesOf(picture.width, picture.height)));
byId("clear-mask").addEventListener("click", () => { mask.clear(); byId("mask-file").value = ""; });
byId("remove-start").addEventListener("click", () => { remove(); byId("image").focus(); });
byId("mask-file").addEventListener("change", async ({ target }) => {
  if (!target.files[0]) return;
  form.clearErrors();
  await mask.load(target.files[0]).catch(() => {
    form.showError(`${target.files[0].name} is no picture that this browser can read; choose a PNG.`, "mask-file");
  });
});
