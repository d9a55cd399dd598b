"""DPM-Solver++ (2M), a multistep method of second order: Lu et al. 2022, arXiv 2211.01095, algorithm 2.

With lambda = -log sigma, h from this step's lambda to the next one's, h_last of the step before, and the two last
predictions of x_0:

    D      = x_0 + h / (2 h_last) (x_0 - x_0_last)      of first order: x_0
    x_prev = sqrt((1 - alpha_prev) / (1 - alpha)) x_t + sqrt(alpha_prev) (1 - e^-h) D
"""

import math
from collections.abc import Callable

from shaderfusion.schedulers.config import SchedulerConfig
from shaderfusion.schedulers.noise import prediction
from shaderfusion.schedulers.schedule import Schedule, Update, require_option
from shaderfusion.schedulers.sigmas import from_solver, solver_sigmas, trained_sigmas

__all__ = ["dpmpp_2m", "solve"]

FEW_STEPS = 15
"""lower_order_final is for fewer steps."""

# Files of other schedulers say deis, logrho, bh1 or bh2, for which diffusers takes dpmsolver++ and midpoint.
IMPLEMENTED = {
    "algorithm_type": ("dpmsolver++", "sde-dpmsolver++", "deis"),  # of the first two the rule's name decides
    "lambda_min_clipped": (-math.inf,),
    "solver_order": (1, 2),
    "solver_type": ("midpoint", "logrho", "bh1", "bh2"),
    "thresholding": (False,),
    "use_dynamic_shifting": (False,),
    "use_flow_sigmas": (False, None),
    "use_lu_lambdas": (False, None),
    "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),  # not learned
}


def dpmpp_2m(config: SchedulerConfig, num_inference_steps: int) -> Schedule:
    """The updates of diffusers' DPMSolverMultistepScheduler of algorithm_type dpmsolver++, of order 1 or 2.

    Raises InputError (number of steps) and ModelError (an option that is not implemented).
    """
    return solve(config, num_inference_steps, _update)


def solve(
    config: SchedulerConfig,
    num_inference_steps: int,
    update: Callable[[float, float, float, SchedulerConfig], Update],
) -> Schedule:
    """A schedule of steps from sigma to sigma_prev with D = x_0 + correction (x_0 - x_0_last), each by
    `update(sigma, sigma_prev, correction, config)`.
    """
    for key, values in IMPLEMENTED.items():
        require_option(config, key, *values)
    trained = trained_sigmas(config, zero_terminal_snr=config.rescale_betas_zero_snr)
    timesteps, sigmas = solver_sigmas(config, num_inference_steps, trained)

    last = num_inference_steps - 1
    ends_simply = config.final_sigmas_type == "zero" or config.euler_at_final
    ends_simply = ends_simply or (config.lower_order_final and num_inference_steps < FEW_STEPS)

    def updates_from(first: int) -> tuple[Update, ...]:
        updates = []
        for i in range(first, num_inference_steps):
            is_first_order = i == first or config.solver_order == 1 or (i == last and ends_simply)
            correction = 0.0
            if not is_first_order:
                correction = math.log(sigmas[i] / sigmas[i + 1]) / (2 * math.log(sigmas[i - 1] / sigmas[i]))
            updates.append(update(sigmas[i], sigmas[i + 1], correction, config))
        return tuple(updates)

    return from_solver(timesteps, sigmas, updates_from)


def _update(sigma: float, sigma_prev: float, correction: float, config: SchedulerConfig) -> Update:
    """From sigma to sigma_prev with D = x_0 + correction (x_0 - x_0_last)."""
    alpha, alpha_prev = 1 / (sigma**2 + 1), 1 / (sigma_prev**2 + 1)
    p = prediction(alpha, config.prediction_type)
    ratio = sigma_prev / sigma  # e^-h
    c_D = alpha_prev**0.5 * (1 - ratio)
    c_x0 = c_D * (1 + correction)
    return Update(
        c_x=ratio * (alpha_prev / alpha) ** 0.5 + c_x0 * p.x0_x,
        c_m=c_x0 * p.x0_m,
        c_h1=-c_D * correction,
        h_x=p.x0_x,
        h_m=p.x0_m,
    )
