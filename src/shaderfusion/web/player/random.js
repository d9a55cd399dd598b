/**
 * Normal noise that equals torch's on a CPU to the last digits of float32, as random.py makes it to the bit: words of a
 * Mersenne Twister (Matsumoto and Nishimura 1998), in pairs sqrt(-2 log u1) (cos 2 pi u2, sin 2 pi u2). Near a zero of
 * the sine the angle's rounding decides every digit, so it is rounded as torch does.
 */
import { InputError } from "./errors.js";

const f32 = Math.fround;
const BLOCK = 16; // values that torch fills at once: 8 cosines, then 8 sines

/** torch.Generator("cpu").manual_seed(seed): each draw goes on after the last. */
export class NormalGenerator {
  #words;

  /** From -2^63 to 2^64 - 1, as a number, a BigInt or text; the low 32 bits count. */
  constructor(seed) {
    if (!/^-?\d+$/.test(seed) || BigInt(seed) < -(2n ** 63n) || BigInt(seed) >= 2n ** 64n)
      throw new InputError(`seed (=${seed}) must be a whole number from -2^63 to 2^64 - 1`);
    this.#words = mersenneTwister(Number(BigInt.asUintN(32, BigInt(seed))));
  }

  /** The next numbers, 16 or more, as all latents have: Float32Array. */
  randn(size) {
    const values = new Float32Array(size), rest = size % BLOCK;
    for (let i = 0; i < size - rest; i += BLOCK) boxMuller(this.#next(BLOCK), values.subarray(i, i + BLOCK));
    // A last block that would be short is one of 16 new words, for the last 16 values.
    this.#next(rest);
    if (rest) boxMuller(this.#next(BLOCK), values.subarray(size - BLOCK));
    return values;
  }

  #next = (length) => Array.from({ length }, () => this.#words.next().value);
}

/** 16 words to 16 values: u1 = 1 - the first 8, u2 = the last 8, in units of 2^-24. */
function boxMuller(words, values) {
  for (let i = 0; i < BLOCK / 2; i++) {
    const radius = Math.sqrt(-2 * Math.log(1 - words[i] * 2 ** -24));
    const angle = f32(f32(2 * Math.PI) * words[i + BLOCK / 2] * 2 ** -24);
    values[i] = radius * Math.cos(angle);
    values[i + BLOCK / 2] = radius * Math.sin(angle);
  }
}

/** The low 24 bits of each word. */
function* mersenneTwister(seed) {
  const state = new Uint32Array(624);
  state.forEach((_, i) => (state[i] = i ? Math.imul(1812433253, state[i - 1] ^ (state[i - 1] >>> 30)) + i : seed));
  for (;;) {
    for (let i = 0; i < 624; i++) {
      const y = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
      state[i] = state[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 && 0x9908b0df);
    }
    for (let y of state) {
      y ^= y >>> 11;
      y ^= (y << 7) & 0x9d2c5680;
      y ^= (y << 15) & 0xefc60000;
      yield (y ^ (y >>> 18)) & 0xffffff;
    }
  }
}
