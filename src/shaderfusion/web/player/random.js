/**
 * Normal noise that equals torch's on a CPU, as random.py makes it: words of a Mersenne Twister (Matsumoto and
 * Nishimura 1998), in pairs sqrt(-2 log u1) (cos 2 pi u2, sin 2 pi u2) in float32. Near a zero of the sine an angle's
 * rounding decides every digit, so torch's polynomials, those of Cephes, are evaluated here, in its order.
 */
import { InputError } from "./errors.js";

const f32 = Math.fround;
const BLOCK = 16; // values that torch fills at once: 8 cosines, then 8 sines

// Cephes' coefficients, highest power first.
const LOG = [
  7.0376836292e-2, -1.151461031e-1, 1.167699874e-1, -1.2420140846e-1, 1.4249322787e-1, -1.6668057665e-1,
  2.0000714765e-1, -2.4999993993e-1, 3.3333331174e-1,
].map(f32);
const SIN = [-1.9515295891e-4, 8.3321608736e-3, -1.6666654611e-1].map(f32);
const COS = [2.443315711809948e-5, -1.388731625493765e-3, 4.166664568298827e-2].map(f32);
const LOG_2 = [0.693359375, -2.1219444e-4].map(f32); // in two parts: a small integer times the first is exact
const QUARTER_PI = [0.78515625, 2.4187564849853515625e-4, 3.77489497744594108e-8].map(f32); // likewise

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
    const values = new Float32Array(size), uniform = Array.from({ length: size }, this.#words), rest = size % BLOCK;
    for (let i = 0; i < size - rest; i += BLOCK) boxMuller(uniform.slice(i, i + BLOCK), values.subarray(i, i + BLOCK));
    // A last block that would be short is one of 16 new words, for the last 16 values.
    if (rest) boxMuller(Array.from({ length: BLOCK }, this.#words), values.subarray(size - BLOCK));
    return values;
  }
}

/** A function that gives the low 24 bits of the next word. */
function mersenneTwister(seed) {
  const state = new Uint32Array(624);
  let next = 624;
  state.forEach((_, i) => (state[i] = i ? Math.imul(1812433253, state[i - 1] ^ (state[i - 1] >>> 30)) + i : seed));
  return () => {
    if (next === 624) {
      next = 0;
      for (let i = 0; i < 624; i++) {
        const y = (state[i] & 0x80000000) | (state[(i + 1) % 624] & 0x7fffffff);
        state[i] = state[(i + 397) % 624] ^ (y >>> 1) ^ (y & 1 && 0x9908b0df);
      }
    }
    let y = state[next++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) & 0xffffff;
  };
}

/** 16 words to 16 values: u1 = 1 - the first 8, u2 = the last 8, in units of 2^-24. */
function boxMuller(words, values) {
  for (let i = 0; i < BLOCK / 2; i++) {
    const radius = f32(Math.sqrt(f32(-2 * log(2 ** 24 - words[i]))));
    const [cos, sin] = cosSin(f32(f32(2 * Math.PI) * words[i + BLOCK / 2] * 2 ** -24));
    values[i] = radius * cos;
    values[i + BLOCK / 2] = radius * sin;
  }
}

/** a b + c of float32 values, rounded once: their product is exact in float64. */
const fma = (a, b, c) => f32(a * b + c);

/** Horner's rule. */
const polynomial = (coefficients, x) => coefficients.reduce((sum, coefficient) => fma(sum, x, coefficient));

/** log(k / 2^24) for whole k from 1 to 2^24: k / 2^24 = 2^e (1 + m), with 1 + m from sqrt(1/2) to sqrt(2). */
function log(k) {
  const bits = 32 - Math.clz32(k), mantissa = k / 2 ** bits, isLow = mantissa < f32(Math.SQRT1_2);
  const m = (isLow ? 2 * mantissa : mantissa) - 1, e = bits - 24 - isLow, m2 = f32(m * m);
  const tail = fma(f32(polynomial(LOG, m) * m), m2, f32(e * LOG_2[1]));
  return fma(e, LOG_2[0], f32(m + fma(m2, -0.5, tail)));
}

/** Of an angle from 0 to 2 pi: (pi / 2) quadrant + x, with x from -pi/4 to pi/4. */
function cosSin(angle) {
  const quadrant = Math.ceil(Math.trunc(f32(angle * f32(4 / Math.PI))) / 2);
  const x = QUARTER_PI.reduce((rest, part) => fma(2 * quadrant, -part, rest), angle), x2 = f32(x * x);
  const cos = f32(fma(f32(polynomial(COS, x2) * x2), x2, f32(-0.5 * x2)) + 1);
  const sin = fma(f32(polynomial(SIN, x2) * x2), x, x);
  return [[cos, sin], [-sin, cos], [-cos, -sin], [sin, -cos]][quadrant % 4];
}
