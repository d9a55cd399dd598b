"""What a run asks of a model: its size, its way to use the device's memory, and what it means by default."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

from shaderfusion.kernels.capabilities import Capabilities

__all__ = ["MEMORIES", "Defaults", "Memory", "RunSize", "usual_memory"]

Memory = Literal["normal", "low", "high"]
"""normal keeps all networks on the device; in low they take turns, and the denoiser takes its rows one by one; in high
the transformed filters of the denoiser's Winograd convolutions stay there as well, for speed."""

MEMORIES: tuple[Memory, ...] = get_args(Memory)

_PLENTY_BYTES = 20 << 30
"""A device with so much memory of its own holds SDXL and its transformed filters, and leaves others as much again."""


class Defaults(NamedTuple):
    """What a call that says nothing else means, as in diffusers' pipeline for such a model."""

    num_inference_steps: int = 50
    guidance_scale: float = 7.5

    @property
    def command_line_steps(self) -> int:
        """Fewer, where today's samplers need no more."""
        return min(self.num_inference_steps, 20)


@dataclass(frozen=True)
class RunSize:
    """What of a run its graphs depend on."""

    batch: int
    height_px: int
    width_px: int
    guidance: bool
    num_tokens: int
    """Of a prompt's embedding."""
    clip_skip: int = 0
    """Layers of the text encoders whose states are not read, beyond those that the family never reads."""
    weighted_texts: int = 0
    """With guidance, texts for each picture whose weighted sum it goes towards; 0 is one text without a weight."""

    @property
    def rows(self) -> int:
        """The denoiser's batch: with guidance the unconditional part, then one for each text."""
        return self.batch * (1 + max(1, self.weighted_texts)) if self.guidance else self.batch

    @property
    def pixels(self) -> int:
        """Of all pictures."""
        return self.batch * self.height_px * self.width_px

    @property
    def one_row(self) -> RunSize:
        """That of a single row of the denoiser."""
        return replace(self, batch=1, guidance=False, weighted_texts=0)


def usual_memory(capabilities: Capabilities) -> Memory:
    """high where the driver says that the device has plenty, else normal."""
    return "high" if (capabilities.memory_bytes or 0) >= _PLENTY_BYTES else "normal"
