"""ddim: diffusers' trajectories, and the equation's own limits."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trajectories import Case, check, golden_cases, trajectory

from shaderfusion.errors import InputError, ModelError
from shaderfusion.schedulers import make_schedule
from shaderfusion.schedulers.config import SchedulerConfig


@pytest.mark.parametrize("case", golden_cases("ddim"), ids=str)
def test_matches_diffusers(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path, tolerance=5e-6)  # float32 in diffusers; 2.1e-6 measured


def test_true_noise_leads_back_to_the_image() -> None:
    """With m = the noise that was added, every step stays on the line to x_0, so the last is x_0 itself."""
    config = SchedulerConfig(clip_sample=False, timestep_spacing="trailing")
    schedule = make_schedule(config, 20, "ddim")
    rng = np.random.default_rng(0)
    image, noise = rng.standard_normal((2, 8))
    alpha = np.prod(1 - np.linspace(0.0001, 0.02, config.num_train_timesteps))
    x_T = np.sqrt(alpha) * image + np.sqrt(1 - alpha) * noise
    samples = trajectory(schedule, x_T, np.tile(noise, (20, 1)))
    np.testing.assert_allclose(samples[-1], image, rtol=1e-6)  # betas are float32


def test_clipping_only_when_asked() -> None:
    clipped = make_schedule(SchedulerConfig(clip_sample_range=2.0), 4, "ddim").updates
    assert all(update.c_x0 > 0 and update.clip_range == 2.0 for update in clipped)
    plain = make_schedule(SchedulerConfig(clip_sample=False), 4, "ddim").updates
    assert all(update.c_x0 == update.p_x == update.p_m == 0 for update in plain)


def test_refuses_thresholding() -> None:
    with pytest.raises(ModelError, match=r"ddim: thresholding \(=True\) must be False"):
        make_schedule(SchedulerConfig(thresholding=True), 4, "ddim")


def test_refuses_epsilon_from_pure_noise() -> None:
    config = SchedulerConfig(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    with pytest.raises(ModelError, match="timestep 999 is pure noise"):
        make_schedule(config, 4, "ddim")


def test_eta_1_has_the_noise_of_ddpm() -> None:
    """For the same x_0 unclipped, equation 16's note."""
    config = SchedulerConfig(clip_sample=False)
    ddim, ddpm = make_schedule(config, 10, "ddim", eta=1.0), make_schedule(config, 10, "ddpm")
    for ours, theirs in zip(ddim.updates[:-1], ddpm.updates[:-1], strict=True):
        assert ours.c_noise == pytest.approx(theirs.c_noise, rel=1e-9)
        assert (ours.c_x, ours.c_m) == pytest.approx((theirs.c_x, theirs.c_m), rel=1e-9)


@pytest.mark.parametrize("eta", [-0.1, 1.5, float("nan"), "1", True])
def test_eta_outside_its_rule(eta: Any) -> None:
    with pytest.raises(InputError, match=r"eta \(=.*\) must be a number from 0 to 1"):
        make_schedule(SchedulerConfig(), 4, "ddim", eta=eta)
