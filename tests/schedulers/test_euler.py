"""euler: diffusers' trajectories, and refusals of the sigma spacings that are not implemented."""

from pathlib import Path
from typing import Any

import pytest
from trajectories import Case, check, golden_cases

from shaderfusion.errors import ModelError
from shaderfusion.schedulers import make_schedule
from shaderfusion.schedulers.config import SchedulerConfig


@pytest.mark.parametrize("case", golden_cases("euler"), ids=str)
def test_matches_diffusers(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path, tolerance=5e-6)


def test_input_has_unit_variance() -> None:
    """x has variance sigma^2 (+ 1 of the image), so the first input scale undoes the initial sigma (leading)."""
    schedule = make_schedule(SchedulerConfig(timestep_spacing="leading"), 10, "euler")
    assert schedule.input_scales[0] * schedule.init_noise_sigma == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("interpolation_type", "log_linear"),
        ("timestep_type", "continuous"),
    ],
)
def test_refuses(key: str, value: Any) -> None:
    config = SchedulerConfig(**{key: value})
    with pytest.raises(ModelError, match=key):
        make_schedule(config, 4, "euler")
    assert make_schedule(config, 4, "ddim").name == "ddim"  # which does not read the key, in diffusers neither


@pytest.mark.parametrize("key", ["sigma_min", "sigma_max"])
@pytest.mark.parametrize("spacing", ["karras", "exponential", "beta"])
def test_refuses_other_ends_of_spaced_sigmas(key: str, spacing: str) -> None:
    options: dict[str, Any] = {key: 0.5}
    config = SchedulerConfig(**options)
    make_schedule(config, 4, "euler")
    with pytest.raises(ModelError, match=rf"euler_{spacing}: {key} \(=0.5\) must be None"):
        make_schedule(config, 4, f"euler_{spacing}")
