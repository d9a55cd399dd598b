"""SDXL: a larger UNet that also reads the sizes of pictures, and two text encoders. Podell et al. 2023, 2307.01952."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar

import numpy as np

from shaderfusion.config import ClipTextConfig, Config
from shaderfusion.errors import ModelError
from shaderfusion.families.family import Conditioning, Network, RunNetwork
from shaderfusion.families.run_size import Defaults, RunSize
from shaderfusion.families.stable_diffusion import ModelConfig, StableDiffusion, encode
from shaderfusion.files import shown
from shaderfusion.graph.graph import Graph
from shaderfusion.kernels.select import Kernels
from shaderfusion.models.clip import find_end_of_text, text_encoder_graph
from shaderfusion.text.tokenizer import Tokenizer
from shaderfusion.weights.model_files import ModelFiles

__all__ = ["StableDiffusionXL", "XLConfig"]


@dataclass(frozen=True)
class XLConfig(ModelConfig):
    """The configurations of the networks, which must fit each other."""

    COMPONENTS: ClassVar[Mapping[str, type[Config]]] = {**ModelConfig.COMPONENTS, "text_encoder_2": ClipTextConfig}

    text_encoder_2: ClipTextConfig
    """Its projection is the pooled prompt."""

    @property
    def text_encoders(self) -> Mapping[str, ClipTextConfig]:
        """By component, in the order in which their states are put side by side."""
        return {"text_encoder": self.text_encoder, "text_encoder_2": self.text_encoder_2}

    def require_fit(self) -> None:
        """ModelError where the components are of different models."""
        unet, first, second = self.unet, self.text_encoder, self.text_encoder_2
        if unet.addition_embed_type is None:
            raise ModelError(
                "unet's addition_embed_type (=null) must be 'text_time' in a StableDiffusionXLPipeline; the unet is of "
                "another model"
            )
        if first.hidden_size + second.hidden_size != unet.cross_attention_dim:
            raise ModelError(
                f"the sum of the hidden_size of text_encoder (={first.hidden_size}) and text_encoder_2 "
                f"(={second.hidden_size}) must equal unet's cross_attention_dim (={unet.cross_attention_dim}); the "
                "components are of different models"
            )
        if second.projection_dim != unet.pooled_dim:
            raise ModelError(
                f"text_encoder_2's projection_dim (={second.projection_dim}) must be what unet's "
                f"projection_class_embeddings_input_dim (={unet.projection_class_embeddings_input_dim}) leaves beside "
                f"6 times its addition_time_embed_dim (={unet.addition_time_embed_dim}); the components are of "
                "different models"
            )
        if first.max_position_embeddings != second.max_position_embeddings:
            raise ModelError(
                f"text_encoder's max_position_embeddings (={first.max_position_embeddings}) must equal "
                f"text_encoder_2's (={second.max_position_embeddings})"
            )
        for name, config in self.text_encoders.items():
            if config.num_hidden_layers < 2:
                raise ModelError(f"{name}'s num_hidden_layers (=1) must be at least 2: the last but one is read")
        self.require_latents()


class StableDiffusionXL(StableDiffusion):
    """One model. It reads each prompt with both text encoders, and no picture was cropped or of another size."""

    _CONFIG: ClassVar[type[ModelConfig]] = XLConfig

    config: XLConfig

    def __init__(self, files: ModelFiles) -> None:
        """Reads the configurations of `files`; ModelError where the model cannot be used."""
        super().__init__(files)
        zeros = files.options.get("force_zeros_for_empty_prompt", True)
        if not isinstance(zeros, bool):
            raise ModelError(f"{files.path}: force_zeros_for_empty_prompt (={shown(zeros)}) must be true or false")
        self._starts_from_zeros = zeros

    @property
    def _text_networks(self) -> Mapping[str, Network]:
        """Both read the state before the last layer, or an earlier one, without the final norm; the second also pools
        the last."""

        def record(name: str, kernels: Kernels, size: RunSize) -> Graph:
            pooled, skip = "projection" if name == "text_encoder_2" else None, 1 + size.clip_skip
            config = self.config.text_encoders[name]
            return text_encoder_graph(config, kernels, name=name, skip_layers=skip, final_norm=False, pooled=pooled)

        return {
            name: Network(name, partial(record, name), lambda size: size.clip_skip)
            for name in self.config.text_encoders
        }

    @property
    def defaults(self) -> Defaults:
        """Less guidance than that of SD 1.x, but for inpainting."""
        is_usual = self.reads_guidance_scale or self.config.is_inpainting
        return super().defaults if is_usual else Defaults(guidance_scale=5.0)

    @property
    def wide_networks(self) -> frozenset[str]:
        """The decoder, unless its configuration has force_upcast false: an absent key is true to SDXL in diffusers."""
        return frozenset(() if self.config.vae.force_upcast is False else {"vae"})

    @cached_property
    def tokenizer_2(self) -> Tokenizer:
        """The second text encoder's, which pads with another token; ModelError as `tokenizer`."""
        return self._tokenizer("tokenizer_2")

    @property
    def text_encoders(self) -> Mapping[str, ClipTextConfig]:
        """CLIP's, and OpenCLIP's."""
        return self.config.text_encoders

    @property
    def tokenizers(self) -> Mapping[str, Tokenizer]:
        """Of one vocabulary, but for the padding."""
        return {"text_encoder": self.tokenizer, "text_encoder_2": self.tokenizer_2}

    @property
    def embedding_shape(self) -> tuple[int, int]:
        """(L, C), with the channels of both text encoders."""
        return self.config.text_encoder.max_position_embeddings, self.config.unet.cross_attention_dim

    @property
    def skippable_layers(self) -> int:
        """All but the first and the last."""
        return min(config.num_hidden_layers for config in self.config.text_encoders.values()) - 2

    @property
    def restores_mean(self) -> bool:
        """No, as is usual for SDXL."""
        return False

    @property
    def conditioning_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The embedding, and the pooled output of the second text encoder."""
        return {"embedding": self.embedding_shape, "pooled": (self.config.unet.pooled_dim,)}

    @property
    def vocab_size(self) -> int:
        """Of both text encoders."""
        return min(config.vocab_size for config in self.config.text_encoders.values())

    @property
    def tokens_shape(self) -> tuple[int, ...]:
        """(2, L)"""
        return (2, *self.embedding_shape[:1])

    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        """Token ids (B, 2, L), of both tokenizers."""
        return np.stack([tokenizer(texts) for tokenizer in self.taught_tokenizers.values()], axis=1)

    def unconditional(self, num_tokens: int) -> Conditioning | None:
        """Zeros, unless the model's force_zeros_for_empty_prompt is false."""
        if not self._starts_from_zeros:
            return None
        shapes = {"embedding": (num_tokens, self.embedding_shape[1]), "pooled": (self.config.unet.pooled_dim,)}
        return {name: np.zeros((1, *shape), np.float32) for name, shape in shapes.items()}

    def condition(self, run: RunNetwork, tokens: np.ndarray) -> Conditioning:
        """embedding (B, L, C) and pooled (B, P) of each row (2, L); ModelError for ids that an encoder lacks."""
        config = self.config
        first = encode(run, "text_encoder", tokens[:, 0], ["embedding"])
        second = encode(run, "text_encoder_2", tokens[:, 1], ["embedding", "pooled"])
        ends = find_end_of_text(config.text_encoder_2, tokens[:, 1])
        embedding = np.concatenate([first["embedding"], second["embedding"]], axis=-1)
        return {"embedding": embedding, "pooled": second["pooled"][np.arange(len(ends)), ends]}

    def shared_inputs(self, size: RunSize, guidance_scale: float) -> Conditioning:
        """time_ids (rows, 6): height and width of the original, top and left of its crop, height and width."""
        sides = (size.height_px, size.width_px)
        ids = np.tile(np.array([*sides, 0, 0, *sides], np.float32), (size.rows, 1))
        return {"time_ids": ids, **super().shared_inputs(size, guidance_scale)}
