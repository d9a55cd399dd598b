"""What loading weights takes beside them: the sizes of the buffers of `weights.prepare`, without a device."""

from __future__ import annotations

import math
from collections.abc import Collection

from shaderfusion.graph.graph import Weight
from shaderfusion.kernels.call import ceil_div
from shaderfusion.kernels.common.prepare_weight import MAX_PLACES
from shaderfusion.tensor import VIEW_ALIGNMENT_BYTES, TensorSpec

__all__ = ["batch_bytes", "channels_at_once", "filters_bytes", "is_small", "loading_bytes"]

_BATCH_BYTES = 8 << 20
"""Stored bytes that one submit uploads and prepares; two are in flight at most."""

_SMALL_BYTES = 64 << 10
"""Weights of at most so many bytes that need no other layout, such as biases, are prepared on the host where no
adapter changes them: for few values a dispatch takes longer."""

_ALIGNMENT_BYTES = 16
"""Of a buffer's size, and so the smallest."""

_SMALLEST_STORED_BYTES = 1
"""Of a value that a file stores: an 8-bit float."""


def is_small(weight: Weight) -> bool:
    """Whether the host prepares it."""
    return weight.layout == "as_is" and weight.tensor.size_bytes <= _SMALL_BYTES


def batch_bytes(weights: Collection[Weight]) -> int:
    """For all weights if they are few, for 4 output channels if those are large, and as many f32 at most."""

    def aligned(values: int) -> int:
        return ceil_div(4 * values, VIEW_ALIGNMENT_BYTES) * VIEW_ALIGNMENT_BYTES

    shapes = [weight.source_shape for weight in weights for _ in weight.paths]
    smallest = max(aligned(4 * math.prod(shape[1:])) for shape in shapes)
    return max(smallest, _SMALL_BYTES, min(_BATCH_BYTES, sum(aligned(math.prod(shape)) for shape in shapes)))


def channels_at_once(channel_bytes: int, max_bytes: int, channel_places: int = 1) -> int:
    """How many output channels of so many stored bytes and places each one slice of a weight has at most, a multiple of
    4."""
    return max(4, min(MAX_PLACES // channel_places, max_bytes // channel_bytes) // 4 * 4)


def filters_bytes(weights: Collection[Weight]) -> int:
    """The largest slice of 3x3 filters on its way to Winograd's layout, of a file with the smallest dtype."""
    max_bytes = batch_bytes(weights)

    def of(weight: Weight) -> int:
        *_, in_places, out_places = weight.tensor.shape
        most = channels_at_once(_SMALLEST_STORED_BYTES * math.prod(weight.source_shape[1:]), max_bytes)
        places = min(out_places // len(weight.paths), most)
        return TensorSpec("filters", (9, in_places, places), weight.tensor.dtype).size_bytes

    return max((of(weight) for weight in weights if weight.layout.startswith("winograd")), default=_ALIGNMENT_BYTES)


def loading_bytes(weights: Collection[Weight]) -> int:
    """All that is there while these weights are loaded in one go, besides them: two buffers that the host writes, their
    copy on the device, filters, and a flag for each weight, which is read back."""
    flags = TensorSpec("flags", (len(weights),), "u32").size_bytes
    return 3 * batch_bytes(weights) + filters_bytes(weights) + 2 * flags if weights else 0
