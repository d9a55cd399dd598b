"""A component's safetensors files: found, memory-mapped, checked. Pickle files are never opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open

from shaderfusion.config import CONVERT_PICKLE, PICKLE_SUFFIXES
from shaderfusion.errors import ModelError, WeightsError
from shaderfusion.files import exists, load_json
from shaderfusion.weights.names import name_candidates

__all__ = ["Checkpoint", "TensorSource"]

_STEMS = ("diffusion_pytorch_model", "model")
_DTYPES = ("F32", "F16", "BF16")


class TensorSource(Protocol):
    """Where weights come from: the tensors of one component, by name. See Checkpoint for the methods."""

    def find(self, path: str, shape: tuple[int, ...]) -> str: ...

    def read(self, path: str, shape: tuple[int, ...]) -> np.ndarray: ...

    def read_rows(self, path: str, shape: tuple[int, ...], rows: np.ndarray) -> np.ndarray: ...


class Checkpoint:
    """The tensors of one component's folder, by name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file_of: dict[str, Any] = {}
        self._path_of: dict[str, Path] = {}
        for path in _find_files(folder):
            try:
                handle: Any = safe_open(path, framework="numpy")
            except (SafetensorError, OSError) as error:
                raise WeightsError(f"{path}: not a whole safetensors file ({error}); download it again") from error
            for name in list(handle.keys()):
                self._file_of[name] = handle
                self._path_of[name] = path

    def find(self, path: str, shape: tuple[int, ...]) -> str:
        """The tensor's name in this checkpoint; WeightsError where it is missing or of another shape or dtype."""
        for name in name_candidates(path):
            if name not in self._file_of:
                continue
            stored, where = self._file_of[name].get_slice(name), self._path_of[name]
            actual, dtype = tuple(stored.get_shape()), stored.get_dtype()
            # 1x1 convolutions and linear layers hold the same numbers; releases differ in which they call it.
            if _without_ones(actual) != _without_ones(shape):
                raise WeightsError(f"{where}: {name} has shape {actual}, must be {shape} by the model's config.json")
            if dtype not in _DTYPES:
                raise WeightsError(f"{where}: {name} has dtype {dtype}, must be F32, F16 or BF16; convert the file")
            return name
        raise WeightsError(f"{self.folder}: the weights lack the tensor {path}, which the model's config.json asks for")

    def read(self, path: str, shape: tuple[int, ...]) -> np.ndarray:
        """The tensor in its stored dtype (f32, f16 or bf16) and the given shape."""
        file, name = self._locate(path, shape)
        array: np.ndarray = file.get_tensor(name)
        return array.reshape(shape)

    def read_rows(self, path: str, shape: tuple[int, ...], rows: np.ndarray) -> np.ndarray:
        """Those rows of the tensor, in its stored dtype: (*rows.shape, *shape[1:]). No other row is read."""
        file, name = self._locate(path, shape)
        table = file.get_slice(name)
        distinct, index = np.unique(rows, return_inverse=True)
        return np.concatenate([table[row : row + 1] for row in distinct.tolist()])[index.reshape(rows.shape)]

    def _locate(self, path: str, shape: tuple[int, ...]) -> tuple[Any, str]:
        """The open file that holds the tensor, and its name there."""
        name = self.find(path, shape)
        file = self._file_of[name]
        if file.get_slice(name).get_dtype() == "BF16":
            import ml_dtypes  # noqa: F401 - makes NumPy know bfloat16

        return file, name


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(size for size in shape if size != 1)


def _find_files(folder: Path) -> list[Path]:
    """The component's safetensors files: one, or the shards of an index; f32 before other variants."""
    if not folder.is_dir():
        raise ModelError(f"{folder}: the model has no such component folder; it must be a diffusers model folder")
    for stem in _STEMS:
        if (single := folder / f"{stem}.safetensors").is_file():
            return [single]
        if (index := folder / f"{stem}.safetensors.index.json").is_file():
            return _read_index(index)
    variants = sorted(folder.glob("*.safetensors"))
    if len(variants) == 1:
        return variants
    if variants:
        names = ", ".join(path.name for path in variants)
        raise ModelError(f"{folder}: which weights to use is unclear ({names}); name one {_STEMS[0]}.safetensors")
    pickles = sorted(path for suffix in PICKLE_SUFFIXES for path in folder.glob(f"*{suffix}"))
    if pickles:
        raise ModelError(f"{pickles[0]}: {CONVERT_PICKLE}")
    raise ModelError(f"{folder}: no .safetensors file here; download the model's weights in that format")


def _read_index(index: Path) -> list[Path]:
    try:
        shards = {str(name) for name in load_json(index)["weight_map"].values()}
    except ModelError as error:
        raise WeightsError(str(error)) from None
    except (KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index}: not a safetensors index ({error}); download it again") from error
    files = [index.parent / name for name in sorted(shards)]
    for path in files:
        if not exists(path):
            raise WeightsError(f"{path}: this shard is missing; download it, {index.name} asks for it")
    return files
