"""pndm: diffusers' trajectories, the repeated timestep, and every number of steps."""

from pathlib import Path
from typing import Literal

import pytest
from trajectories import Case, check, golden_cases

from shaderfusion.errors import ModelError
from shaderfusion.schedulers import make_schedule
from shaderfusion.schedulers.config import SchedulerConfig


@pytest.mark.parametrize("case", golden_cases("pndm"), ids=str)
def test_matches_diffusers(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path, tolerance=5e-6)  # float32 in diffusers; 2.8e-6 measured


def test_repeats_the_second_timestep() -> None:
    schedule = make_schedule(SchedulerConfig(skip_prk_steps=True), 4, "pndm")
    assert schedule.timesteps == (750, 500, 500, 250, 0)
    assert [update.save_sample for update in schedule.updates] == [True, False, False, False, False]
    assert [update.h_m for update in schedule.updates] == [1, 0, 1, 1, 1]
    assert {update.h_x for update in schedule.updates} == {0}
    assert schedule.updates[1].c_x == 0
    assert schedule.updates[1].c_saved != 0


def test_one_step_is_one_call() -> None:
    assert make_schedule(SchedulerConfig(skip_prk_steps=True), 1, "pndm").timesteps == (0,)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_every_number_of_steps_stays_in_training(spacing: Literal["leading", "linspace", "trailing"]) -> None:
    config = SchedulerConfig(skip_prk_steps=True, num_train_timesteps=61, timestep_spacing=spacing)
    for n in range(2, 62):
        schedule = make_schedule(config, n, "pndm")
        assert len(schedule.updates) == n + 1
        assert max(schedule.timesteps) <= 60
        assert min(schedule.timesteps) >= 0


def test_refuses_the_runge_kutta_warm_up() -> None:
    with pytest.raises(ModelError, match=r"skip_prk_steps \(=False\) must be True"):
        make_schedule(SchedulerConfig(), 4, "pndm")
