"""Adapters' changes of one tensor, together: what of them is merged on the host, and what is left for the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from shaderfusion.weights.checkpoint import StoredTensor, TensorSource
from shaderfusion.weights.lora.kinds import Change, Factors

__all__ = ["NO_PATCHES", "Patch", "Patches"]


class Patch(NamedTuple):
    """W + sum_i strength_i (changed by i alone - W): the order of adapters does not matter, and neither does, to DoRA's
    norms, what others add. ComfyUI's meaning of a strength; of DoRA's PEFT differs, which scales within the norm."""

    changes: tuple[tuple[Change, float], ...]

    def merge(self, stored: StoredTensor, *, keep_factors: bool) -> tuple[StoredTensor, Factors | None]:
        """The tensor with what has no short form added, in f32, and all that has one as a single product to add.

        Without `keep_factors`, or where the rows are not vectors of 4, which the device's product needs, all is added.
        """
        M, N = self.changes[0][0].size
        products: list[Factors] = []
        weight: np.ndarray | None = None
        added = np.float32(0)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is found where the weight is prepared
            for change, strength in self.changes:
                factors = change.factors() if keep_factors and N % 4 == 0 else None
                if factors:
                    products.append(Factors(np.float32(strength) * factors.up, factors.down))
                    continue
                if weight is None:
                    weight = stored.to_f32().reshape(M, N)
                added = added + np.float32(strength) * change.difference(weight)
            if weight is not None:
                merged = np.ascontiguousarray(weight + added, np.float32)
                stored = StoredTensor("F32", merged.reshape(-1).view(np.uint8))
        return stored, _side_by_side(products) if products else None


def _side_by_side(products: list[Factors]) -> Factors:
    """Their sum as one product, whose rank is rounded up to a multiple of 4 by zeros."""
    up, down = products[0]
    padding = -sum(factors.up.shape[1] for factors in products) % 4
    zeros = Factors(np.zeros((len(up), padding), np.float32), np.zeros((padding, down.shape[1]), np.float32))
    ups, downs = zip(*products, zeros, strict=True)
    return Factors(np.concatenate(ups, axis=1), np.concatenate(downs))


Patches = Mapping[TensorSource, Mapping[str, Patch]]
"""By source and path."""

NO_PATCHES: Patches = {}
