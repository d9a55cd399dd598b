"""Runs kernel calls on arrays, and compares with a float64 reference."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest

from shaderfusion.gpu.device import Device
from shaderfusion.graph.graph import Graph
from shaderfusion.graph.program import Program
from shaderfusion.kernels.call import KernelCall
from shaderfusion.kernels.capabilities import Capabilities
from shaderfusion.kernels.select import Kernels
from shaderfusion.kernels.tiles import MatrixTile, MatrixUnits
from shaderfusion.tensor import DType, TensorSpec

EMULATED = MatrixUnits(8, 8, 8, 8, emulated=True)
"""Matrix units that subgroups of 8 lanes stand in for, as llvmpipe has them."""

NUMPY = {"f16": np.float16, "f32": np.float32}


def tensor_in(name: str, array: np.ndarray, dtype: DType = "f32") -> TensorSpec:
    """An input with the array's shape."""
    return TensorSpec(name, tuple(array.shape), dtype, "input")


def tensor_out(name: str, *shape: int, dtype: DType = "f32") -> TensorSpec:
    """An output of that shape."""
    return TensorSpec(name, shape, dtype, "output")


def run_calls(
    device: Device, calls: KernelCall | Sequence[KernelCall], inputs: dict[TensorSpec, np.ndarray], *outputs: TensorSpec
) -> list[np.ndarray]:
    """Fills every output with NaN, runs the calls once and returns the outputs as float64.

    Arrays have padding channels as all others, so that what kernels leave there is seen.
    """
    graph = Graph("test", Kernels("f32"))
    graph.calls = [calls] if isinstance(calls, KernelCall) else list(calls)
    graph.inputs = {tensor.name: replace(tensor, padding=0, base=tensor.storage) for tensor in inputs}
    graph.outputs = {out.name: replace(out, padding=0, base=out.storage) for out in outputs}
    program = Program(device, graph, {})
    for out in outputs:
        program.write(out.name, np.full(out.shape, np.nan))
    for tensor, array in inputs.items():
        program.write(tensor.name, array)
    program.run()
    return [program.read(out.name).astype(np.float64) for out in outputs]


def own_units(device: Device) -> MatrixUnits | None:
    """The device's matrix units; None where it emulates them. Skips the test where it can do neither."""
    can = device.capabilities
    has_eight_lanes = can.has_subgroups and (can.subgroup_sizes == (8, 8) or can.is_cpu)  # llvmpipe through wgpu
    if can.matrix_units is None and not (has_eight_lanes and can.has_f16):
        pytest.skip("this device has no matrix units, nor f16 and subgroups of 8 lanes to emulate them")
    return can.matrix_units


@dataclass(frozen=True)
class _Emulating(Capabilities):
    """Of a device whose matrix units are the lanes of its subgroups."""

    @property
    def matrix_units(self) -> MatrixUnits:
        """Of the least size."""
        return EMULATED


def own_capabilities(device: Device) -> Capabilities:
    """The device's with its own matrix units, or with emulated ones and small workgroups, as those are slow."""
    if own_units(device):
        return device.capabilities
    return _Emulating(has_subgroups=True, subgroup_sizes=(8, 8), max_invocations=32, max_workgroup_size_x=32)


def matrix_tile(device: Device) -> MatrixTile:
    """Of a product on the device's matrix units, or on emulated ones: small, as those compile slowly."""
    units = own_units(device)
    return MatrixTile(64, 64, 32, 2, 2, units) if units else MatrixTile(16, 16, 16, 2, 1, EMULATED)


def skip_without(device: Device, needed: Capabilities) -> None:
    """Skips the test where the device lacks a feature of those capabilities."""
    for name in ("has_f16", "has_int64", "has_subgroups"):
        if getattr(needed, name) and not getattr(device.capabilities, name):
            pytest.skip(f"this device lacks {name.removeprefix('has_')}")
    if not set(needed.matrix_shapes) <= set(device.capabilities.matrix_shapes):
        pytest.skip("this device lacks matrix units of that shape")


def rounded(array: np.ndarray, dtype: DType) -> np.ndarray:
    """What the device holds of an array, as float64."""
    return array.astype(NUMPY[dtype]).astype(np.float64)


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Norm of the difference over the norm of the expected array; NaN anywhere gives NaN, which no bound passes."""
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
