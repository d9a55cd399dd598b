"""dpm2: diffusers' trajectories, and where the second calls are. Its order is test_heun.py's."""

from itertools import pairwise
from pathlib import Path

import pytest
from trajectories import Case, check, golden_cases

from shaderfusion.schedulers import make_schedule
from shaderfusion.schedulers.config import SchedulerConfig


@pytest.mark.parametrize("case", golden_cases("dpm2"), ids=str)
def test_matches_diffusers(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path, tolerance=5e-6, timestep_tolerance=1e-3)  # of logarithms in float32 there


def test_second_calls_are_in_the_middle() -> None:
    schedule = make_schedule(SchedulerConfig(), 5, "dpm2_exponential")
    sigmas = [(1 / scale**2 - 1) ** 0.5 for scale in schedule.input_scales]
    assert len(sigmas) == 9
    ratios = [after / before for before, after in pairwise(sigmas)]
    assert ratios == pytest.approx([ratios[0]] * 8)
