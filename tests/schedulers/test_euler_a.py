"""euler_a: diffusers' trajectories with its noise, and what the noise is for."""

from pathlib import Path

import pytest
from trajectories import Case, check, golden_cases

from shaderfusion.schedulers import make_schedule
from shaderfusion.schedulers.config import SchedulerConfig


@pytest.mark.parametrize("case", golden_cases("euler_a"), ids=str)
def test_matches_diffusers(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path, tolerance=5e-6)


def test_noise_makes_up_for_what_the_step_takes() -> None:
    """Of x_0 = 0 and true eps = x / sigma, x has the variance of each sigma, and none at last."""
    schedule = make_schedule(SchedulerConfig(), 12, "euler_a")
    variance = schedule.init_noise_sigma**2
    sigmas = [(1 / scale**2 - 1) ** 0.5 for scale in schedule.input_scales]
    for update, sigma, sigma_prev in zip(schedule.updates, sigmas, [*sigmas[1:], 0.0], strict=True):
        variance = variance * (update.c_x + update.c_m / sigma) ** 2 + update.c_noise**2
        assert variance == pytest.approx(sigma_prev**2, rel=1e-9, abs=1e-15)


def test_no_noise_at_last() -> None:
    noise = [update.c_noise for update in make_schedule(SchedulerConfig(), 5, "euler_a").updates]
    assert all(noise[:-1])
    assert noise[-1] == 0
