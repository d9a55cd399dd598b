"""A component's safetensors files: found, memory-mapped, checked. Pickle files are never opened."""

from __future__ import annotations

import json
import mmap
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, cast

import numpy as np
from safetensors import SafetensorError, safe_open

from shaderfusion.errors import ModelError, WeightsError
from shaderfusion.files import exists, is_file, is_folder, load_json, shown
from shaderfusion.kernels.common.prepare_weight import STORED_SIZE_BYTES, StoredDType
from shaderfusion.weights.names import name_candidates
from shaderfusion.weights.other_formats import CONVERT_PICKLE, NUM_BYTES, PICKLE_SUFFIXES, other_format

__all__ = ["VARIANTS", "Checkpoint", "MappedFile", "StoredTensor", "TensorSource", "find_weights", "read_index"]

VARIANTS = ("", "fp16", "bf16")
"""Of a component's weights, as diffusers names its files: the plain one is f32 where there are others."""

_F8_E4M3 = [(8 + m) * 2.0 ** (e - 10) if e else m * 2.0**-9 for e in range(16) for m in range(8)]
"""By the 7 lower bits, of which the last is NaN: Micikevicius et al. 2022, arXiv 2209.05433."""

_STEMS = ("diffusion_pytorch_model", "model")

# Bounds on headers, far beyond any model or adapter: what reads names may take long for long ones.
_LARGEST_HEADER_BYTES = 16_000_000
_MOST_TENSORS = 20_000
_LONGEST_NAME = 256


class StoredTensor(NamedTuple):
    """A tensor as a file stores it."""

    dtype: StoredDType
    data: np.ndarray
    """Its bytes, u8, row by row: a view of memory that may be a mapped file."""

    def to_f32(self) -> np.ndarray:
        """Its values, flat, all of which f32 holds exactly."""
        data = np.ascontiguousarray(self.data)
        match self.dtype:
            case "BF16":  # the upper half of an f32
                return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
            case "F8_E5M2":  # the upper half of an f16
                return (data.astype(np.uint16) << 8).view(np.float16).astype(np.float32)
            case "F8_E4M3":
                magnitudes = np.array([*_F8_E4M3[:-1], np.nan], np.float32)
                return np.concatenate([magnitudes, -magnitudes])[data]
            case "F32" | "F16":
                return data.view({"F32": "<f4", "F16": "<f2"}[self.dtype]).astype(np.float32)

    def rows(self, num_rows: int, rows: np.ndarray) -> StoredTensor:
        """A copy of those of its rows."""
        return StoredTensor(self.dtype, self.data.reshape(num_rows, -1)[rows].reshape(-1))

    def transposed(self, num_rows: int) -> StoredTensor:
        """A copy of the matrix with so many rows, as its columns."""
        values = self.data.reshape(num_rows, -1, STORED_SIZE_BYTES[self.dtype])
        return StoredTensor(self.dtype, values.transpose(1, 0, 2).reshape(-1))


class TensorSource(Protocol):
    """Where weights come from: the tensors of one component, by path and shape."""

    def find(self, path: str, shape: tuple[int, ...]) -> str:
        """The tensor's name in this source; WeightsError where it is missing or of another shape or dtype."""
        ...

    def read(self, path: str, shape: tuple[int, ...]) -> StoredTensor:
        """The tensor; WeightsError as `find`."""
        ...

    def read_rows(self, path: str, shape: tuple[int, ...], rows: np.ndarray) -> StoredTensor:
        """Those rows of the tensor: (*rows.shape, *shape[1:]). No other row is read."""
        ...


class _Entry(NamedTuple):
    """One tensor of a file's header."""

    file: MappedFile
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Checkpoint:
    """The tensors of one component's folder, or of one safetensors file, by name. Opening it reads headers alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metadata: dict[str, str] = {}
        """What the files say of themselves."""
        self._entries: dict[str, _Entry] = {}
        for path_of_file in [path] if exists(path) and not is_folder(path) else _find_files(path):
            file = MappedFile(path_of_file)
            self.metadata |= file.metadata()
            self._entries |= file.entries()

    def __contains__(self, name: str) -> bool:
        return name in self._entries

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of all tensors, by name."""
        return {name: entry.shape for name, entry in self._entries.items()}

    def find(self, path: str, shape: tuple[int, ...]) -> str:
        """The tensor's name in this checkpoint; WeightsError where it is missing or of another shape or dtype."""
        for name in name_candidates(path):
            if name not in self._entries:
                continue
            file, dtype, actual, _, _ = self._entries[name]
            # 1x1 convolutions and linear layers hold the same numbers; releases differ in which they call it.
            if _without_ones(actual) != _without_ones(shape):
                raise WeightsError(
                    f"{file.path}: {name} has shape {shown(actual)}, must be {shape} by the model's configuration; "
                    "take the weights of that model"
                )
            if dtype not in STORED_SIZE_BYTES:
                known = ", ".join(STORED_SIZE_BYTES)
                raise WeightsError(f"{file.path}: {name} has dtype {dtype}, must be one of {known}; convert the file")
            return name
        raise WeightsError(
            f"{self.path}: the weights lack the tensor {path}, which the model's configuration asks for; take the "
            "weights of that model"
        )

    def read(self, path: str, shape: tuple[int, ...]) -> StoredTensor:
        """The tensor, not copied; WeightsError also where the file was cut since it was opened."""
        file, dtype, _, begin, end = self._entries[self.find(path, shape)]
        return StoredTensor(cast(StoredDType, dtype), file.read(begin, end))

    def read_rows(self, path: str, shape: tuple[int, ...], rows: np.ndarray) -> StoredTensor:
        """A copy of those rows: (*rows.shape, *shape[1:])."""
        return self.read(path, shape).rows(shape[0], rows)


class MappedFile:
    """A safetensors file in memory, as far as it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            if not path.is_file():  # to open a pipe would wait
                raise ValueError("it is no regular file")
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._header_bytes = 8 + int.from_bytes(self._map[:8], "little")
            if self._header_bytes > _LARGEST_HEADER_BYTES:
                raise ValueError(f"its header must have at most {_LARGEST_HEADER_BYTES:,} bytes")
            with safe_open(path, framework="numpy"):  # checks the header, and that offsets, shapes and size agree
                pass
            self._header = json.loads(self._map[8 : self._header_bytes])
        except (SafetensorError, OSError, ValueError) as error:
            damaged = f"not a whole safetensors file ({shown(str(error))}); download it again"
            raise WeightsError(f"{path}: {_other_format(path) or damaged}") from error
        if len(self._header) > _MOST_TENSORS or max(map(len, self._header), default=0) > _LONGEST_NAME:
            raise WeightsError(
                f"{path}: must hold at most {_MOST_TENSORS:,} tensors, with names of at most {_LONGEST_NAME} "
                "characters; choose another file"
            )

    @property
    def size_bytes(self) -> int:
        """Of the file as it was opened."""
        return len(self._map)

    def entries(self) -> dict[str, _Entry]:
        """All tensors, by name."""
        return {
            name: _Entry(self, tensor["dtype"], tuple(tensor["shape"]), *tensor["data_offsets"])
            for name, tensor in self._header.items()
            if name != "__metadata__"
        }

    def metadata(self) -> dict[str, str]:
        """The file's own, texts by name."""
        return self._header.get("__metadata__") or {}

    def read(self, begin: int, end: int) -> np.ndarray:
        """Those bytes of the data. WeightsError where the file is no longer as long: to touch them would end Python."""
        if self._map.size() < len(self._map):
            raise WeightsError(f"{self.path}: has become shorter since it was opened; download it again")
        return np.frombuffer(self._map, np.uint8, end - begin, self._header_bytes + begin)


def _other_format(path: Path) -> str | None:
    """As `other_format`; None where the file cannot be read."""
    if not is_file(path):
        return None
    try:
        with path.open("rb") as file:
            return other_format(file.read(NUM_BYTES))
    except OSError:
        return None


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def find_weights(names: Collection[str], variants: Sequence[str] = VARIANTS) -> str | None:
    """Of a component's files the one to read: a safetensors file or an index of shards, of the first variant there is.

    Of a variant there are `model.fp16.safetensors` and `model.safetensors.index.fp16.json`. None where there is no such
    file and not one other safetensors file alone.
    """
    for variant in variants:
        dotted = f".{variant}" if variant else ""
        for stem in _STEMS:
            for name in (f"{stem}{dotted}.safetensors", f"{stem}.safetensors.index{dotted}.json"):
                if name in names:
                    return name
    others = [name for name in names if name.endswith(".safetensors")]
    return others[0] if len(others) == 1 else None


def _find_files(folder: Path) -> list[Path]:
    """The component's safetensors files: one, or the shards of an index; f32 before other variants."""
    if not folder.is_dir():
        raise ModelError(f"{folder}: the model has no such component folder; it must be a diffusers model folder")
    names = sorted(path.name for path in folder.glob("*") if path.is_file())
    found = find_weights(names)
    if found:
        return _find_shards(folder / found) if found.endswith(".json") else [folder / found]
    weights = [name for name in names if name.endswith(".safetensors")]
    if weights:
        raise ModelError(
            f"{folder}: which weights to use is unclear ({', '.join(weights)}); name one {_STEMS[0]}.safetensors"
        )
    pickles = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
    if pickles:
        raise ModelError(f"{folder / pickles[0]}: {CONVERT_PICKLE}")
    raise ModelError(f"{folder}: no .safetensors file here; download the model's weights in that format")


def _find_shards(index: Path) -> list[Path]:
    files = [index.parent / name for name in read_index(index)]
    for path in files:
        if not exists(path):
            raise WeightsError(f"{path}: this shard is missing; download it, {index.name} asks for it")
    return files


def read_index(index: Path) -> list[str]:
    """Names of the shards, sorted; WeightsError where the file is no index."""
    try:
        return sorted({str(name) for name in load_json(index)["weight_map"].values()})
    except ModelError as error:
        raise WeightsError(str(error)) from None
    except (KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index}: not a safetensors index ({error}); download it again") from error
