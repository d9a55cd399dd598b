"""Schedulers: pure functions from a noise schedule and a number of steps to a table of updates (see `Update`)."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from shaderfusion.arguments import LARGEST_F32
from shaderfusion.config import SchedulerConfig
from shaderfusion.errors import InputError, ModelError
from shaderfusion.files import shown
from shaderfusion.schedulers.ddim import ddim
from shaderfusion.schedulers.dpmpp_2m import dpmpp_2m
from shaderfusion.schedulers.euler import euler
from shaderfusion.schedulers.euler_a import euler_a
from shaderfusion.schedulers.lcm import lcm
from shaderfusion.schedulers.lms import lms
from shaderfusion.schedulers.pndm import pndm
from shaderfusion.schedulers.schedule import Schedule, Update

__all__ = ["SCHEDULERS", "Schedule", "Scheduler", "Update", "make_schedule"]


class Scheduler(NamedTuple):
    """An update rule, and the class of diffusers that a model's scheduler_config.json names for it."""

    make: Callable[[SchedulerConfig, int], Schedule]
    diffusers_class: str


SCHEDULERS: Mapping[str, Scheduler] = {
    "ddim": Scheduler(ddim, "DDIMScheduler"),
    "dpmpp_2m": Scheduler(dpmpp_2m, "DPMSolverMultistepScheduler"),
    "euler": Scheduler(euler, "EulerDiscreteScheduler"),
    "euler_a": Scheduler(euler_a, "EulerAncestralDiscreteScheduler"),
    "lcm": Scheduler(lcm, "LCMScheduler"),
    "lms": Scheduler(lms, "LMSDiscreteScheduler"),
    "pndm": Scheduler(pndm, "PNDMScheduler"),
}
"""By the name that users give."""


def make_schedule(config: SchedulerConfig, num_inference_steps: int, name: str | None = None) -> Schedule:
    """The updates of `num_inference_steps` denoising steps by scheduler `name`, or by the one the model names.

    Raises InputError for an unknown name or a number of steps that is not a whole number from 1 to
    num_train_timesteps, and ModelError for an option, or a model's own scheduler, that is not implemented, and for a
    noise schedule that leads to numbers beyond f32.
    """
    names = ", ".join(SCHEDULERS)
    if name is None:
        own = [name for name, scheduler in SCHEDULERS.items() if scheduler.diffusers_class == config.class_name]
        if not own:
            raise ModelError(
                f"the model's scheduler (={shown(config.class_name)}) is not implemented; name one of {names}"
            )
        name = own[0]
    if name not in SCHEDULERS:
        raise InputError(f"scheduler (={name!r}) must be one of {names}")
    try:
        with np.errstate(divide="raise", over="raise", invalid="raise"):
            schedule = SCHEDULERS[name].make(config, num_inference_steps)
        if not all(abs(number) <= LARGEST_F32 for number in _numbers(schedule)):
            raise OverflowError
    except ArithmeticError:
        raise ModelError(
            f"{name}: the model's noise schedule leads to numbers beyond f32; fetch the model again"
        ) from None
    except ModelError as error:
        others = " or ".join(other for other in SCHEDULERS if other != name)
        raise ModelError(f"{name}: {error}; or try the scheduler {others}") from None
    return replace(schedule, name=name)


def _numbers(schedule: Schedule) -> list[float]:
    """All that the GPU is given."""
    coefficients = [number for update in schedule.updates for number in vars(update).values()]
    return [schedule.init_noise_sigma, *schedule.timesteps, *schedule.input_scales, *coefficients]
