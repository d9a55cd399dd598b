"""What made a picture, as the texts in its file say it: ours, those of web UIs and stable-diffusion.cpp, InvokeAI's."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

from shaderfusion.files import parse_json
from shaderfusion.metadata.image_files import OWN, PARAMETERS
from shaderfusion.metadata.infotext import read_infotext
from shaderfusion.metadata.resources import find_resources
from shaderfusion.metadata.samplers import find_sampler, find_web_uis, not_as_there, says_schedule
from shaderfusion.metadata.second_pass import UPSCALER, read_second_pass, read_strength

__all__ = ["COMFY_UI", "Recipe", "is_read", "read_recipes"]

COMFY_UI = ("prompt", "workflow")
"""Keys under which ComfyUI keeps its graph, of which nothing is read."""
WEB_UI = "web UI"
_INVOKE_AI = "invokeai_metadata"

TAKEN = ("prompt", "negative_prompt", "steps", "guidance_scale", "seed", "scheduler", "width", "height", "num_images")
TAKEN += ("eta", "rng", "seeds", "strength", "hires", "hires_steps", "hires_strength")
TAKEN += ("prompt_syntax", "clip_skip", "emphasis")
"""Options of ours that a picture gives."""
_NEEDED = ("prompt", "steps", "scheduler", "guidance_scale", "seed", "width", "height")


@dataclass
class Recipe:
    """What one text says, in three parts. Names are ours in options, and the writer's own elsewhere."""

    source: str
    """The program that wrote it."""
    options: dict[str, Any] = field(default_factory=dict)
    """By the name of the option of ours that does it; TAKEN has them."""
    demands: dict[str, str] = field(default_factory=dict)
    """What changes the picture, or may, and no option above does."""
    facts: dict[str, str] = field(default_factory=dict)
    """What does not: the model's name and hash, versions, devices."""
    tagged_prompt: str | None = None
    """The prompt with all adapters that it was made by, if it names them; a folder of them meets the demand."""

    @property
    def not_said(self) -> list[str]:
        """Of the options that a picture can be made again by, those that the text does not give."""
        return [name for name in _NEEDED if name not in self.options]

    @property
    def is_web_uis(self) -> bool:
        """Whether its settings are to be read as web UIs do."""
        return self.source == WEB_UI


def read_recipes(name: str, texts: Mapping[str, str]) -> list[Recipe]:
    """What each text says that one of the programs wrote, the most exact first; ModelError, which begins with `name`,
    where JSON is damaged."""
    return [READ[key](f"{name} ({key})", texts[key]) for key in READ if is_read(key, texts)]


def is_read(key: str, texts: Mapping[str, str]) -> bool:
    """Whether there is such a text, of a program that is known: SwarmUI and Fooocus keep JSON where infotext is."""
    return key in READ and key in texts and not (key == PARAMETERS and _is_json(texts[key]))


def _is_json(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _whole(value: Any) -> int:
    is_whole = value.isdecimal() if isinstance(value, str) else isinstance(value, int) and value >= 0
    if not is_whole or isinstance(value, bool):
        raise ValueError
    return int(value)


def _number(value: Any) -> float:
    number = float(value)
    if isinstance(value, bool) or not math.isfinite(number):
        raise ValueError
    return number


_KINDS: Mapping[str, Callable[[Any], Any]] = {
    "prompt": str,
    "negative_prompt": str,
    "steps": _whole,
    "guidance_scale": _number,
    "seed": _whole,
    "width": _whole,
    "height": _whole,
    "num_images": _whole,
    "eta": _number,
    "strength": _number,
    "hires": _number,
    "hires_steps": _whole,
    "hires_strength": _number,
    "rng": str,
    "prompt_syntax": str,
    "clip_skip": _whole,
    "emphasis": str,
    "seeds": str,
}


def _take(recipe: Recipe, option: str, name: str, value: Any) -> None:
    """As an option where the value is of its kind, else as a demand."""
    try:
        recipe.options[option] = _KINDS[option](value)
    except (ValueError, TypeError, OverflowError):
        recipe.demands[name] = _text(value)


def _take_sampler(recipe: Recipe, name: str, value: str, found: tuple[str | None, str | None]) -> None:
    """What `find_sampler` or `find_web_uis` found of the value."""
    scheduler, schedule = found
    if scheduler is None:
        recipe.demands[name] = value
        return
    recipe.options["scheduler"] = scheduler
    if schedule:
        recipe.demands["Schedule type"] = schedule


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


_OWN_FACTS = ("model", "model_hash", "revision", "version", "device", "driver", "runtime", "dtype", "tuning", "memory")
_OWN_FACTS += ("optimizations", "number")
"""What does not change a picture but by rounding, or is compared with what is there."""
_OWN_DEMANDS = {
    "vae": "VAE",
    "vae_hash": "VAE hash",
    "lora": "Lora",
    "embedding": "TI",
    "schedule_type": "Schedule type",
}


def _read_own(name: str, text: str) -> Recipe:
    recipe = Recipe(OWN)
    adapters = set[str | None]()
    for key, value in parse_json(name, text).items():
        if key == "scheduler":
            _take_sampler(recipe, "Sampler", _text(value), find_sampler(_text(value)))
        elif key in TAKEN:
            _take(recipe, key, key, value)
        elif key in _OWN_DEMANDS:
            recipe.demands[_OWN_DEMANDS[key]] = _text(value)
        elif key in _OWN_FACTS:
            recipe.facts[key] = _text(value)
        else:
            recipe.demands[key] = _text(value)
        if key == "lora" and isinstance(value, list):
            files = [each.get("file") if isinstance(each, dict) else None for each in value]
            adapters = {PurePath(file).stem if isinstance(file, str) else None for file in files}
    if says_schedule(recipe.options.get("scheduler", "ddim"), recipe.demands.get("Schedule type", "")):
        del recipe.demands["Schedule type"]
    prompt = recipe.options.get("prompt", "")
    if adapters and adapters <= set(_ADAPTER.findall(prompt)):
        recipe.tagged_prompt = prompt
    return recipe


_FIELDS = {"Steps": "steps", "CFG scale": "guidance_scale", "Seed": "seed", "Eta DDIM": "eta"}
_FACTS = ("Model", "Model hash", "Lora hashes", "Batch size", "Batch pos", "User", "Created Date", "Version")
_FACTS += ("Hashes", "Civitai resources", "Civitai metadata", "SDCPP")
_FACTS += ("Template", "Negative Template")  # of which an extension made the prompts
_SD_CPP = "stable-diffusion.cpp"
_SD_CPP_FACTS = ("Guidance", "Eta")
"""Written always, of which the first is for other models, and the other the sampler's own."""
_ADAPTER = re.compile(r"<(?:lora|lyco):\s*([^<>:]{1,200}?)\s*[:>]")
_NETWORK = re.compile(r"<(?:lora|lyco|hypernet):[^<>]{1,200}>")


def _read_parameters(name: str, text: str) -> Recipe:
    infotext = read_infotext(text)
    fields = dict(infotext.fields)
    is_sd_cpp = fields.get("Version", "").startswith(_SD_CPP)
    is_ours = fields.get("Version", "").startswith(OWN)
    recipe = Recipe(_SD_CPP if is_sd_cpp else OWN if is_ours else WEB_UI)
    networks = _NETWORK.findall(infotext.prompt)
    recipe.options["prompt"] = _NETWORK.sub("", infotext.prompt).strip() if networks else infotext.prompt
    recipe.tagged_prompt = infotext.prompt if networks else None
    if infotext.negative_prompt:
        recipe.options["negative_prompt"] = infotext.negative_prompt
    taken, demands = _read_passes(fields, is_ours=is_ours)
    recipe.options |= taken
    recipe.demands |= demands | find_resources(fields, names_adapters=bool(networks))
    for field_name, value in fields.items():
        if field_name in _PASSES:
            continue  # read above
        if field_name in _FIELDS:
            _take(recipe, _FIELDS[field_name], field_name, value)
        elif field_name == "Sampler":
            find = find_sampler if is_ours or is_sd_cpp else find_web_uis
            _take_sampler(recipe, field_name, value, find(value, fields.get("Schedule type")))
        elif field_name == "Schedule type":
            continue  # with the sampler
        elif size := re.fullmatch(r"(\d{1,9})x(\d{1,9})", value) if field_name == "Size" else None:
            recipe.options |= {"width": int(size[1]), "height": int(size[2])}
        elif field_name == "Clip skip" and re.fullmatch("[1-9][0-9]?", value):
            recipe.options |= {"clip_skip": int(value) - 1} if value != "1" else {}
        elif field_name == "Emphasis" and value.lower() in _EMPHASES:
            recipe.options["emphasis"] = _EMPHASES[value.lower()]
        elif field_name in _FACTS or (is_sd_cpp and field_name in _SD_CPP_FACTS):
            recipe.facts[field_name] = value
        elif (field_name, value.lower()) not in _USUAL and value != fields.get(_SAME_AS.get(field_name, "")):
            recipe.demands[field_name] = value
    if fields:
        recipe.options["rng"] = "cpu" if fields.get("RNG", "GPU").upper() == "CPU" else "philox"
    if fields and not is_ours:  # ours say it in JSON
        recipe.options["seeds"] = "each"
    if fields and recipe.is_web_uis:
        recipe.options.setdefault("emphasis", "original")
        if "scheduler" in recipe.options and (how := not_as_there(recipe.options["scheduler"])):
            recipe.demands["Sampler"] = f"{fields['Sampler']}, there {how}"
    if networks:
        recipe.demands["Lora"] = ", ".join(networks)
    return recipe


_USUAL = (("Hires Module 1", "use same choices"), ("Hires checkpoint", "use same checkpoint"))
_USUAL += (("RNG", "cpu"), ("RNG", "gpu"), ("RNG", "nv"), ("RNG", "cuda"))
"""What is done anyway."""

_EMPHASES = {"original": "original", "no norm": "no_norm"}
"""Ours by those of web UIs."""


_PASSES = ("Hires upscale", "Hires resize", "Hires steps", "Hires upscaler", "Denoising strength")
_SAME_AS = {"Hires sampler": "Sampler", "Hires schedule type": "Schedule type", "Hires CFG Scale": "CFG scale"}
"""Fields of a second pass that some programs write though they say what the first one does."""


def _read_passes(fields: Mapping[str, str], *, is_ours: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Options and demands of a run that begins with a picture, or ends with a second pass."""
    said = {name: fields[name] for name in _PASSES if name in fields}
    if "Hires upscale" in said or "Hires resize" in said:
        options = read_second_pass(fields)
        upscaler = said.pop("Hires upscaler", UPSCALER if is_ours else "Latent, as none is named")
        demands = {} if upscaler == UPSCALER else {"Hires upscaler": upscaler}
        return (options, demands) if options else ({}, said | demands)
    if "First pass size" in fields or set(said) - {"Denoising strength"}:  # a second pass of another kind
        return {}, said
    try:
        steps, strength = _whole(fields["Steps"]), _number(said["Denoising strength"])
    except (KeyError, ValueError):
        return {}, said
    if strength == 0:  # which some programs write where no picture is
        return {}, {}
    own = strength if is_ours else read_strength(steps, strength)
    demands = {"image": "the picture that it began with, which the text does not name"}
    return ({"strength": own}, demands) if own else ({}, said | demands)


_COMPEL = re.compile(r"[()]|\w[+-]+(?=[\s,.]|$)")
"""What InvokeAI's prompts have in place of the web UIs' weights: `(a fox)1.2`, `fox++`."""


def _read_invoke_ai(name: str, text: str) -> Recipe:
    recipe = Recipe("InvokeAI", {"prompt_syntax": "plain"})
    names = {"positive_prompt": "prompt", "cfg_scale": "guidance_scale"}
    for key, value in parse_json(name, text).items():
        option = names.get(key, key)
        if key == "scheduler":
            _take_sampler(recipe, key, _text(value), find_sampler(_text(value)))
        elif option in TAKEN:
            _take(recipe, option, key, value)
            if option in ("prompt", "negative_prompt") and _COMPEL.search(_text(value)):
                recipe.demands[option] = "weights or brackets in Compel's syntax, which are taken as words"
        elif key == "model" and isinstance(value, dict):
            recipe.facts["Model"] = _text(value.get("name", value))
        elif key in ("app_version", "generation_mode", "canvas_v2_metadata"):
            recipe.facts[key] = _text(value)
        elif value not in (None, [], {}, "", 0, False, "cpu"):  # what is turned off, and where the noise is made
            recipe.demands[key] = _text(value)
    return recipe


READ: Mapping[str, Callable[[str, str], Recipe]] = {
    OWN: _read_own,
    PARAMETERS: _read_parameters,
    _INVOKE_AI: _read_invoke_ai,
}
"""How the texts of each key are read, the most exact first."""
