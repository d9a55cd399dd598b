"""Schedulers: pure functions from a noise schedule and a number of steps to a table of updates (see `Update`)."""

from dataclasses import replace

import numpy as np

from shaderfusion.arguments import LARGEST_F32
from shaderfusion.errors import InputError, ModelError
from shaderfusion.files import shown
from shaderfusion.schedulers.config import SchedulerConfig
from shaderfusion.schedulers.names import (
    SCHEDULERS,
    SPACINGS,
    Choice,
    Scheduler,
    find_scheduler,
    scheduler_of_model,
)
from shaderfusion.schedulers.noise import ALIGN_YOUR_STEPS
from shaderfusion.schedulers.schedule import Schedule, Update

__all__ = [
    "SCHEDULERS",
    "SPACINGS",
    "Choice",
    "Schedule",
    "Scheduler",
    "Update",
    "find_scheduler",
    "make_schedule",
    "require_scheduler",
]


def make_schedule(
    config: SchedulerConfig, num_inference_steps: int, name: str | None = None, *, eta: float = 0.0
) -> Schedule:
    """The updates of `num_inference_steps` denoising steps by scheduler `name`, or by the one the model names.

    Names are those of `find_scheduler`. eta, from 0 to 1, is how much noise the steps of ddim and tcd add.

    Raises InputError for an unknown name, an eta that the scheduler does not take, or a number of steps that is not a
    whole number from 1 to num_train_timesteps, and ModelError for an option, or a model's own scheduler, that is not
    implemented, and for a noise schedule that leads to numbers beyond f32.
    """
    choice = scheduler_of_model(config) if name is None else find_scheduler(name)
    if choice is None:
        raise ModelError(
            f"the model's scheduler (={shown(config.class_name)}) is not implemented; name one of "
            f"{', '.join(SCHEDULERS)}"
        )
    scheduler = SCHEDULERS[choice.rule]
    options = {"eta": _require_eta(eta, choice.rule)} if eta != 0 else {}
    try:
        with np.errstate(divide="raise", over="raise", invalid="raise"):
            schedule = scheduler.make(choice.options(config), num_inference_steps, **options)
        if not all(abs(number) <= LARGEST_F32 for number in _numbers(schedule)):
            raise OverflowError
    except ArithmeticError:
        raise ModelError(
            f"{choice}: the model's noise schedule leads to numbers beyond f32; fetch the model again"
        ) from None
    except ModelError as error:
        others = " or ".join(other for other in SCHEDULERS if other != choice.rule)
        raise ModelError(f"{choice}: {error}; or try the scheduler {others}") from None
    return replace(schedule, name=str(choice))


def require_scheduler(config: SchedulerConfig, name: str | None = None) -> None:
    """Raises what `make_schedule` does whatever the number of steps."""
    choice = None if name is None else find_scheduler(name)
    timesteps = ALIGN_YOUR_STEPS.get(choice.spacing or "") if choice else None
    make_schedule(config, len(timesteps) if timesteps else 1, name)


def _require_eta(eta: float, rule: str) -> float:
    if not isinstance(eta, int | float) or isinstance(eta, bool) or not 0 <= eta <= 1:
        raise InputError(f"eta (={shown(eta)}) must be a number from 0 to 1")
    if not SCHEDULERS[rule].takes_eta:
        those = " and ".join(name for name, scheduler in SCHEDULERS.items() if scheduler.takes_eta)
        raise InputError(f"eta (={eta}) must be 0 with the scheduler {rule}; only {those} take another")
    return float(eta)


def _numbers(schedule: Schedule) -> list[float]:
    """All that the GPU is given."""
    coefficients = [number for update in schedule.updates for number in vars(update).values()]
    return [schedule.init_noise_sigma, *schedule.timesteps, *schedule.input_scales, *coefficients]
