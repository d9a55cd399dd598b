"""Weights as a file stores them to GPU buffers in the kernels' layout and dtype, converted and checked there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
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
from shaderfusion.kernels.common.matmul import Epilogue
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
from shaderfusion.weights.lora.kinds import Factors
from shaderfusion.weights.lora.merge import NO_PATCHES, Patch, Patches
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
                tensors, factors = _read(weight, source, patches.get(source, {}))
                if is_small(weight):
                    values, found_on_host[index] = _prepare_on_host(weight, tensors)
                    batch.write(values, buffers[weight.tensor])
                    continue
                for part in slices(weight, tensors, batch.max_bytes):
                    words, stored = batch.upload(part.data), part.stored
                    calls: list[KernelCall] = []
                    if own := factors[part.tensor]:
                        words, calls = batch.add_product(words, part, own, index)
                        stored = "F32"
                    filters = batch.filters[weight.tensor.dtype]
                    calls += prepare_calls(words, stored, weight, part, batch.flags, filters, index)
                    batch.calls += (replace(call, label=f"{weight.tensor.name}/{call.name}") for call in calls)
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


def _read(
    weight: Weight, source: TensorSource, patches: Mapping[str, Patch]
) -> tuple[list[StoredTensor], list[Factors | None]]:
    """Its tensors, with what adapters change in them merged as far as the device does not, which has the factors."""
    tensors: list[StoredTensor] = []
    factors: list[Factors | None] = []
    for path in weight.paths:
        tensor, own = source.read(path, weight.source_shape), None
        if path in patches:
            tensor, own = patches[path].merge(tensor, keep_factors=weight.layout != "as_is")
        tensors.append(tensor)
        factors.append(own)
    return tensors, factors


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
        self.calls: list[KernelCall] = []
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
        self._factors: dict[TensorSpec, Any] = {}
        """Buffers that only the calls of this batch read."""
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
        self._free_factors()
        for buffer in set(self._own.values()):
            buffer.destroy()

    def upload(self, data: np.ndarray) -> TensorSpec:
        """The bytes as words on the device, for calls that come before the next upload."""
        if not self._staging.fits(data.size):
            self._submit()
        return self._words.rows(self._staging.write(data) // 4, ceil_div(data.size, 4))

    def add_product(
        self, words: TensorSpec, part: Slice, factors: Factors, index: int
    ) -> tuple[TensorSpec, list[KernelCall]]:
        """The words, in f32, of a slice with the rows of a product added; and the calls that make them."""
        rows, N = len(part.channels), factors.down.shape[1]
        up, down = self._place("up", factors.up[part.channels]), self._place("down", factors.down)
        stored = TensorSpec("stored", (rows, N), "f32")
        merged = TensorSpec("merged", (rows, N), "f32")
        one, all_values = Places(1, 1), Places(rows * N, rows * N)
        own = {"stored": part.stored, "in_channels": one, "out_channels": all_values, "weight": index}
        calls = [prepare_weight(words, stored.reshape(1, 1, rows * N), self.flags, **own)]
        calls += self._kernels.matmul(up, down, merged, Epilogue(residual=stored))
        return replace(merged, shape=(rows * N,), dtype="u32", base=merged), calls

    def _place(self, name: str, array: np.ndarray) -> TensorSpec:
        """An array on the device, until the calls so far are done."""
        tensor = TensorSpec(f"adapters.{name}", array.shape, "f32", "weight")
        self._factors[tensor] = allocate(self._device, tensor.size_bytes, tensor.name)
        upload(self._device, self._factors[tensor], tensor, array)
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
        graph.calls = self.calls
        program = Program(self._device, graph, {**self._buffers, **self._factors}, self._arena)
        self._pipelines.update(program.pipelines)
        self._staging.copy_to(self._own[self._words], self._writes)
        program.submit()
        if self._program:
            self._program.close()
        self._program, self.calls, self._writes = program, [], []
        self._free_factors()

    def _free_factors(self) -> None:
        for buffer in self._factors.values():
            buffer.destroy()  # what is submitted still reads them
        self._factors = {}
