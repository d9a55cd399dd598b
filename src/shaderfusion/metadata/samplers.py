"""Names of samplers and their spacings of noise levels: ours, and those of web UIs and other programs."""

import re
from collections.abc import Mapping

from shaderfusion.config import SchedulerConfig
from shaderfusion.errors import InputError
from shaderfusion.schedulers import SCHEDULERS, find_scheduler

__all__ = ["find_sampler", "schedule_type", "web_ui_name"]

_SCHEDULE_TYPES: Mapping[str, str] = {
    "ays": "Align Your Steps",
    "beta": "Beta",
    "exponential": "Exponential",
    "karras": "Karras",
    "linspace": "Uniform",
    "trailing": "SGM Uniform",
}
"""Of the web UIs, by our spacing."""


def web_ui_name(scheduler: str) -> str:
    """The web UIs' name of a scheduler, without its spacing."""
    return SCHEDULERS[find_scheduler(scheduler).rule].web_ui


def find_sampler(name: str, schedule: str | None = None) -> tuple[str | None, str | None]:
    """Our scheduler of a sampler and a schedule type that some program wrote, and the latter where we lack both."""
    # stable-diffusion.cpp joins `++` to what follows, and InvokeAI ends Karras' in _k.
    name = re.sub(
        r"_k$", "_karras", re.sub(r"(?<=pp)(?=[23])", "_", name.lower().replace("++", "pp").removeprefix("k_"))
    )
    head, _, last = name.rpartition(" ")
    tries = [(f"{name} {schedule}", None)] if schedule else []
    for text, left in [*tries, (name, schedule), (head, last.capitalize())]:  # at last without a spacing that it lacks
        try:
            return str(find_scheduler(text)), left
        except InputError:
            continue
    return None, schedule


def schedule_type(config: SchedulerConfig, scheduler: str) -> str | None:
    """The web UIs' name of how noise levels are spaced; None where they have none for it."""
    choice = find_scheduler(scheduler)
    used = choice.options(config)
    if "karras" not in SCHEDULERS[choice.rule].spacings:
        return None
    spaced = [name for name in ("karras", "exponential", "beta") if getattr(used, f"use_{name}_sigmas")]
    return _SCHEDULE_TYPES.get(spaced[0] if spaced else used.timestep_spacing or "")
