"""sigmas: the quantiles of the beta distribution, and that spacings exclude each other."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from shaderfusion.errors import ModelError
from shaderfusion.schedulers import make_schedule
from shaderfusion.schedulers.config import SchedulerConfig
from shaderfusion.schedulers.sigmas import beta_sigmas, exponential_sigmas, karras_sigmas


@pytest.mark.parametrize("spaced", [beta_sigmas, exponential_sigmas, karras_sigmas])
def test_ends(spaced: Callable[[float, float, int], np.ndarray]) -> None:
    for n in (2, 3, 20, 1000):
        sigmas = spaced(14.6, 0.03, n)
        assert len(sigmas) == n
        np.testing.assert_allclose(sigmas[[0, -1]], (14.6, 0.03), rtol=1e-9)
        assert np.all(np.diff(sigmas) < 0)
    np.testing.assert_allclose(spaced(14.6, 0.03, 1), 14.6, rtol=1e-12)


def test_beta_sigmas_have_their_distribution() -> None:
    """The density x^-0.4 (1 - x)^-0.4, integrated between neighbours, gives each the same share."""
    x = beta_sigmas(1.0, 0.0, 9)[::-1]
    theta = np.arcsin(np.sqrt(x))  # dx = 2 sin cos dtheta leaves 2 (sin cos)^0.2
    nodes, weights = np.polynomial.legendre.leggauss(200)
    shares = []
    for low, high in pairwise(theta):
        at = (low + high) / 2 + (high - low) / 2 * nodes
        shares.append((high - low) * float(weights @ (np.sin(at) * np.cos(at)) ** 0.2))
    np.testing.assert_allclose(shares, np.mean(shares), rtol=2e-5)


@pytest.mark.parametrize("name", ["dpmpp_2m", "euler", "heun", "dpm2", "dpmpp_sde", "lms", "unipc"])
def test_one_spacing_at_a_time(name: str) -> None:
    config = SchedulerConfig(use_karras_sigmas=True, use_beta_sigmas=True)
    with pytest.raises(ModelError, match=rf"^{name}: use_karras_sigmas and use_beta_sigmas must not both be true"):
        make_schedule(config, 4, name)
    assert make_schedule(config, 4, f"{name}_exponential").name == f"{name}_exponential"
