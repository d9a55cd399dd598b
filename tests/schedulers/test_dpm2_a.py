"""dpm2_a: diffusers' trajectories with its noise, and what the noise is for."""

from pathlib import Path

import pytest
from trajectories import Case, check, golden_cases

from shaderfusion.schedulers import make_schedule
from shaderfusion.schedulers.config import SchedulerConfig


@pytest.mark.parametrize("case", golden_cases("dpm2_a"), ids=str)
def test_matches_diffusers(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path, tolerance=5e-6, timestep_tolerance=1e-2)


def test_noise_makes_up_for_what_the_step_takes() -> None:
    """sigma_down and sigma_up of second calls, which alone have noise, make sigma_prev."""
    schedule = make_schedule(SchedulerConfig(), 12, "dpm2_a")
    sigmas = [(1 / scale**2 - 1) ** 0.5 for scale in schedule.input_scales[::2]]
    assert not any(update.c_noise for update in schedule.updates[::2])
    for update, sigma, sigma_prev in zip(schedule.updates[1::2], sigmas, sigmas[1:], strict=False):
        sigma_down = sigma + update.c_m  # c_m is the step, from sigma to sigma_down
        assert sigma_down**2 + update.c_noise**2 == pytest.approx(sigma_prev**2, rel=1e-9)
