"""A weight in slices: which stored bytes go to which of its places, and the calls that do it. Knows no device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from shaderfusion.errors import ShapeError
from shaderfusion.graph.graph import Weight
from shaderfusion.kernels.call import KernelCall
from shaderfusion.kernels.common.prepare_weight import Places, StoredDType, prepare_weight
from shaderfusion.kernels.optimized.winograd_conv import winograd_filters
from shaderfusion.tensor import DType, TensorSpec, dtype_size_bytes
from shaderfusion.weights.checkpoint import StoredTensor
from shaderfusion.weights.footprint import channels_at_once

__all__ = ["Slice", "filters_room", "places_in_one_row", "prepare_calls", "slices"]


class Slice(NamedTuple):
    """Some of a weight's places of output channels, and the stored bytes of the channels that go there."""

    tensor: int
    """Which of those that are side by side."""
    rows: range
    """Of that tensor as a matrix, whose rows are its first dimension."""
    columns: int
    in_channels: Places
    out_channels: Places
    places: range
    stored: StoredDType
    data: np.ndarray


def slices(weight: Weight, tensors: Sequence[StoredTensor], max_bytes: int) -> Iterator[Slice]:
    """The whole weight in slices, each of one tensor: of at most so many stored bytes, or of 4 channels."""
    shape, tensor, columns = weight.joined_shape, weight.tensor, math.prod(weight.source_shape[1:])
    row_channels = row_places = 1
    if weight.layout == "as_is":
        in_channels, out_channels = Places(1, 1), places_in_one_row(weight)
        row_channels, row_places = columns, tensor.size // tensor.shape[0]
    else:
        in_channels = _places(shape[1], tensor.shape[-2], weight.in_parts)
        out_channels = _places(shape[0], tensor.shape[-1], len(tensors) * weight.out_parts)
    num_places, num_channels = out_channels.places // len(tensors), out_channels.channels // len(tensors)
    for index, stored in enumerate(tensors):
        channel_bytes = stored.data.size // num_channels
        most = row_places * channels_at_once(row_channels * channel_bytes, max_bytes, row_places)
        end_place = (index + 1) * num_places
        for first in range(index * num_places, end_place, most):
            places = range(first, min(first + most, end_place))
            before = (out_channels.channels_before(place) for place in (places.start, places.stop))
            begin, end = (channel - index * num_channels for channel in before)
            if begin < end:  # else they stay zeros, as new buffers are
                rows = range(begin // row_channels, end // row_channels)
                data = stored.data[channel_bytes * begin : channel_bytes * end]
                yield Slice(index, rows, columns, in_channels, out_channels, places, stored.dtype, data)


def _places(channels: int, places: int, parts: int) -> Places:
    return Places(channels, places, parts if places > channels else 1)


def places_in_one_row(weight: Weight) -> Places:
    """Of all values of a weight as it is, where rows that are padded are parts."""
    shape, tensor = weight.joined_shape, weight.tensor
    if tensor.shape[:-1] != shape[:-1]:
        raise ShapeError(f"{tensor}: only the last dimension of {shape} can be padded in the layout as_is")
    num_rows = len(weight.paths) * math.prod(shape[:-1])
    return _places(math.prod(shape), tensor.size, num_rows * weight.out_parts)


def prepare_calls(
    words: TensorSpec,
    stored: StoredDType,
    weight: Weight,
    part: Slice,
    flags: TensorSpec,
    filters: TensorSpec,
    index: int,
) -> Iterator[KernelCall]:
    """From the words of a slice, of that dtype, to those places of the weight; `filters` has room for a slice's."""
    tensor = weight.tensor
    _, _, m = weight.layout.partition("winograd_")
    taps = math.prod(weight.source_shape[2:]) if weight.layout != "as_is" else 1
    if m:
        shape = (9, part.in_channels.places, len(part.places))
        out = filters.rows(0, math.prod(shape)).reshape(*shape)
    else:
        out = tensor.reshape(taps, part.in_channels.places, part.out_channels.places)
    yield prepare_weight(
        words,
        out,
        flags,
        stored=stored,
        in_channels=part.in_channels,
        out_channels=part.out_channels,
        out_slice=part.places,
        weight=index,
    )
    if m:
        filters = out.reshape(3, 3, *out.shape[1:])
        yield winograd_filters(filters, tensor, m=int(m), out_first_channel=part.places.start)


def filters_room(dtype: DType, size_bytes: int) -> TensorSpec:
    """So many bytes for the filters of any slice."""
    return TensorSpec("weights.filters", (size_bytes // dtype_size_bytes(dtype),), dtype, "weight")
