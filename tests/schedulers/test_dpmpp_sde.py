"""dpmpp_sde: diffusers' trajectories with noise of torchsde's Brownian path, and that the steps have one."""

from pathlib import Path

import numpy as np
import pytest
from trajectories import Case, apply_update, check, golden_cases, new_state

from shaderfusion.schedulers import make_schedule
from shaderfusion.schedulers.config import SchedulerConfig


@pytest.mark.parametrize("case", golden_cases("dpmpp_sde"), ids=str)
def test_matches_diffusers(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path, tolerance=5e-6, timestep_tolerance=1e-3)  # of logarithms in float32 there


def test_noise_makes_up_for_what_the_step_takes() -> None:
    """Of x_0 = 0 and true eps = x / sigma, x has the variance of each sigma after each call, and none at last."""
    schedule = make_schedule(SchedulerConfig(), 6, "dpmpp_sde_karras")
    sigmas = [(1 / scale**2 - 1) ** 0.5 for scale in schedule.input_scales]
    # x is a linear map of all noise, each of a direction of its own here: its variance is the sum of squares.
    x = schedule.init_noise_sigma * np.eye(len(sigmas) + 1)[0]
    state = new_state(x.shape)
    for i, (update, sigma) in enumerate(zip(schedule.updates, sigmas, strict=True)):
        x = apply_update(update, x, x / sigma, state, np.eye(len(sigmas) + 1)[i + 1])
        following = [*sigmas, 0.0][i + 1]
        assert np.sum(x**2) == pytest.approx(following**2, rel=1e-6, abs=1e-15)


def test_what_a_callback_changes_between_the_calls_of_a_step_goes_to_the_model_alone() -> None:
    """As in diffusers, whose second call begins with the sample before the first, and with noise of the path."""
    schedule = make_schedule(SchedulerConfig(), 6, "dpmpp_sde")
    x, m, noise = np.random.default_rng(1).normal(size=(3, 2, 5))
    ends: list[np.ndarray] = []
    for change in (0.0, 2.0):
        state = new_state((5,))
        middle = apply_update(schedule.updates[0], x[0], m[0], state, noise[0]) + change
        sigma = (1 / schedule.input_scales[1] ** 2 - 1) ** 0.5
        eps = (middle - x[1]) / sigma  # of a model that says the same x_0 whatever it is given
        ends.append(apply_update(schedule.updates[1], middle, eps, state, noise[1]))
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-6)
