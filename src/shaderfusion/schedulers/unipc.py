"""UniPC, a multistep predictor with a corrector that costs no call of the model: Zhao et al. 2023, arXiv 2302.04867,
algorithms 5 and 6 (UniPC with predictions of x_0).

With lambda = -log sigma, h from this step's lambda to the next one's, r_i h from this one's to that of i steps before,
and x_0's newest prediction m_0, earlier ones m_i, the next one m_next:

    base   = sqrt((1 - alpha_prev) / (1 - alpha)) x + sqrt(alpha_prev) (1 - e^-h) m_0
    x_pred = base - sqrt(alpha_prev) B sum_i rho_i (m_i - m_0) / r_i
    x_corr = base - sqrt(alpha_prev) B (sum_i rho'_i (m_i - m_0) / r_i + rho'_next (m_next - m_0))

The corrector needs m_next, which the model says of x_pred: it is applied at the start of the next step. As both share
the base, x_corr follows from x_pred and the predictions, and no x but the last has to be kept.
"""

import math
from collections.abc import Sequence

import numpy as np

from shaderfusion.schedulers.config import SchedulerConfig
from shaderfusion.schedulers.noise import prediction
from shaderfusion.schedulers.schedule import Schedule, Update, require_option
from shaderfusion.schedulers.sigmas import from_solver, solver_sigmas, spacing_of_sigmas, trained_sigmas

__all__ = ["unipc"]

IMPLEMENTED = {
    "disable_corrector": ((),),
    "predict_x0": (True,),
    "solver_order": (1, 2, 3),
    "solver_p": (None,),
    "solver_type": ("bh1", "bh2", "midpoint", "heun", "logrho"),  # diffusers takes bh2 for those of other rules
    "thresholding": (False,),
    "use_dynamic_shifting": (False,),
    "use_flow_sigmas": (False, None),
}


def unipc(config: SchedulerConfig, num_inference_steps: int) -> Schedule:
    """The updates of diffusers' UniPCMultistepScheduler, of order 1 to 3.

    Raises InputError (number of steps) and ModelError (an option that is not implemented).
    """
    for key, values in IMPLEMENTED.items():
        require_option(config, key, *values)
    if config.final_sigmas_type == "zero":
        require_option(config, "lower_order_final", True)  # of higher order there is no step to sigma = 0
    if spacing_of_sigmas(config):
        require_option(config, "final_sigmas_type", "zero")  # the last step would go from the smallest to itself
        for key in ("sigma_min", "sigma_max"):
            require_option(config, key, None)
    trained = trained_sigmas(config, zero_terminal_snr=config.rescale_betas_zero_snr)
    timesteps, sigmas = solver_sigmas(config, num_inference_steps, trained)

    def updates_from(first: int) -> tuple[Update, ...]:
        updates, correction = [], np.zeros(4)  # weights of the next prediction and of up to three before it
        for i in range(first, num_inference_steps):
            left = num_inference_steps - i if config.lower_order_final else config.solver_order
            order = min(config.solver_order, left, i - first + 1)
            predictor, corrector = _residuals(sigmas[max(0, i + 1 - order) : i + 2][::-1], config.solver_type == "bh1")
            alpha, alpha_prev = (1 / (sigma**2 + 1) for sigma in sigmas[i : i + 2])
            ratio = sigmas[i + 1] / sigmas[i]  # e^-h
            c_base = ratio * (alpha_prev / alpha) ** 0.5
            weights = c_base * correction  # of m_0 and the three before it
            weights[0] += alpha_prev**0.5 * (1 - ratio)
            weights[:3] -= alpha_prev**0.5 * predictor
            w_0, w_1, w_2, w_3 = weights.tolist()
            p = prediction(alpha, config.prediction_type)
            updates.append(
                Update(
                    c_x=c_base + w_0 * p.x0_x,
                    c_m=w_0 * p.x0_m,
                    c_h1=w_1,
                    c_h2=w_2,
                    c_h3=w_3,
                    h_x=p.x0_x,
                    h_m=p.x0_m,
                )
            )
            correction = -(alpha_prev**0.5) * corrector
            correction[1:] += alpha_prev**0.5 * predictor
        return tuple(updates)

    return from_solver(timesteps, sigmas, updates_from)


def _residuals(sigmas: Sequence[float], is_bh1: bool) -> tuple[np.ndarray, np.ndarray]:
    """B times the sum that predictor and corrector subtract, as weights of m_0, m_1, m_2, and of m_next before them.

    `sigmas` are those of the next step, of this one, and of the order - 1 before it.
    """
    order = len(sigmas) - 1
    predictor, corrector = np.zeros(3), np.zeros(4)
    if sigmas[0] == 0:
        return predictor, corrector  # the last step, of first order, which nothing corrects
    lambdas = -np.log(sigmas)
    h = lambdas[0] - lambdas[1]
    r = (lambdas[2:] - lambdas[1]) / h
    B = -h if is_bh1 else math.expm1(-h)
    b, phi = [], math.expm1(-h)
    for k in range(1, order + 1):
        phi = phi / -h - 1 / math.factorial(k)
        b.append(phi * math.factorial(k) / B)
    powers = np.vander([*r, 1.0], order, increasing=True).T
    rho_predictor = np.array([0.5])[: order - 1] if order < 3 else np.linalg.solve(powers[:-1, :-1], b[:-1])
    rho_corrector = np.array([0.5]) if order == 1 else np.linalg.solve(powers, b)
    for weights, rho in ((predictor, rho_predictor), (corrector[1:], rho_corrector[:-1])):
        weights[1:order] = B * rho / r
        weights[0] = -weights[1:order].sum()
    corrector[0] = B * rho_corrector[-1]
    corrector[1] -= corrector[0]
    return predictor, corrector
