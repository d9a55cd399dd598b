"""What a picture's file says of how it was made, as fields of a request."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from shaderfusion.metadata.image_files import PARAMETERS, parse_texts
from shaderfusion.metadata.recipe import read_recipes
from shaderfusion.server.models import Known
from shaderfusion.server.settings import KINDS

__all__ = ["inspect_picture"]

_TAG = re.compile(r"<(\w+):([^:<>]+)[^<>]*>")
_XL = "StableDiffusionXL"


def inspect_picture(data: bytes, models: Mapping[str, Known], adapters: Collection[str]) -> dict[str, Any]:
    """Settings, the web UIs' text, and sentences about what is missing; ModelError where it is no picture.

    `adapters` are names that prompts may have here.
    """
    name = Path("the picture")
    texts = parse_texts(name, data)
    recipes = read_recipes(str(name), texts)
    if not recipes:
        return {"settings": None, "parameters": texts.get(PARAMETERS), "missing": []}
    recipe = recipes[0]
    settings = {key: value for key, value in recipe.options.items() if key in KINDS}
    demands = dict(recipe.demands)
    model = recipe.facts.get("model") or recipe.facts.get("Model")
    _take_adapters(settings, demands, adapters)
    known = models.get(model or "")
    if known:
        settings["model"] = model
        if known.family == _XL and recipe.is_web_uis:
            settings.pop("clip_skip", None)  # web UIs skip none of its layers
    missing = [f"{key}: {value} is not taken over" for key, value in demands.items()]
    if model is not None and not known:
        missing.append(f"model: {model} is not among the models of this server")
    return {"settings": settings, "parameters": texts.get(PARAMETERS), "missing": missing}


def _take_adapters(settings: dict[str, Any], demands: dict[str, str], adapters: Collection[str]) -> None:
    """Where all that the picture asks for are here, the prompt names them: again, if its text was a web UI's."""
    prompt, asked = settings.get("prompt", ""), demands.get("Lora", "")
    tags = {found[0]: found.groups() for text in (prompt, asked) for found in _TAG.finditer(text)}
    names = {name for kind, name in tags.values() if kind == "lora" and name in adapters}
    if len(names) < len(tags) or not names or (asked.startswith("[") and _files(asked) != names):
        return
    settings["prompt"] = " ".join([prompt, *(tag for tag in tags if tag not in prompt)])
    demands.pop("Lora", None)


def _files(asked: str) -> set[str]:
    """Names of the adapters that our own settings list."""
    try:
        return {Path(each["file"]).stem for each in json.loads(asked)}
    except (ValueError, TypeError, KeyError):
        return set()
