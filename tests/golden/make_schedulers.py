"""Write schedulers.npz: what diffusers' schedulers do with fixed model outputs. Needs the `golden` extra.

`cases` is a JSON list; `samples`: (calls, 8) float32 has the sample after each call of the model, one case after the
other. All cases start from `noise`: (8,), and call k of the model returns `model_outputs[k]`: (8,). Noise in the steps
is that of a generator with seed STEP_SEED.
"""

# pyright: reportMissingImports=false, reportPrivateImportUsage=false

import inspect
import json
from itertools import product
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

CLASSES = {
    "ddim": diffusers.DDIMScheduler,
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "euler_a": diffusers.EulerAncestralDiscreteScheduler,
    "lcm": diffusers.LCMScheduler,
    "lms": diffusers.LMSDiscreteScheduler,
    "pndm": diffusers.PNDMScheduler,
}
NUM_STEPS = (1, 2, 3, 5, 20, 50)
STEP_SEED = 7
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
VARIANTS: dict[str, list[dict[str, Any]]] = {
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
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    ],
    "euler": [
        {"final_sigmas_type": "sigma_min"},
        {"use_karras_sigmas": True},
        {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min", "timestep_spacing": "leading"},
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
        {"rescale_betas_zero_snr": True, "final_sigmas_type": "sigma_min"},  # not read by this one
    ],
    "pndm": [
        {"set_alpha_to_one": True},
        {"rescale_betas_zero_snr": True},  # not read by this one
    ],
}
ABSENT = {"skip_prk_steps": True}  # every other key is the rule's default


def options_of(name: str) -> list[tuple[dict[str, Any], int]]:
    """(scheduler_config.json, number of steps) of each case."""
    main = product(("epsilon", "v_prediction"), ("leading", "linspace", "trailing"), NUM_STEPS)
    cases = [(STABLE_DIFFUSION | {"prediction_type": p, "timestep_spacing": s}, n) for p, s, n in main]
    return cases + [(STABLE_DIFFUSION | variant, 5) for variant in VARIANTS[name]] + [(ABSENT, 5)]


def run(name: str, options: dict[str, Any], num_steps: int, noise: np.ndarray, outputs: np.ndarray) -> tuple:
    """The case's facts, and the samples after each step."""
    scheduler: Any = CLASSES[name].from_config(options)
    scheduler.set_timesteps(num_steps)
    if hasattr(scheduler, "set_begin_index"):  # else it begins at the second of two equal timesteps
        scheduler.set_begin_index(0)
    init_noise_sigma = float(scheduler.init_noise_sigma)
    x = torch.from_numpy(noise) * init_noise_sigma
    takes_noise = "generator" in inspect.signature(scheduler.step).parameters
    options_of_step = {"generator": torch.Generator("cpu").manual_seed(STEP_SEED)} if takes_noise else {}
    samples, input_scales = [], []
    for t, m in zip(scheduler.timesteps, torch.from_numpy(outputs), strict=False):
        input_scales.append(float(scheduler.scale_model_input(torch.ones(1), t)[0]))
        x = scheduler.step(m, t, x, **options_of_step).prev_sample
        samples.append(x.numpy())
    case = {
        "scheduler": name,
        "options": options,
        "num_inference_steps": num_steps,
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
    runs = [run(name, options, n, noise, outputs) for name in CLASSES for options, n in options_of(name)]
    path = Path(__file__).with_name("schedulers.npz")
    np.savez_compressed(
        path,
        noise=noise,
        model_outputs=outputs,
        cases=np.array(json.dumps([case for case, _ in runs])),
        samples=np.concatenate([samples for _, samples in runs]),
    )
    print(f"{path.name}: {len(runs)} cases, {path.stat().st_size} bytes, diffusers {diffusers.__version__}")


if __name__ == "__main__":
    main()
