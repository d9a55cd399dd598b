"""Layers of pictures that are too large to be whole: in bands of rows, with the rows around on which they depend.

A group norm needs the whole picture's statistics. So for each norm one pass over the bands makes its input, from the
last tensor that is whole, and merges their statistics; one more pass makes the output. Only that is whole in the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from shaderfusion.graph.graph import Graph
from shaderfusion.kernels.call import InputRows, ceil_div
from shaderfusion.kernels.common.group_norm_statistics import FoldedGroupNorm
from shaderfusion.kernels.tuning import ConvolutionRows
from shaderfusion.models.blocks import conv2d, linear, norm_conv2d, resnet_block, upsample
from shaderfusion.tensor import VIEW_ALIGNMENT_BYTES, TensorSpec, dtype_size_bytes

__all__ = ["Banded", "BandedLayers"]

_BANDS = 8
"""The largest tensor of a band takes such a part of what a layer may take, or twice the rows around the band."""
_WINOGRAD_ROWS = 4
"""Bands begin at multiples of it, so that their tiles are those of the whole."""


class Band(NamedTuple):
    """Some rows of an image."""

    tensor: TensorSpec
    """(1, rows, W, C)"""
    first: int

    def rows(self, span: range) -> TensorSpec:
        """A view of some of them, by their numbers in the image: (1, len(span), W, C)."""
        image = self.tensor.reshape(*self.tensor.shape[1:])
        view = image.rows(span.start - self.first, len(span))
        return view.reshape(1, *view.shape)


Make = Callable[[range, TensorSpec | None], Band]


@dataclass(frozen=True, eq=False)
class Banded:
    """An image of which rows are made when they are needed, and again whenever they are."""

    spec: TensorSpec
    """(1, H, W, C): what it would be, if it were whole."""
    make: Make
    """Records what makes these rows, in that tensor if one is given, or a band that has them."""
    step: int
    """Bands begin at multiples of so many rows."""
    source: TensorSpec
    """The whole tensor that it is made of."""
    most_row_bytes: int = 0
    """Of a row of the largest tensor on the way."""
    halo: int = 0
    """So many rows around a band are made on the way."""

    @classmethod
    def of(cls, x: TensorSpec) -> Banded:
        """A tensor that is whole."""
        return cls(x, lambda span, out: Band(x, 0), _step(x), x)

    def spans(self, band_bytes: int, most_bytes: int) -> list[range]:
        """The bands of a pass, of so many bytes where that is not less than what is around them, and never of more."""
        wanted, most = (size // self.most_row_bytes - self.halo for size in (band_bytes, most_bytes))
        rows = min(max(wanted, self.halo), most)
        height = max(rows // self.step, 1) * self.step
        return [range(y, min(y + height, self.spec.shape[1])) for y in range(0, self.spec.shape[1], height)]


@dataclass(frozen=True)
class _Convolution:
    """conv(silu(norm(x))) or, without norm, conv of x, upsampled: for any rows."""

    g: Graph
    scope: str
    name: str
    x: Banded
    out: TensorSpec
    """Its spec, as if it were whole."""
    norm: FoldedGroupNorm | None = None
    upsample: int = 1

    def reach(self, span: range) -> range:
        """The rows of x for those of the output."""
        top = max(0, span.start - 1) // self.upsample
        end = min(self.out.shape[1], span.stop + 1)
        return range(top // self.x.step * self.x.step, ceil_div(end, self.upsample))

    def record(
        self, x: Band, span: range, *, residual: TensorSpec | None = None, out: TensorSpec | None = None
    ) -> Band:
        """These rows of the output, from a band of x that has all within reach."""
        g, needed, norm = self.g, self.reach(span), self.norm
        _, H, W, _ = self.out.shape
        h = x.rows(needed)
        first = self.upsample * needed.start
        rows = InputRows(span.start - first, min(self.upsample * needed.stop, H) - first)
        with g.scope(self.scope, absolute=True):
            if norm and not g.kernels.folds_group_norm(self.x.spec, self.out, num_groups=norm.means.shape[-1]):
                normalized = g.tensor(f"{self.name}.normalized", *h.shape[:-1], channels=h.channels)
                g.add(*g.kernels.normalize(h, norm, normalized))
                h, norm = normalized, None
            part = ConvolutionRows(g.kernels.convolution(self.x.spec, self.out, stride=1), rows)
            options = {"upsample": self.upsample, "residual": residual, "norm": norm, "out": out, "part": part}
            return Band(conv2d(g, self.name, h, self.out.channels, size=(len(span), W), **options), span.start)

    def banded(self, make: Make | None = None) -> Banded:
        """The output, by this layer from x, or as `make` says."""
        x, is_of_its_size = self.x, self.upsample == 1
        return Banded(
            self.out,
            make or (lambda span, out: self.record(x.make(self.reach(span), None), span, out=out)),
            math.lcm(_step(self.out), x.step if is_of_its_size else 1),
            x.source,
            max(x.most_row_bytes, _row_bytes(self.out)),
            x.halo + x.step + 1 if is_of_its_size else 0,
        )


class BandedLayers:
    """A decoder's layers: whole, where input and output take at most max_bytes together, else in bands.

    Without max_bytes all are whole.
    """

    def __init__(self, g: Graph, *, num_groups: int, eps: float, max_bytes: int | None) -> None:
        self.g = g
        self.num_groups = num_groups
        self.eps = eps
        self.max_bytes = None if max_bytes is None else min(max_bytes, g.kernels.capabilities.max_buffer_bytes)

    def resnet(self, name: str, x: TensorSpec | Banded, channels: int) -> TensorSpec | Banded:
        """`blocks.resnet_block`, after which nothing else reads x."""
        g = self.g
        below = x if isinstance(x, Banded) else Banded.of(x)
        out = self._spec(name, below.spec, channels)
        if isinstance(x, TensorSpec) and self._fit(x, out):
            return resnet_block(g, name, x, channels, num_groups=self.num_groups, eps=self.eps, in_place=True)
        scope = g.path(name)
        with g.scope(name):
            conv1 = _Convolution(g, scope, "conv1", below, out, self._norm("norm1", below))
            h = conv1.banded()
            conv2 = _Convolution(g, scope, "conv2", h, out, self._norm("norm2", h))

        def make(span: range, out: TensorSpec | None) -> Band:
            inner = conv2.reach(span)
            band = below.make(conv1.reach(inner), None)
            shortcut = band.rows(span)
            if shortcut.channels != channels:
                with g.scope(scope, absolute=True):
                    shortcut = linear(g, "conv_shortcut", shortcut, channels)
            return conv2.record(conv1.record(band, inner), span, residual=shortcut, out=out)

        return self._whole_if_it_fits(conv2.banded(make))

    def upsample(self, name: str, x: TensorSpec | Banded) -> TensorSpec | Banded:
        """`blocks.upsample`, of what is whole: made so, where it is not."""
        x = self.whole(x)
        out = self._spec(name, x, x.channels, upsample=2)
        if self._fit(x, out):
            return upsample(self.g, name, x)
        with self.g.scope(name):
            x = self._alone(x)
        conv = _Convolution(self.g, self.g.path(name), "conv", Banded.of(x), out, upsample=2)
        return self._whole_if_it_fits(conv.banded())

    def norm_conv2d(self, norm_name: str, name: str, x: TensorSpec | Banded, out: TensorSpec) -> None:
        """`blocks.norm_conv2d` to out, which has memory of its own."""
        g = self.g
        if isinstance(x, TensorSpec):
            norm_conv2d(g, norm_name, name, x, out.channels, num_groups=self.num_groups, eps=self.eps, out=out)
        else:
            self.whole(_Convolution(g, g.path(), name, x, out, self._norm(norm_name, x)).banded())

    def whole(self, x: TensorSpec | Banded) -> TensorSpec:
        """All of it at once."""
        if isinstance(x, TensorSpec):
            return x
        for span in self._spans(x):
            x.make(span, Band(x.spec, 0).rows(span))
        return x.spec

    def _spec(self, name: str, x: TensorSpec, channels: int, upsample: int = 1) -> TensorSpec:
        B, H, W, _ = x.shape
        with self.g.scope(name):
            return self.g.tensor("out", B, upsample * H, upsample * W, channels=channels)

    def _alone(self, x: TensorSpec) -> TensorSpec:
        """x in memory of its own size, which may be kept for long: it may be a view of a larger tensor."""
        if x.storage.size_bytes == x.size_bytes:
            return x
        out = self.g.tensor("in", *x.shape[:-1], channels=x.channels)
        self.g.add(*self.g.kernels.activate(x, out, activation=None))
        return out

    def _fit(self, x: TensorSpec, out: TensorSpec) -> bool:
        return self.max_bytes is None or x.size_bytes + out.size_bytes <= self.max_bytes

    def _whole_if_it_fits(self, x: Banded) -> TensorSpec | Banded:
        return self.whole(x) if self._fit(x.source, x.spec) else x

    def _spans(self, x: Banded) -> list[range]:
        return x.spans((self.max_bytes or 0) // _BANDS, self.g.kernels.capabilities.max_binding_bytes)

    def _norm(self, name: str, x: Banded) -> FoldedGroupNorm:
        """The group norm of x, whose statistics are computed now, and SiLU."""
        g, C = self.g, x.spec.shape[-1]

        def statistics(rows: TensorSpec) -> tuple[TensorSpec, TensorSpec]:
            with g.scope(name):
                means, variances = (g.tensor(of, 1, self.num_groups, dtype="f32") for of in ("mean", "variance"))
                g.add(*g.kernels.group_norm_statistics(rows, means, variances))
            return means, variances

        if x.source is x.spec:
            known = statistics(x.spec)
        else:
            first, *others = self._spans(x)
            known = statistics(x.make(first, None).rows(first))
            for span in others:
                part = statistics(x.make(span, None).rows(span))
                g.add(*g.kernels.merge_statistics(part, *known, before=span.start, count=len(span)))
        with g.scope(name):
            weight, bias = (g.weight(of, x.spec.channels, padded_to=C) for of in ("weight", "bias"))
        return FoldedGroupNorm(*known, weight, bias, self.eps, "silu")


def _row_bytes(tensor: TensorSpec) -> int:
    """Of a row of (1, H, W, C)."""
    return tensor.shape[2] * tensor.shape[3] * dtype_size_bytes(tensor.dtype)


def _step(tensor: TensorSpec) -> int:
    """Bands of (1, H, W, C), and views of them, may begin at multiples of so many rows."""
    return math.lcm(_WINOGRAD_ROWS, VIEW_ALIGNMENT_BYTES // math.gcd(VIEW_ALIGNMENT_BYTES, _row_bytes(tensor)))
