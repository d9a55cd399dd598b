"""Arrays as a source of weights."""

import numpy as np

from shaderfusion.errors import WeightsError
from shaderfusion.weights.checkpoint import StoredTensor


class ArraySource:
    """Tensors by path, as f32; counts what is read."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays
        self.read_paths: list[str] = []

    def find(self, path: str, shape: tuple[int, ...]) -> str:
        if path not in self.arrays or self.arrays[path].shape != shape:
            raise WeightsError(f"no {path} of shape {shape}")
        return path

    def read(self, path: str, shape: tuple[int, ...]) -> StoredTensor:
        self.read_paths.append(self.find(path, shape))
        return StoredTensor("F32", np.ascontiguousarray(self.arrays[path], np.float32).reshape(-1).view(np.uint8))

    def read_rows(self, path: str, shape: tuple[int, ...], rows: np.ndarray) -> StoredTensor:
        return StoredTensor("F32", self.arrays[path][rows].astype(np.float32).reshape(-1).view(np.uint8))
