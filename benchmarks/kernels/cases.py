"""The command line of the pair-by-pair comparisons: cases that are checked, timed and written as rows."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shaderfusion.bench.measure import environment, measure, program_of, relative_error
from shaderfusion.gpu.device import open_device
from shaderfusion.kernels.call import KernelCall
from shaderfusion.kernels.select import Kernels

__all__ = ["Case", "main"]


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
    parser.add_argument("--runtime", default="auto", help="auto, wgpu or dawn")
    parser.add_argument("--output", type=Path, help="JSON file of the rows")
    args = parser.parse_args()
    device = open_device(args.device, runtime=args.runtime)
    where = environment(device)
    rows = []
    for case in cases(Kernels(device.info.default_dtype, device.capabilities)):
        program, arrays = program_of(device, case.calls)
        program.run()
        error = relative_error(program.read("out")[case.where], case.expect(arrays))
        timed = measure(program)
        rate = {"flop": case.flop, "tflop_per_s": case.flop / timed.p50_ms / 1e9}
        checked = {"relative_error": error, "dispatches": len(case.calls)}
        rows.append({"name": case.name, **asdict(timed), **rate, **checked, **where})
        print(f"{case.name:24} {timed.p50_ms:9.4f} ms {rate['tflop_per_s']:7.2f} TFLOP/s  error {error:.1e}")
    print(", ".join(f"{key} {value}" for key, value in where.items()))
    if args.output:
        args.output.write_text(json.dumps(rows, indent=1), encoding="utf-8")
