"""PNDM in the form Stable Diffusion 1.x uses (PLMS): linear multistep, warmed up by one repeated timestep.

Liu, Ren, Lin and Zhao 2022, "Pseudo Numerical Methods for Diffusion Models on Manifolds": the transfer part

    x_prev = sqrt(alpha_prev / alpha_t) x_t - (alpha_prev - alpha_t) eps
             / (alpha_t sqrt(1 - alpha_prev) + sqrt(alpha_t (1 - alpha_t) alpha_prev))

applied to the Adams-Bashforth combination eps of the last four model outputs. The second call repeats the first step
with the mean of the two outputs (Heun's method), as in the latent diffusion code.
"""

from shaderfusion.schedulers.config import SchedulerConfig
from shaderfusion.schedulers.noise import alphas_cumprod, inference_timesteps, prediction
from shaderfusion.schedulers.schedule import Schedule, Update, require_option

__all__ = ["pndm"]

# Weights of (m, h1, h2, h3), by how many earlier outputs there are.
ADAMS_BASHFORTH = (
    (1.0, 0.0, 0.0, 0.0),
    (3 / 2, -1 / 2, 0.0, 0.0),
    (23 / 12, -16 / 12, 5 / 12, 0.0),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
HEUN = (1 / 2, 1 / 2, 0.0, 0.0)


def pndm(config: SchedulerConfig, num_inference_steps: int) -> Schedule:
    """The updates of diffusers' PNDMScheduler with skip_prk_steps: one more than num_inference_steps, if that is > 1.

    Raises InputError (number of steps) and ModelError (the Runge-Kutta warm-up, which needs more memory than h1..h3).
    """
    require_option(config, "skip_prk_steps", True, remedy="; set it to true in scheduler_config.json")
    require_option(config, "timestep_spacing", None, "leading", "linspace", "trailing")  # of one stride
    visited = inference_timesteps(config, num_inference_steps, "leading").round()
    alphas = alphas_cumprod(config, zero_terminal_snr=False)
    final_alpha = 1.0 if config.set_alpha_to_one else float(alphas[0])
    stride = config.num_train_timesteps // num_inference_steps

    def step(t: int, weights: tuple[float, float, float, float], *, again: bool = False, first: bool = False) -> Update:
        """From timestep t one stride down; `again` starts from x_saved and leaves the history as it is."""
        alpha_t = float(alphas[t])
        alpha_prev = float(alphas[t - stride]) if t >= stride else final_alpha
        sample, output = _transfer(alpha_t, alpha_prev, config)
        c_m, c_h1, c_h2, c_h3 = (output * weight for weight in weights)
        return Update(
            c_x=0.0 if again else sample,
            c_saved=sample if again else 0.0,
            c_m=c_m,
            c_h1=c_h1,
            c_h2=c_h2,
            c_h3=c_h3,
            h_m=0.0 if again else 1.0,
            save_sample=first,
        )

    timesteps = visited.astype(int).tolist()
    timesteps[1:1] = timesteps[1:2]

    def updates_from(first: int) -> tuple[Update, ...]:
        """As in diffusers the second call repeats the first one's step wherever a run begins; of a timestep that comes
        but once, the stride after it is so left out."""
        begin, *others = timesteps[first:]
        updates = [step(begin, ADAMS_BASHFORTH[0], first=True)]
        updates += [step(t + stride, HEUN, again=True) for t in others[:1]]
        updates += [step(t, ADAMS_BASHFORTH[min(k, 3)]) for k, t in enumerate(others[1:], start=1)]
        return tuple(updates)

    updates = updates_from(0)
    return Schedule(
        init_noise_sigma=1.0,
        timesteps=tuple(map(float, timesteps)),
        input_scales=(1.0,) * len(updates),
        updates=updates,
        alphas=tuple(alphas[timesteps].tolist()),
        updates_from=updates_from,
    )


def _transfer(alpha_t: float, alpha_prev: float, config: SchedulerConfig) -> tuple[float, float]:
    """Coefficients of x_t and of the combined model output in the transfer part."""
    p = prediction(alpha_t, config.prediction_type)
    denominator = alpha_t * (1 - alpha_prev) ** 0.5 + (alpha_t * (1 - alpha_t) * alpha_prev) ** 0.5
    c_eps = -(alpha_prev - alpha_t) / denominator
    return (alpha_prev / alpha_t) ** 0.5 + c_eps * p.eps_x, c_eps * p.eps_m
