"""Puts the trained weights into diffusers' folder layout: f16 safetensors under Stable Diffusion 1's names."""

import argparse
import json
import shutil
from pathlib import Path

import diffusers
from architecture import load_weights, make_scheduler, make_text_encoder, make_unet, make_vae, save_weights

DEFAULT_FOLDER = Path(__file__).parents[1] / "src" / "shaderfusion" / "embedded" / "emoji"
WEIGHT_FILES = {
    "text_encoder": "model.safetensors",
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
}
MODEL_INDEX = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": diffusers.__version__,
    "feature_extractor": [None, None],
    "image_encoder": [None, None],
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


def export(data: Path, weights: Path, folder: Path) -> None:
    """Write model_index.json, the scheduler, the tokenizer and the three networks below `folder`."""
    models = {"text_encoder": make_text_encoder(), "unet": make_unet(), "vae": make_vae()}
    for name, model in models.items():
        metadata = load_weights(model, weights / f"{name}.safetensors")
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        if name == "vae":
            model.register_to_config(scaling_factor=float(metadata["scaling_factor"]))
        if name == "text_encoder":
            model.config.architectures = ["CLIPTextModel"]
            model.config.save_pretrained(target)
        else:
            model.save_config(target)
        save_weights(name, dict(model.named_parameters()), target / WEIGHT_FILES[name])
    make_scheduler().save_pretrained(folder / "scheduler")
    shutil.copytree(data / "tokenizer", folder / "tokenizer", dirs_exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps(MODEL_INDEX, indent=2) + "\n")
    print(f"{folder.name}: {sum(f.stat().st_size for f in folder.rglob('*') if f.is_file()):,} bytes")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--weights", type=Path, default=Path(__file__).parent / "data" / "weights")
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER)
    args = parser.parse_args()
    export(args.data, args.weights, args.folder)
