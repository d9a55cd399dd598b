"""Names of samplers and their spacings of noise levels: ours, and those of web UIs and other programs."""

import re
from collections.abc import Mapping

from shaderfusion.errors import InputError
from shaderfusion.schedulers import SCHEDULERS, SPACINGS, find_scheduler
from shaderfusion.schedulers.config import SchedulerConfig

__all__ = [
    "AUTOMATIC",
    "HAVE_OWN",
    "find_sampler",
    "find_web_uis",
    "not_as_there",
    "says_schedule",
    "schedule_type",
    "web_ui_name",
]

AUTOMATIC: Mapping[str, str] = {
    "dpmpp_2m": "karras",
    "dpmpp_sde": "karras",
    "dpm2": "karras",
    "dpm2_a": "karras",
    "dpmpp_2m_sde": "exponential",
    "euler": "linspace",
    "euler_a": "linspace",
    "heun": "linspace",
    "lms": "linspace",
}
"""The spacings that web UIs take where the scheduler is Automatic; of other rules, the model's own."""
HAVE_OWN = ("ddim", "pndm", "unipc")
"""Rules of web UIs that no scheduler changes."""

_NOT_AS_THERE: Mapping[str, str] = {
    "dpm2": "without the last noise level but one",
    "dpm2_a": "without the last noise level but one",
    "dpmpp_2m_sde": "with the noise of a Brownian path",
    "unipc": "of order 3 with bh1, where models mostly have 2 with bh2",
}
"""How web UIs run the rules that make other pictures here."""

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
    name = re.sub("_k$", "_karras", name.lower().removeprefix("k_"))  # InvokeAI's and older web UIs'
    head, _, last = name.rpartition(" ")
    whole = [(f"{name} {schedule}", None)] if schedule else []
    without = [(head, last.capitalize())] if last in SPACINGS else []  # a spacing that the rule lacks
    for text, left in [*whole, (name, schedule), *without]:
        try:
            return str(find_scheduler(text)), left
        except InputError:
            continue
    return None, schedule


def find_web_uis(name: str, schedule: str | None) -> tuple[str | None, str | None]:
    """As `find_sampler`, of a web UI's fields. Before 1.9 they had no schedule type, and Uniform was what counted."""
    scheduler, left = find_sampler(name)
    if scheduler is None:
        return None, None
    choice = find_scheduler(scheduler)
    if choice.rule in HAVE_OWN:
        return scheduler, left
    if schedule not in (None, "Automatic"):
        return find_sampler(name, schedule)
    if choice.spacing is None and choice.rule in AUTOMATIC:
        choice = choice._replace(spacing="linspace" if schedule is None else AUTOMATIC[choice.rule])
    return str(choice), left


def not_as_there(scheduler: str) -> str | None:
    """What web UIs do with that scheduler of ours and is not done here."""
    return _NOT_AS_THERE.get(find_scheduler(scheduler).rule)


def says_schedule(scheduler: str, schedule: str) -> bool:
    """Whether a scheduler's name has that schedule type of the web UIs, so that no model has a say in it."""
    spacing = find_scheduler(scheduler).spacing
    return spacing is not None and _SCHEDULE_TYPES.get(spacing) == schedule


def schedule_type(config: SchedulerConfig, scheduler: str) -> str | None:
    """The web UIs' name of how noise levels are spaced; None where they have none for it."""
    choice = find_scheduler(scheduler)
    used = choice.options(config)
    if "karras" not in SCHEDULERS[choice.rule].spacings:
        return None
    spaced = [name for name in ("karras", "exponential", "beta") if getattr(used, f"use_{name}_sigmas")]
    return _SCHEDULE_TYPES.get(spaced[0] if spaced else used.timestep_spacing or "")
