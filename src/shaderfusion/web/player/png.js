/** A PNG that says how its picture was made, in the text chunk `parameters` that web UIs read. */

/** The settings as that text; {prompt, negativePrompt} and the fields after them, in order. */
export function infotext({ prompt, negativePrompt, ...fields }) {
  const negative = negativePrompt ? [`Negative prompt: ${negativePrompt}`] : [];
  const last = Object.entries(fields).map(([name, value]) => `${name}: ${value}`);
  return [prompt, ...negative, last.join(", ")].join("\n");
}

/** The PNG of a canvas with that text, as a Blob. */
export async function toPng(canvas, text) {
  const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
  const end = blob.size - 12; // before the chunk IEND
  return new Blob([blob.slice(0, end), textChunk(text), blob.slice(end)], { type: "image/png" });
}

/** tEXt where the text is Latin-1, iTXt where it is not. */
function textChunk(text) {
  const isLatin = /^[\x00-\xff]*$/.test(text);
  const content = isLatin ? Uint8Array.from(text, (letter) => letter.charCodeAt(0)) : new TextEncoder().encode(text);
  const head = new TextEncoder().encode(isLatin ? "tEXtparameters\0" : "iTXtparameters\0\0\0\0\0");
  const chunk = new Uint8Array(8 + head.length + content.length), view = new DataView(chunk.buffer);
  view.setUint32(0, head.length - 4 + content.length);
  chunk.set(head, 4);
  chunk.set(content, 4 + head.length);
  view.setUint32(chunk.length - 4, crc32(chunk.subarray(4, chunk.length - 4)));
  return chunk;
}

function crc32(bytes) {
  let crc = -1;
  for (const byte of bytes) {
    crc ^= byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 && 0xedb88320);
  }
  return ~crc >>> 0;
}
