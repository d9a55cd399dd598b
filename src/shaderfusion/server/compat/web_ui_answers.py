"""What the web UIs' API answers: lists of what there is, a job's `info` and progress, a file's text."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shaderfusion.metadata.image_files import PARAMETERS, parse_texts
from shaderfusion.metadata.infotext import read_infotext
from shaderfusion.metadata.samplers import web_ui_name
from shaderfusion.schedulers import SCHEDULERS
from shaderfusion.server.compat.web_ui_fields import UPSCALERS
from shaderfusion.server.events import Event
from shaderfusion.server.models import Known

__all__ = ["Watched", "idle", "info", "loras", "png_info", "samplers", "schedulers", "sd_models", "upscalers"]

_SPACINGS: Mapping[str, str] = {
    "automatic": "Automatic",
    "uniform": "Uniform",
    "karras": "Karras",
    "exponential": "Exponential",
    "sgm_uniform": "SGM Uniform",
    "simple": "Simple",
    "normal": "Normal",
    "beta": "Beta",
    "align_your_steps": "Align Your Steps",
}
"""The web UIs' schedulers that there are here, and how they show them."""


def samplers() -> list[dict[str, Any]]:
    return [{"name": rule.web_ui, "aliases": [name], "options": {}} for name, rule in SCHEDULERS.items()]


def schedulers() -> list[dict[str, Any]]:
    return [
        {"name": name, "label": label, "aliases": None, "default_rho": -1, "need_inner_model": False}
        for name, label in _SPACINGS.items()
    ]


def sd_models(models: Mapping[str, Known]) -> list[dict[str, Any]]:
    """Names alone: where files are is no client's business, and to hash all of them would take minutes."""
    return [
        {"title": name, "model_name": name, "hash": None, "sha256": None, "filename": name, "config": None}
        for name in models
    ]


def upscalers() -> list[dict[str, Any]]:
    empty = {"model_name": None, "model_path": None, "model_url": None, "scale": 4}
    return [{"name": name, **empty} for name in UPSCALERS]


def loras(folder: Path | None) -> list[dict[str, Any]]:
    """Of the folder that the operator gave."""
    names = sorted(path.stem for path in folder.glob("*.safetensors")) if folder else []
    return [{"name": name, "alias": name, "path": f"{name}.safetensors", "metadata": {}} for name in names]


def info(pictures: Sequence[Mapping[str, Any]]) -> str:
    """The JSON text beside pictures, of the data of their events."""
    first: Mapping[str, Any] = pictures[0]["settings"]
    num = len(pictures)
    seed, prompt, negative = first["seed"], first["prompt"], first.get("negative_prompt", "")
    seeds = [seed + index for index in range(num)]
    found = {
        "prompt": prompt,
        "all_prompts": [prompt] * num,
        "negative_prompt": negative,
        "all_negative_prompts": [negative] * num,
        "seed": seed,
        "all_seeds": seeds,
        "subseed": seed,
        "all_subseeds": seeds,
        "subseed_strength": 0,
        "width": first["width"],
        "height": first["height"],
        "sampler_name": web_ui_name(first["scheduler"]),
        "cfg_scale": first["guidance_scale"],
        "steps": first["steps"],
        "batch_size": num,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": first["model"],
        "sd_model_hash": first.get("model_hash"),
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": first.get("hires_strength", first.get("strength")),
        "extra_generation_params": {},
        "index_of_first_image": 0,
        "infotexts": [each["parameters"] for each in pictures],
        "styles": [],
        "job_timestamp": time.strftime("%Y%m%d%H%M%S"),
        "clip_skip": first.get("clip_skip", 0) + 1,
        "is_using_inpainting_conditioning": False,
        "version": f"shaderfusion {first['version']}",
    }
    return json.dumps(found)


def png_info(data: bytes) -> dict[str, Any]:
    """The texts of a picture's file; ModelError where it is none."""
    texts = parse_texts(Path("image"), data)
    text = texts.pop(PARAMETERS, "")
    parameters: dict[str, str] = {}
    if text:
        found = read_infotext(text)
        parameters = {"Prompt": found.prompt, "Negative prompt": found.negative_prompt, **found.fields}
        width, by, height = found.fields.get("Size", "").partition("x")
        parameters |= {"Size-1": width, "Size-2": height} if by else {}
    return {"info": text, "items": texts, "parameters": parameters}


@dataclass
class Watched:
    """A job that came by this API, as far as its events have told."""

    client: str
    """The address that asked for it."""
    timestamp: str
    kind: str
    """txt2img or img2img."""
    step: int = 0
    steps: int = 0
    seconds_left: float | None = None
    preview: str | None = None
    """A JPEG in base64."""
    is_interrupted: bool = False

    def watch(self, event: Event) -> None:
        """Takes over what an event says."""
        match event.name:
            case "started":
                self.steps = event.data["steps"]
            case "step":
                self.step, self.steps = event.data["step"], event.data["steps"]
                self.seconds_left = event.data["seconds_left"]
            case "preview":
                self.preview = event.data["images"][0].partition(",")[2]

    def answer(self, *, has_image: bool) -> dict[str, Any]:
        """Of `progress`."""
        return {
            "progress": self.step / self.steps if self.steps else 0.0,
            "eta_relative": self.seconds_left or 0.0,
            "state": _state(
                job=self.kind,
                job_count=1,
                job_timestamp=self.timestamp,
                interrupted=self.is_interrupted,
                sampling_step=self.step,
                sampling_steps=self.steps,
            ),
            "current_image": self.preview if has_image else None,
            "textinfo": None,
        }


def idle() -> dict[str, Any]:
    """The progress where there is no job."""
    return {"progress": 0.0, "eta_relative": 0.0, "state": _state(), "current_image": None, "textinfo": None}


def _state(**known: Any) -> dict[str, Any]:
    state = {"skipped": False, "interrupted": False, "stopping_generation": False, "job": "", "job_count": 0}
    return {**state, "job_timestamp": "0", "job_no": 0, "sampling_step": 0, "sampling_steps": 0, **known}
