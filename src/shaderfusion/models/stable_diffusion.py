"""Stable Diffusion as a whole: the folder, the configurations that must fit each other, one graph a component."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shaderfusion.config import CONVERT_PICKLE, PICKLE_SUFFIXES, ClipTextConfig, UNetConfig, VaeConfig
from shaderfusion.errors import InputError, ModelError
from shaderfusion.files import exists, is_folder, load_json, shown
from shaderfusion.graph.graph import Graph
from shaderfusion.kernels.common.denoise_step import NUM_COEFFICIENTS, denoise_step
from shaderfusion.kernels.select import Kernels
from shaderfusion.models.clip import text_encoder_graph
from shaderfusion.models.unet import unet_graph
from shaderfusion.models.vae import decoder_graph

__all__ = ["COMPONENTS", "ModelConfig", "build_graphs", "find_model"]

COMPONENTS = ("text_encoder", "unet", "vae")

EMBEDDED_FOLDER = Path(__file__).parents[1] / "embedded"


def find_model(model: str | Path) -> Path:
    """The folder of an embedded model's name, or of a path; ModelError where it is not a Stable Diffusion model."""
    embedded = {path.name: path for path in EMBEDDED_FOLDER.iterdir() if path.is_dir()}
    folder = embedded.get(str(model), Path(model))
    if folder.suffix in PICKLE_SUFFIXES and exists(folder) and not is_folder(folder):
        raise ModelError(f"{folder}: {CONVERT_PICKLE}")
    if not str(model) or not is_folder(folder):
        names = ", ".join(embedded)
        raise ModelError(
            f"model (={str(model)!r}) must be an embedded model ({names}) or a folder in diffusers' format"
        )
    name = load_json(folder / "model_index.json").get("_class_name")
    if name != "StableDiffusionPipeline":
        raise ModelError(f"{folder}: its pipeline (={shown(name)}) must be StableDiffusionPipeline (SD 1.x and 2.x)")
    return folder


@dataclass(frozen=True)
class ModelConfig:
    """The configurations of the networks, which must fit each other."""

    text_encoder: ClipTextConfig
    unet: UNetConfig
    vae: VaeConfig

    @classmethod
    def from_folder(cls, folder: Path) -> ModelConfig:
        """Reads each component's config.json; ModelError where one is missing, unsupported, or does not fit."""
        text_encoder = ClipTextConfig.from_json(folder / "text_encoder")
        unet = UNetConfig.from_json(folder / "unet")
        vae = VaeConfig.from_json(folder / "vae")
        if text_encoder.hidden_size != unet.cross_attention_dim:
            raise ModelError(
                f"{folder}: text_encoder's hidden_size (={text_encoder.hidden_size}) must equal unet's "
                f"cross_attention_dim (={unet.cross_attention_dim}); the components are of different models"
            )
        if not unet.in_channels == unet.out_channels == vae.latent_channels:
            raise ModelError(
                f"{folder}: unet's in_channels (={unet.in_channels}) and out_channels (={unet.out_channels}) must "
                f"equal vae's latent_channels (={vae.latent_channels}); inpainting and the like are not supported"
            )
        return cls(text_encoder, unet, vae)

    @property
    def size_multiple_px(self) -> int:
        """Image sides are multiples of this: the UNet halves the latents once for each of its blocks but the last."""
        return self.vae.scale_factor * 2 ** (len(self.unet.block_out_channels) - 1)

    def require_size(self, name: str, px: int | None) -> int:
        """The side `px` of an image, by default the model's own; InputError unless it is a multiple that fits."""
        multiple = self.size_multiple_px
        px = self.default_size_px if px is None else px
        if not isinstance(px, int) or isinstance(px, bool) or px < 1 or px % multiple:
            raise InputError(
                f"{name} (={px!r}) must be a positive multiple of {multiple} px, as the model's layers need"
            )
        return px

    @property
    def default_size_px(self) -> int:
        """Sides of the images that the model was trained on."""
        return (self.unet.sample_size or 64) * self.vae.scale_factor


def build_graphs(
    config: ModelConfig, kernels: Kernels, *, batch: int, height_px: int, width_px: int, guidance: bool
) -> dict[str, Graph]:
    """One graph for each component, for `batch` images of that size.

    The text encoder reads one prompt and the decoder makes one image at a time, which bounds their memory. The UNet's
    graph is a whole denoising step: its inputs are also noise, x_t, x_saved, history and coefficients of
    `denoise_step`. With guidance its batch is doubled: the unconditional half, then the text's.
    """
    H, W = height_px // config.vae.scale_factor, width_px // config.vae.scale_factor
    C = config.unet.in_channels
    L = config.text_encoder.max_position_embeddings
    unet = unet_graph(config.unet, kernels, batch=2 * batch if guidance else batch, height=H, width=W, num_tokens=L)
    unet.add(
        denoise_step(
            unet.outputs["model_output"],
            unet.input("coefficients", NUM_COEFFICIENTS, dtype="f32"),
            unet.input("noise", batch, H, W, C, dtype="f32"),
            unet.input("x_t", batch, H, W, C, dtype="f32"),
            unet.input("x_saved", batch, H, W, C, dtype="f32"),
            unet.input("history", 3, batch, H, W, C, dtype="f32"),
            unet.inputs["latents"],
            guidance=guidance,
        )
    )
    return {
        "text_encoder": text_encoder_graph(config.text_encoder, kernels),
        "unet": unet,
        "vae": decoder_graph(config.vae, kernels, batch=1, height=H, width=W),
    }
