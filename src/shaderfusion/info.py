"""What a model costs, from its configurations alone: runs nothing and touches no GPU."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shaderfusion.families import open_model
from shaderfusion.graph.memory_plan import plan_memory
from shaderfusion.kernels.capabilities import DESKTOP_GPU
from shaderfusion.kernels.optimizations import Optimizations
from shaderfusion.kernels.select import Kernels
from shaderfusion.tensor import DType

__all__ = ["ComponentInfo", "ModelInfo", "describe"]


@dataclass(frozen=True)
class ComponentInfo:
    """One network: its parameters, and what one run of it takes."""

    name: str
    parameters: int
    weights_bytes: int
    tensors_bytes: int
    """Planned memory of the intermediate tensors."""
    dispatches: int
    """Of one run; a run of the UNet is one denoising step."""


@dataclass(frozen=True)
class ModelInfo:
    """A model at one image size, with guidance."""

    model: str
    dtype: DType
    width: int
    height: int
    batch: int
    components: tuple[ComponentInfo, ...]

    @property
    def weights_bytes(self) -> int:
        """Of all components."""
        return sum(component.weights_bytes for component in self.components)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "weights_bytes": self.weights_bytes}


def describe(
    model: str | Path,
    *,
    width: int | None = None,
    height: int | None = None,
    batch: int = 1,
    dtype: DType | None = None,
    optimizations: Optimizations | None = None,
) -> ModelInfo:
    """The costs of a model on a GPU for `batch` images of that size in pixels; f16, all optimizations by default."""
    opened = open_model(model)
    size = opened.run_size(batch=batch, width=width, height=height)
    kernels = Kernels(dtype or "f16", DESKTOP_GPU, optimizations or Optimizations())
    opened.require_fits(size, kernels.capabilities, kernels.dtype)
    graphs = opened.record(kernels, size)
    components = tuple(
        ComponentInfo(
            name=name,
            parameters=graph.num_parameters,
            weights_bytes=graph.weights_bytes,
            tensors_bytes=plan_memory(graph.calls).total_bytes,
            dispatches=len(graph.calls),
        )
        for name, graph in graphs.items()
    )
    return ModelInfo(str(model), kernels.dtype, size.width_px, size.height_px, batch, components)
