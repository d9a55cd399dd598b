"""Timing by either clock, calls that stand alone, and what a row says of its origin."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from shaderfusion.bench import measure as module
from shaderfusion.bench.measure import environment, isolate, measure, program_of, relative_error
from shaderfusion.gpu.device import Device
from shaderfusion.kernels.call import Binding, KernelCall
from shaderfusion.kernels.common.matmul import Epilogue, matmul
from shaderfusion.kernels.tiles import LaneTile, Tile
from shaderfusion.tensor import TensorSpec


def product(device: Device) -> tuple[KernelCall, ...]:
    """The calls of a linear layer whose tensors are a graph's."""
    tile = LaneTile() if device.info.kind == "CPU" else Tile()
    a, out = TensorSpec("a", (2, 32, 64), "f32"), TensorSpec("out", (64, 32), "f32", "output")
    weight, bias = TensorSpec("weight", (64, 32), "f32", "weight"), TensorSpec("bias", (32,), "f32", "weight")
    return matmul(a.reshape(64, 64), weight, out, Epilogue(bias=bias), tile=tile)


def test_isolated_calls_run_alone(device: Device) -> None:
    (call,) = isolate(product(device))
    call = dataclasses.replace(call, bindings=tuple(map(readable, call.bindings)))
    program, arrays = program_of(device, [call])
    program.run()
    a, weight, bias = (array.astype(np.float64) for array in (arrays["0: a"], arrays["1: weight"], arrays["3: bias"]))
    assert a.shape == (2, 32, 64)
    assert relative_error(program.read("2: out"), a.reshape(64, 64) @ weight + bias) < 1e-5


def readable(binding: Binding) -> Binding:
    """What is written as an output."""
    written = dataclasses.replace(binding.tensor, role="output")
    return Binding(written, binding.access) if binding.access == "write" else binding


def test_measure(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    program, _ = program_of(device, isolate(product(device)))
    timed = measure(program, num_runs=5)
    assert timed.clock == ("GPU" if device.info.has_timestamps else "wall")
    assert 0 < timed.p20_ms <= timed.p50_ms <= timed.p80_ms
    assert timed.num_runs == 5
    monkeypatch.setattr(device, "info", dataclasses.replace(device.info, has_timestamps=False))
    assert measure(program, num_runs=5).clock == "wall"
    assert measure(program, num_runs=5, max_s=0).num_runs == 3


def test_environment(device: Device, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SHADERFUSION_COMMIT", raising=False)
    where = environment(device)
    assert set(where) == {"device", "driver", "backend", "runtime", "version", "commit", "date"}
    assert all(where.values())
    monkeypatch.setattr(module, "_CHECKOUT", tmp_path)
    assert environment(device)["commit"] == "unknown"
    monkeypatch.setenv("SHADERFUSION_COMMIT", "abc")
    assert environment(device)["commit"] == "abc"


def test_relative_error() -> None:
    assert relative_error(np.array([3.0, 4.5]), np.array([3.0, 4.0], np.float16)) == pytest.approx(0.1)
