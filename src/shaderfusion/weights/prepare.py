"""Weights as a file stores them to GPU buffers in the kernels' layout and dtype, converted and checked there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Self

import numpy as np

from shaderfusion.errors import WeightsError
from shaderfusion.gpu.buffers import NUMPY_DTYPES, allocate, download, upload
from shaderfusion.gpu.device import Device
from shaderfusion.gpu.pipelines import Pipeline
from shaderfusion.gpu.staging import Staging, Write
from shaderfusion.graph.arena import Arena
from shaderfusion.graph.graph import Graph, Weight
from shaderfusion.graph.program import Buffers, Program
from shaderfusion.kernels.call import KernelCall, ceil_div
from shaderfusion.kernels.common.prepare_weight import (
    F16_OVERFLOW,
    NOT_FINITE,
    OVER_F16,
    Places,
    prepare_weight,
)
from shaderfusion.kernels.select import Kernels
from shaderfusion.tensor import TensorSpec, dtype_size_bytes
from shaderfusion.weights.checkpoint import StoredTensor, TensorSource
from shaderfusion.weights.footprint import batch_bytes, filters_bytes, is_small
from shaderfusion.weights.lora.kinds import Decomposed
from shaderfusion.weights.lora.merge import NO_PATCHES, Merge, Patch, Patches, Scales
from shaderfusion.weights.slices import Slice, filters_room, places_in_one_row, prepare_calls, slices

__all__ = ["WeightLoader", "read_rows"]


class WeightLoader:
    """Loads weights to one device, with pipelines that it compiles once."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._pipelines: set[Pipeline] = set()

    def load(self, sources: Mapping[Weight, TensorSource], patches: Patches = NO_PATCHES) -> Buffers:
        """Buffers of weights, each from its source and what adapters change in it. All names and shapes are checked
        before the first is read.

        WeightsError names the first weight with NaN, or with values over the range of its dtype.
        """
        for weight, source in sources.items():
            for path in weight.paths:
                source.find(path, weight.source_shape)
        buffers: Buffers = {}
        try:
            for tensor in (weight.tensor for weight in sources):
                buffers[tensor] = allocate(self._device, tensor.size_bytes, tensor.name)
            self.refill(buffers, sources, patches)
        except BaseException:
            for buffer in buffers.values():
                buffer.destroy()
            raise
        return buffers

    def refill(self, buffers: Buffers, sources: Mapping[Weight, TensorSource], patches: Patches) -> None:
        """Writes weights to buffers that `load` has made; WeightsError as there, and then the buffers hold anything."""
        if not sources:
            return
        with _Batch(self._device, buffers, list(sources), self._pipelines) as batch:
            found_on_host: dict[int, int] = {}
            for index, (weight, source) in enumerate(sources.items()):
                batch.index = index
                tensors = [source.read(path, weight.source_shape) for path in weight.paths]
                adapted = [patches.get(source, {}).get(path) for path in weight.paths]
                if is_small(weight) and not any(adapted):
                    values, found_on_host[index] = _prepare_on_host(weight, tensors)
                    batch.write(values, buffers[weight.tensor])
                    continue
                parts = list(slices(weight, tensors, batch.max_bytes))
                scales = batch.measure(parts, adapted)
                for part in parts:
                    words, stored = batch.upload(part.data), part.stored
                    if patch := adapted[part.tensor]:
                        words, stored = batch.merge(words, part, patch, scales), "F32"
                    filters = batch.filters[weight.tensor.dtype]
                    batch.add(prepare_calls(words, stored, weight, part, batch.flags, filters, index))
            for index, (weight, found) in enumerate(zip(sources, batch.finish(), strict=True)):
                found |= found_on_host.get(index, 0)
                is_adapted = any(path in patches.get(sources[weight], {}) for path in weight.paths)
                flags = {"is_finite": not found & NOT_FINITE, "fits_f16": not found & OVER_F16}
                _require_numbers(weight.tensor, **flags, is_adapted=is_adapted)


def read_rows(source: TensorSource, table: Weight, rows: np.ndarray) -> np.ndarray:
    """Those rows of a table that stays in its file, in the dtype of its tensor: (*rows.shape, C).

    WeightsError where they hold NaN, or values over the range of the dtype.
    """
    (path,) = table.paths
    values = source.read_rows(path, table.source_shape, rows).to_f32()
    is_finite = bool(np.isfinite(values).all())
    _require_numbers(table.tensor, is_finite=is_finite, fits_f16=bool((np.abs(values) < F16_OVERFLOW).all()))
    return values.astype(NUMPY_DTYPES[table.tensor.dtype]).reshape(*rows.shape, *table.source_shape[1:])


def _require_numbers(tensor: TensorSpec, *, is_finite: bool, fits_f16: bool, is_adapted: bool = False) -> None:
    fits = fits_f16 or tensor.dtype != "f16"
    if is_adapted and not (is_finite and fits):
        raise WeightsError(
            f"{tensor.name}: with its adapters has NaN or values over the range of {tensor.dtype}; use "
            f"{'smaller strengths' if tensor.dtype == 'f32' else 'dtype f32 or smaller strengths'}"
        )
    if not is_finite:
        raise WeightsError(f"{tensor.name}: has NaN or infinite values; the file is damaged, download it again")
    if not fits:
        raise WeightsError(f"{tensor.name}: has values over the range of f16; use dtype f32")


def _prepare_on_host(weight: Weight, tensors: Sequence[StoredTensor]) -> tuple[np.ndarray, int]:
    """All bytes of the buffer of a weight as it is, and its flags, as prepare_weight finds them."""
    tensor, places = weight.tensor, places_in_one_row(weight)
    values = np.concatenate([stored.to_f32() for stored in tensors])
    is_finite = bool(np.isfinite(values).all())
    fits_f16 = bool((np.abs(values) < F16_OVERFLOW).all())
    padded = np.zeros(tensor.size_bytes // dtype_size_bytes(tensor.dtype), NUMPY_DTYPES[tensor.dtype])
    rows = padded[: places.places].reshape(places.parts, -1)
    with np.errstate(over="ignore"):
        rows[:, : places.part_channels] = values.reshape(places.parts, -1)
    return padded.view(np.uint8), (0 if is_finite else NOT_FINITE) | (0 if fits_f16 else OVER_F16)


class _Batch:
    """Stored bytes on their way to the device, and the calls that prepare weights from them, submitted together."""

    def __init__(self, device: Device, buffers: Buffers, weights: Sequence[Weight], pipelines: set[Pipeline]) -> None:
        """What it allocates is `footprint.loading_bytes`."""
        self.max_bytes = max_bytes = batch_bytes(weights)
        self.index = 0
        """Of the weight whose turn it is."""
        self._weights = weights
        self._calls: list[KernelCall] = []
        self._writes: list[Write] = []
        self.flags = TensorSpec("weights.flags", (len(weights),), "u32", "weight")
        self._words = TensorSpec("weights.words", (max_bytes // 4,), "u32", "weight")
        self._device = device
        self._pipelines = pipelines
        self._own = {spec: allocate(device, spec.size_bytes, spec.name) for spec in (self.flags, self._words)}
        room = allocate(device, filters_bytes(weights), "weights.filters")
        self.filters = {dtype: filters_room(dtype, room.size) for dtype in NUMPY_DTYPES}
        """By dtype, all in one buffer."""
        self._own |= dict.fromkeys(self.filters.values(), room)
        self._buffers = {**buffers, **self._own}
        self._arena = Arena(device)
        self._kept: Buffers = {}
        """Of adapters, until all weights are prepared."""
        self._placed: Buffers = {}
        """Of adapters, which only the calls until the next submit read."""
        self._kernels = Kernels("f32", device.capabilities)
        self._program: Program | None = None
        """The last one, which may be running."""
        self._staging = Staging(device, max_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._program:
            self._program.close()
        self._staging.close()
        self._arena.close()
        self._free(self._placed)
        self._free(self._kept)
        for buffer in set(self._own.values()):
            buffer.destroy()

    def upload(self, data: np.ndarray) -> TensorSpec:
        """The bytes as words on the device, for calls that come before the next upload."""
        placed_bytes = sum(tensor.size_bytes for tensor in self._placed)
        if not self._staging.fits(data.size) or placed_bytes > self.max_bytes:
            self._submit()
        return self._words.rows(self._staging.write(data) // 4, ceil_div(data.size, 4))

    def add(self, calls: Iterable[KernelCall]) -> None:
        """Of the weight whose turn it is."""
        name = self._weights[self.index].tensor.name
        self._calls += (replace(call, label=f"{name}/{call.name}") for call in calls)

    def measure(self, parts: Sequence[Slice], patches: Sequence[Patch | None]) -> dict[Decomposed, Scales]:
        """Of DoRAs by input channels, whose norms are of all slices of a tensor: these are uploaded once more."""
        scales: dict[Decomposed, Scales] = {}
        for part in parts:
            if (patch := patches[part.tensor]) and patch.by_input:
                merge = self._decode(self.upload(part.data), part)
                for change in patch.by_input:
                    if change not in scales:
                        scales[change] = Scales.place(partial(self._place, self._kept), change)
                    merge.measure(change, scales[change])
                self.add(merge.calls)
        return scales

    def merge(self, words: TensorSpec, part: Slice, patch: Patch, by_input: Mapping[Decomposed, Scales]) -> TensorSpec:
        """The words of a slice with its changes merged, in f32."""
        merge = self._decode(words, part)
        merged = merge.merge(patch, by_input)
        self.add(merge.calls)
        return replace(merged, shape=(merged.size,), dtype="u32", base=merged)

    def _decode(self, words: TensorSpec, part: Slice) -> Merge:
        """Of the slice in f32."""
        weight = TensorSpec("stored", (len(part.rows), part.columns), "f32")
        places = Places(weight.size, weight.size)
        out = weight.reshape(1, 1, weight.size)
        own = {"stored": part.stored, "in_channels": Places(1, 1), "out_channels": places, "weight": self.index}
        self.add([prepare_weight(words, out, self.flags, **own)])
        return Merge(self._kernels, partial(self._place, self._placed), weight, part.rows)

    def _place(self, buffers: Buffers, array: np.ndarray) -> TensorSpec:
        """An array on the device, as long as its buffer is among these."""
        tensor = TensorSpec("adapters", array.shape, "f32", "weight")
        buffers[tensor] = allocate(self._device, tensor.size_bytes, tensor.name)
        upload(self._device, buffers[tensor], tensor, array)
        return tensor

    def write(self, data: np.ndarray, buffer: Any) -> None:
        """The bytes as they are to the start of a buffer."""
        if not self._staging.fits(data.size):
            self._submit()
        self._writes.append(Write(self._staging.write(data), data.size, buffer))

    def finish(self) -> list[int]:
        """Runs all calls, waits for them, and returns the flags."""
        self._submit()
        return download(self._device, self._own[self.flags], self.flags).tolist()

    def _submit(self) -> None:
        graph = Graph("weights", Kernels("f32"))
        graph.calls = self._calls
        program = Program(self._device, graph, {**self._buffers, **self._kept, **self._placed}, self._arena)
        self._pipelines.update(program.pipelines)
        self._staging.copy_to(self._own[self._words], self._writes)
        program.submit()
        if self._program:
            self._program.close()
        self._program, self._calls, self._writes = program, [], []
        self._free(self._placed)

    def _free(self, buffers: Buffers) -> None:
        for buffer in buffers.values():
            buffer.destroy()  # what is submitted still reads them
        buffers.clear()
