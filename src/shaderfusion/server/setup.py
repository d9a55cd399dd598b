"""How a server was started: its bounds, and what it makes pictures with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Limits", "Setup"]


@dataclass(frozen=True)
class Limits:
    """The most that a client may ask for. Each is an option of `shaderfusion serve`."""

    max_side: int = 2048
    """Pixels, of a second pass too."""
    max_steps: int = 150
    max_images: int = 8
    max_queue: int = 16
    """Jobs that wait."""
    max_body: int = 20_000_000
    """Bytes of a request."""
    max_pixels: int = 1 << 24
    """Of a picture that a request holds, before it is decoded."""


@dataclass(frozen=True)
class Setup:
    """What the operator gave, none of which a client can change."""

    common: Mapping[str, Any] = field(default_factory=dict)
    """Options of all pictures by their names: device, runtime, dtype, tuning, memory, lora_dir."""
    limits: Limits = field(default_factory=Limits)
    output_dir: Path | None = None
    """Where pictures are kept too; None keeps none."""
