"""What a picture's file says of how it was made, as fields of a request."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from shaderfusion.errors import InputError
from shaderfusion.metadata.image_files import PARAMETERS, parse_texts
from shaderfusion.metadata.recipe import read_recipes
from shaderfusion.prompts.adapters import take_adapters
from shaderfusion.server.models import Known
from shaderfusion.server.settings import KINDS

__all__ = ["inspect_picture"]

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
    names = _names(recipe.tagged_prompt)
    if names and names <= set(adapters):
        settings["prompt"] = recipe.tagged_prompt
        demands.pop("Lora", None)
    known = models.get(model or "")
    if known:
        settings["model"] = model
        if known.family == _XL and recipe.is_web_uis:
            settings.pop("clip_skip", None)  # web UIs skip none of its layers
    missing = [f"{key}: {value} is not taken over" for key, value in demands.items()]
    if model is not None and not known:
        missing.append(f"model: {model} is not among the models of this server")
    return {"settings": settings, "parameters": texts.get(PARAMETERS), "missing": missing}


def _names(tagged_prompt: str | None) -> set[str]:
    """Of the adapters in a prompt; none where it names what is not done here."""
    try:
        return {*take_adapters(tagged_prompt or "")[1]}
    except InputError:
        return set()
