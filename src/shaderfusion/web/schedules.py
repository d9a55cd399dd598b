"""A scheduler's tables for each number of steps, which the player looks up: it makes none itself."""

from __future__ import annotations

from typing import Any

import numpy as np

from shaderfusion.errors import InputError
from shaderfusion.metadata.samplers import schedule_type, web_ui_name
from shaderfusion.schedulers import Schedule, make_schedule
from shaderfusion.schedulers.config import SchedulerConfig

__all__ = ["MOST_STEPS", "describe_scheduler", "make_schedules"]

MOST_STEPS = 100


def make_schedules(config: SchedulerConfig, name: str | None = None) -> dict[int, Schedule]:
    """By number of steps, up to MOST_STEPS, as far as the scheduler takes it. Raises what `make_schedule` does."""
    schedules: dict[int, Schedule] = {}
    refusal: InputError | None = None
    for steps in range(1, MOST_STEPS + 1):
        try:
            schedules[steps] = make_schedule(config, steps, name)
        except InputError as error:  # LCM has fewer steps, and published timesteps are for one number of them
            refusal = error
    if refusal and not schedules:
        raise refusal
    return schedules


def describe_scheduler(
    config: SchedulerConfig, schedules: dict[int, Schedule], steps: int
) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """What the manifest says of it: names, here and in web UIs, and numbers of steps; and its file, by those.

    The page begins with `steps`, or the number next to it that the scheduler takes.
    """
    name = next(iter(schedules.values())).name
    spacing = schedule_type(config, name)
    described = {
        "name": name,
        "sampler": web_ui_name(name),
        **({"schedule_type": spacing} if spacing else {}),
        "steps": [min(schedules), max(schedules)],
        "default_steps": min(schedules, key=lambda taken: abs(taken - steps)),
    }
    return described, {steps: _as_json(schedule) for steps, schedule in schedules.items()}


def _as_json(schedule: Schedule) -> dict[str, Any]:
    """Each coefficient that is not always 0 as a list, of the calls of the UNet."""
    next_input_scales = (*schedule.input_scales[1:], 1.0)
    rows = [
        {**vars(update), "next_input_scale": scale}
        for update, scale in zip(schedule.updates, next_input_scales, strict=True)
    ]
    used = [name for name in rows[0] if any(row[name] for row in rows)]
    return {
        "init_noise_sigma": _number(schedule.init_noise_sigma),
        "first_input_scale": _number(schedule.input_scales[0]),
        "timesteps": [_number(timestep) for timestep in schedule.timesteps],
        "coefficients": {name: [_number(row[name]) for row in rows] for name in used},
    }


def _number(value: float) -> float:
    """As few digits as give the same float32, which is what the GPU takes."""
    number = float(str(np.float32(value)))
    return int(number) if number.is_integer() else number
