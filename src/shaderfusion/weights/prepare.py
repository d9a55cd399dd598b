"""Weights as a file stores them to GPU buffers in the kernels' layout and dtype, converted and checked there."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from shaderfusion.errors import ShapeError, WeightsError
from shaderfusion.gpu.buffers import NUMPY_DTYPES, allocate, download
from shaderfusion.gpu.device import Device
from shaderfusion.gpu.staging import Staging
from shaderfusion.graph.graph import Graph, Weight
from shaderfusion.graph.program import Buffers, Program
from shaderfusion.kernels.call import KernelCall, ceil_div
from shaderfusion.kernels.common.prepare_weight import (
    MAX_PLACES,
    NOT_FINITE,
    OVER_F16,
    Places,
    StoredDType,
    prepare_weight,
)
from shaderfusion.kernels.optimized.winograd_conv import winograd_filters
from shaderfusion.kernels.select import Kernels
from shaderfusion.tensor import VIEW_ALIGNMENT_BYTES, TensorSpec
from shaderfusion.weights.checkpoint import StoredTensor, TensorSource

__all__ = ["load_weights", "read_rows"]

_BATCH_BYTES = 8 << 20
"""Stored bytes that one submit uploads and prepares; two are in flight at most."""


def load_weights(device: Device, weights: Iterable[Weight], source: TensorSource) -> Buffers:
    """Buffers of all weights. All names and shapes are checked before the first is read.

    WeightsError names the first weight with NaN, or with values over the range of its dtype.
    """
    weights = list(weights)
    for weight in weights:
        source.find(weight.path, weight.source_shape)
    buffers: Buffers = {}
    if not weights:
        return buffers
    try:
        for weight in weights:
            buffers[weight.tensor] = allocate(device, weight.tensor.size_bytes, weight.tensor.name)
        flags = TensorSpec("weights.flags", (len(weights),), "u32", "output")
        batch = _Batch(device, buffers, _batch_bytes(weights))
        for index, weight in enumerate(weights):
            stored = source.read(weight.path, weight.source_shape)
            for part in _slices(weight, stored, batch.max_bytes):
                words = batch.upload(part.data)
                calls = _prepare_calls(words, weight, part, stored.dtype, flags, index)
                batch.calls += (replace(call, label=f"{weight.tensor.name}/{call.name}") for call in calls)
        batch.submit()
        for weight, found in zip(weights, batch.read(flags).tolist(), strict=True):
            _require_numbers(weight.tensor, is_finite=not found & NOT_FINITE, fits_f16=not found & OVER_F16)
    except BaseException:
        for buffer in buffers.values():
            buffer.destroy()
        raise
    return buffers


def read_rows(source: TensorSource, table: Weight, rows: np.ndarray) -> np.ndarray:
    """Those rows of a table that stays in its file, in the dtype of its tensor: (*rows.shape, C).

    WeightsError where they hold NaN, or values over the range of the dtype.
    """
    values = source.read_rows(table.path, table.source_shape, rows).to_f32()
    is_finite = bool(np.isfinite(values).all())
    _require_numbers(table.tensor, is_finite=is_finite, fits_f16=bool((np.abs(values) < 65520).all()))
    return values.astype(NUMPY_DTYPES[table.tensor.dtype]).reshape(*rows.shape, *table.source_shape[1:])


def _require_numbers(tensor: TensorSpec, *, is_finite: bool, fits_f16: bool) -> None:
    if not is_finite:
        raise WeightsError(f"{tensor.name}: has NaN or infinite values; the file is damaged, download it again")
    if tensor.dtype == "f16" and not fits_f16:
        raise WeightsError(f"{tensor.name}: has values over the range of f16; use dtype f32")


def _batch_bytes(weights: list[Weight]) -> int:
    """For all weights if they are few, for 4 output channels if those are large, and as many f32 at most."""

    def aligned(values: int) -> int:
        return ceil_div(4 * values, VIEW_ALIGNMENT_BYTES) * VIEW_ALIGNMENT_BYTES

    shapes = [weight.source_shape for weight in weights]
    smallest = max(aligned(4 * math.prod(shape[1:])) for shape in shapes)
    return max(smallest, min(_BATCH_BYTES, sum(aligned(math.prod(shape)) for shape in shapes)))


class _Slice(NamedTuple):
    """Some of a weight's places of output channels, and the stored bytes of the channels that go there."""

    in_channels: Places
    out_channels: Places
    places: range
    data: np.ndarray


def _slices(weight: Weight, stored: StoredTensor, max_bytes: int) -> Iterator[_Slice]:
    """The whole weight in slices of at most so many stored bytes, or of 4 channels where those are more."""
    shape, tensor = weight.source_shape, weight.tensor
    if weight.layout == "as_is":  # as one row, in which rows that are padded are parts
        if tensor.shape[:-1] != shape[:-1]:
            raise ShapeError(f"{tensor}: only the last dimension of {shape} can be padded in the layout as_is")
        in_channels = Places(1, 1)
        out_channels = _places(math.prod(shape), tensor.size, math.prod(shape[:-1]) * weight.out_parts)
    else:
        in_channels = _places(shape[1], tensor.shape[-2], weight.in_parts)
        out_channels = _places(shape[0], tensor.shape[-1], weight.out_parts)
    channel_bytes = stored.data.size // out_channels.channels
    most = max(4, min(MAX_PLACES, max_bytes // channel_bytes) // 4 * 4)
    for first in range(0, out_channels.places, most):
        places = range(first, min(first + most, out_channels.places))
        begin, end = (channel_bytes * out_channels.channels_before(place) for place in (places.start, places.stop))
        if begin < end:  # else they stay zeros, as new buffers are
            yield _Slice(in_channels, out_channels, places, stored.data[begin:end])


def _places(channels: int, places: int, parts: int) -> Places:
    return Places(channels, places, parts if places > channels else 1)


def _prepare_calls(
    words: TensorSpec, weight: Weight, part: _Slice, stored: StoredDType, flags: TensorSpec, index: int
) -> Iterator[KernelCall]:
    """From the words of a slice to those places of the weight."""
    tensor = weight.tensor
    _, _, m = weight.layout.partition("winograd_")
    taps = math.prod(weight.source_shape[2:]) if weight.layout != "as_is" else 1
    if m:
        out = TensorSpec(f"{tensor.name}.filters", (9, part.in_channels.places, len(part.places)), tensor.dtype)
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


class _Batch:
    """Stored bytes on their way to the device, and the calls that prepare weights from them, submitted together."""

    def __init__(self, device: Device, buffers: Buffers, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.calls: list[KernelCall] = []
        self._device = device
        self._staging = Staging(device, max_bytes)
        self._words = TensorSpec("weights.words", (max_bytes // 4,), "u32", "input")
        self._external = {**buffers, self._words: allocate(device, self._words.size_bytes, self._words.name)}
        self._memory: list[Any] = []

    def upload(self, data: np.ndarray) -> TensorSpec:
        """The bytes as words on the device, for calls that come before the next upload."""
        if not self._staging.fits(data.size):
            self.submit()
        return self._words.rows(self._staging.write(data) // 4, ceil_div(data.size, 4))

    def submit(self) -> None:
        """Runs the calls."""
        self._staging.copy_to(self._external[self._words])
        graph = Graph("weights", Kernels("f32"))
        graph.calls = self.calls
        Program(self._device, graph, self._external, self._memory).run()
        self.calls = []

    def read(self, tensor: TensorSpec) -> np.ndarray:
        """Waits for all submits and reads an output of theirs."""
        return download(self._device, self._external[tensor], tensor)
