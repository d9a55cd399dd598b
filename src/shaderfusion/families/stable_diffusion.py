"""Stable Diffusion 1.x and 2.x: CLIP, a UNet and the decoder of an autoencoder. Rombach et al. 2022, 2112.10752."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from shaderfusion.config import ClipTextConfig, Config, UNetConfig, VaeConfig
from shaderfusion.errors import ModelError
from shaderfusion.families.family import Conditioning, Family, Network, RunNetwork, RunSize
from shaderfusion.graph.graph import Graph
from shaderfusion.kernels.select import Kernels
from shaderfusion.models.clip import TOKEN_TABLE, text_encoder_graph
from shaderfusion.models.unet import unet_graph
from shaderfusion.models.vae import decoder_graph
from shaderfusion.text.tokenizer import Tokenizer
from shaderfusion.weights.model_files import ModelFiles

__all__ = ["ModelConfig", "StableDiffusion"]


@dataclass(frozen=True)
class ModelConfig:
    """The configurations of the networks, which must fit each other."""

    text_encoder: ClipTextConfig
    unet: UNetConfig
    vae: VaeConfig

    @classmethod
    def read(cls, files: ModelFiles) -> ModelConfig:
        """Each component's configuration; ModelError where one is missing, unsupported, or does not fit."""
        text_encoder = files.config("text_encoder", ClipTextConfig)
        unet = files.config("unet", UNetConfig)
        vae = files.config("vae", VaeConfig)
        if text_encoder.hidden_size != unet.cross_attention_dim:
            raise ModelError(
                f"{files.path}: text_encoder's hidden_size (={text_encoder.hidden_size}) must equal unet's "
                f"cross_attention_dim (={unet.cross_attention_dim}); the components are of different models"
            )
        if not unet.in_channels == unet.out_channels == vae.latent_channels:
            raise ModelError(
                f"{files.path}: unet's in_channels (={unet.in_channels}) and out_channels (={unet.out_channels}) must "
                f"equal vae's latent_channels (={vae.latent_channels}); inpainting and the like are not supported"
            )
        if vae.out_channels != 3:
            raise ModelError(f"{files.path}: vae's out_channels (={vae.out_channels}) must be 3: red, green and blue")
        return cls(text_encoder, unet, vae)


class StableDiffusion(Family):
    """One model. The tokenizer, the scheduler's configuration and the weights' files are opened when asked for."""

    def __init__(self, files: ModelFiles) -> None:
        """Reads the configurations of `files`; ModelError where the model cannot be used."""
        super().__init__(files)
        self.config = ModelConfig.read(files)

    @property
    def configs(self) -> Mapping[str, Config]:
        """Text encoder, UNet and autoencoder."""
        return {field.name: getattr(self.config, field.name) for field in fields(self.config)}

    @property
    def networks(self) -> Mapping[str, Network]:
        """The text encoder reads one prompt and the decoder makes one picture at a time, which bounds their memory."""
        return {
            "text_encoder": Network(
                "text_encoder", lambda kernels, _: text_encoder_graph(self.config.text_encoder, kernels), lambda _: ()
            ),
            "unet": Network("unet", self.denoising_step, lambda size: size),
            "vae": Network("vae", self._decoder, lambda size: (size.height_px, size.width_px)),
        }

    @property
    def wide_networks(self) -> frozenset[str]:
        """The decoder where its configuration has force_upcast."""
        return frozenset({"vae"} if self.config.vae.force_upcast else ())

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """ModelError unless its prompts are as long as the text encoder reads."""
        tokenizer = self.files.tokenizer("tokenizer")
        L, _ = self.embedding_shape
        if tokenizer.max_length != L:
            raise ModelError(
                f"{self.files.path}: the tokenizer's model_max_length (={tokenizer.max_length}) must equal "
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
    def default_size_px(self) -> Mapping[str, int]:
        """Of the pictures that the model was trained on."""
        height, width = self.config.unet.sample_sides
        return {"height": height * self.scale_factor, "width": width * self.scale_factor}

    @property
    def embedding_shape(self) -> tuple[int, int]:
        """(L, C) of CLIP."""
        return self.config.text_encoder.max_position_embeddings, self.config.text_encoder.hidden_size

    @property
    def vocab_size(self) -> int:
        """Of CLIP."""
        return self.config.text_encoder.vocab_size

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        """Token ids (B, L)."""
        return self.tokenizer(texts)

    def condition(self, run: RunNetwork, tokens: np.ndarray) -> Conditioning:
        """embedding (B, L, C): CLIP's last hidden state of each row; ModelError for ids that the encoder lacks.

        Equal prompts are read once.
        """
        for token in tokens[(tokens < 0) | (tokens >= self.vocab_size)]:
            raise ModelError(
                f"token id (={token}) must be from 0 to text_encoder's vocab_size (={self.vocab_size}) less 1; "
                "take the tokenizer and the text encoder of one model"
            )
        distinct, index = np.unique(tokens, axis=0, return_inverse=True)
        rows = [run("text_encoder", {TOKEN_TABLE: row[None]}, ["embedding"])["embedding"] for row in distinct]
        return {"embedding": np.concatenate(rows)[index.reshape(-1)]}

    def largest_tensors(self, size: RunSize) -> Mapping[str, int]:
        """The UNet's is 4 C wide, in a feed-forward layer; the decoder's is the first of its last level, upsampled from
        the level below with that one's channels."""
        _, H, W, _ = self.latents_shape(size)
        unet = max((H >> level) * (W >> level) * 4 * C for level, C in enumerate(self.config.unet.block_out_channels))
        channels = self.config.vae.block_out_channels[::-1]
        vae = max((H << level) * (W << level) * channels[max(0, level - 1)] for level in range(len(channels)))
        return {"unet": size.rows * unet, "vae": vae}

    def denoiser_graph(self, kernels: Kernels, size: RunSize) -> Graph:
        """The UNet."""
        _, H, W, _ = self.latents_shape(size)
        return unet_graph(self.config.unet, kernels, batch=size.rows, height=H, width=W, num_tokens=size.num_tokens)

    def _decoder(self, kernels: Kernels, size: RunSize) -> Graph:
        _, H, W, _ = self.latents_shape(size)
        return decoder_graph(self.config.vae, kernels, batch=1, height=H, width=W)
