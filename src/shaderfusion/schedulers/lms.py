"""Linear multistep (Adams-Bashforth with uneven steps) of order 4 on the probability-flow ODE, as in k-diffusion's
sample_lms.

Units and the UNet's input are Euler's. A step adds the integral, from sigma to sigma_prev, of the polynomial through
the last four slopes eps_j at sigma_j:

    x_prev = x + sum_j w_j eps_j,    w_j = integral of prod_{k != j} (tau - sigma_k) / (sigma_j - sigma_k) dtau
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from shaderfusion.schedulers.config import SchedulerConfig
from shaderfusion.schedulers.schedule import Schedule, Update
from shaderfusion.schedulers.sigmas import inference_sigmas, slope, trained_sigmas, with_sigmas

__all__ = ["lms"]

ORDER = 4
# Two points of Gauss and Legendre integrate a cubic exactly.
NODES, WEIGHTS = np.polynomial.legendre.leggauss(ORDER // 2)


def lms(config: SchedulerConfig, num_inference_steps: int) -> Schedule:
    """The updates of diffusers' LMSDiscreteScheduler; linspace timesteps are fractions, as there.

    Raises InputError (number of steps) and ModelError (two spacings of sigmas at once).
    """
    trained = trained_sigmas(config, zero_terminal_snr=False)
    timesteps, sigmas = inference_sigmas(config, num_inference_steps, trained)

    def updates_from(first: int) -> tuple[Update, ...]:
        """As in diffusers, a run that begins later has the weights of the whole one, and slopes of 0 before it."""
        updates = []
        for i, (sigma, sigma_prev) in enumerate(zip(sigmas, [*sigmas[1:], 0.0], strict=True)):
            eps_x, eps_m = slope(sigma, config.prediction_type)
            w, *earlier = _weights(sigmas[i::-1][:ORDER], sigma_prev)
            c_h1, c_h2, c_h3 = [*earlier[: max(0, i - first)], 0.0, 0.0, 0.0][:3]
            update = Update(c_x=1 + w * eps_x, c_m=w * eps_m, c_h1=c_h1, c_h2=c_h2, c_h3=c_h3, h_x=eps_x, h_m=eps_m)
            updates.append(update)
        return tuple(updates[first:])

    schedule = with_sigmas(config, timesteps, sigmas, list(updates_from(0)))
    return replace(schedule, updates_from=updates_from)


def _weights(sigmas: Sequence[float], sigma_prev: float) -> list[float]:
    """w_j of the slopes at these sigmas, the newest first."""
    half = (sigma_prev - sigmas[0]) / 2
    taus = (sigma_prev + sigmas[0]) / 2 + half * NODES

    def lagrange(j: int, tau: float) -> float:
        others = [*sigmas[:j], *sigmas[j + 1 :]]
        return math.prod((tau - other) / (sigmas[j] - other) for other in others)

    return [
        half * sum(float(weight) * lagrange(j, float(tau)) for tau, weight in zip(taus, WEIGHTS, strict=True))
        for j in range(len(sigmas))
    ]
