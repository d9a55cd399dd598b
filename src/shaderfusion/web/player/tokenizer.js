/**
 * Prompts to token ids, as CLIP was trained to read them: byte-level byte-pair encoding of lower-cased text (Radford et
 * al. 2021, section 2.4). Equal to text/tokenizer.py.
 */

// One word: a contraction's end, letters, one digit, or a run of anything else that is not white space.
const WORD = /<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\p{White_Space}\p{L}\p{N}]+/gu;
const PART = /'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\p{L}\p{N}]+/gu; // of a word: the first two of WORD are three

// Each byte as a letter: itself where it prints, else one from 256 on.
let numHidden = 0;
const BYTES = Array.from({ length: 256 }, (_, byte) => {
  const prints = (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
  return String.fromCharCode(prints ? byte : 256 + numHidden++);
});

export class Tokenizer {
  /** `vocab`: tokens by id; `merges`: "left right", best first; `exact`, `normalized`: what is found before words. */
  constructor({ vocab, merges, exact, normalized, ...ids }) {
    Object.assign(this, ids); // bos_id, eos_id, pad_id, unk_id, max_length
    this.ids = new Map(vocab.map((token, id) => [token, id]));
    this.ranks = new Map(merges.map((merge, rank) => [merge, rank]));
    this.exact = finder(exact);
    this.normalized = finder(normalized);
  }

  /** The ids of a text, begun, ended and padded, and how many tokens were dropped from its end. */
  tokenize(text) {
    const tokens = this.encode(text), kept = tokens.slice(0, this.max_length - 2);
    const ids = Array(this.max_length).fill(this.pad_id);
    ids.splice(0, kept.length + 2, this.bos_id, ...kept, this.eos_id);
    return { ids, numDropped: tokens.length - kept.length };
  }

  /** The ids of a text, without ends. */
  encode(text) {
    const parts = (piece) => (piece.match(WORD) ?? []).flatMap((word) => word.match(PART));
    const idsOf = (piece) => parts(piece).flatMap((part) => this.#merge(part));
    return this.exact(text, (piece) => this.normalized(normalize(piece), idsOf));
  }

  /** The ids of a word's bytes, after the pair that comes first in `merges` became one, until there is none. */
  #merge(word) {
    const tokens = Array.from(new TextEncoder().encode(word), (byte) => BYTES[byte]);
    tokens.push(tokens.pop() + "</w>");
    const rankAt = (i) => this.ranks.get(`${tokens[i]} ${tokens[i + 1]}`) ?? Infinity;
    for (;;) {
      const best = tokens.reduce((best, _, i) => (rankAt(i) < rankAt(best) ? i : best), 0);
      if (rankAt(best) === Infinity) return tokens.map((token) => this.ids.get(token) ?? this.unk_id);
      tokens.splice(best, 2, tokens[best] + tokens[best + 1]);
    }
  }
}

/** Lower-cased letter by letter: a sigma at a word's end is as any other. */
const normalize = (text) =>
  Array.from(text.normalize("NFC").replace(/\p{White_Space}+/gu, " "), (letter) => letter.toLowerCase()).join("");

/** A function of a text, and of what gives the ids of its pieces that are no token of `ids`. */
function finder({ pattern, ids }) {
  const found = new RegExp(`(${pattern})`, "u");
  return (text, idsOf) => text.split(found).flatMap((piece, i) => (i % 2 ? ids[piece] : idsOf(piece)));
}
