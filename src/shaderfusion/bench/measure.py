"""One way to time a program, and what a row says about where it was made."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

import shaderfusion
from shaderfusion.bench.values import normal
from shaderfusion.errors import DeviceLimitError, GpuMemoryError
from shaderfusion.gpu.buffers import NUMPY_DTYPES
from shaderfusion.gpu.device import Device
from shaderfusion.graph.graph import Graph
from shaderfusion.graph.program import Program
from shaderfusion.kernels.call import Binding, KernelCall
from shaderfusion.kernels.select import Kernels
from shaderfusion.tensor import Role, TensorSpec

__all__ = [
    "DOES_NOT_FIT",
    "Measurement",
    "environment",
    "isolate",
    "measure",
    "program_of",
    "relative_error",
    "time_once_ms",
]

DOES_NOT_FIT = (DeviceLimitError, GpuMemoryError)
"""Errors of a device that is too small for one measurement, after which the others go on."""

_MIN_WARM_UP_S = 0.02
"""A GPU that idled meanwhile raises its clock first."""

_CHECKOUT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Measurement:
    """Milliseconds of `num_runs` runs of one program."""

    p20_ms: float
    p50_ms: float
    p80_ms: float
    num_runs: int
    clock: str
    """`GPU`, or `wall`, from the submission to the end, where the device has no timestamps."""


def measure(program: Program, *, num_runs: int = 20, num_warm_up: int = 3, max_s: float = 5.0) -> Measurement:
    """Warms up, then times whole runs; fewer than num_runs, but at least 3, once they take max_s."""
    on_gpu = program.device.info.has_timestamps
    started = time.perf_counter()
    while num_warm_up > 0 or time.perf_counter() - started < _MIN_WARM_UP_S:
        program.run()
        program.device.wait()
        num_warm_up -= 1
    times_ms: list[float] = []
    started = time.perf_counter()
    while len(times_ms) < num_runs and (len(times_ms) < 3 or time.perf_counter() - started < max_s):
        times_ms.append(time_once_ms(program))
    p20, p50, p80 = (float(p) for p in np.percentile(times_ms, (20, 50, 80)))
    return Measurement(p20, p50, p80, len(times_ms), "GPU" if on_gpu else "wall")


def time_once_ms(program: Program) -> float:
    """Of one run, on the GPU's clock where there is one."""
    if program.device.info.has_timestamps:
        return program.time_ms()
    started = time.perf_counter()
    program.run()
    program.device.wait()
    return 1e3 * (time.perf_counter() - started)


def program_of(device: Device, calls: Sequence[KernelCall]) -> tuple[Program, dict[str, np.ndarray]]:
    """A program of these calls, and the standard normal values that its inputs, tensors with that role, hold.

    Tensors with the role output can be read.
    """
    graph = Graph("benchmark", Kernels(calls[0].dtype))
    graph.calls = list(calls)
    tensors = {binding.tensor.storage for call in calls for binding in call.bindings}
    graph.inputs = {tensor.name: tensor for tensor in tensors if tensor.role == "input"}
    graph.outputs = {tensor.name: tensor for tensor in tensors if tensor.role == "output"}
    program = Program(device, graph, {})
    arrays: dict[str, np.ndarray] = {}
    for name, tensor in sorted(graph.inputs.items()):
        arrays[name] = normal(name, tensor.shape).astype(NUMPY_DTYPES[tensor.dtype])
        program.write(name, arrays[name])
    return program, arrays


def isolate(calls: Sequence[KernelCall], role: Role = "input") -> list[KernelCall]:
    """Calls of a graph as calls that stand alone: what they read and none of them wrote before gets that role."""
    copies: dict[TensorSpec, TensorSpec] = {}

    def copy(binding: Binding) -> Binding:
        storage = binding.tensor.storage
        if storage not in copies:
            own = "intermediate" if binding.access == "write" else role
            copies[storage] = TensorSpec(f"{len(copies)}: {storage.name}", storage.shape, storage.dtype, own)
        copied, tensor = copies[storage], binding.tensor
        view = replace(tensor, name=copied.name, role=copied.role, base=copied)
        return replace(binding, tensor=copied if tensor is storage else view)

    return [replace(call, bindings=tuple(copy(binding) for binding in call.bindings)) for call in calls]


def environment(device: Device) -> dict[str, str]:
    """Where and by what a row was measured. SHADERFUSION_COMMIT, if set, names the commit."""
    return {
        "device": device.info.name,
        "driver": device.info.driver,
        "backend": device.info.backend,
        "runtime": device.info.runtime,
        "version": shaderfusion.__version__,
        "commit": os.environ.get("SHADERFUSION_COMMIT") or _describe_checkout() or "unknown",
        "date": datetime.now(UTC).date().isoformat(),
    }


def _describe_checkout() -> str:
    """The commit of the checkout that this file is part of; empty where it is not or git is missing."""
    if not (_CHECKOUT / ".git").exists():
        return ""
    git = ["git", "-C", str(_CHECKOUT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Norm of the difference over the norm of the expected array, in float64."""
    expected = expected.astype(np.float64)
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))
