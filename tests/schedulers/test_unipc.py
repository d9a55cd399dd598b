"""unipc: diffusers' trajectories, exactness of its predictions, and refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trajectories import Case, check, golden_cases, trajectory

from shaderfusion.errors import ModelError
from shaderfusion.schedulers import make_schedule
from shaderfusion.schedulers.config import SchedulerConfig


@pytest.mark.parametrize("case", golden_cases("unipc"), ids=str)
def test_matches_diffusers(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path, tolerance=5e-6)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_true_noise_leads_back_to_the_image(order: int) -> None:
    """With m = the noise that was added, every prediction is x_0 itself, whatever the order."""
    config = SchedulerConfig(timestep_spacing="trailing", solver_order=order)
    schedule = make_schedule(config, 20, "unipc")
    image, noise = np.random.default_rng(0).standard_normal((2, 8))
    alpha = np.float64(np.float32(np.prod(1 - np.linspace(0.0001, 0.02, 1000))))
    x_T = np.sqrt(alpha) * image + np.sqrt(1 - alpha) * noise
    samples = trajectory(schedule, x_T, np.tile(noise, (20, 1)))
    np.testing.assert_allclose(samples[-1], image, rtol=1e-5)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("disable_corrector", (1,)),
        ("predict_x0", False),
        ("solver_order", 4),
        ("solver_p", "UniPCMultistepScheduler"),
        ("solver_type", "logsnr"),
        ("thresholding", True),
        ("use_dynamic_shifting", True),
        ("use_flow_sigmas", True),
        ("lower_order_final", False),
    ],
)
def test_refuses(key: str, value: Any) -> None:
    with pytest.raises(ModelError, match=rf"^unipc: {key} \(="):
        make_schedule(SchedulerConfig(**{key: value}), 4, "unipc")


@pytest.mark.parametrize(("key", "value"), [("final_sigmas_type", "sigma_min"), ("sigma_min", 0.1), ("sigma_max", 9.0)])
def test_refuses_of_spaced_sigmas(key: str, value: Any) -> None:
    with pytest.raises(ModelError, match=rf"^unipc_karras: {key} \(="):
        make_schedule(SchedulerConfig(**{key: value}), 4, "unipc_karras")
