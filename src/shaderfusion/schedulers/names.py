"""The schedulers there are, and what people call them: short names, diffusers' classes and the web UIs' names.

A name is a rule's, or that and a spacing's: `dpmpp_2m_karras`, "DPM++ 2M Karras". Case, and whether words are joined by
spaces, hyphens or underscores, make no difference, and `++` is `pp`.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from shaderfusion.errors import InputError
from shaderfusion.files import shown
from shaderfusion.schedulers.config import SchedulerConfig
from shaderfusion.schedulers.ddim import ddim
from shaderfusion.schedulers.ddpm import ddpm
from shaderfusion.schedulers.dpm2 import dpm2
from shaderfusion.schedulers.dpm2_a import dpm2_a
from shaderfusion.schedulers.dpmpp_2m import dpmpp_2m
from shaderfusion.schedulers.dpmpp_2m_sde import dpmpp_2m_sde
from shaderfusion.schedulers.dpmpp_sde import dpmpp_sde
from shaderfusion.schedulers.euler import euler
from shaderfusion.schedulers.euler_a import euler_a
from shaderfusion.schedulers.heun import heun
from shaderfusion.schedulers.lcm import lcm
from shaderfusion.schedulers.lms import lms
from shaderfusion.schedulers.pndm import pndm
from shaderfusion.schedulers.schedule import Schedule
from shaderfusion.schedulers.tcd import tcd
from shaderfusion.schedulers.unipc import unipc

__all__ = ["SCHEDULERS", "SPACINGS", "Choice", "Scheduler", "find_scheduler", "scheduler_of_model"]

STRIDES = ("leading", "linspace", "trailing")
TIMESTEPS = (*STRIDES, "ays", "ays_xl")
SIGMAS = (*TIMESTEPS, "beta", "exponential", "karras")


class Scheduler(NamedTuple):
    """An update rule, its names elsewhere, and what it can be combined with."""

    make: Callable[..., Schedule]
    """Of a configuration and a number of steps, and of eta where it takes one."""
    diffusers_class: str
    """That a model's scheduler_config.json names for it."""
    web_ui: str
    spacings: tuple[str, ...] = ()
    """Keys of SPACINGS that a name may end in."""
    takes_eta: bool = False


SCHEDULERS: Mapping[str, Scheduler] = {
    "ddim": Scheduler(ddim, "DDIMScheduler", "DDIM", STRIDES, takes_eta=True),
    "ddpm": Scheduler(ddpm, "DDPMScheduler", "DDPM", TIMESTEPS),
    "dpm2": Scheduler(dpm2, "KDPM2DiscreteScheduler", "DPM2", SIGMAS),
    "dpm2_a": Scheduler(dpm2_a, "KDPM2AncestralDiscreteScheduler", "DPM2 a", SIGMAS),
    "dpmpp_2m": Scheduler(dpmpp_2m, "DPMSolverMultistepScheduler", "DPM++ 2M", SIGMAS),
    "dpmpp_2m_sde": Scheduler(dpmpp_2m_sde, "DPMSolverMultistepScheduler", "DPM++ 2M SDE", SIGMAS),
    "dpmpp_sde": Scheduler(dpmpp_sde, "DPMSolverSDEScheduler", "DPM++ SDE", SIGMAS),
    "euler": Scheduler(euler, "EulerDiscreteScheduler", "Euler", SIGMAS),
    "euler_a": Scheduler(euler_a, "EulerAncestralDiscreteScheduler", "Euler a", TIMESTEPS),
    "heun": Scheduler(heun, "HeunDiscreteScheduler", "Heun", SIGMAS),
    "lcm": Scheduler(lcm, "LCMScheduler", "LCM"),
    "lms": Scheduler(lms, "LMSDiscreteScheduler", "LMS", SIGMAS),
    "pndm": Scheduler(pndm, "PNDMScheduler", "PLMS", STRIDES),
    "tcd": Scheduler(tcd, "TCDScheduler", "TCD", takes_eta=True),
    "unipc": Scheduler(unipc, "UniPCMultistepScheduler", "UniPC", SIGMAS),
}
"""By short name."""

SPACINGS: Mapping[str, Mapping[str, Any]] = {
    **{name: {"timestep_spacing": name} for name in TIMESTEPS},
    **{name: {f"use_{name}_sigmas": True} for name in SIGMAS if name not in TIMESTEPS},
}
"""Options of scheduler_config.json that take the place of the model's; without one in the name those count."""

NO_SPACING = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}

# ComfyUI's and InvokeAI's names of rules, and names of spacings there, in A1111's list and in diffusers' table of both.
OTHER_SCHEDULERS = {
    "dpm_2": "dpm2",
    "dpm_2_ancestral": "dpm2_a",
    "euler_ancestral": "euler_a",
    "kdpm_2": "dpm2",
    "kdpm_2_a": "dpm2_a",
    "uni_pc": "unipc",
    "uni_pc_bh2": "unipc",
}
OTHER_SPACINGS = {
    "align_your_steps": "ays",
    "normal": "linspace",
    "sgm_uniform": "trailing",
    "simple": "trailing",
    "uniform": "linspace",
}


def _plain(name: str) -> str:
    """As SCHEDULERS writes names. stable-diffusion.cpp joins `++` to what follows."""
    apart = re.sub(r"\+\+(?=\w)", "++ ", name.strip().casefold())
    return re.sub(r"[\s_-]+", "_", apart).replace("++", "pp")


_NAMES = {
    **{_plain(rule.diffusers_class): name for name, rule in reversed(SCHEDULERS.items())},  # the first of a class
    **{_plain(rule.web_ui): name for name, rule in SCHEDULERS.items()},
    **OTHER_SCHEDULERS,
    **{name: name for name in SCHEDULERS},
}
_SPACING_NAMES = {**OTHER_SPACINGS, **{name: name for name in SPACINGS}}


class Choice(NamedTuple):
    """What a name says: a key of SCHEDULERS, and one of SPACINGS or None for the model's own."""

    rule: str
    spacing: str | None = None

    def __str__(self) -> str:
        return self.rule if self.spacing is None else f"{self.rule}_{self.spacing}"

    def options(self, config: SchedulerConfig) -> SchedulerConfig:
        """The model's configuration with that spacing."""
        return config if self.spacing is None else replace(config, **{**NO_SPACING, **SPACINGS[self.spacing]})


def find_scheduler(name: str) -> Choice:
    """What a name means; InputError for one that is unknown, or of a rule that has no such spacing."""
    plain = _plain(name) if isinstance(name, str) else ""
    if plain in _NAMES:
        return Choice(_NAMES[plain])
    for ending, spacing in _SPACING_NAMES.items():
        rule = _NAMES.get(plain.removesuffix(f"_{ending}"))
        if rule is not None and spacing in SCHEDULERS[rule].spacings:
            return Choice(rule, spacing)
        if rule is not None:
            those = ", ".join(SCHEDULERS[rule].spacings) or "none"
            raise InputError(f"scheduler (={shown(name)}): {rule} is not implemented with {spacing}; it has {those}")
    raise InputError(
        f"scheduler (={shown(name)}) must be one of {', '.join(SCHEDULERS)}, most of which take a spacing, such as "
        "dpmpp_2m_karras; diffusers' and the web UIs' names of them do as well"
    )


def scheduler_of_model(config: SchedulerConfig) -> Choice | None:
    """The rule that a model's own scheduler_config.json names, if it is implemented."""
    names = [name for name, rule in SCHEDULERS.items() if rule.diffusers_class == config.class_name]
    if "dpmpp_2m_sde" in names and config.algorithm_type == "sde-dpmsolver++":
        return Choice("dpmpp_2m_sde")
    return Choice(names[0]) if names else None
