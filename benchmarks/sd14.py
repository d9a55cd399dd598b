"""Stable Diffusion 1.4's architecture with random weights, as a diffusers model folder: no download.

The configurations are the facts of the published model (its config.json files).
"""

# pyright: reportMissingImports=false, reportPrivateImportUsage=false
from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["CONFIGS", "save_random_model"]

CONFIGS: dict[str, dict[str, Any]] = {
    "unet": {
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
    },
    "vae": {
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "block_out_channels": [128, 256, 512, 512],
        "layers_per_block": 2,
        "latent_channels": 4,
        "sample_size": 512,
    },
    "text_encoder": {
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
    },
}


def save_random_model(folder: Path, *, device: str = "cpu", seed: int = 0) -> dict[str, Any]:
    """Writes the three components, f16, with diffusers' own initialization, and returns them as f32 torch modules."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    with torch.device(device):
        modules: dict[str, Any] = {
            "unet": UNet2DConditionModel(**CONFIGS["unet"]),
            "vae": AutoencoderKL(**CONFIGS["vae"]),
            "text_encoder": CLIPTextModel(CLIPTextConfig(**CONFIGS["text_encoder"])),
        }
    for name, module in modules.items():
        module.eval().requires_grad_(False).half().save_pretrained(folder / name)
        module.float()  # of the rounded weights, so that both engines start from the same numbers
    index = {"_class_name": "StableDiffusionPipeline"}
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return modules
