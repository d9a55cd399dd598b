"""`Update` and its equation, without the package's rules: two schedulers as their papers write them and as Updates.

Model outputs are random here, as a linear rule must hold for any. In units where x = x_0 + sigma eps, with
v-prediction: x_0 = x / (sigma^2 + 1) - sigma / sqrt(sigma^2 + 1) m, so that every rule needs both x and m.
"""

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import pytest
from trajectories import apply_update, new_state

from shaderfusion.schedulers import Update

SIGMAS = (14.6, 8.1, 4.5, 2.4, 1.2, 0.6, 0.25, 0.08)
X, NOISE = np.random.default_rng(0).standard_normal((2, 64, 8))  # one x to begin with, and noise for each step
OUTPUTS = np.random.default_rng(1).standard_normal((64, 8))

Array = np.ndarray
Call = tuple[Update, Array]
"""An update, and x after it by the paper's formula."""


def x0_of(sigma: float) -> tuple[float, float]:
    """Coefficients of x and m in x_0."""
    return 1 / (sigma**2 + 1), -sigma / math.sqrt(sigma**2 + 1)


def slope_of(sigma: float) -> tuple[float, float]:
    """Coefficients of x and m in d = (x - x_0) / sigma."""
    x0_x, x0_m = x0_of(sigma)
    return (1 - x0_x) / sigma, -x0_m / sigma


def heun(x: Array) -> Iterator[Call]:
    """Karras et al. 2022, algorithm 1: two calls a step, the second from x to the mean of both slopes."""
    for i, (sigma, following) in enumerate(pairwise(SIGMAS)):
        d_x, d_m = slope_of(sigma)
        d = d_x * x + d_m * OUTPUTS[2 * i]
        step = following - sigma
        first = x + step * d
        yield Update(c_x=1 + step * d_x, c_m=step * d_m, h_x=d_x, h_m=d_m, save_sample=True), first
        d_x, d_m = slope_of(following)
        x = x + step * (d + d_x * first + d_m * OUTPUTS[2 * i + 1]) / 2
        yield Update(c_saved=1.0, c_h1=step / 2, c_x=step / 2 * d_x, c_m=step / 2 * d_m), x


def ddpm(x: Array) -> Iterator[Call]:
    """Ho et al. 2020, algorithm 2 with equation 7 and x_0 clipped to -1..1; epsilon-prediction, sigma is not used."""
    alphas = np.cumprod(1 - np.linspace(0.3, 0.01, 8))[::-1].tolist()
    for i, (alpha, alpha_prev) in enumerate(zip(alphas, [*alphas[1:], 1.0], strict=True)):
        beta = 1 - alpha / alpha_prev
        x0 = np.clip((x - math.sqrt(1 - alpha) * OUTPUTS[i]) / math.sqrt(alpha), -1, 1)
        c_x0 = math.sqrt(alpha_prev) * beta / (1 - alpha)
        c_x = math.sqrt(alpha / alpha_prev) * (1 - alpha_prev) / (1 - alpha)
        deviation = math.sqrt((1 - alpha_prev) / (1 - alpha) * beta)
        x = c_x0 * x0 + c_x * x + deviation * NOISE[i]
        p_m = -math.sqrt((1 - alpha) / alpha)
        yield Update(c_x=c_x, c_x0=c_x0, p_x=1 / math.sqrt(alpha), p_m=p_m, clip_range=1.0, c_noise=deviation), x


@pytest.mark.parametrize("rule", [heun, ddpm])
def test_other_schedulers_are_updates(rule: Callable[[Array], Iterator[Call]]) -> None:
    x, state = X[0], new_state(X[0].shape)
    calls = list(rule(X[0]))
    assert len(calls) >= 7
    for i, (update, expected) in enumerate(calls):
        noise = NOISE[i] if update.c_noise else np.full(x.shape, np.nan)
        x = apply_update(update, x, OUTPUTS[i], state, noise)
        np.testing.assert_allclose(x, expected, rtol=1e-9, atol=1e-12)
