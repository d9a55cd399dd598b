"""Stable Diffusion 1.4's architecture with random weights, as a diffusers model folder: no download.

`shaderfusion bench` makes the same architecture without torch; this folder is for comparisons with diffusers.
"""

# pyright: reportMissingImports=false, reportPrivateImportUsage=false
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shaderfusion.bench.subject import SD14_FOLDER
from shaderfusion.files import load_json

__all__ = ["CONFIGS", "save_random_model"]

_CLASS_NAMES = ("_class_name", "model_type")

CONFIGS: dict[str, dict[str, Any]] = {
    name: {
        key: value for key, value in load_json(SD14_FOLDER / name / "config.json").items() if key not in _CLASS_NAMES
    }
    for name in ("text_encoder", "unet", "vae")
}
"""Arguments of the components' classes."""


def save_random_model(folder: Path, *, device: str = "cpu", seed: int = 0) -> dict[str, Any]:
    """Writes the three components, f16, with diffusers' own initialization, and returns them as f32 torch modules."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    with torch.device(device):
        modules: dict[str, Any] = {
            "unet": UNet2DConditionModel(**CONFIGS["unet"]),
            "vae": AutoencoderKL(**CONFIGS["vae"], force_upcast=False),  # as the published one, which has no such key
            "text_encoder": CLIPTextModel(CLIPTextConfig(**CONFIGS["text_encoder"])),
        }
    for name, module in modules.items():
        module.eval().requires_grad_(False).half().save_pretrained(folder / name)
        module.float()  # of the rounded weights, so that both engines start from the same numbers
    index = {"_class_name": "StableDiffusionPipeline"}
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return modules
