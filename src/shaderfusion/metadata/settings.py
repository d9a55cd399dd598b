"""The settings of a picture as the texts that go into its file: exactly, as JSON, and as infotext."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shaderfusion.metadata.image_files import OWN, PARAMETERS
from shaderfusion.metadata.infotext import Infotext
from shaderfusion.metadata.samplers import web_ui_name
from shaderfusion.metadata.second_pass import write_second_pass
from shaderfusion.schedulers import find_scheduler

__all__ = ["make_texts"]


def make_texts(settings: Mapping[str, Any]) -> dict[str, str]:
    """The two texts of a picture, from its settings by the names of options, with

    number: the picture's, from 1, where there are several of one seed
    model_hash, vae_hash: as of `hashes.file_hash`, where they are files
    lora: a list of {file, strength, hash}, where the prompt has the strength by component
    embedding: a list of {file, hash}
    schedule_type: as of `samplers.schedule_type`
    version: of shaderfusion
    """
    text = str(_infotext({key: value for key, value in settings.items() if value is not None}))
    whole = text.encode(errors="backslashreplace").decode()  # a folder's name may be no Unicode
    return {PARAMETERS: whole, OWN: json.dumps(settings)}


def _infotext(settings: Mapping[str, Any]) -> Infotext:
    """What web UIs name too, in their order."""
    loras: Sequence[Mapping[str, Any]] = settings.get("lora", ())
    embeddings: Sequence[Mapping[str, Any]] = settings.get("embedding", ())
    scheduler, vae, several = settings["scheduler"], settings.get("vae"), settings.get("num_images", 1) > 1
    fields: dict[str, Any] = {
        "Steps": settings["steps"],
        "Sampler": web_ui_name(scheduler),
        "Schedule type": settings.get("schedule_type"),
        "CFG scale": f"{settings['guidance_scale']!r}".removesuffix(".0"),
        "Seed": settings["seed"] + (settings["number"] - 1 if several and settings.get("seeds") == "each" else 0),
        "Size": f"{settings['width']}x{settings['height']}",
        "Model hash": settings.get("model_hash"),
        "Model": _stem(settings["model"]),
        "VAE hash": settings.get("vae_hash"),
        "VAE": vae and Path(vae).name,
        "Denoising strength": settings.get("hires_strength", settings.get("strength")),
        "Clip skip": settings["clip_skip"] + 1 if settings.get("clip_skip") else None,
        "Eta DDIM" if find_scheduler(scheduler).rule == "ddim" else "Eta": settings.get("eta") or None,
        "RNG": "NV" if settings.get("rng") == "philox" else "CPU",
        **write_second_pass(settings),
        "Lora hashes": ", ".join(f"{_stem(lora['file'])}: {lora['hash']}" for lora in loras),
        "TI hashes": ", ".join(f"{_stem(each['file'])}: {each['hash']}" for each in embeddings),
        "Batch size": settings["num_images"] if several else None,
        "Batch pos": settings["number"] - 1 if several else None,
        "Version": f"shaderfusion {settings['version']}",
    }
    prompt = settings["prompt"]
    for lora in loras:  # as web UIs have them, and sites look for them
        name, strength = _stem(lora["file"]), lora["strength"]
        if not isinstance(strength, Mapping) and f"<lora:{name}:" not in prompt:  # else the prompt has it already
            prompt += f" <lora:{name}:{strength:g}>"
    written = {name: str(value) for name, value in fields.items() if value not in (None, "")}
    return Infotext(prompt, settings.get("negative_prompt", ""), written)


def _stem(model: str) -> str:
    """A file's name without its suffix, or the last part of a path or of owner/name."""
    return Path(model).name.removesuffix(".safetensors")
