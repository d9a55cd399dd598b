"""What a kernel may be chosen for, and the choices that were found to be fast on a device.

An operation is one layer's work: its sizes and dtype. A choice is how to do it. Both are plain values, whose repr names
them. A `Tuning` holds nothing but such names: what a name means comes from the candidates (kernels/candidates), so that
no file of names can bring in a kernel that the device cannot run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self, TypeVar

from shaderfusion.kernels.call import InputRows, ceil_div
from shaderfusion.kernels.optimized.flash_attention import FlashTile, MatrixFlashTile
from shaderfusion.kernels.tiles import LaneTile, MatrixTile, Tile
from shaderfusion.tensor import DType, TensorSpec

__all__ = [
    "NO_TUNING",
    "Attention",
    "Choice",
    "Convolution",
    "ConvolutionRows",
    "Flash",
    "GatedEpilogue",
    "GatedLinear",
    "Linear",
    "Operation",
    "Scores",
    "Tiling",
    "Tuning",
    "Winograd",
]


@dataclass(frozen=True)
class Linear:
    """A linear layer: rows x depth times depth x columns."""

    dtype: DType
    rows: int
    columns: int
    depth: int

    @classmethod
    def of(cls, x: TensorSpec, columns: int) -> Self:
        """That of x (..., K) and a weight (K, columns)."""
        return cls(x.dtype, x.size // x.shape[-1], columns, x.shape[-1])


@dataclass(frozen=True)
class GatedLinear(Linear):
    """GEGLU and the linear layer before it, of whose columns half remain."""


@dataclass(frozen=True)
class Convolution:
    """A 3x3 convolution from (B, H, W, C_in), which may be upsampled on the way, to (B, H', W', C_out)."""

    dtype: DType
    x_shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    stride: int
    keeps_filters: bool = False
    """Transformed filters are made before the run, whatever memory they take."""

    def num_tiles(self, m: int) -> int:
        """Winograd's tiles of m x m pixels in the output."""
        B, H, W, _ = self.out_shape
        return B * ceil_div(H, m) * ceil_div(W, m)


@dataclass(frozen=True)
class ConvolutionRows:
    """Some rows of a convolution of one image, which are made as the whole would be."""

    whole: Convolution
    rows: InputRows


@dataclass(frozen=True)
class Attention:
    """Of `queries` rows on `keys` rows in each head of each of `batch` items."""

    dtype: DType
    batch: int
    heads: int
    queries: int
    keys: int
    head_dim: int
    """Of a head in memory, its padding included."""
    causal: bool


ProductTile = Tile | LaneTile | MatrixTile
Operation = Linear | Convolution | Attention


@dataclass(frozen=True)
class Tiling:
    """A product as it is: of a linear layer, or the direct convolution. None chooses by the product's size."""

    tile: ProductTile | None = None
    num_splits: int | None = None


@dataclass(frozen=True)
class GatedEpilogue:
    """GEGLU as the product's epilogue, with that tile; `Tiling` has it in a dispatch of its own."""

    tile: Tile | MatrixTile | None = None


@dataclass(frozen=True)
class Winograd:
    """F(m x m, 3x3), with that tile in its products."""

    m: int
    tile: ProductTile | None = None


@dataclass(frozen=True)
class Flash:
    """FlashAttention with that tile."""

    tile: FlashTile | MatrixFlashTile


@dataclass(frozen=True)
class Scores:
    """Attention in two products and a softmax between, with those tiles."""

    scores: ProductTile | None = None
    values: ProductTile | None = None


Choice = Tiling | GatedEpilogue | Winograd | Flash | Scores
C = TypeVar("C", bound=Choice)


@dataclass(frozen=True)
class Tuning:
    """Choices other than those of the static rules; by default there are none."""

    names: Mapping[str, str] = field(default_factory=dict, hash=False)
    """The choice's name for that of its operation."""
    source: str = "off"
    """The file that they are from."""

    def choose(self, operation: Operation, static: C, candidates: Callable[[], Sequence[C]]) -> C:
        """What was chosen for the operation if it is one of the candidates, else what the static rules choose."""
        name = self.names.get(repr(operation))
        if name is None:
            return static
        return next((candidate for candidate in candidates() if repr(candidate) == name), static)


NO_TUNING = Tuning()
"""The static rules alone."""
