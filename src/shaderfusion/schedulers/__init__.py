"""Schedulers: pure functions from a noise schedule and a number of steps to a table of updates (see `Update`)."""

from collections.abc import Callable, Mapping

from shaderfusion.config import SchedulerConfig
from shaderfusion.errors import InputError, ModelError
from shaderfusion.schedulers.ddim import ddim
from shaderfusion.schedulers.euler import euler
from shaderfusion.schedulers.pndm import pndm
from shaderfusion.schedulers.schedule import Schedule, Update

__all__ = ["SCHEDULERS", "Schedule", "Update", "make_schedule"]

SCHEDULERS: Mapping[str, Callable[[SchedulerConfig, int], Schedule]] = {"ddim": ddim, "euler": euler, "pndm": pndm}

_NAME_OF_CLASS = {"DDIMScheduler": "ddim", "EulerDiscreteScheduler": "euler", "PNDMScheduler": "pndm"}


def make_schedule(config: SchedulerConfig, num_inference_steps: int, name: str | None = None) -> Schedule:
    """The updates of `num_inference_steps` denoising steps by scheduler `name`, or by the one the model names.

    Raises InputError for an unknown name or a number of steps that is not a whole number from 1 to
    num_train_timesteps, and ModelError for an option, or a model's own scheduler, that is not implemented.
    """
    names = ", ".join(SCHEDULERS)
    if name is None:
        if config.class_name not in _NAME_OF_CLASS:
            raise ModelError(f"the model's scheduler (={config.class_name}) is not implemented; name one of {names}")
        name = _NAME_OF_CLASS[config.class_name]
    if name not in SCHEDULERS:
        raise InputError(f"scheduler (={name!r}) must be one of {names}")
    return SCHEDULERS[name](config, num_inference_steps)
