"""Write schedulers.npz: what diffusers' schedulers do with fixed model outputs. Needs the `golden` extra.

`cases` is a JSON list; `samples`: (calls, 8) float32 has the sample after each call of the model, one case after the
other. All cases start from `noise`: (8,), and call k of the model returns `model_outputs[k]`: (8,). Noise in the steps
is that of a generator with seed STEP_SEED, or, for dpmpp_sde, of torchsde's Brownian motion with that seed. `betas` is
a JSON list of pairs: options, and the SHA-256 of the float32 betas.

diffusers runs as it is, but for two things:

* where float32 costs it more than FLOAT32_ERROR, as it subtracts numbers that are nearly equal (euler and euler_a from
  the sigma of 4096 of zero-SNR betas, dpm2_a in one step from the largest sigma to the least), `float32` of torch and
  NumPy is float64 to its code, the tables of betas and the noise excepted. `float32_error` says how far from this its
  own float32 is;
* in dpmpp_sde exponentials, logarithms and powers of float32 are those of float64, rounded: torch's own, MKL's, are in
  the last digit other ones on AMD's processors than on Intel's. Times of the Brownian motion are rounded to 1e-6, and
  the last digit of a large sigma is as much, and makes another noise.
"""

# pyright: reportMissingImports=false, reportPrivateImportUsage=false

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import product
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import AysSchedules

CLASSES = {
    "ddim": diffusers.DDIMScheduler,
    "ddpm": diffusers.DDPMScheduler,
    "dpm2": diffusers.KDPM2DiscreteScheduler,
    "dpm2_a": diffusers.KDPM2AncestralDiscreteScheduler,
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
    "dpmpp_2m_sde": diffusers.DPMSolverMultistepScheduler,
    "dpmpp_sde": diffusers.DPMSolverSDEScheduler,
    "heun": diffusers.HeunDiscreteScheduler,
    "tcd": diffusers.TCDScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "euler_a": diffusers.EulerAncestralDiscreteScheduler,
    "lcm": diffusers.LCMScheduler,
    "lms": diffusers.LMSDiscreteScheduler,
    "pndm": diffusers.PNDMScheduler,
}
NUM_STEPS = (1, 2, 3, 5, 20, 50)
FEWER_NUM_STEPS = (1, 2, 5, 20)  # of rules that call the model twice a step, and of those beside them
FEW = ("ddpm", "dpm2", "dpm2_a", "dpmpp_2m_sde", "dpmpp_sde", "heun", "tcd")
STEP_SEED = 7
FLOAT32_ERROR = 1e-5
STABLE_DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}
# Options that only some schedulers read, or whose default differs between them.
EXPONENTIAL, BETA = {"use_exponential_sigmas": True}, {"use_beta_sigmas": True}
SPACED = [
    {"use_karras_sigmas": True, "prediction_type": "v_prediction"},
    {"use_karras_sigmas": True, "timestep_spacing": "leading"},
    EXPONENTIAL,
    {**EXPONENTIAL, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
    BETA,
    {**BETA, "timestep_spacing": "leading", "prediction_type": "v_prediction"},
]
OF_RULE = {"dpmpp_2m_sde": {"algorithm_type": "sde-dpmsolver++"}, "dpmpp_sde": {"noise_sampler_seed": STEP_SEED}}
VARIANTS: dict[str, list[dict[str, Any]]] = {
    "ddpm": [
        {"clip_sample": True},
        {"clip_sample": True, "clip_sample_range": 0.5, "prediction_type": "v_prediction"},
        {"variance_type": "fixed_large"},
        {"variance_type": "fixed_small_log"},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    ],
    "dpm2": SPACED,
    "dpm2_a": SPACED,
    "dpmpp_2m_sde": [
        *SPACED,
        {"final_sigmas_type": "sigma_min"},
        {"final_sigmas_type": "sigma_min", "lower_order_final": False},
        {"solver_order": 1},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    ],
    "dpmpp_sde": SPACED,
    "heun": SPACED,
    "tcd": [
        {"original_inference_steps": 77, "num_train_timesteps": 900},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
        {"clip_sample": True, "set_alpha_to_one": True, "timestep_spacing": "trailing"},  # none is read by this one
    ],
    "unipc": [
        *SPACED,
        {"solver_order": 1},
        {"solver_order": 3},
        # The last step of bh1 to sigma = 0 is NaN in diffusers.
        {"solver_order": 3, "solver_type": "bh1", "prediction_type": "v_prediction", "final_sigmas_type": "sigma_min"},
        {"solver_type": "bh1", "final_sigmas_type": "sigma_min"},
        {"solver_type": "midpoint", "final_sigmas_type": "sigma_min"},
        {"solver_order": 3, "final_sigmas_type": "sigma_min", "lower_order_final": False},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    ],
    "ddim": [
        {"clip_sample": True},
        {"clip_sample": True, "clip_sample_range": 0.5, "prediction_type": "v_prediction"},
        {"set_alpha_to_one": True},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"num_train_timesteps": 7, "trained_betas": [0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.4], "steps_offset": 0},
    ],
    "dpmpp_2m": [
        {"final_sigmas_type": "sigma_min"},
        {"final_sigmas_type": "sigma_min", "lower_order_final": False},
        {"final_sigmas_type": "sigma_min", "lower_order_final": False, "euler_at_final": True},
        {"solver_order": 1},
        {"solver_type": "bh2", "algorithm_type": "deis", "final_sigmas_type": "sigma_min"},
        {"use_karras_sigmas": True},
        {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min", "prediction_type": "v_prediction"},
        {"use_karras_sigmas": True, "beta_schedule": "linear", "timestep_spacing": "trailing"},
        EXPONENTIAL,
        {**BETA, "prediction_type": "v_prediction", "final_sigmas_type": "sigma_min"},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    ],
    "euler": [
        {"final_sigmas_type": "sigma_min"},
        {"use_karras_sigmas": True},
        {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min", "timestep_spacing": "leading"},
        EXPONENTIAL,
        {**BETA, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        {"beta_schedule": "linear"},
    ],
    "euler_a": [
        {"final_sigmas_type": "sigma_min", "use_karras_sigmas": True},  # neither is read by this one
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        {"beta_schedule": "linear"},
    ],
    "lcm": [
        {"clip_sample": True},
        {"clip_sample": True, "clip_sample_range": 0.5, "prediction_type": "v_prediction"},
        {"original_inference_steps": 77, "num_train_timesteps": 900},
        {"original_inference_steps": 5, "timestep_scaling": 0.003},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
        {"set_alpha_to_one": True, "steps_offset": 7, "timestep_spacing": "trailing"},  # none is read by this one
    ],
    "lms": [
        {"use_karras_sigmas": True},
        {"use_karras_sigmas": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
        EXPONENTIAL,
        {**BETA, "prediction_type": "v_prediction", "timestep_spacing": "leading"},
        {"rescale_betas_zero_snr": True, "final_sigmas_type": "sigma_min"},  # not read by this one
    ],
    "pndm": [
        {"set_alpha_to_one": True},
        {"rescale_betas_zero_snr": True},  # not read by this one
    ],
}
ABSENT = {"skip_prk_steps": True}  # every other key is the rule's default


ETAS: dict[str, list[tuple[float, dict[str, Any]]]] = {
    "ddim": [
        (1.0, {}),
        (0.3, {"clip_sample": True, "prediction_type": "v_prediction"}),
        (0.7, {"set_alpha_to_one": True, "timestep_spacing": "trailing"}),
        (0.7, {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}),
    ],
    "tcd": [(0.3, {}), (0.3, {"prediction_type": "v_prediction"}), (0.75, {}), (1.0, {})],
}
BETAS: list[dict[str, Any]] = [
    *(
        {"beta_schedule": schedule, "beta_start": start, "beta_end": end, "num_train_timesteps": num}
        for schedule, (start, end), num in product(
            ("linear", "scaled_linear"), ((0.00085, 0.012), (0.0001, 0.02)), (1, 2, 3, 77, 999, 1000)
        )
    ),
    {"beta_schedule": "squaredcos_cap_v2"},
]
AYS = {"ays": "StableDiffusionTimesteps", "ays_xl": "StableDiffusionXLTimesteps"}
TAKES_TIMESTEPS = ("ddpm", "dpmpp_2m", "dpmpp_2m_sde", "euler", "heun")


@contextmanager
def in_float64() -> Iterator[None]:
    """What diffusers' code calls float32 is float64."""
    with mock.patch.object(torch, "float32", torch.float64), mock.patch.object(np, "float32", np.float64):
        yield


@contextmanager
def rounded_once() -> Iterator[None]:
    """Functions of float32 have the float32 that is next to their value."""

    def rounded(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        return lambda x, *args: function(x.double(), *args).to(x.dtype)

    with ExitStack() as stack:
        for name in ("exp", "log", "__pow__"):
            stack.enter_context(mock.patch.object(torch.Tensor, name, rounded(getattr(torch.Tensor, name))))
        yield


def cases_of(name: str) -> list[dict[str, Any]]:
    """Arguments of `run` for each case."""
    spacings = ("leading",) if name == "tcd" else ("leading", "linspace", "trailing")
    main = product(("epsilon", "v_prediction"), spacings, FEWER_NUM_STEPS if name in FEW else NUM_STEPS)
    cases = [(STABLE_DIFFUSION | {"prediction_type": p, "timestep_spacing": s}, n) for p, s, n in main]
    cases += [(STABLE_DIFFUSION | variant, 5) for variant in VARIANTS[name]] + [(ABSENT, 5)]
    saved = json.loads(CLASSES[name]().to_json_string())  # every key
    cases += [(saved | ABSENT | (OF_RULE[name] if name == "dpmpp_2m_sde" else {}), 5)]
    result: list[dict[str, Any]] = [{"name": name, "options": options, "num_steps": n} for options, n in cases]
    for eta, variant in ETAS.get(name, []):
        result += [{"name": name, "options": STABLE_DIFFUSION | variant, "num_steps": n, "eta": eta} for n in (3, 20)]
    if name in TAKES_TIMESTEPS:
        result += [{"name": f"{name}_{ays}", "options": STABLE_DIFFUSION, "num_steps": 10} for ays in AYS]
    return result


def run(rule: str, noise: np.ndarray, outputs: np.ndarray, **case: Any) -> tuple[dict[str, Any], np.ndarray]:
    """The case's facts, and the samples after each step."""
    if rule == "dpmpp_sde":
        return run_diffusers(rule, noise, outputs, rounded_once(), **case)
    facts, samples = run_diffusers(rule, noise, outputs, nullcontext(), **case)
    precise, precise_samples = run_diffusers(rule, noise.astype(np.float64), outputs, in_float64(), **case)
    error = float(np.max(np.abs(samples - precise_samples).max(axis=1) / np.abs(precise_samples).max(axis=1)))
    if error <= FLOAT32_ERROR:
        return facts, samples
    print(f"{rule}, {case['num_steps']} steps: {error:.1e} by float32")
    return {**precise, "float32_error": error}, precise_samples


def run_diffusers(
    rule: str,
    noise: np.ndarray,
    outputs: np.ndarray,
    arithmetic: AbstractContextManager[None],
    *,
    name: str,
    options: dict[str, Any],
    num_steps: int,
    eta: float = 0.0,
) -> tuple[dict[str, Any], np.ndarray]:
    scheduler: Any = CLASSES[rule].from_config(options | OF_RULE.get(rule, {}))  # betas are float32 in any case
    with arithmetic:
        if name == rule:
            scheduler.set_timesteps(num_steps)
        else:
            scheduler.set_timesteps(timesteps=AysSchedules[AYS[name.removeprefix(f"{rule}_")]])
        if hasattr(scheduler, "set_begin_index"):  # else it begins at the second of two equal timesteps
            scheduler.set_begin_index(0)
        init_noise_sigma = float(scheduler.init_noise_sigma)
        x = torch.from_numpy(noise) * init_noise_sigma
        taken = inspect.signature(scheduler.step).parameters
        options_of_step = {"generator": torch.Generator("cpu").manual_seed(STEP_SEED), "eta": eta}
        options_of_step = {key: value for key, value in options_of_step.items() if key in taken}
        samples, input_scales = [], []
        for t, m in zip(scheduler.timesteps, torch.from_numpy(outputs), strict=False):
            input_scales.append(float(scheduler.scale_model_input(torch.ones(1), t)[0]))
            # UniPC's einsum wants a batch and a channel.
            x = scheduler.step(m.view(1, 1, -1), t, x.view(1, 1, -1), **options_of_step).prev_sample.view(-1)
            samples.append(x.numpy())
    case = {
        "scheduler": name,
        "options": options,
        "num_inference_steps": num_steps,
        "eta": eta,
        "timesteps": scheduler.timesteps.tolist(),
        "init_noise_sigma": init_noise_sigma,
        "input_scales": input_scales,
    }
    return case, np.array(samples, dtype=np.float32)


def main() -> None:
    diffusers.utils.logging.set_verbosity_error()
    rng = np.random.default_rng(20231)
    noise = rng.standard_normal(8).astype(np.float32)
    outputs = rng.standard_normal((max(NUM_STEPS) + 1, 8)).astype(np.float32)
    runs = [run(rule, noise, outputs, **case) for rule in sorted(CLASSES) for case in cases_of(rule)]
    betas = [diffusers.DDIMScheduler.from_config(options).betas.numpy() for options in BETAS]
    path = Path(__file__).with_name("schedulers.npz")
    np.savez_compressed(
        path,
        noise=noise,
        model_outputs=outputs,
        betas=np.array(json.dumps([(o, hashlib.sha256(b).hexdigest()) for o, b in zip(BETAS, betas, strict=True)])),
        cases=np.array(json.dumps([case for case, _ in runs])),
        samples=np.concatenate([samples for _, samples in runs]),
    )
    print(f"{path.name}: {len(runs)} cases, {path.stat().st_size} bytes, diffusers {diffusers.__version__}")


if __name__ == "__main__":
    main()
