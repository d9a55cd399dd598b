/** The few things that all modules do with elements. */

/** The element of that id. @returns {any} */
export const byId = (id) => document.getElementById(id);

/** An element with properties and children. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** Names and values as the rows of a <dl>; empty values are left out. */
export function fillFacts(list, facts) {
  const shown = Object.entries(facts).filter(([, value]) => value !== null && value !== undefined && value !== "");
  list.replaceChildren(...shown.flatMap(([name, value]) => [
    make("dt", { textContent: name }),
    make("dd", { textContent: String(value) }),
  ]));
}

/** The bytes of a data URL. `fetch` could read one, but not under our Content-Security-Policy. */
export function toBlob(dataUrl) {
  const [head, body] = dataUrl.split(",", 2);
  const letters = atob(body);
  const bytes = new Uint8Array(letters.length);
  for (let at = 0; at < bytes.length; at += 1) bytes[at] = letters.charCodeAt(at);
  return new Blob([bytes], { type: head.slice("data:".length).split(";")[0] });
}

/** A blob as a data URL. @returns {Promise<string>} */
export function toDataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(String(reader.result));
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}
