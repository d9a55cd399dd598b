"""euler: diffusers' trajectories, and refusals of the sigma spacings that are not implemented."""

from pathlib import Path
from typing import Any

import pytest
from trajectories import Case, check, golden_cases

from shaderfusion.config import SchedulerConfig
from shaderfusion.errors import ModelError
from shaderfusion.schedulers import make_schedule


@pytest.mark.parametrize("case", golden_cases("euler"), ids=str)
def test_matches_diffusers(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path, tolerance=3e-5)  # 1 - alpha in float32 costs diffusers 2e-5 at t = 0


def test_input_has_unit_variance() -> None:
    """x has variance sigma^2 (+ 1 of the image), so the first input scale undoes the initial sigma (leading)."""
    schedule = make_schedule(SchedulerConfig(timestep_spacing="leading"), 10, "euler")
    assert schedule.input_scales[0] * schedule.init_noise_sigma == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("interpolation_type", "log_linear"),
        ("timestep_type", "continuous"),
        ("use_beta_sigmas", True),
        ("use_exponential_sigmas", True),
        ("use_karras_sigmas", True),
    ],
)
def test_refuses_other_sigmas(key: str, value: Any) -> None:
    config = SchedulerConfig(**{key: value})
    with pytest.raises(ModelError, match=key):
        make_schedule(config, 4, "euler")
    assert make_schedule(config, 4, "ddim").name == "ddim"  # which does not read the key, in diffusers neither
