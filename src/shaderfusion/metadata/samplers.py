"""Names of samplers and their spacings of noise levels: ours, and those of web UIs and other programs."""

import re
from collections.abc import Mapping

from shaderfusion.config import SchedulerConfig

__all__ = ["WEB_UI_NAMES", "find_sampler", "schedule_type"]

WEB_UI_NAMES: Mapping[str, str] = {
    "ddim": "DDIM",
    "dpmpp_2m": "DPM++ 2M",
    "euler": "Euler",
    "euler_a": "Euler a",
    "lcm": "LCM",
    "lms": "LMS",
    "pndm": "PLMS",
}
"""Of the web UIs, by ours."""

_SCHEDULE_TYPES = ("Karras", "Exponential", "Beta", "SGM Uniform", "Simple", "Normal", "Uniform")
_FREE_TO_SPACE = ("dpmpp_2m", "euler", "euler_a", "lms")
"""Schedulers whose noise levels an option spaces."""


def find_sampler(name: str) -> tuple[str | None, str | None]:
    """Our scheduler of a name that some program wrote, and the schedule type where the name ends with one.

    Case and what stands between letters do not count: `DPM++ 2M Karras`, `dpm++2m karras` and `dpmpp_2m_k` are one.
    """
    plain = _plain(name)
    if plain in _OURS:
        return _OURS[plain], None
    for schedule, ending in [*((schedule, _plain(schedule)) for schedule in _SCHEDULE_TYPES), ("Karras", "k")]:
        if (known := _OURS.get(plain.removesuffix(ending))) and plain.endswith(ending):
            return known, schedule
    return None, None


def schedule_type(config: SchedulerConfig, scheduler: str) -> str | None:
    """The web UIs' name of how noise levels are spaced; None where they have none for it."""
    if scheduler not in _FREE_TO_SPACE:
        return None
    if config.use_karras_sigmas:
        return "Karras"
    if config.timestep_spacing == "trailing":
        return "SGM Uniform"
    return "Uniform" if config.timestep_spacing == "linspace" and scheduler != "dpmpp_2m" else None


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("+", "p"))


_OURS = {_plain(name): ours for ours, theirs in WEB_UI_NAMES.items() for name in (ours, theirs)}
_OURS |= {"eulerancestral": "euler_a", "keuler": "euler", "keulera": "euler_a", "klms": "lms"}
