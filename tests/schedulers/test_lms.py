"""lms: diffusers' trajectories, exactness for slopes that are cubic in sigma."""

from pathlib import Path

import numpy as np
import pytest
from trajectories import Case, check, golden_cases, trajectory

from shaderfusion.schedulers import make_schedule
from shaderfusion.schedulers.config import SchedulerConfig


@pytest.mark.parametrize("case", golden_cases("lms"), ids=str)
def test_matches_diffusers(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path, tolerance=5e-6)


def test_integrates_a_cubic() -> None:
    """From the fourth step on x moves by the exact integral of the slopes, which epsilon gives."""
    schedule = make_schedule(SchedulerConfig(), 9, "lms")
    sigmas = np.array([(1 / scale**2 - 1) ** 0.5 for scale in schedule.input_scales] + [0.0])
    cubic = np.polynomial.Polynomial([0.3, -1.1, 0.02, 0.005])
    x = trajectory(schedule, np.zeros(1), cubic(sigmas[:-1])[:, None])[:, 0]
    np.testing.assert_allclose(np.diff(x)[2:], np.diff(cubic.integ()(sigmas[3:])), rtol=1e-6)
