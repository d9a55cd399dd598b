"""Golden runs of diffusers' schedulers, and the update equation applied to the same model outputs in float64."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shaderfusion.schedulers import Schedule, Update, find_scheduler, make_schedule
from shaderfusion.schedulers.config import SchedulerConfig
from shaderfusion.seeds import PictureNoise

STEP_SEED = 7  # of make_schedulers.py
VARIED = ("clip_sample", "rescale_betas_zero_snr", "solver_order", "solver_type", "final_sigmas_type")
VARIED += ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
GOLDEN = Path(__file__).parents[1] / "golden" / "schedulers.npz"


@dataclass(frozen=True)
class Case:
    """One run of diffusers: see make_schedulers.py."""

    scheduler: str
    options: dict[str, Any]
    num_inference_steps: int
    eta: float
    timesteps: list[float]
    init_noise_sigma: float
    input_scales: list[float]
    noise: np.ndarray  # (8,)
    model_outputs: np.ndarray  # (calls, 8)
    samples: np.ndarray  # (calls, 8)
    float32_error: float = 0.0  # of diffusers, where these samples are made in float64

    def __str__(self) -> str:
        usual = {"prediction_type", "timestep_spacing", *VARIED}
        keys = [key for key in usual if self.options.get(key) not in (None, False)]
        values = [f"{key}={self.options[key]}" if key in VARIED else str(self.options[key]) for key in sorted(keys)]
        return "-".join([self.scheduler, *values, f"eta={self.eta}", str(self.num_inference_steps)])

    def config(self, folder: Path) -> SchedulerConfig:
        """The options, read as a model's file."""
        (folder / "scheduler_config.json").write_text(json.dumps(self.options))
        return SchedulerConfig.from_json(folder)


def golden_cases(scheduler: str) -> list[Case]:
    """The cases of one scheduler, with every spacing."""
    with np.load(GOLDEN) as golden:
        cases = json.loads(str(golden["cases"]))
        noise, model_outputs, samples = golden["noise"], golden["model_outputs"], golden["samples"]
    result, start = [], 0
    for case in cases:
        num_calls = len(case["timesteps"])
        parts = {"noise": noise, "model_outputs": model_outputs[:num_calls], "samples": samples[start:][:num_calls]}
        start += num_calls
        if find_scheduler(case["scheduler"]).rule == scheduler:
            result.append(Case(**case, **parts))
    return result


def new_state(shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """h1, h2, h3 and x_saved before anything is written there: nothing may use it."""
    return {name: np.full(shape, np.nan) for name in ("h1", "h2", "h3", "x_saved")}


def apply_update(
    update: Update, x_t: np.ndarray, m: np.ndarray, state: dict[str, np.ndarray], noise: np.ndarray | None = None
) -> np.ndarray:
    """x_prev of `Update`'s docstring; `state` holds h1, h2, h3 and x_saved."""

    def combine(**terms: np.ndarray | None) -> np.ndarray:
        used = {name: value for name, value in terms.items() if getattr(update, name) != 0}
        return sum((getattr(update, name) * value for name, value in used.items()), start=np.zeros_like(x_t))

    x0 = np.clip(combine(p_x=x_t, p_m=m), -update.clip_range, update.clip_range)
    earlier = {"c_saved": state["x_saved"], "c_h1": state["h1"], "c_h2": state["h2"], "c_h3": state["h3"]}
    x_prev = combine(c_x=x_t, c_m=m, c_x0=x0, c_noise=noise, **earlier)
    if update.h_x or update.h_m:
        state.update(h3=state["h2"], h2=state["h1"], h1=combine(h_x=x_t, h_m=m))
    if update.save_sample:
        state.update(x_saved=x_t)
    return x_prev


def trajectory(schedule: Schedule, noise: np.ndarray, model_outputs: np.ndarray) -> np.ndarray:
    """The sample after each call: (calls, 8) float64."""
    x = noise.astype(np.float64) * schedule.init_noise_sigma
    state, source, times = new_state(x.shape), PictureNoise(STEP_SEED, 1), schedule.path_times
    samples = []
    for call, (update, m) in enumerate(zip(schedule.updates, model_outputs.astype(np.float64), strict=True)):
        drawn = None
        if update.c_noise:
            drawn = source.draw_along(times, call, x.shape)[0] if times else source.draw(x.shape)[0]
        x = apply_update(update, x, m, state, drawn)
        samples.append(x)
    return np.array(samples)


def relative_error(case: Case, schedule: Schedule) -> float:
    """The largest error after any call, relative to that call's largest value."""
    ours = trajectory(schedule, case.noise, case.model_outputs)
    return float(np.max(np.abs(ours - case.samples).max(axis=1) / np.abs(case.samples).max(axis=1)))


def check(case: Case, folder: Path, tolerance: float, timestep_tolerance: float = 1e-6) -> None:
    """Assert that our schedule does what diffusers did."""
    schedule = make_schedule(case.config(folder), case.num_inference_steps, case.scheduler, eta=case.eta)
    assert schedule.name == case.scheduler
    assert len(schedule.timesteps) == len(schedule.input_scales) == len(schedule.updates)
    # Whole numbers are equal; those between, of sigmas that are spaced, float32 rounds in diffusers.
    np.testing.assert_allclose(schedule.timesteps, case.timesteps, rtol=5e-6, atol=timestep_tolerance)
    np.testing.assert_allclose(schedule.init_noise_sigma, case.init_noise_sigma, rtol=tolerance)
    np.testing.assert_allclose(schedule.input_scales, case.input_scales, rtol=tolerance)
    assert relative_error(case, schedule) <= tolerance
