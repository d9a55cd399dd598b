"""Model families: one module an architecture, and the way from a model's name to the family that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from shaderfusion.errors import InputError, ModelError
from shaderfusion.families.family import Family
from shaderfusion.families.stable_diffusion import StableDiffusion
from shaderfusion.families.stable_diffusion_xl import StableDiffusionXL
from shaderfusion.files import exists, is_folder, shown
from shaderfusion.weights.hub import download, is_hub_id
from shaderfusion.weights.model_files import ModelFiles, ModelFolder
from shaderfusion.weights.other_formats import CONVERT_PICKLE, PICKLE_SUFFIXES
from shaderfusion.weights.other_vae import WithOtherVae
from shaderfusion.weights.single_file import SingleFile

__all__ = ["FAMILIES", "family_of", "find_model", "open_model"]

FAMILIES: Mapping[str, type[Family]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "LatentConsistencyModelPipeline": StableDiffusion,
    "StableDiffusionInpaintPipeline": StableDiffusion,
    "StableDiffusionXLInpaintPipeline": StableDiffusionXL,
}
"""By the pipeline that a diffusers folder names in its model_index.json."""

EMBEDDED_FOLDER = Path(__file__).parents[1] / "embedded"
SINGLE_FILE_SUFFIX = ".safetensors"


def open_model(
    model: str | Path,
    *,
    vae: str | Path | None = None,
    preview_vae: str | Path | None = None,
    prediction_type: str | None = None,
    revision: str | None = None,
) -> Family:
    """An embedded model by its name, a folder or file by its path, or a model of the Hugging Face Hub by `owner/name`.

    Its configurations are read and checked, and no weights. What the hub's own cache lacks of its files is fetched, of
    `revision`, a branch, tag or commit. `vae`, a file or a folder, takes the place of the model's own; `preview_vae`,
    one with an AutoencoderTiny, decodes previews beside it. `prediction_type` is what a .safetensors file was trained
    to predict, epsilon or v_prediction, where it does not say so itself. ModelError where it is not a model, or has an
    option that is not implemented.
    """

    def open_path(path: Path) -> Family:
        files = _open_files(path, prediction_type)
        found = family_of(files if vae is None else WithOtherVae(files, Path(vae)))
        if preview_vae is not None:
            found.take_preview_vae(WithOtherVae(files, Path(preview_vae), option="preview_vae"))
        return found

    if is_hub_id(model):
        return open_path(download(str(model), revision=revision, check=open_path))
    if revision is not None:
        raise InputError(f"revision (={shown(revision)}) must be left out: {model} is not a model of the hub")
    return open_path(find_model(model))


def family_of(files: ModelFiles) -> Family:
    """The model that the files hold; ModelError as `open_model`."""
    name = files.options.get("_class_name")
    if not isinstance(name, str) or name not in FAMILIES:
        raise ModelError(f"{files.path}: its pipeline (={shown(name)}) must be {' or '.join(FAMILIES)}")
    return FAMILIES[name](files)


def find_model(model: str | Path) -> Path:
    """The folder of an embedded model's name, or the folder or .safetensors file at a path; ModelError for others."""
    embedded = {path.name: path for path in EMBEDDED_FOLDER.iterdir() if path.is_dir()}
    path = embedded.get(str(model), Path(model))
    if is_folder(path) and str(model):
        return path
    if path.suffix.lower() in PICKLE_SUFFIXES and exists(path):
        raise ModelError(f"{path}: {CONVERT_PICKLE}")
    if path.suffix.lower() == SINGLE_FILE_SUFFIX and exists(path):
        return path
    names = ", ".join(embedded)
    raise ModelError(
        f"model (={str(model)!r}) must be an embedded model ({names}), a folder in diffusers' format, a "
        f"{SINGLE_FILE_SUFFIX} file, or owner/name on the Hugging Face Hub"
        + ("" if exists(path) else "; there is nothing at that path")
    )


def _open_files(path: Path, prediction_type: str | None) -> ModelFiles:
    if prediction_type not in (None, "epsilon", "v_prediction"):
        raise InputError(f"prediction_type (={shown(prediction_type)}) must be epsilon or v_prediction")
    if not is_folder(path):
        return SingleFile(path, prediction_type=prediction_type)
    if prediction_type is not None:
        raise InputError(
            f"prediction_type (={prediction_type}) must be left out for a folder: its scheduler_config.json says it"
        )
    return ModelFolder(path)
