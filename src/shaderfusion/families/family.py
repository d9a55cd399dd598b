"""What an architecture is to the rest: its networks, where their tensors come from, how prompts condition them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from shaderfusion.arguments import LARGEST_COUNT
from shaderfusion.config import ClipTextConfig, SchedulerConfig
from shaderfusion.errors import DeviceLimitError, InputError
from shaderfusion.files import shown
from shaderfusion.graph.graph import Graph
from shaderfusion.kernels.capabilities import Capabilities
from shaderfusion.kernels.select import Kernels
from shaderfusion.tensor import DType, dtype_size_bytes
from shaderfusion.text.tokenizer import Tokenizer
from shaderfusion.weights.checkpoint import TensorSource
from shaderfusion.weights.embeddings import AddedTokens
from shaderfusion.weights.model_files import ModelFiles, ModelFolder

__all__ = ["Conditioning", "Family", "Network", "RunNetwork", "RunSize"]

Conditioning = dict[str, np.ndarray]
"""Inputs of the denoiser that say what to show, by name: a row for each prompt, unless they are shared."""

RunNetwork = Callable[[str, Mapping[str, np.ndarray], Sequence[str]], dict[str, np.ndarray]]
"""(network, its inputs, names of outputs) -> outputs; an input named as a table of the graph takes row numbers."""

_MAX_BINDINGS = 4
"""A tensor may need so many bindings of the largest size: with more a graph would have many thousand calls."""


@dataclass(frozen=True)
class RunSize:
    """What of a run its graphs depend on."""

    batch: int
    height_px: int
    width_px: int
    guidance: bool
    num_tokens: int
    """Of a prompt's embedding."""

    @property
    def rows(self) -> int:
        """The denoiser's batch: with guidance the unconditional half, then the text's."""
        return 2 * self.batch if self.guidance else self.batch


@dataclass(frozen=True)
class Network:
    """One network of a family."""

    source: str
    """Which of the model's sources has its tensors."""
    record: Callable[[Kernels, RunSize], Graph]
    size_of: Callable[[RunSize], Hashable]
    """What of the size the graph depends on: sizes of which this is equal have one graph."""


class Family(ABC):
    """A model of one architecture, as its configurations describe it. Opening it reads no weights."""

    denoiser: ClassVar[str] = "unet"
    """The network that is run in every step. Its graph ends with `denoise_step`, whose tensors are among its inputs."""
    decoder: ClassVar[str] = "vae"
    """The network from latents (1, H, W, C) to `image` (1, height, width, 3), in -1..1."""

    def __init__(self, files: ModelFiles) -> None:
        """Reads the configurations of `files`; ModelError where the model cannot be used."""
        self.files = files

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """A model folder in diffusers' format; ModelError where it cannot be used."""
        return cls(ModelFolder(folder))

    @property
    @abstractmethod
    def networks(self) -> Mapping[str, Network]:
        """By name, in the order in which a run needs them."""

    @property
    @abstractmethod
    def wide_networks(self) -> frozenset[str]:
        """Networks whose configuration asks for f32, whatever the dtype of the others."""

    @cached_property
    def sources(self) -> Mapping[str, TensorSource]:
        """Where tensors come from, opened when first asked for."""
        stored = {network.source: self.files.tensors(network.source) for network in self.networks.values()}
        return {name: self.added_tokens.extend(name, source) for name, source in stored.items()}

    @cached_property
    def added_tokens(self) -> AddedTokens:
        """What textual inversions add to the vocabulary; none at first."""
        return AddedTokens(self.text_encoders)

    @cached_property
    def scheduler_config(self) -> SchedulerConfig:
        """The model's own noise schedule."""
        return self.files.scheduler_config()

    @property
    @abstractmethod
    def scale_factor(self) -> int:
        """Pixels of the side of a picture for each latent cell."""

    @property
    @abstractmethod
    def latent_channels(self) -> int:
        """C of the latents (B, H, W, C)."""

    @property
    @abstractmethod
    def default_size_px(self) -> Mapping[str, int]:
        """`height` and `width` of the pictures that the model was trained on."""

    @property
    @abstractmethod
    def embedding_shape(self) -> tuple[int, int]:
        """(L, C) of a prompt's embedding."""

    @property
    @abstractmethod
    def text_encoders(self) -> Mapping[str, ClipTextConfig]:
        """By component."""

    @property
    @abstractmethod
    def tokenizers(self) -> Mapping[str, Tokenizer]:
        """By text encoder, without `added_tokens`."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Token ids are below, but for those of `added_tokens`."""

    @property
    def conditioning_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """What `condition` makes of one prompt, by name; the embedding's first dimension is its tokens."""
        return {"embedding": self.embedding_shape}

    @property
    def reads_guidance_scale(self) -> bool:
        """Whether the denoiser reads the guidance scale itself: then nothing unconditional is run beside it."""
        return False

    @property
    def tokens_shape(self) -> tuple[int, ...]:
        """Of one text's token ids: (L,), or with several tokenizers (tokenizers, L)."""
        return self.embedding_shape[:1]

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> np.ndarray:
        """Token ids, a row of `tokens_shape` for each text; InputError for what is not text."""

    def unconditional(self, num_tokens: int) -> np.ndarray | Conditioning:
        """What guidance starts from without a negative prompt: token ids, or what `condition` would make of them."""
        return self.tokenize([""])

    @abstractmethod
    def condition(self, run: RunNetwork, tokens: np.ndarray) -> Conditioning:
        """The denoiser's inputs for each row of `tokenize`, by running the text networks."""

    def shared_inputs(self, size: RunSize, guidance_scale: float) -> Conditioning:
        """The denoiser's inputs that depend on no prompt and no step."""
        return {}

    @abstractmethod
    def largest_tensors(self, size: RunSize) -> Mapping[str, int]:
        """By network, about how many values its largest tensor has; found without recording a graph."""

    def latents_shape(self, size: RunSize) -> tuple[int, int, int, int]:
        """(B, H, W, C)"""
        f = self.scale_factor
        return (size.batch, size.height_px // f, size.width_px // f, self.latent_channels)

    def require_side(self, name: str, px: int | None) -> int:
        """The side `px`, "height" or "width", by default the model's own; InputError unless it is whole cells."""
        px = self.default_size_px[name] if px is None else px
        is_whole = isinstance(px, int) and not isinstance(px, bool) and 1 <= px <= LARGEST_COUNT
        if not is_whole or px % self.scale_factor:
            raise InputError(
                f"{name} (={shown(px)}) must be a positive multiple of {self.scale_factor} px, one latent cell of the "
                "model"
            )
        return px

    def run_size(
        self,
        *,
        batch: int = 1,
        width: int | None = None,
        height: int | None = None,
        guidance: bool = True,
        num_tokens: int | None = None,
    ) -> RunSize:
        """A size in pixels, by default the model's own, checked; InputError for one that the model cannot have."""
        tokens = self.embedding_shape[0] if num_tokens is None else num_tokens
        width_px, height_px = self.require_side("width", width), self.require_side("height", height)
        return RunSize(batch, height_px, width_px, guidance and not self.reads_guidance_scale, tokens)

    def require_fits(self, size: RunSize, capabilities: Capabilities, dtype: DType) -> None:
        """DeviceLimitError, before anything is recorded, for a size that the device surely cannot hold."""
        most = min(capabilities.max_buffer_bytes, _MAX_BINDINGS * capabilities.max_binding_bytes)
        for name, values in self.largest_tensors(size).items():
            needed = values * dtype_size_bytes("f32" if name in self.wide_networks else dtype)
            if needed > most:
                raise DeviceLimitError(
                    f"width x height (={size.width_px}x{size.height_px}) with a batch (={size.batch}) needs a tensor "
                    f"of {needed / 1e6:,.0f} MB in {name}, and must need at most {most / 1e6:,.0f} MB on such a "
                    "device; use a smaller size or batch"
                )

    def kernels(self, kernels: Kernels) -> dict[str, Kernels]:
        """Those of each network, in f32 where its configuration asks for it."""
        return {
            name: replace(kernels, dtype="f32") if name in self.wide_networks else kernels for name in self.networks
        }

    def record(self, kernels: Kernels, size: RunSize) -> dict[str, Graph]:
        """Graphs of all networks."""
        own = self.kernels(kernels)
        return {name: network.record(own[name], size) for name, network in self.networks.items()}
