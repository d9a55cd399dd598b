"""DPM-Solver++ (2M) on the stochastic equation, as in k-diffusion's sample_dpmpp_2m_sde: Lu et al. 2022, arXiv
2211.01095, section 5 with the noise of its appendix.

With h and D as DPM++ 2M has them:

    x_prev = sqrt((1 - alpha_prev) / (1 - alpha)) e^-h x_t + sqrt(alpha_prev) (1 - e^-2h) D
             + sqrt(1 - alpha_prev) sqrt(1 - e^-2h) noise
"""

from shaderfusion.schedulers.config import SchedulerConfig
from shaderfusion.schedulers.dpmpp_2m import solve
from shaderfusion.schedulers.noise import prediction
from shaderfusion.schedulers.schedule import Schedule, Update

__all__ = ["dpmpp_2m_sde"]


def dpmpp_2m_sde(config: SchedulerConfig, num_inference_steps: int) -> Schedule:
    """The updates of diffusers' DPMSolverMultistepScheduler of algorithm_type sde-dpmsolver++, of order 1 or 2.

    The noise is new in each step, as there; k-diffusion's comes from a Brownian tree, whose increments are independent
    as well. Raises InputError (number of steps) and ModelError (an option that is not implemented).
    """
    return solve(config, num_inference_steps, _update)


def _update(sigma: float, sigma_prev: float, correction: float, config: SchedulerConfig) -> Update:
    alpha, alpha_prev = 1 / (sigma**2 + 1), 1 / (sigma_prev**2 + 1)
    p = prediction(alpha, config.prediction_type)
    ratio = sigma_prev / sigma  # e^-h
    c_D = alpha_prev**0.5 * (1 - ratio**2)
    c_x0 = c_D * (1 + correction)
    return Update(
        c_x=ratio**2 * (alpha_prev / alpha) ** 0.5 + c_x0 * p.x0_x,
        c_m=c_x0 * p.x0_m,
        c_h1=-c_D * correction,
        h_x=p.x0_x,
        h_m=p.x0_m,
        c_noise=alpha_prev**0.5 * sigma_prev * (1 - ratio**2) ** 0.5,
    )
