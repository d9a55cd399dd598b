"""Stable Diffusion 1.x and 2.x: CLIP, a UNet and the decoder of an autoencoder. Rombach et al. 2022, 2112.10752."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from typing import Any, ClassVar, Self

import numpy as np

from shaderfusion.config import ClipTextConfig, Config, TinyVaeConfig, UNetConfig, VaeConfig
from shaderfusion.errors import ModelError
from shaderfusion.families.autoencoder import (
    AnyVaeConfig,
    any_decoder_graph,
    any_encoder_graph,
    draw_latents,
    read_vae_config,
)
from shaderfusion.families.family import BESIDE_LATENTS, Conditioning, Family, Network, RunNetwork
from shaderfusion.families.run_size import Defaults, Memory, RunSize
from shaderfusion.graph.graph import Graph
from shaderfusion.kernels.select import Kernels
from shaderfusion.models.clip import TOKEN_TABLE, text_encoder_graph
from shaderfusion.models.unet import unet_graph
from shaderfusion.previews import PROJECTIONS, Projection
from shaderfusion.text.tokenizer import Tokenizer
from shaderfusion.weights.checkpoint import TensorSource
from shaderfusion.weights.model_files import ModelFiles

__all__ = ["ModelConfig", "StableDiffusion", "encode"]

_PREVIEW_VAE = "preview_vae"
"""A network, and where its tensors come from."""


@dataclass(frozen=True)
class ModelConfig:
    """The configurations of the networks, which must fit each other."""

    COMPONENTS: ClassVar[Mapping[str, type[Config]]] = {"text_encoder": ClipTextConfig, "unet": UNetConfig}
    """Those of one class; the autoencoder may be of two."""

    text_encoder: ClipTextConfig
    unet: UNetConfig
    vae: AnyVaeConfig

    @classmethod
    def read(cls, files: ModelFiles) -> Self:
        """Each component's configuration; ModelError where one is missing, unsupported, or does not fit."""
        components: dict[str, Any] = {name: files.config(name, kind) for name, kind in cls.COMPONENTS.items()}
        config = cls(**components, vae=read_vae_config(files))
        try:
            config.require_fit()
        except ModelError as error:
            raise ModelError(f"{files.path}: {error}") from None
        return config

    def require_fit(self) -> None:
        """ModelError where the components are of different models."""
        if self.unet.addition_embed_type is not None:
            raise ModelError(
                f"unet's addition_embed_type (={self.unet.addition_embed_type!r}) must be null in a "
                "StableDiffusionPipeline; it is the UNet of a StableDiffusionXLPipeline"
            )
        if self.text_encoder.hidden_size != self.unet.cross_attention_dim:
            raise ModelError(
                f"text_encoder's hidden_size (={self.text_encoder.hidden_size}) must equal unet's "
                f"cross_attention_dim (={self.unet.cross_attention_dim}); the components are of different models"
            )
        self.require_latents()

    @property
    def is_inpainting(self) -> bool:
        """Whether the UNet reads a mask, and the latents of a picture behind it, beside its own."""
        return self.unet.in_channels != self.unet.out_channels

    def require_latents(self) -> None:
        """ModelError where UNet and autoencoder do not speak of the same latents, or of pictures in colour."""
        unet, vae = self.unet, self.vae
        C = vae.latent_channels
        if unet.out_channels != C or unet.in_channels not in (C, 2 * C + 1):
            raise ModelError(
                f"unet's in_channels (={unet.in_channels}) and out_channels (={unet.out_channels}) must equal vae's "
                f"latent_channels (={C}), or for inpainting {2 * C + 1} and {C}"
            )
        if self.is_inpainting and C % 4:
            raise ModelError(
                f"vae's latent_channels (={C}) must be a multiple of 4 for a UNet that paints into pictures"
            )
        if vae.out_channels != 3:
            raise ModelError(f"vae's out_channels (={vae.out_channels}) must be 3: red, green and blue")


class StableDiffusion(Family):
    """One model. The tokenizer, the scheduler's configuration and the weights' files are opened when asked for."""

    _CONFIG: ClassVar[type[ModelConfig]] = ModelConfig

    def __init__(self, files: ModelFiles) -> None:
        """Reads the configurations of `files`; ModelError where the model cannot be used."""
        super().__init__(files)
        self.config = self._CONFIG.read(files)
        self._preview_files: ModelFiles | None = None
        self._preview_config: TinyVaeConfig | None = None

    def take_preview_vae(self, files: ModelFiles) -> None:
        """Has the vae of `files` decode previews; ModelError unless it is an AutoencoderTiny for these latents."""
        tiny, vae = read_vae_config(files), self.config.vae
        if not isinstance(tiny, TinyVaeConfig):
            raise ModelError(
                "preview_vae (=AutoencoderKL) must be an AutoencoderTiny, such as TAESD; give another file"
            )
        own, wanted = ((each.latent_channels, each.scale_factor) for each in (tiny, vae))
        if own != wanted:
            raise ModelError(
                f"preview_vae's latents (of {own[0]} channels for {own[1]} px) must be the model's (of {wanted[0]} for "
                f"{wanted[1]} px); it is of another family of models"
            )
        if tiny.out_channels != 3:
            raise ModelError(f"preview_vae's out_channels (={tiny.out_channels}) must be 3: red, green and blue")
        self._preview_files, self._preview_config = files, tiny

    @property
    def configs(self) -> Mapping[str, Config]:
        """Text encoder, UNet and autoencoder."""
        return {field.name: getattr(self.config, field.name) for field in fields(self.config)}

    @property
    def networks(self) -> Mapping[str, Network]:
        """The text encoder reads one prompt and the decoder makes one picture at a time, which bounds their memory."""
        return {
            **self._text_networks,
            "unet": Network("unet", self.denoising_step, lambda size: replace(size, clip_skip=0)),
            "vae": Network("vae", self.decoder_graph, lambda size: (size.height_px, size.width_px)),
        }

    @property
    def optional_networks(self) -> Mapping[str, Network]:
        """The encoder, for runs that begin with a picture, and the decoder of previews, if there is one of its own."""
        networks = {self.encoder: Network("vae", self._encoder, lambda size: (size.height_px, size.width_px))}
        if self._preview_config:
            record = partial(self._preview_decoder, self._preview_config)
            networks[_PREVIEW_VAE] = Network(_PREVIEW_VAE, record, lambda size: (size.height_px, size.width_px))
        return networks

    @property
    def quick_decoder(self) -> str | None:
        """A small autoencoder's, that of previews or the model's own."""
        if self._preview_config:
            return _PREVIEW_VAE
        return self.decoder if isinstance(self.config.vae, TinyVaeConfig) else None

    def _tensors(self, source: str) -> TensorSource:
        if source == _PREVIEW_VAE and self._preview_files:
            return self._preview_files.tensors("vae")
        return super()._tensors(source)

    def draw_latents(self, moments: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """By the autoencoder's scaling."""
        return draw_latents(self.config.vae, moments, noise)

    @property
    def _text_networks(self) -> Mapping[str, Network]:
        def record(kernels: Kernels, size: RunSize) -> Graph:
            return text_encoder_graph(self.config.text_encoder, kernels, skip_layers=size.clip_skip)

        return {"text_encoder": Network("text_encoder", record, lambda size: size.clip_skip)}

    @property
    def wide_networks(self) -> frozenset[str]:
        """The decoder where its configuration has force_upcast."""
        return frozenset({"vae"} if self.config.vae.force_upcast else ())

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """ModelError unless its prompts are as long as the text encoder reads."""
        return self._tokenizer("tokenizer")

    def _tokenizer(self, component: str) -> Tokenizer:
        tokenizer = self.files.tokenizer(component)
        L, _ = self.embedding_shape
        if tokenizer.max_length != L:
            raise ModelError(
                f"{self.files.path}: the {component}'s model_max_length (={tokenizer.max_length}) must equal "
                f"text_encoder's max_position_embeddings (={L})"
            )
        return tokenizer

    @property
    def scale_factor(self) -> int:
        """Of the autoencoder."""
        return self.config.vae.scale_factor

    @property
    def latent_channels(self) -> int:
        """Of the autoencoder."""
        return self.config.vae.latent_channels

    @property
    def projection(self) -> Projection | None:
        """By the autoencoder's scaling_factor."""
        return PROJECTIONS.get(self.config.vae.scaling_factor) if self.latent_channels == 4 else None

    @property
    def input_channels(self) -> int:
        """Of the UNet."""
        return self.config.unet.in_channels

    @property
    def default_size_px(self) -> Mapping[str, int]:
        """Of the pictures that the model was trained on."""
        height, width = self.config.unet.sample_sides
        return {"height": height * self.scale_factor, "width": width * self.scale_factor}

    @property
    def embedding_shape(self) -> tuple[int, int]:
        """(L, C) of CLIP."""
        return self.config.text_encoder.max_position_embeddings, self.config.text_encoder.hidden_size

    @property
    def text_encoders(self) -> Mapping[str, ClipTextConfig]:
        """CLIP."""
        return {"text_encoder": self.config.text_encoder}

    @property
    def tokenizers(self) -> Mapping[str, Tokenizer]:
        """CLIP's."""
        return {"text_encoder": self.tokenizer}

    @property
    def skippable_layers(self) -> int:
        """All but one."""
        return self.config.text_encoder.num_hidden_layers - 1

    @property
    def vocab_size(self) -> int:
        """Of CLIP."""
        return self.config.text_encoder.vocab_size

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        """Token ids (B, L)."""
        return self.taught_tokenizers["text_encoder"](texts)

    def condition(self, run: RunNetwork, tokens: np.ndarray) -> Conditioning:
        """embedding (B, L, C): CLIP's last hidden state of each row, or that before the last `clip_skip` layers;
        ModelError for ids that the encoder lacks."""
        return encode(run, "text_encoder", tokens, ["embedding"])

    @property
    def defaults(self) -> Defaults:
        """Of diffusers' LatentConsistencyModelPipeline where the UNet is such a model's, else its pipeline's."""
        return Defaults(4, 8.5) if self.reads_guidance_scale else Defaults()

    @property
    def reads_guidance_scale(self) -> bool:
        """A latent consistency model does (Luo et al. 2023, 2310.04378)."""
        return self.config.unet.time_cond_proj_dim is not None

    def shared_inputs(self, size: RunSize, guidance_scale: float) -> Conditioning:
        """guidance_embedding (1, C) where the UNet reads it: 1000 (guidance_scale - 1) as sinusoids.

        For an inpainting model, BESIDE_LATENTS (1, H, W, 1 + C) without a picture: the mask, of ones, as all of it is
        to be painted, and zeros for the latents of the picture behind it, which need no encoder. What training had
        there were the latents of a grey one.
        """
        inputs: Conditioning = {}
        C = self.config.unet.time_cond_proj_dim
        if C is not None:
            frequencies = 10000.0 ** (-np.arange(C // 2) / (C // 2 - 1))
            angles = 1000 * (guidance_scale - 1) * frequencies
            inputs["guidance_embedding"] = np.concatenate([np.sin(angles), np.cos(angles), np.zeros(C % 2)])[None]
        if self.config.is_inpainting:
            _, H, W, latent_channels = self.latents_shape(size)
            inputs[BESIDE_LATENTS] = np.zeros((1, H, W, 1 + latent_channels), np.float32)
            inputs[BESIDE_LATENTS][..., 0] = 1
        return inputs

    def largest_tensors(self, size: RunSize, memory: Memory = "normal") -> Mapping[str, int]:
        """The UNet's is 4 C wide, in a feed-forward layer, or holds what comes from the level below with a skip
        connection; the decoder's is the first of its last level, upsampled with the channels of the level below, or
        in low memory the output of a level."""
        _, H, W, _ = self.latents_shape(size)
        blocks = self.config.unet.down_blocks
        widths = [
            4 * block.channels if any(block.transformers) else block.channels + below.channels
            for block, below in zip(blocks, (*blocks[1:], blocks[-1]), strict=True)
        ]
        unet = max((H >> level) * (W >> level) * C for level, C in enumerate(widths))
        channels = self.config.vae.block_out_channels[::-1]
        if memory == "low" and isinstance(self.config.vae, VaeConfig):
            widths = channels[:-1] or channels
        else:
            widths = [channels[max(0, level - 1)] for level in range(len(channels))]
        vae = max((H << level) * (W << level) * C for level, C in enumerate(widths))
        return {"unet": size.rows * unet, "vae": vae}

    def denoiser_graph(self, kernels: Kernels, size: RunSize) -> Graph:
        """The UNet."""
        _, H, W, _ = self.latents_shape(size)
        return unet_graph(self.config.unet, kernels, batch=size.rows, height=H, width=W, num_tokens=size.num_tokens)

    def decoder_graph(self, kernels: Kernels, size: RunSize, *, max_bytes: int | None = None) -> Graph:
        """The decoder of AutoencoderKL, or a tiny one."""
        _, H, W, _ = self.latents_shape(size)
        return any_decoder_graph(self.config.vae, kernels, batch=1, height=H, width=W, max_bytes=max_bytes)

    def _preview_decoder(self, config: TinyVaeConfig, kernels: Kernels, size: RunSize) -> Graph:
        _, H, W, _ = self.latents_shape(size)
        return any_decoder_graph(config, kernels, batch=1, height=H, width=W)

    def _encoder(self, kernels: Kernels, size: RunSize) -> Graph:
        _, H, W, _ = self.latents_shape(size)
        return any_encoder_graph(self.config.vae, kernels, batch=1, height=H, width=W)


def encode(run: RunNetwork, name: str, tokens: np.ndarray, outputs: Sequence[str]) -> dict[str, np.ndarray]:
    """Those outputs of a text encoder, a row for each of token ids (B, L); ModelError for ids that it lacks.

    Equal prompts are read once.
    """
    distinct, index = np.unique(tokens, axis=0, return_inverse=True)
    rows = [run(name, {TOKEN_TABLE: row[None]}, outputs) for row in distinct]
    return {key: np.concatenate([row[key] for row in rows])[index.reshape(-1)] for key in outputs}
