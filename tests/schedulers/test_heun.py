"""heun: diffusers' trajectories, second order, and a refusal."""

from pathlib import Path

import numpy as np
import pytest
from trajectories import Case, apply_update, check, golden_cases, new_state

from shaderfusion.errors import ModelError
from shaderfusion.schedulers import make_schedule
from shaderfusion.schedulers.config import SchedulerConfig


@pytest.mark.parametrize("case", golden_cases("heun"), ids=str)
def test_matches_diffusers(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path, tolerance=1e-5)


@pytest.mark.parametrize("num_steps", [1, 4])
def test_calls(num_steps: int) -> None:
    schedule = make_schedule(SchedulerConfig(), num_steps, "heun")
    assert len(schedule.updates) == 2 * num_steps - 1
    assert schedule.timesteps[1::2] == schedule.timesteps[2::2]


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("dpm2", 2)])
def test_order(name: str, order: int) -> None:
    """Of images from a normal distribution of variance 1, dx / dsigma = sigma x / (sigma^2 + 1) is known: the error
    to the last sigma above 0 falls with the square of the number of steps.
    """

    def error(num_steps: int) -> float:
        schedule = make_schedule(SchedulerConfig(), num_steps, f"{name}_karras")
        sigmas = [(1 / scale**2 - 1) ** 0.5 for scale in schedule.input_scales]
        x, state = np.ones(1), new_state((1,))
        for update, sigma in zip(schedule.updates[:-1], sigmas[:-1], strict=True):
            x = apply_update(update, x, sigma * x / (sigma**2 + 1), state)
        exact = ((sigmas[-1] ** 2 + 1) / (sigmas[0] ** 2 + 1)) ** 0.5
        return abs(float(x[0]) - exact)

    assert error(80) / error(160) == pytest.approx(2**order, rel=0.1)


def test_refuses_clipping() -> None:
    with pytest.raises(ModelError, match=r"^heun: clip_sample \(=True\) must be False or None"):
        make_schedule(SchedulerConfig(clip_sample=True), 4, "heun")
