"""tcd: diffusers' trajectories with its noise, the timesteps of the distillation, and refusals."""

from pathlib import Path

import pytest
from trajectories import Case, check, golden_cases

from shaderfusion.errors import InputError, ModelError
from shaderfusion.schedulers import make_schedule
from shaderfusion.schedulers.config import SchedulerConfig


@pytest.mark.parametrize("case", golden_cases("tcd"), ids=str)
def test_matches_diffusers(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path, tolerance=5e-6)


def test_noise_is_etas() -> None:
    assert not any(update.c_noise for update in make_schedule(SchedulerConfig(), 4, "tcd").updates)
    noise = [update.c_noise for update in make_schedule(SchedulerConfig(), 4, "tcd", eta=0.3).updates]
    assert all(noise[:-1])
    assert noise[-1] == 0


def test_timesteps_are_of_the_distillation() -> None:
    assert make_schedule(SchedulerConfig(timestep_spacing="linspace"), 4, "tcd").timesteps == (999, 759, 499, 259)


def test_refuses() -> None:
    with pytest.raises(ModelError, match=r"tcd: timestep 999 is pure noise"):
        make_schedule(SchedulerConfig(rescale_betas_zero_snr=True), 4, "tcd")
    with pytest.raises(InputError, match=r"num_inference_steps \(=51\) must be .* from 1 to original_inference_steps"):
        make_schedule(SchedulerConfig(), 51, "tcd")
