"""noise: betas, the zero terminal signal, timesteps, and the meaning of a model output."""

import hashlib
import json
from typing import Any, Literal

import numpy as np
import pytest
from trajectories import GOLDEN

from shaderfusion.errors import InputError
from shaderfusion.schedulers.config import SchedulerConfig
from shaderfusion.schedulers.noise import alphas_cumprod, betas, inference_timesteps, prediction


@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_betas_rise_between_their_ends(schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"]) -> None:
    result = betas(SchedulerConfig(beta_schedule=schedule))
    assert result.shape == (1000,)
    assert result.dtype == np.float32
    assert np.all(np.diff(result) >= 0)
    ends = (4.13e-5, 0.999) if schedule == "squaredcos_cap_v2" else (0.0001, 0.02)
    np.testing.assert_allclose(result[[0, -1]], ends, rtol=1e-3)


def test_betas_are_diffusers_to_the_last_bit() -> None:
    with np.load(GOLDEN) as golden:
        cases = json.loads(str(golden["betas"]))
    for options, digest in cases:
        assert hashlib.sha256(betas(SchedulerConfig(**options)).tobytes()).hexdigest() == digest, options


def test_zero_terminal_snr_moves_only_the_end() -> None:
    plain = alphas_cumprod(SchedulerConfig(), zero_terminal_snr=False)
    rescaled = alphas_cumprod(SchedulerConfig(), zero_terminal_snr=True)
    assert rescaled[-1] == 0
    assert rescaled[0] == pytest.approx(plain[0], rel=1e-12)
    assert np.all(np.diff(rescaled) < 0)


@pytest.mark.parametrize(
    ("spacing", "timesteps"),
    [
        (None, [751, 501, 251, 1]),
        ("leading", [751, 501, 251, 1]),
        ("linspace", [999, 666, 333, 0]),
        ("trailing", [999, 749, 499, 249]),
    ],
)
def test_timesteps(spacing: Any, timesteps: list[float]) -> None:
    config = SchedulerConfig(timestep_spacing=spacing, steps_offset=1)
    assert inference_timesteps(config, 4, "leading").tolist() == timesteps


def test_trailing_has_the_number_asked_for() -> None:
    """1000 / 61 is rounded down, so that arange alone would give 62."""
    timesteps = inference_timesteps(SchedulerConfig(timestep_spacing="trailing"), 61, "leading")
    assert len(timesteps) == 61
    assert timesteps.min() >= 0


@pytest.mark.parametrize("num_steps", [0, -1, 1001, 2.0, "20", None, True])
def test_number_of_steps(num_steps: Any) -> None:
    with pytest.raises(InputError, match=r"num_inference_steps \(=.*\) must be a whole number from 1 to"):
        inference_timesteps(SchedulerConfig(), num_steps, "leading")


def test_offset_past_the_last_timestep() -> None:
    with pytest.raises(InputError, match="starts at timestep 1000, after the last one trained, 999"):
        inference_timesteps(SchedulerConfig(steps_offset=1), 1000, "leading")


@pytest.mark.parametrize("alpha", [1e-4, 0.3, 1.0])
def test_prediction_recovers_image_and_noise(alpha: float) -> None:
    x_0, eps = 0.7, -1.3
    x_t = alpha**0.5 * x_0 + (1 - alpha) ** 0.5 * eps
    v = alpha**0.5 * eps - (1 - alpha) ** 0.5 * x_0
    for m, p in ((eps, prediction(alpha, "epsilon")), (v, prediction(alpha, "v_prediction"))):
        assert p.x0_x * x_t + p.x0_m * m == pytest.approx(x_0, rel=1e-12)
        assert p.eps_x * x_t + p.eps_m * m == pytest.approx(eps, rel=1e-12)
