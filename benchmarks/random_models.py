"""The architectures of published models with random weights, as diffusers model folders: no download.

`shaderfusion bench` makes the same architectures without torch; these folders are for comparisons with diffusers.
"""

# pyright: reportMissingImports=false, reportPrivateImportUsage=false
from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from shaderfusion.bench.subject import RANDOM_MODELS
from shaderfusion.files import load_json

__all__ = ["configs", "save_random_model"]

_CLASS_NAMES = ("_class_name", "model_type", "architectures")


def configs(name: str) -> dict[str, dict[str, Any]]:
    """By component, the arguments of its class; `name` is one of RANDOM_MODELS."""
    files = sorted(RANDOM_MODELS[name].glob("*/config.json"))
    return {
        file.parent.name: {key: value for key, value in load_json(file).items() if key not in _CLASS_NAMES}
        for file in files
    }


def _last(component: tuple[str, Any]) -> bool:
    """Text encoders come last: weights depend on the order in which they are drawn."""
    return component[0].startswith("text")


def save_random_model(name: str, folder: Path, *, device: str = "cpu", seed: int = 0) -> dict[str, Any]:
    """Writes all components, f16, with diffusers' own initialization, and returns them as f32 torch modules."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    def make(component: str, options: dict[str, Any]) -> Any:
        match component:
            case "unet":
                return UNet2DConditionModel(**options)
            case "vae":  # as those of SD 1.x and 2.x, which have no such key
                return AutoencoderKL(**{"force_upcast": False, **options})
            case "text_encoder_2":
                return CLIPTextModelWithProjection(CLIPTextConfig(**options))
            case _:
                return CLIPTextModel(CLIPTextConfig(**options))

    torch.manual_seed(seed)
    with torch.device(device):
        ordered = sorted(configs(name).items(), key=_last)
        modules = {component: make(component, options) for component, options in ordered}
    for component, module in modules.items():
        module.eval().requires_grad_(False).half().save_pretrained(folder / component)
        module.float()  # of the rounded weights, so that both engines start from the same numbers
    shutil.copy(RANDOM_MODELS[name] / "model_index.json", folder)
    return modules
