"""Adapters' changes of one tensor, merged on the device: the calls that do it, and what they read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from shaderfusion.kernels.call import KernelCall
from shaderfusion.kernels.common.add_product import add_product
from shaderfusion.kernels.common.magnitude_scales import magnitude_scales
from shaderfusion.kernels.common.matmul import Epilogue
from shaderfusion.kernels.select import Kernels
from shaderfusion.tensor import TensorSpec
from shaderfusion.weights.checkpoint import TensorSource
from shaderfusion.weights.lora.kinds import Change, Decomposed, Matrix, Product, Whole

__all__ = ["NO_PATCHES", "Merge", "Patch", "Patches", "Scales"]


class Patch(NamedTuple):
    """W + sum_i strength_i (changed by i alone - W): the order of adapters does not matter, and neither does, to DoRA's
    norms, what others add. ComfyUI's meaning of a strength; of DoRA's PEFT differs, which scales within the norm."""

    changes: tuple[tuple[Change, float], ...]

    @property
    def by_input(self) -> list[Decomposed]:
        """DoRAs whose norms are of values from all rows."""
        return [change for change, _ in self.changes if isinstance(change, Decomposed) and change.by_input]


Patches = Mapping[TensorSource, Mapping[str, Patch]]
"""By source and path."""

NO_PATCHES: Patches = {}


class Scales(NamedTuple):
    """Of DoRA's channels, all (G,), on the device."""

    magnitudes: TensorSpec
    squares: TensorSpec
    """Of the norms, so far; at first 0."""
    scales: TensorSpec

    @classmethod
    def place(cls, place: Callable[[np.ndarray], TensorSpec], change: Decomposed, rows: range | None = None) -> Scales:
        """With magnitudes of all channels, or of those of some rows."""
        magnitudes = change.magnitude.values().reshape(-1)
        magnitudes = magnitudes if rows is None else magnitudes[rows.start : rows.stop]
        return cls(*map(place, (magnitudes, *np.zeros((2, magnitudes.size), np.float32))))


class Merge:
    """Merges changes into some rows of one tensor, in f32. `calls` read those rows, and what is placed for them."""

    def __init__(self, kernels: Kernels, place: Callable[[np.ndarray], TensorSpec], weight: TensorSpec, rows: range):
        """weight: (len(rows), N), which is changed; `place` gives an array on the device."""
        self.calls: list[KernelCall] = []
        self._kernels = kernels
        self._place = place
        self._weight = weight
        self._rows = rows

    def merge(self, patch: Patch, by_input: Mapping[Decomposed, Scales]) -> TensorSpec:
        """The rows with all changes; `by_input` has been measured on all rows of the tensor."""
        replaced = [strength for change, strength in patch.changes if isinstance(change, Decomposed)]
        merged = self._copy("merged", 1 - sum(replaced)) if replaced else self._weight
        for change, strength in patch.changes:
            if isinstance(change, Product):
                self._add(change, strength, merged)
                continue
            if change.by_input:
                changed, scales = self._changed(change), by_input[change].scales
            else:
                own = Scales.place(self._place, change, self._rows)
                changed, scales = self.measure(change, own), own.scales
            rows, N = changed.shape
            scales = scales.reshape(*((1, 1, scales.size) if change.by_input else (rows, 1, 1)))
            self.calls.append(add_product(merged, changed.reshape(rows, 1, N), scales, scale=_f32(strength)))
        return merged

    def measure(self, change: Decomposed, scales: Scales) -> TensorSpec:
        """Adds to the squares the rows with the change's product, and returns these."""
        changed = self._changed(change)
        rows, N = changed.shape
        G = scales.scales.size
        channels = changed.reshape(rows, G, N // G) if change.by_input else changed.reshape(1, rows, N)
        self.calls.append(magnitude_scales(channels, *scales))
        return changed

    def _changed(self, change: Decomposed) -> TensorSpec:
        changed = self._copy("changed")
        self._add(change.product, 1.0, changed)
        return changed

    def _copy(self, name: str, scale: float = 1.0) -> TensorSpec:
        copy = TensorSpec(name, self._weight.shape, "f32")
        self.calls += self._kernels.affine(self._weight, copy, scale=_f32(scale))
        return copy

    def _add(self, product: Product, strength: float, out: TensorSpec) -> None:
        """Adds strength times the product, of which Kronecker's takes whole matrices for any rows."""
        rows = None if product.is_kronecker else self._rows
        of = {"first_row": self._rows.start, "num_rows": product.size[0]} if product.is_kronecker else {}
        left = product.left and self._matrix(product.left, rows)
        scale = _f32(strength * product.scale)
        self.calls.append(add_product(out, self._matrix(product.matrix, rows), left, scale=scale, **of))

    def _matrix(self, matrix: Matrix, rows: range | None) -> TensorSpec:
        """Those rows of a matrix, or all, (M, T, C) as `add_product` has it."""
        if isinstance(matrix, Whole):
            values = matrix.tensor.matrix(rows)
            return self._place(values).reshape(len(values), 1, values.shape[1])
        up, core, down = matrix.factors(rows)
        taps = 1
        x = self._place(_padded(up, 1))
        if core is not None:
            taps = core.shape[2]
            core = _padded(core.swapaxes(1, 2), 0, 2)
            x = self._times(x, core.reshape(len(core), -1))
            x = x.reshape(len(up) * taps, x.shape[1] // taps)
        out = self._times(x, _padded(down, 0, 1), padding=-down.shape[1] % 4)
        return out.reshape(len(up), taps, out.shape[1])

    def _times(self, x: TensorSpec, factor: np.ndarray, padding: int = 0) -> TensorSpec:
        """x times a factor, of which so many columns are padding."""
        out = TensorSpec("product", (x.shape[0], factor.shape[1]), "f32", padding=padding)
        self.calls += self._kernels.matmul(x, self._place(factor), out, Epilogue())
        return out


def _padded(array: np.ndarray, *axes: int) -> np.ndarray:
    """With zeros, to multiples of 4."""
    return np.pad(array, [(0, -size % 4 if axis in axes else 0) for axis, size in enumerate(array.shape)])


def _f32(value: float) -> float:
    """Over its range infinite: what is then not finite is found where the weight is prepared."""
    with np.errstate(over="ignore"):
        return float(np.float32(value))
