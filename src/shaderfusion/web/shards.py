"""A model's tensors as safetensors files of limited size, which a browser fetches, checks and keeps one by one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from shaderfusion.errors import ShapeError, WeightsError
from shaderfusion.kernels.common.prepare_weight import F16_OVERFLOW, STORED_SIZE_BYTES, StoredDType
from shaderfusion.weights.checkpoint import StoredTensor, TensorSource
from shaderfusion.weights.footprint import channels_at_once

__all__ = ["MAX_SHARD_BYTES", "Part", "Shards", "Stored", "Wanted"]

MAX_SHARD_BYTES = 32_000_000

_WRITE_BYTES = 4
"""What `queue.writeBuffer` copies is a multiple of it."""
_HEADER_ALIGNMENT_BYTES = 8


class Wanted(NamedTuple):
    """A tensor to store, and where it comes from."""

    source: TensorSource
    path: str
    shape: tuple[int, ...]
    is_table: bool = False
    """Whether the player reads rows of it, who knows f16 and f32 alone."""


class Part(NamedTuple):
    """Some rows of a tensor, in one shard."""

    shard: int
    offset: int
    """Of its first byte in the file."""
    rows: range


@dataclass
class Stored:
    """A tensor as the shards have it: whole, or in parts of its outermost rows."""

    dtype: StoredDType
    shape: tuple[int, ...]
    parts: list[Part] = field(default_factory=list)

    @property
    def row_bytes(self) -> int:
        """Of one of its outermost rows."""
        return math.prod(self.shape[1:]) * STORED_SIZE_BYTES[self.dtype]

    @property
    def size_bytes(self) -> int:
        """Of all."""
        return self.shape[0] * self.row_bytes

    def find(self, first_byte: int, num_bytes: int) -> tuple[int, int]:
        """The shard that has these of its bytes, and their offset there."""
        for part in self.parts:
            begin = first_byte - part.rows.start * self.row_bytes
            if begin >= 0 and begin + num_bytes <= len(part.rows) * self.row_bytes:
                return part.shard, part.offset + begin
        raise ShapeError(f"bytes {first_byte} to {first_byte + num_bytes} of {self.shape} must be in one shard")


class Shards:
    """Which tensor goes where. No values are read until `files` is asked for.

    With `narrow` values are rounded to f16, unless they take less already; else they stay as they are. What the player
    reads itself, and tensors whose bytes are no multiple of 4, are in f32 where they have to be.
    """

    def __init__(self, wanted: Mapping[str, Wanted], *, narrow: bool, batch_bytes: int) -> None:
        """By name. A tensor larger than a shard is cut where its slices of `batch_bytes` begin (weights.slices)."""
        self._wanted = wanted
        self.stored = {
            name: Stored(_stored_dtype(tensor, narrow=narrow), tensor.shape) for name, tensor in wanted.items()
        }
        self._shards: list[list[tuple[str, range]]] = []
        room = 0
        for name, stored in self.stored.items():
            at_once = channels_at_once(stored.row_bytes, batch_bytes)
            largest = MAX_SHARD_BYTES - _entry_bytes(name) - _entry_bytes("")
            most = max(at_once, largest // stored.row_bytes // at_once * at_once)
            if stored.size_bytes <= largest:
                most = stored.shape[0]
            for first in range(0, stored.shape[0], most):
                rows = range(first, min(first + most, stored.shape[0]))
                needed = len(rows) * stored.row_bytes + _entry_bytes(name)
                if needed > room:
                    self._shards.append([])
                    room = MAX_SHARD_BYTES - _entry_bytes("")
                room -= needed
                self._shards[-1].append((name, rows))
        for index, pieces in enumerate(self._shards):
            offset = len(self._header(pieces))
            for name, rows in pieces:
                self.stored[name].parts.append(Part(index, offset, rows))
                offset += len(rows) * self.stored[name].row_bytes

    def __len__(self) -> int:
        return len(self._shards)

    @property
    def size_bytes(self) -> int:
        """Of all values."""
        return sum(stored.size_bytes for stored in self.stored.values())

    def files(self) -> Iterator[bytes]:
        """Each shard, whole. WeightsError for a tensor with NaN, or with values over the range of f16."""
        for pieces in self._shards:
            yield b"".join([self._header(pieces), *(self._data(name, rows) for name, rows in pieces)])

    def _header(self, pieces: list[tuple[str, range]]) -> bytes:
        """Length and JSON, as safetensors wants them."""
        entries: dict[str, object] = {}
        begin = 0
        for name, rows in pieces:
            stored = self.stored[name]
            end = begin + len(rows) * stored.row_bytes
            key = name if len(rows) == stored.shape[0] else f"{name}.rows.{rows.start}"
            shape = [len(rows), *stored.shape[1:]]
            entries[key] = {"dtype": stored.dtype, "shape": shape, "data_offsets": [begin, end]}
            begin = end
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _HEADER_ALIGNMENT_BYTES)
        return len(text).to_bytes(8, "little") + text

    def _data(self, name: str, rows: range) -> bytes:
        source, path, shape, _ = self._wanted[name]
        stored, whole = self.stored[name], source.read(path, shape)
        own_row_bytes = len(whole.data) // shape[0]
        tensor = StoredTensor(whole.dtype, whole.data[rows.start * own_row_bytes : rows.stop * own_row_bytes])
        values = tensor.to_f32()
        if not np.isfinite(values).all():
            raise WeightsError(f"{name}: has NaN or infinite values; the file is damaged, download it again")
        if stored.dtype == "F16" and (np.abs(values) >= F16_OVERFLOW).any():
            raise WeightsError(f"{name}: has values over the range of f16; use dtype f32")
        if stored.dtype == tensor.dtype:
            return tensor.data.tobytes()
        return values.astype({"F16": "<f2", "F32": "<f4"}[stored.dtype]).tobytes()


def _stored_dtype(tensor: Wanted, *, narrow: bool) -> StoredDType:
    own = tensor.source.read(tensor.path, tensor.shape).dtype
    if STORED_SIZE_BYTES[own] >= 2 and narrow:
        own = "F16"
    size_bytes = math.prod(tensor.shape) * STORED_SIZE_BYTES[own]
    if size_bytes % _WRITE_BYTES or (tensor.is_table and own not in ("F16", "F32")):
        return "F32"
    return own


def _entry_bytes(name: str) -> int:
    """At most, of one tensor in a header: names, a shape of up to 5 dimensions, offsets, and of the header itself."""
    return len(json.dumps(name)) + 160
