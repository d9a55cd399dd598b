"""Checkpoint tensors to GPU buffers in the kernels' layout and dtype, one at a time, once."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from shaderfusion.errors import WeightsError
from shaderfusion.gpu.buffers import NUMPY_DTYPES, allocate, upload
from shaderfusion.gpu.device import Device
from shaderfusion.graph.graph import Weight, WeightLayout
from shaderfusion.graph.program import Buffers
from shaderfusion.kernels.optimized.winograd_conv import winograd_filters
from shaderfusion.weights.checkpoint import TensorSource

__all__ = ["load_weights", "prepare"]

_AXES = {"linear": (1, 0), "conv2d": (2, 3, 1, 0)}
"""graph.LAYOUT_SHAPES as permutations of the axes, where they are such."""


def load_weights(device: Device, weights: Iterable[Weight], checkpoint: TensorSource) -> Buffers:
    """Buffers of all weights. All names and shapes are checked before the first is read.

    On the host at most one tensor is held: as stored, as converted and as wgpu's copy of that for the transfer.
    """
    weights = list(weights)
    for weight in weights:
        checkpoint.find(weight.path, weight.source_shape)
    buffers: Buffers = {}
    for weight in weights:
        array = prepare(checkpoint.read(weight.path, weight.source_shape), weight)
        buffer = allocate(device, weight.tensor.size_bytes, weight.tensor.name)
        upload(device, buffer, weight.tensor, array)
        device.handle.queue.submit([])  # hands the transfer to the GPU, which frees wgpu's copy
        buffers[weight.tensor] = buffer
    return buffers


def prepare(array: np.ndarray, weight: Weight) -> np.ndarray:
    """A checkpoint's tensor in the layout, dtype and padded shape of the kernel; WeightsError for NaN or overflow."""
    tensor = weight.tensor
    dtype = NUMPY_DTYPES[tensor.dtype]
    out = np.zeros(tensor.shape, dtype)
    with np.errstate(over="ignore"):
        view = _to_layout(array, weight.layout, dtype)
        for axis, parts in ((-2, weight.in_parts), (-1, weight.out_parts)):
            if view.ndim >= -axis and view.shape[axis] != tensor.shape[axis]:
                pad = [(0, 0)] * view.ndim
                pad[axis] = (0, (tensor.shape[axis] - view.shape[axis]) // parts)
                view = np.concatenate([np.pad(part, pad) for part in np.split(view, parts, axis)], axis)
        out[...] = view
    if not np.isfinite(out).all():
        if np.isfinite(array.astype(np.float32, copy=False)).all():
            raise WeightsError(f"{tensor.name}: has values over the range of {tensor.dtype}; use dtype f32")
        raise WeightsError(f"{tensor.name}: has NaN or infinite values; the file is damaged, download it again")
    return out


def _to_layout(array: np.ndarray, layout: WeightLayout, dtype: Any) -> np.ndarray:
    if layout in _AXES:
        return array.transpose(_AXES[layout])
    _, _, m = layout.partition("winograd_")
    return winograd_filters(array, int(m), dtype) if m else array
