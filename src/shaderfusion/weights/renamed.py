"""Tensors of a file that has them under other names, as parts of larger ones, or transposed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from shaderfusion.weights.checkpoint import Checkpoint, StoredTensor
from shaderfusion.weights.ldm_names import NUM_PARTS, StoredAs

__all__ = ["RenamedTensors"]


class RenamedTensors:
    """A TensorSource: a checkpoint's tensors by our paths; `names` gives where one may be, the usual place first."""

    def __init__(self, checkpoint: Checkpoint, names: Callable[[str], Iterable[StoredAs]]) -> None:
        self._checkpoint = checkpoint
        self._names = names
        self._found: dict[tuple[str, tuple[int, ...]], tuple[StoredAs, tuple[int, ...]]] = {}
        """Where each tensor is that was looked for, as of `_find`: loading looks for each several times."""

    def find(self, path: str, shape: tuple[int, ...]) -> str:
        """The name of the stored tensor; WeightsError where it is missing or of another shape or dtype."""
        return self._find(path, shape)[0].name

    def read(self, path: str, shape: tuple[int, ...]) -> StoredTensor:
        """The tensor, copied only where it is stored transposed."""
        stored_as, stored_shape = self._find(path, shape)
        stored = self._checkpoint.read(stored_as.name, stored_shape)
        if stored_as.transposed:
            return stored.transposed(stored_shape[0])
        if stored_as.part is not None:
            return StoredTensor(stored.dtype, np.split(stored.data, NUM_PARTS)[stored_as.part])
        return stored

    def read_rows(self, path: str, shape: tuple[int, ...], rows: np.ndarray) -> StoredTensor:
        """A copy of those rows: (*rows.shape, *shape[1:])."""
        return self.read(path, shape).rows(shape[0], rows)

    def _find(self, path: str, shape: tuple[int, ...]) -> tuple[StoredAs, tuple[int, ...]]:
        """Where the tensor is, and the shape of what is stored there."""
        if (path, shape) not in self._found:
            self._found[path, shape] = self._look_for(path, shape)
        return self._found[path, shape]

    def _look_for(self, path: str, shape: tuple[int, ...]) -> tuple[StoredAs, tuple[int, ...]]:
        places = list(self._names(path))
        place = next((place for place in places if place.name in self._checkpoint), places[0])
        if place.transposed:
            stored_shape = shape[::-1]
        else:
            stored_shape = shape if place.part is None else (NUM_PARTS * shape[0], *shape[1:])
        self._checkpoint.find(place.name, stored_shape)
        return place, stored_shape
