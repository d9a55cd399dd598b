"""Verified, warmed-up measurements on the GPU's own clock; every row says on what it was made."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import shaderfusion
from shaderfusion.gpu.device import Device, open_device
from shaderfusion.graph.graph import Graph
from shaderfusion.graph.program import Program
from shaderfusion.kernels.call import KernelCall
from shaderfusion.kernels.select import Kernels
from shaderfusion.pipeline import make_kernels

__all__ = ["Case", "Measurement", "environment", "main", "measure", "program_of"]


@dataclass(frozen=True)
class Measurement:
    """Milliseconds of `num_runs` runs of one program."""

    name: str
    p20_ms: float
    p50_ms: float
    p80_ms: float
    num_runs: int
    flop: float = 0.0

    @property
    def tflop_per_s(self) -> float:
        """At the median."""
        return self.flop / self.p50_ms / 1e9

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "tflop_per_s": self.tflop_per_s}


@dataclass(frozen=True)
class Case:
    """What to time, and how to check it first: `expect` gives out[where] in float64 for the random inputs."""

    name: str
    calls: Sequence[KernelCall]
    expect: Callable[[dict[str, np.ndarray]], np.ndarray]
    where: Any
    flop: float


def main(cases: Callable[[Kernels], Iterable[Case]], description: str | None) -> None:
    """A benchmark's command line: a table, the environment, and with --output all rows as JSON."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", help="index or part of the name (`shaderfusion devices`)")
    parser.add_argument("--output", type=Path, help="JSON file of the rows")
    args = parser.parse_args()
    device = open_device(args.device)
    where = environment(device)
    rows = []
    for case in cases(make_kernels(device, device.info.default_dtype)):
        program, arrays = program_of(device, case.calls)
        program.run()
        expected = case.expect(arrays)
        error = np.linalg.norm(program.read("out")[case.where] - expected) / np.linalg.norm(expected)
        timed = measure(case.name, program, flop=case.flop)
        rows.append({**timed.as_dict(), "relative_error": float(error), "dispatches": len(case.calls), **where})
        print(f"{case.name:24} {timed.p50_ms:9.4f} ms {timed.tflop_per_s:7.2f} TFLOP/s  error {error:.1e}")
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    if args.output:
        args.output.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def environment(device: Device) -> dict[str, str]:
    """Device, driver, package version, commit and date of a row."""
    root = Path(__file__).parents[1]
    git = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    described = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    commit = os.environ.get("SHADERFUSION_COMMIT", described)  # set where a copy without git is measured
    return {
        "device": device.info.name,
        "driver": device.info.driver,
        "backend": device.info.backend,
        "version": shaderfusion.__version__,
        "commit": commit or "unknown",
        "date": datetime.now(UTC).date().isoformat(),
    }


def program_of(device: Device, calls: Sequence[KernelCall], *, seed: int = 0) -> tuple[Program, dict[str, np.ndarray]]:
    """A program of these calls whose inputs hold standard normal values, and those values.

    Tensors with the role input are filled, those with the role output can be read.
    """
    graph = Graph("benchmark", Kernels(calls[0].dtype))
    graph.calls = list(calls)
    tensors = {binding.tensor.storage for call in calls for binding in call.bindings}
    graph.inputs = {tensor.name: tensor for tensor in tensors if tensor.role == "input"}
    graph.outputs = {tensor.name: tensor for tensor in tensors if tensor.role == "output"}
    program = Program(device, graph, {})
    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for name, tensor in sorted(graph.inputs.items()):
        dtype = np.float16 if tensor.dtype == "f16" else np.float32
        arrays[name] = rng.standard_normal(tensor.shape, np.float32).astype(dtype)
        program.write(name, arrays[name])
    return program, arrays


def measure(name: str, program: Program, *, flop: float = 0.0, num_runs: int = 20, num_warm_up: int = 3) -> Measurement:
    """Warm up, then time whole runs with GPU timestamps."""
    for _ in range(num_warm_up):
        program.run()
    times_ms = [program.time_ms() for _ in range(num_runs)]
    p20, p50, p80 = (float(p) for p in np.percentile(times_ms, (20, 50, 80)))
    return Measurement(name, p20, p50, p80, num_runs, flop)
