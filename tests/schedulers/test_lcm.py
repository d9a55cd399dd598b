"""lcm: diffusers' trajectories with its noise, the timesteps of the distillation, and refusals."""

from pathlib import Path

import pytest
from trajectories import Case, check, golden_cases

from shaderfusion.errors import InputError, ModelError
from shaderfusion.schedulers import make_schedule
from shaderfusion.schedulers.config import SchedulerConfig


@pytest.mark.parametrize("case", golden_cases("lcm"), ids=str)
def test_matches_diffusers(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path, tolerance=5e-6)


def test_timesteps_are_of_the_distillation() -> None:
    """Whatever the spacing of the model's file says, as in diffusers."""
    config = SchedulerConfig(timestep_spacing="trailing", steps_offset=1)
    assert make_schedule(config, 4, "lcm").timesteps == (999, 759, 499, 259)
    assert make_schedule(config, 1, "lcm").timesteps == (999,)
    assert make_schedule(config, 50, "lcm").timesteps == tuple(range(999, 0, -20))


def test_no_noise_at_last() -> None:
    noise = [update.c_noise for update in make_schedule(SchedulerConfig(), 4, "lcm").updates]
    assert all(noise[:-1])
    assert noise[-1] == 0


def test_refuses() -> None:
    with pytest.raises(ModelError, match=r"lcm: thresholding \(=True\) must be False"):
        make_schedule(SchedulerConfig(thresholding=True), 4, "lcm")
    with pytest.raises(ModelError, match=r"lcm: timestep 999 is pure noise"):
        make_schedule(SchedulerConfig(rescale_betas_zero_snr=True), 4, "lcm")
    with pytest.raises(ModelError, match=r"lcm: original_inference_steps \(=50\) must be at most num_train_.* \(=20\)"):
        make_schedule(SchedulerConfig(num_train_timesteps=20), 4, "lcm")
    with pytest.raises(InputError, match=r"num_inference_steps \(=51\) must be .* from 1 to original_inference_steps"):
        make_schedule(SchedulerConfig(), 51, "lcm")
