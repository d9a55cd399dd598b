"""Model families: one module an architecture, and the way from a model's name to the family that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from shaderfusion.config import CONVERT_PICKLE, PICKLE_SUFFIXES
from shaderfusion.errors import ModelError
from shaderfusion.families.family import Family
from shaderfusion.families.stable_diffusion import StableDiffusion
from shaderfusion.families.stable_diffusion_xl import StableDiffusionXL
from shaderfusion.files import exists, is_folder, shown
from shaderfusion.weights.model_files import ModelFolder

__all__ = ["FAMILIES", "find_model", "open_model"]

FAMILIES: Mapping[str, type[Family]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "LatentConsistencyModelPipeline": StableDiffusion,
    "StableDiffusionInpaintPipeline": StableDiffusion,
    "StableDiffusionXLInpaintPipeline": StableDiffusionXL,
}
"""By the pipeline that a diffusers folder names in its model_index.json."""

EMBEDDED_FOLDER = Path(__file__).parents[1] / "embedded"


def open_model(model: str | Path) -> Family:
    """An embedded model by its name, or one by its path: its configurations, checked. No weights are read.

    ModelError where it is not a model, or has an option that is not implemented.
    """
    files = ModelFolder(find_model(model))
    name = files.options.get("_class_name")
    if not isinstance(name, str) or name not in FAMILIES:
        raise ModelError(f"{files.path}: its pipeline (={shown(name)}) must be {' or '.join(FAMILIES)}")
    return FAMILIES[name](files)


def find_model(model: str | Path) -> Path:
    """The folder of an embedded model's name, or of a path; ModelError where there is none."""
    embedded = {path.name: path for path in EMBEDDED_FOLDER.iterdir() if path.is_dir()}
    folder = embedded.get(str(model), Path(model))
    if folder.suffix in PICKLE_SUFFIXES and exists(folder) and not is_folder(folder):
        raise ModelError(f"{folder}: {CONVERT_PICKLE}")
    if not str(model) or not is_folder(folder):
        names = ", ".join(embedded)
        raise ModelError(
            f"model (={str(model)!r}) must be an embedded model ({names}) or a folder in diffusers' format"
        )
    return folder
