/**
 * Schedulers: functions from a noise schedule and a number of steps to a table of updates, equal to those of
 * schedulers/, where the equations and the papers are. `config` has the fields of Python's SchedulerConfig.
 */
import { InputError, ModelError } from "./errors.js";

/** The order of an update's coefficients on the GPU; schedulers/schedule.py says what they mean. */
export const COEFFICIENTS = [
  "guidance_scale", "p_x", "p_m", "c_x", "c_saved", "c_m", "c_h1", "c_h2", "c_h3", "c_x0", "c_noise", "clip_range",
  "next_input_scale", "h_x", "h_m", "save_sample",
];

/** Call i gives the UNet inputScales[i] x at time timesteps[i], and updates[i] turns its output into the next x. */
export function makeSchedule(config, numSteps, name) {
  if (!RULES[name]) throw new ModelError(`scheduler (=${name}) must be one of ${Object.keys(RULES).join(", ")}`);
  return { initNoiseSigma: 1, inputScales: [], ...RULES[name](config, numSteps) };
}

const RULES = { ddim, euler, euler_a: eulerA, pndm };

const range = (n, valueOf) => Array.from({ length: n }, (_, i) => valueOf(i));

const linspace = (start, end, n) =>
  range(n, (i) => (i && i === n - 1 ? end : start + i * ((end - start) / (n - 1 || 1))));

/** To the nearest whole number, halves to the even one, as NumPy does. */
export const round = (x) => (Math.abs(x % 1) === 0.5 ? 2 * Math.round(x / 2) : Math.round(x));

/** alpha_t of each training timestep, falling. */
function alphasCumprod({ num_train_timesteps: T, trained_betas, beta_schedule, ...config }, zeroTerminalSnr) {
  const start = config.beta_start ?? 0.0001, end = config.beta_end ?? 0.02;
  const alphaBar = (i) => Math.cos(((i / T + 0.008) / 1.008) * Math.PI / 2) ** 2;
  let betas = linspace(start, end, T), product = 1;
  if (beta_schedule === "scaled_linear") betas = linspace(start ** 0.5, end ** 0.5, T).map((root) => root ** 2);
  if (beta_schedule === "squaredcos_cap_v2")
    betas = range(T, (i) => Math.min(1 - alphaBar(i + 1) / alphaBar(i), 0.999));
  const alphas = (trained_betas ?? betas).map((beta) => (product *= 1 - beta)), roots = alphas.map(Math.sqrt);
  if (!zeroTerminalSnr) return alphas;
  return roots.map((root) => (((root - roots.at(-1)) * roots[0]) / (roots[0] - roots.at(-1))) ** 2);
}

/** The timesteps that a run visits, falling; linspace is not rounded. */
function inferenceTimesteps({ num_train_timesteps: T, timestep_spacing, steps_offset }, n, defaultSpacing) {
  if (!Number.isInteger(n) || n < 1 || n > T)
    throw new InputError(`steps (=${n}) must be a whole number from 1 to ${T}`);
  const timesteps = {
    leading: () => range(n, (i) => (n - 1 - i) * Math.floor(T / n) + steps_offset),
    linspace: () => linspace(0, T - 1, n).reverse(),
    trailing: () => range(n, (i) => round(T - i * (T / n)) - 1),
  }[timestep_spacing ?? defaultSpacing]();
  if (timesteps[0] >= T) throw new InputError(`steps (=${n}) start after the last timestep (=${T - 1}); ask for fewer`);
  return timesteps;
}

/** What a model output m says of x_t: x_0 = x0_x x_t + x0_m m and eps = eps_x x_t + eps_m m. */
function prediction(alpha, { prediction_type }) {
  const signal = alpha ** 0.5, noise = (1 - alpha) ** 0.5;
  if (prediction_type === "epsilon") return { x0_x: 1 / signal, x0_m: -noise / signal, eps_x: 0, eps_m: 1 };
  return { x0_x: signal, x0_m: -noise, eps_x: noise, eps_m: signal };
}

/** alpha one stride below t. */
function alphaBefore(t, config, n, alphas, isOneAtLast) {
  const stride = Math.floor(config.num_train_timesteps / n);
  return t >= stride ? alphas[t - stride] : isOneAtLast ? 1 : alphas[0];
}

function ddim(config, n) {
  const timesteps = inferenceTimesteps(config, n, "leading").map(round);
  const alphas = alphasCumprod(config, config.rescale_betas_zero_snr);
  const updates = timesteps.map((t) => {
    const alphaPrev = alphaBefore(t, config, n, alphas, config.set_alpha_to_one ?? true);
    const p = prediction(alphas[t], config);
    const c_x0 = alphaPrev ** 0.5, eps = (1 - alphaPrev) ** 0.5, c_x = eps * p.eps_x, c_m = eps * p.eps_m;
    if (config.clip_sample === false) return { c_x: c_x0 * p.x0_x + c_x, c_m: c_x0 * p.x0_m + c_m };
    return { c_x, c_m, c_x0, p_x: p.x0_x, p_m: p.x0_m, clip_range: config.clip_sample_range };
  });
  return { timesteps, updates };
}

/** Weights of (m, h1, h2, h3), by how many earlier outputs there are. */
const ADAMS_BASHFORTH = [
  [1, 0, 0, 0],
  [3 / 2, -1 / 2, 0, 0],
  [23 / 12, -16 / 12, 5 / 12, 0],
  [55 / 24, -59 / 24, 37 / 24, -9 / 24],
];
const HEUN = [1 / 2, 1 / 2, 0, 0];

function pndm(config, n) {
  const alphas = alphasCumprod(config);
  const step = (t, weights) => {
    const alpha = alphas[t], alphaPrev = alphaBefore(t, config, n, alphas, config.set_alpha_to_one);
    const denominator = alpha * (1 - alphaPrev) ** 0.5 + (alpha * (1 - alpha) * alphaPrev) ** 0.5;
    const eps = -(alphaPrev - alpha) / denominator, p = prediction(alpha, config);
    const [c_m, c_h1, c_h2, c_h3] = weights.map((weight) => eps * p.eps_m * weight);
    return { c_x: (alphaPrev / alpha) ** 0.5 + eps * p.eps_x, c_m, c_h1, c_h2, c_h3, h_m: 1 };
  };
  const [first, ...others] = inferenceTimesteps(config, n, "leading").map(round);
  const updates = [{ ...step(first, ADAMS_BASHFORTH[0]), save_sample: 1 }];
  for (const t of others.slice(0, 1)) {
    // The second call repeats the first step, from where that began, with the mean of the two outputs.
    const again = step(t + Math.floor(config.num_train_timesteps / n), HEUN);
    updates.push({ ...again, c_x: 0, c_saved: again.c_x, h_m: 0 });
  }
  updates.push(...others.map((t, i) => step(t, ADAMS_BASHFORTH[Math.min(i + 1, 3)])));
  return { timesteps: [first, ...others.slice(0, 1), ...others], updates };
}

function euler(config, n) {
  if (config.use_karras_sigmas || config.use_exponential_sigmas || config.use_beta_sigmas)
    throw new ModelError("euler: use_karras_sigmas and its like must be false in a browser; export another scheduler");
  const last = config.final_sigmas_type === "zero" ? 0 : trainedSigmas(config)[0];
  return sigmaSteps(config, n, (sigma, sigmaPrev = last) => ({ to: sigmaPrev }));
}

function eulerA(config, n) {
  return sigmaSteps(config, n, (sigma, sigmaPrev = 0) => {
    return { to: sigmaPrev ** 2 / sigma, c_noise: (sigmaPrev * (sigma ** 2 - sigmaPrev ** 2) ** 0.5) / sigma };
  });
}

/** Euler's steps, each from sigma down to `to`. */
function sigmaSteps(config, n, stepOf) {
  const trained = trainedSigmas(config), timesteps = inferenceTimesteps(config, n, "linspace");
  const sigmas = timesteps.map((t) => {
    const i = Math.floor(t), rest = t - i;
    return rest ? trained[i] + (trained[i + 1] - trained[i]) * rest : trained[i];
  });
  const inputScales = sigmas.map((sigma) => 1 / (sigma ** 2 + 1) ** 0.5);
  const updates = sigmas.map((sigma, i) => {
    const { to, ...others } = stepOf(sigma, sigmas[i + 1]), p = prediction(1 / (sigma ** 2 + 1), config);
    return { c_x: 1 + (to - sigma) * p.eps_x * inputScales[i], c_m: (to - sigma) * p.eps_m, ...others };
  });
  const initNoiseSigma = config.timestep_spacing === "leading" ? (sigmas[0] ** 2 + 1) ** 0.5 : sigmas[0];
  return { initNoiseSigma, timesteps, inputScales, updates };
}

/** sigma of each training timestep, rising; of alpha in float32, as in diffusers. */
function trainedSigmas(config) {
  const f32 = Math.fround, isZero = config.rescale_betas_zero_snr, alphas = alphasCumprod(config, isZero).map(f32);
  if (isZero) alphas[alphas.length - 1] = 2 ** -24;
  return alphas.map((alpha) => f32(Math.sqrt(f32(f32(1 - alpha) / alpha))));
}
