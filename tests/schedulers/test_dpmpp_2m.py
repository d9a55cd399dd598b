"""dpmpp_2m: diffusers' trajectories, the order of the last step, and refusals."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trajectories import Case, check, golden_cases, trajectory

from shaderfusion.errors import InputError, ModelError
from shaderfusion.schedulers import make_schedule
from shaderfusion.schedulers.config import SchedulerConfig


@pytest.mark.parametrize("case", golden_cases("dpmpp_2m"), ids=str)
def test_matches_diffusers(case: Case, tmp_path: Path) -> None:
    check(case, tmp_path, tolerance=5e-6)


def test_true_noise_leads_back_to_the_image() -> None:
    """With m = the noise that was added, every prediction is x_0 itself, whatever the order."""
    schedule = make_schedule(SchedulerConfig(timestep_spacing="trailing"), 20, "dpmpp_2m")
    image, noise = np.random.default_rng(0).standard_normal((2, 8))
    alpha = np.float64(np.float32(np.prod(1 - np.linspace(0.0001, 0.02, 1000))))
    x_T = np.sqrt(alpha) * image + np.sqrt(1 - alpha) * noise
    samples = trajectory(schedule, x_T, np.tile(noise, (20, 1)))
    np.testing.assert_allclose(samples[-1], image, rtol=1e-5)


@pytest.mark.parametrize(
    ("num_steps", "options", "orders"),
    [
        (4, {}, [1, 2, 2, 1]),
        (4, {"solver_order": 1}, [1, 1, 1, 1]),
        (4, {"lower_order_final": False}, [1, 2, 2, 1]),  # down to sigma = 0 there is no other way
        (4, {"lower_order_final": False, "final_sigmas_type": "sigma_min"}, [1, 2, 2, 2]),
        (4, {"lower_order_final": False, "final_sigmas_type": "sigma_min", "euler_at_final": True}, [1, 2, 2, 1]),
        (14, {"final_sigmas_type": "sigma_min"}, [1, *[2] * 12, 1]),
        (15, {"final_sigmas_type": "sigma_min"}, [1, *[2] * 14]),
    ],
)
def test_order_of_each_step(num_steps: int, options: dict[str, Any], orders: list[int]) -> None:
    updates = make_schedule(SchedulerConfig(**options), num_steps, "dpmpp_2m").updates
    assert [2 if update.c_h1 else 1 for update in updates] == orders


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("algorithm_type", "dpmsolver"),
        ("algorithm_type", "sde-dpmsolver"),
        ("lambda_min_clipped", -5.1),
        ("solver_order", 3),
        ("solver_type", "heun"),
        ("thresholding", True),
        ("use_dynamic_shifting", True),
        ("use_flow_sigmas", True),
        ("use_lu_lambdas", True),
        ("variance_type", "learned_range"),
    ],
)
def test_refuses(key: str, value: Any) -> None:
    config = SchedulerConfig(**{key: value})
    with pytest.raises(ModelError, match=rf"^dpmpp_2m: {key} \(="):
        make_schedule(config, 4, "dpmpp_2m")
    assert make_schedule(config, 4, "euler_a").name == "euler_a"  # which reads none of them, in diffusers neither


@pytest.mark.parametrize("spacing", ["karras", "exponential", "beta"])
def test_refuses_spaced_sigmas_of_a_cosine(spacing: str) -> None:
    with pytest.raises(ModelError, match=rf"dpmpp_2m_{spacing}: beta_schedule \(='squaredcos_cap_v2'\) must be"):
        make_schedule(SchedulerConfig(beta_schedule="squaredcos_cap_v2"), 4, f"dpmpp_2m_{spacing}")


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_as_many_steps_as_in_training(spacing: Any) -> None:
    config = SchedulerConfig(num_train_timesteps=10, timestep_spacing=spacing)
    assert make_schedule(config, 9, "dpmpp_2m").timesteps == tuple(range(9, 0, -1))
    with pytest.raises(InputError, match=r"num_inference_steps \(=10\) must be less than num_train_timesteps \(=10\)"):
        make_schedule(config, 10, "dpmpp_2m")
