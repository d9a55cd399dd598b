"""A whole model in one .safetensors file, in the layout of the original releases: known by its tensors alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from shaderfusion.config import Config
from shaderfusion.errors import ModelError
from shaderfusion.files import shown
from shaderfusion.text.tokenizer import PROMPT_LENGTHS, Tokenizer
from shaderfusion.weights.checkpoint import Checkpoint, TensorSource
from shaderfusion.weights.file_kinds import require_whole_model, unknown_names
from shaderfusion.weights.ldm_config import Shapes, read_clip, read_open_clip, read_unet, read_vae
from shaderfusion.weights.ldm_names import UNET_PREFIX, VAE_PREFIX, StoredAs, open_clip_name, unet_name, vae_name
from shaderfusion.weights.model_files import ModelFiles
from shaderfusion.weights.names import name_candidates
from shaderfusion.weights.renamed import RenamedTensors

__all__ = ["SingleFile", "UnknownTensorsWarning"]

C = TypeVar("C", bound=Config)


class UnknownTensorsWarning(UserWarning):
    """A model's file holds tensors that no part of the model reads."""


class _Release(NamedTuple):
    """What the models of one release share and their tensors do not say."""

    pipelines: Mapping[int, str]
    """diffusers' pipeline, by the input channels of the UNet."""
    encoders: Mapping[str, str]
    """Prefixes of the text encoders, by component."""
    pad_tokens: Mapping[str, str]
    head_dim: int | None
    """Channels of the UNet's heads; None: 8 heads."""
    sample_sizes: Mapping[str, int]
    """Latent cells of a side, by prediction type."""
    vae: Mapping[str, Any]
    scheduler: Mapping[str, Any]


_NOISE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "set_alpha_to_one": False,
    "clip_sample": False,
    "skip_prk_steps": True,
}
_END = "<|endoftext|>"
_SD1 = _Release(
    pipelines={
        4: "StableDiffusionPipeline",
        8: "StableDiffusionInstructPix2PixPipeline",
        9: "StableDiffusionInpaintPipeline",
    },
    encoders={"text_encoder": "cond_stage_model.transformer."},
    pad_tokens={"tokenizer": _END},
    head_dim=None,
    sample_sizes={"epsilon": 64, "v_prediction": 64},
    vae={"scaling_factor": 0.18215},
    scheduler=_NOISE | {"_class_name": "PNDMScheduler"},
)
_SD2 = _SD1._replace(
    encoders={"text_encoder": "cond_stage_model.model."},
    pad_tokens={"tokenizer": "!"},
    head_dim=64,
    sample_sizes={"epsilon": 64, "v_prediction": 96},
    scheduler=_NOISE | {"_class_name": "DDIMScheduler"},
)
_SD2_TURBO = _SD2._replace(encoders={"text_encoder": "conditioner.embedders.0.model."})
_SDXL = _Release(
    pipelines={
        4: "StableDiffusionXLPipeline",
        8: "StableDiffusionXLInstructPix2PixPipeline",
        9: "StableDiffusionXLInpaintPipeline",
    },
    encoders={
        "text_encoder": "conditioner.embedders.0.transformer.",
        "text_encoder_2": "conditioner.embedders.1.model.",
    },
    pad_tokens={"tokenizer": _END, "tokenizer_2": "!"},
    head_dim=64,
    sample_sizes={"epsilon": 128, "v_prediction": 128},
    vae={"scaling_factor": 0.13025, "force_upcast": True},
    scheduler=_NOISE | {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": "leading"},
)
_LCM_SCHEDULER = {key: _NOISE[key] for key in ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule")} | {
    "_class_name": "LCMScheduler",
    "clip_sample": False,
}


class SingleFile(ModelFiles):
    """A checkpoint of Stable Diffusion 1.x, 2.x or XL. Only its header is read; nothing else is needed.

    Its configurations follow from names and shapes, and from its release where those do not say. What 2.x and XL were
    trained to predict is epsilon unless the file says otherwise, or `prediction_type` does. ModelError says what the
    file is instead, and which part it lacks. Warns UnknownTensorsWarning of tensors that no part has.
    """

    def __init__(self, path: Path, *, prediction_type: str | None = None) -> None:
        super().__init__(path)
        self._checkpoint = Checkpoint(path)
        shapes = self._checkpoint.shapes
        require_whole_model(path, shapes)
        if unknown := unknown_names(shapes):
            warnings.warn(
                f"{path}: {len(unknown)} tensors are not used, as no part of the model has them: "
                f"{shown(', '.join(unknown))}",
                UnknownTensorsWarning,
                stacklevel=2,
            )
        self._shapes = shapes
        self._release = _find_release(path, shapes)
        self._unet_options, self._blocks = read_unet(self._part(UNET_PREFIX, "UNet"), self._release.head_dim)
        self._is_lcm = "time_cond_proj_dim" in self._unet_options
        self._prediction_type = prediction_type or self._own_prediction_type()

    @property
    def options(self) -> dict[str, Any]:
        """diffusers' pipeline for such models."""
        if self._is_lcm and self._release is not _SDXL:  # whose own pipeline takes LCM's UNets too
            return {"_class_name": "LatentConsistencyModelPipeline"}
        pipelines = self._release.pipelines
        return {"_class_name": pipelines.get(self._unet_options["in_channels"], pipelines[4])}

    def config(self, component: str, kind: type[C]) -> C:
        """From names and shapes, and what the release says."""
        return kind.from_options(self._options(component), f"{self.path} ({component})")

    def vae_defaults(self) -> Mapping[str, Any]:
        """Those of the release."""
        return self._release.vae

    def tensors(self, component: str) -> TensorSource:
        """From the file, under its own names."""
        return RenamedTensors(self._checkpoint, self._names(component))

    def tokenizer(self, component: str) -> Tokenizer:
        """CLIP's, which comes with the package."""
        encoder = component.replace("tokenizer", "text_encoder")
        length = self._options(encoder)["max_position_embeddings"]
        if length not in PROMPT_LENGTHS:
            raise ModelError(
                f"{self.path}: prompts of its {encoder} have {length} tokens, must have from {PROMPT_LENGTHS[0]} to "
                f"{PROMPT_LENGTHS[-1]}; download the file again"
            )
        return Tokenizer.clip(length, pad_token=self._release.pad_tokens[component])

    def _options(self, component: str) -> dict[str, Any]:
        """What the component's JSON would hold."""
        if component == "unet":
            return {**self._unet_options, "sample_size": self._release.sample_sizes.get(self._prediction_type)}
        if component == "vae":
            return {**read_vae(self._part(VAE_PREFIX, "VAE", "give one as vae")), **self._release.vae}
        if component == "scheduler":
            options = _LCM_SCHEDULER if self._is_lcm else self._release.scheduler
            is_rescaled = {"rescale_betas_zero_snr": True} if "ztsnr" in self._shapes else {}
            return {**options, **is_rescaled, "prediction_type": self._prediction_type}
        prefix = self._encoder_prefix(component)
        shapes = self._part(prefix, component)
        if _is_open_clip(prefix):
            return read_open_clip(shapes, penultimate=self._release is not _SDXL)
        return read_clip(shapes)

    def _names(self, component: str) -> Callable[[str], Iterable[StoredAs]]:
        """From a tensor's path to where it may be."""
        if component == "unet":
            return lambda path: [StoredAs(UNET_PREFIX + unet_name(path, self._blocks))]
        if component == "vae":
            num_blocks = len(self._options("vae")["block_out_channels"])
            return lambda path: [StoredAs(VAE_PREFIX + vae_name(path, num_blocks))]
        return partial(_text_names, self._encoder_prefix(component))

    def _encoder_prefix(self, component: str) -> str:
        prefix = self._release.encoders.get(component)
        if prefix is None:
            known = ", ".join(("unet", "vae", *self._release.encoders))
            raise ModelError(f"{self.path}: component (={component!r}) must be one of {known}")
        return prefix

    def _part(self, prefix: str, what: str, remedy: str = "take a file of the whole model") -> Shapes:
        """The shapes under a prefix; ModelError where there are none."""
        if not any(name.startswith(prefix) for name in self._shapes):
            raise ModelError(f"{self.path}: holds no {what} (tensors {prefix}*); {remedy}")
        return Shapes(self.path, self._shapes, prefix)

    def _own_prediction_type(self) -> str:
        """As the file says it: by a tensor of that name, or in its metadata as Stability AI's ModelSpec has it."""
        if "v_pred" in self._shapes:
            return "v_prediction"
        metadata = self._checkpoint.metadata
        for key in ("modelspec.prediction_type", "modelspec.predict_key"):
            if said := metadata.get(key):
                return "v_prediction" if said.lower() == "v" else said.lower()
        is_768 = metadata.get("modelspec.architecture", "").startswith("stable-diffusion-v2-768-v")
        return "v_prediction" if is_768 else "epsilon"


def _find_release(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> _Release:
    """By the text encoders, but SDXL by its UNet. ModelError for SDXL's refiner, which has the second encoder alone."""

    def has(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in shapes)

    if f"{UNET_PREFIX}label_emb.0.0.weight" in shapes:
        if has(_SD2_TURBO.encoders["text_encoder"]) and not has(_SDXL.encoders["text_encoder_2"]):
            raise ModelError(f"{path}: is the refiner of Stable Diffusion XL; give its base model")
        return _SDXL
    return next((release for release in (_SD2, _SD2_TURBO) if has(release.encoders["text_encoder"])), _SD1)


def _is_open_clip(prefix: str) -> bool:
    return prefix.endswith(".model.")


def _text_names(prefix: str, path: str) -> Iterator[StoredAs]:
    """Where a file may have a text encoder's tensor."""
    if _is_open_clip(prefix):
        stored = open_clip_name(path)
        yield stored._replace(name=prefix + stored.name)
        if stored.transposed:  # some programs store it as transformers does
            yield StoredAs(prefix + path)
    else:
        yield from (StoredAs(prefix + name) for name in name_candidates(path))
