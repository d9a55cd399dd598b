"""dpmpp_2m_sde: diffusers' trajectories with its noise, what the noise is for, and when a model's file means it."""

from pathlib import Path

import numpy as np
import pytest
from trajectories import Case, check, golden_cases

from shaderfusion.errors import ModelError
from shaderfusion.schedulers import make_schedule
from shaderfusion.schedulers.config import SchedulerConfig
from shaderfusion.schedulers.noise import alphas_cumprod


@pytest.mark.parametrize("case", golden_cases("dpmpp_2m_sde"), ids=str)
def test_matches_diffusers(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path, tolerance=5e-6)


def test_noise_makes_up_for_what_the_step_takes() -> None:
    """Of x_0 = 0, whose prediction x_0 is 0, x has the variance 1 - alpha_prev after each step, and none at last."""
    schedule = make_schedule(SchedulerConfig(solver_order=1), 6, "dpmpp_2m_sde")
    alphas = alphas_cumprod(SchedulerConfig(), zero_terminal_snr=False)[np.array(schedule.timesteps, int)].tolist()
    assert schedule.updates[-1].c_noise == 0
    for update, alpha, alpha_prev in zip(schedule.updates, alphas, [*alphas[1:], 1.0], strict=True):
        c_x = update.c_x - update.c_m / update.h_m * update.h_x  # with the m that makes x_0 = h_x x + h_m m = 0
        assert c_x**2 * (1 - alpha) + update.c_noise**2 == pytest.approx(1 - alpha_prev, rel=1e-4, abs=1e-12)


def test_the_model_names_it() -> None:
    config = SchedulerConfig(class_name="DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++")
    assert make_schedule(config, 5).name == "dpmpp_2m_sde"
    assert make_schedule(config, 5, "dpmpp_2m").name == "dpmpp_2m"


def test_refuses() -> None:
    with pytest.raises(ModelError, match=r"^dpmpp_2m_sde: algorithm_type \(='dpmsolver'\) must be"):
        make_schedule(SchedulerConfig(algorithm_type="dpmsolver"), 4, "dpmpp_2m_sde")
