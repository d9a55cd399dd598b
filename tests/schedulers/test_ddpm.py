"""ddpm: diffusers' trajectories with its noise, and refusals."""

from pathlib import Path

import pytest
from trajectories import Case, check, golden_cases

from shaderfusion.errors import ModelError
from shaderfusion.schedulers import make_schedule
from shaderfusion.schedulers.config import SchedulerConfig


@pytest.mark.parametrize("case", golden_cases("ddpm"), ids=str)
def test_matches_diffusers(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path, tolerance=5e-6)


def test_no_noise_from_timestep_0() -> None:
    noise = [update.c_noise for update in make_schedule(SchedulerConfig(), 4, "ddpm").updates]
    assert all(noise[:-1])
    assert noise[-1] == 0


@pytest.mark.parametrize("variance_type", ["learned", "learned_range", "fixed_large_log"])
def test_refuses_other_variances(variance_type: str) -> None:
    with pytest.raises(ModelError, match=rf"^ddpm: variance_type \(='{variance_type}'\) must be"):
        make_schedule(SchedulerConfig(variance_type=variance_type), 4, "ddpm")


def test_refuses() -> None:
    with pytest.raises(ModelError, match=r"^ddpm: thresholding \(=True\) must be False"):
        make_schedule(SchedulerConfig(thresholding=True), 4, "ddpm")
    with pytest.raises(ModelError, match=r"^ddpm: timestep 999 is pure noise"):
        make_schedule(SchedulerConfig(rescale_betas_zero_snr=True, timestep_spacing="trailing"), 4, "ddpm")
