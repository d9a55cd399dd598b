/** The server: JSON, and streams of events in answers to POST. Paths are relative, so that a proxy may add a prefix. */

/** What the server refuses, with its sentence and the field that it is about. */
export class Refused extends Error {
  constructor(message, field = null) {
    super(message);
    this.field = field;
  }
}

/** The server does not answer, or stopped in the middle of an answer. */
export class Lost extends Error {}

const KEY = "shaderfusion-key";

/** Asks for the API key, again where the last one was wrong. @type {(isWrong: boolean) => Promise<string | null>} */
let askKey = async () => null;
export const onKeyNeeded = (ask) => { askKey = ask; };

/** A text's bytes as a header holds them, a letter each. */
const utf8 = (text) => String.fromCharCode(...new TextEncoder().encode(text));

/** One question at a time, however many requests were refused. */
let asking = null;

async function request(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${utf8(key)}` }) };
  let response;
  try {
    response = await fetch(path, { ...options, headers, cache: "no-store" });
  } catch (error) {
    throw error.name === "AbortError" ? error : new Lost();
  }
  if (response.status === 401) {
    asking ??= askKey(Boolean(key)).finally(() => { asking = null; });
    const given = await asking;
    if (!given) throw new Refused("The server asks for its API key. Reload the page to enter it.");
    sessionStorage.setItem(KEY, given);
    return request(path, options);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const after = response.headers.get("Retry-After");
  const hint = response.status === 429 && after ? ` Try again in ${after} s.` : "";
  try {
    const { error, field } = await response.json();
    return new Refused(error + hint, field);
  } catch {
    return new Refused(`The server answered with status ${response.status}, which its log explains.`);
  }
}

/** Seeds have 64 bits, of which JavaScript's numbers hold 53: longer ones are kept as text, in both directions. */
const parse = (text) => JSON.parse(text.replace(/"seed":\s*(\d{16,})/g, '"seed":"$1"'));

function serialize({ seed, ...others }) {
  const text = JSON.stringify(others);
  return /^\d+$/.test(seed ?? "") ? text.replace(/\}$/, `,"seed":${seed}}`) : text;
}

/** The JSON of a GET. */
export const get = async (path) => parse(await (await request(path)).text());

/** The JSON that answers a POST of an object, or of a file's bytes. */
export async function post(path, body) {
  const isFile = body instanceof Blob;
  const headers = { "Content-Type": isFile ? body.type : "application/json" };
  const response = await request(path, { method: "POST", headers, body: isFile ? body : serialize(body) });
  return parse(await response.text());
}

/**
 * The server-sent events that answer a POST; to abort the signal closes the connection, and so cancels the job.
 * @returns {AsyncGenerator<{name: string, data: any}>}
 */
export async function* stream(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  const response = await request(path, { method: "POST", headers, body: serialize(body), signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      let from = Math.max(0, text.length - 1);
      text += value;
      for (let end; (end = text.indexOf("\n\n", from)) >= 0; from = 0) {
        const event = parseEvent(text.slice(0, end));
        text = text.slice(end + 2);
        if (event) yield event;
      }
    }
  } catch (error) {
    throw error instanceof TypeError ? new Lost() : error;  // as browsers call a broken connection
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** One block of lines; comments, which keep the connection open, are none. */
function parseEvent(block) {
  let name = "message";
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("event:")) name = line.slice(6).trim();
    if (line.startsWith("data:")) data.push(line.slice(5));
  }
  return data.length ? { name, data: parse(data.join("\n")) } : null;
}
