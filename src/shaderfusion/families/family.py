"""What an architecture is to the rest: its networks, where their tensors come from, how prompts condition them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from shaderfusion.arguments import LARGEST_COUNT
from shaderfusion.config import ClipTextConfig, Config
from shaderfusion.errors import DeviceLimitError, InputError
from shaderfusion.families.run_size import Defaults, Memory, RunSize
from shaderfusion.files import shown
from shaderfusion.graph.graph import Graph
from shaderfusion.kernels.capabilities import Capabilities
from shaderfusion.kernels.common.denoise_step import NUM_COEFFICIENTS, denoise_step
from shaderfusion.kernels.select import Kernels
from shaderfusion.previews import Projection
from shaderfusion.schedulers.config import SchedulerConfig
from shaderfusion.tensor import DType, TensorSpec, dtype_size_bytes
from shaderfusion.text.tokenizer import Tokenizer
from shaderfusion.weights.checkpoint import TensorSource
from shaderfusion.weights.embeddings import AddedTokens
from shaderfusion.weights.model_files import ModelFiles, ModelFolder

__all__ = [
    "BESIDE_LATENTS",
    "CARRIED",
    "TEXT_WEIGHTS",
    "UPDATE",
    "Conditioning",
    "Family",
    "Network",
    "RunNetwork",
    "read_after",
]

UPDATE = "update"
"""In low memory the graph of guidance and the scheduler's update, which come after all rows of the denoiser."""

CARRIED = ("x_t", "x_saved", "history", "latents")
"""What a step leaves for the next one: inputs of the graph with `denoise_step`."""

Conditioning = dict[str, np.ndarray]
"""Inputs of the denoiser that say what to show, by name: a row for each prompt, unless they are shared."""

BESIDE_LATENTS = "beside_latents"
"""Of a conditioning, what is no input of its own: (1 or rows, H, W, C), the channels after the latents in `latents`."""

TEXT_WEIGHTS = "text_weights"
"""Of a conditioning, an input of `denoise_step`: (K, B) f32, where a size has K weighted_texts."""

RunNetwork = Callable[[str, Mapping[str, np.ndarray], Sequence[str]], dict[str, np.ndarray]]
"""(network, its inputs, names of outputs) -> outputs; an input named as a table of the graph takes row numbers."""

_MAX_WHOLE_BYTES = 1 << 30
"""In low memory layers of the decoder that take more are done in bands: the denoiser of any model takes as much."""

_MAX_BINDINGS = 4
"""A tensor may need so many bindings of the largest size: with more a graph would have many thousand calls."""


@dataclass(frozen=True)
class Network:
    """One network of a family."""

    source: str
    """Which of the model's sources has its tensors."""
    record: Callable[[Kernels, RunSize], Graph]
    size_of: Callable[[RunSize], Hashable]
    """What of the size the graph depends on: sizes of which this is equal have one graph."""


def read_after(graph: Graph) -> list[str]:
    """What of a graph is read back after each run: its outputs, and what a denoising step leaves."""
    return [*graph.outputs, *(CARRIED if set(CARRIED) <= set(graph.inputs) else ())]


class Family(ABC):
    """A model of one architecture, as its configurations describe it. Opening it reads no weights."""

    denoiser: ClassVar[str] = "unet"
    """The network that is run in every step. Its graph is that of `denoising_step`."""
    decoder: ClassVar[str] = "vae"
    """The network from latents (1, H, W, C) to `image` (1, height, width, 3), in -1..1."""
    encoder: ClassVar[str] = "vae_encoder"
    """That from `image` to `moments` (1, H, W, 2 C), of which `draw_latents` makes latents. It may be missing."""

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
    def optional_networks(self) -> Mapping[str, Network]:
        """What only some runs need. An engine loads them when they are first run."""
        return {}

    @abstractmethod
    def take_preview_vae(self, files: ModelFiles) -> None:
        """Has the vae of `files` decode previews; ModelError for one that cannot."""

    @abstractmethod
    def draw_latents(self, moments: np.ndarray, noise: np.ndarray) -> np.ndarray:
        """Latents (B, H, W, C) as a sampler leaves them, of what the encoder made, with noise of their shape."""

    @abstractmethod
    def denoiser_graph(self, kernels: Kernels, size: RunSize) -> Graph:
        """The denoiser alone, from `latents`, of `size.rows` rows, to `model_output`."""

    @abstractmethod
    def decoder_graph(self, kernels: Kernels, size: RunSize, *, max_bytes: int | None = None) -> Graph:
        """The decoder, from `latents` to `image`.

        With `max_bytes` layers whose input and output take more together may be done in bands.
        """

    @property
    @abstractmethod
    def wide_networks(self) -> frozenset[str]:
        """Networks whose configuration asks for f32, whatever the dtype of the others."""

    @property
    @abstractmethod
    def configs(self) -> Mapping[str, Config]:
        """Of the networks, by component."""

    @cached_property
    def sources(self) -> Mapping[str, TensorSource]:
        """Where tensors come from, opened when first asked for."""
        names = {network.source for network in (*self.networks.values(), *self.optional_networks.values())}
        stored = {name: self._tensors(name) for name in names}
        return {name: self.added_tokens.extend(name, source) for name, source in stored.items()}

    def _tensors(self, source: str) -> TensorSource:
        return self.files.tensors(source)

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
    def projection(self) -> Projection | None:
        """That of the model's latents, where it is known without running the decoder."""
        return None

    @property
    def quick_decoder(self) -> str | None:
        """The network that decodes previews with little work, if there is one; inputs and outputs are `decoder`'s."""
        return None

    @property
    def input_channels(self) -> int:
        """Of the denoiser's `latents`: the latents', and those of BESIDE_LATENTS."""
        return self.latent_channels

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
    @abstractmethod
    def skippable_layers(self) -> int:
        """The largest `RunSize.clip_skip`."""

    @property
    def taught_tokenizers(self) -> Mapping[str, Tokenizer]:
        """By text encoder, with `added_tokens`."""
        return {name: self.added_tokens.teach(name, tokenizer) for name, tokenizer in self.tokenizers.items()}

    @property
    def restores_mean(self) -> bool:
        """Whether weights of a prompt leave the mean of its embedding as it was, unless one says otherwise."""
        return True

    @property
    def conditioning_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """What `condition` makes of one prompt, by name; the embedding's first dimension is its tokens."""
        return {"embedding": self.embedding_shape}

    @property
    def defaults(self) -> Defaults:
        """Of the model."""
        return Defaults()

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

    def unconditional(self, num_tokens: int) -> Conditioning | None:
        """What guidance starts from without a negative prompt, where that is not what an empty one is read as."""
        return None

    @abstractmethod
    def condition(self, run: RunNetwork, tokens: np.ndarray) -> Conditioning:
        """The denoiser's inputs for each row of `tokenize`, by running the text networks."""

    def shared_inputs(self, size: RunSize, guidance_scale: float) -> Conditioning:
        """The denoiser's inputs that depend on no prompt and no step, and what is BESIDE_LATENTS."""
        return {}

    @abstractmethod
    def largest_tensors(self, size: RunSize, memory: Memory = "normal") -> Mapping[str, int]:
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
        clip_skip: int | None = None,
    ) -> RunSize:
        """A size in pixels, by default the model's own, checked; InputError for one that the model cannot have."""
        skip, most = 0 if clip_skip is None else clip_skip, self.skippable_layers
        if not isinstance(skip, int) or isinstance(skip, bool) or not 0 <= skip <= most:
            raise InputError(
                f"clip_skip (={shown(clip_skip)}) must be a whole number from 0 to {most}, the layers of the text "
                "encoder that can be left out"
            )
        tokens = self.embedding_shape[0] if num_tokens is None else num_tokens
        width_px, height_px = self.require_side("width", width), self.require_side("height", height)
        return RunSize(batch, height_px, width_px, guidance and not self.reads_guidance_scale, tokens, skip)

    def require_fits(self, size: RunSize, capabilities: Capabilities, dtype: DType, memory: Memory = "normal") -> None:
        """DeviceLimitError, before anything is recorded, for a size that the device surely cannot hold."""
        size = size.one_row if memory == "low" else size
        most = min(capabilities.max_buffer_bytes, _MAX_BINDINGS * capabilities.max_binding_bytes)
        for name, values in self.largest_tensors(size, memory).items():
            needed = values * dtype_size_bytes("f32" if name in self.wide_networks else dtype)
            if needed > most:
                raise DeviceLimitError(
                    f"width x height (={size.width_px}x{size.height_px}) with a batch (={size.batch}) needs a tensor "
                    f"of {needed / 1e6:,.0f} MB in {name}, and must need at most {most / 1e6:,.0f} MB on such a "
                    "device; use a smaller size or batch"
                )

    def kernels(self, kernels: Kernels) -> dict[str, Kernels]:
        """Those of each network, in f32 where its configuration asks for it; both halves of an autoencoder have one."""
        networks = {**self.networks, **self.optional_networks}
        wide = {self.networks[name].source for name in self.wide_networks}
        return {
            name: replace(kernels, dtype="f32") if network.source in wide else kernels
            for name, network in networks.items()
        }

    def networks_in(self, memory: Memory) -> Mapping[str, Network]:
        """What an engine runs: the networks, or in low memory the denoiser of one row, UPDATE, a decoder in bands."""
        if memory != "low":
            return self.networks
        denoiser = self.networks[self.denoiser]
        row = replace(
            denoiser,
            record=lambda kernels, size: self.denoiser_graph(kernels, size.one_row),
            size_of=lambda size: denoiser.size_of(size.one_row),
        )
        update = replace(denoiser, record=self._update)
        decoder = replace(self.networks[self.decoder], record=partial(self.decoder_graph, max_bytes=_MAX_WHOLE_BYTES))
        return {**self.networks, self.denoiser: row, UPDATE: update, self.decoder: decoder}

    def turns(self, memory: Memory) -> list[tuple[str, ...]]:
        """Which of `networks_in` are on the device together: in low memory one network after the other."""
        if memory != "low":
            return [tuple(self.networks)]
        return [(name, UPDATE) if name == self.denoiser else (name,) for name in self.networks]

    def kernels_in(self, memory: Memory, kernels: Kernels) -> dict[str, Kernels]:
        """Those of each of `networks_in`, and of the optional networks: UPDATE has its denoiser's."""
        own = self.kernels(kernels)
        own[self.denoiser] = replace(own[self.denoiser], keeps_filters=memory == "high")  # it alone runs in every step
        return own | {UPDATE: own[self.denoiser]} if memory == "low" else own

    def record(self, kernels: Kernels, size: RunSize, memory: Memory = "normal") -> dict[str, Graph]:
        """Graphs of all that an engine runs."""
        own = self.kernels_in(memory, kernels)
        return {name: network.record(own[name], size) for name, network in self.networks_in(memory).items()}

    def denoising_step(self, kernels: Kernels, size: RunSize) -> Graph:
        """The denoiser, guidance and the scheduler's update. Its inputs are also the tensors of `denoise_step`."""
        g = self.denoiser_graph(kernels, size)
        self._add_update(g, size, g.outputs["model_output"], g.inputs["latents"])
        return g

    def _update(self, kernels: Kernels, size: RunSize) -> Graph:
        """Guidance and the scheduler's update alone, of a denoiser's `model_output`."""
        g = Graph(UPDATE, kernels)
        _, H, W, C = self.latents_shape(size)
        model_output = g.input("model_output", size.rows, H, W, channels=C)
        latents = g.input("latents", size.rows, H, W, channels=self.input_channels)
        self._add_update(g, size, model_output, latents)
        return g

    def _add_update(self, g: Graph, size: RunSize, model_output: TensorSpec, latents: TensorSpec) -> None:
        B, H, W, C = self.latents_shape(size)
        K = size.weighted_texts
        g.add(
            denoise_step(
                model_output,
                g.input("coefficients", NUM_COEFFICIENTS, dtype="f32"),
                g.input("noise", B, H, W, channels=C, dtype="f32"),
                g.input("x_t", B, H, W, channels=C, dtype="f32"),
                g.input("x_saved", B, H, W, channels=C, dtype="f32"),
                g.input("history", 3, B, H, W, channels=C, dtype="f32"),
                latents,
                guidance=size.guidance,
                weights=g.input(TEXT_WEIGHTS, K, B, dtype="f32") if K else None,
            )
        )
