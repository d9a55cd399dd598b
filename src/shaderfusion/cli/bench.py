"""`shaderfusion bench`: this device, measured."""

import argparse
from pathlib import Path
from typing import Any

from shaderfusion.cli.options import (
    DTYPE_OF_DEVICE,
    add_batch,
    add_device,
    add_dtype,
    add_memory_at_once,
    add_size,
    add_tuning,
    not_empty,
)

__all__ = ["add_parser"]

BENCHMARKS = {
    "ablation": "the five optimizations, one after the other: time, memory, seconds of a picture",
    "winograd": "Winograd's tile sizes beside the direct convolution: time and error by layer",
    "kernels": "every distinct dispatch alone: time, rates, share of what the device can do",
    "profile": "where the time of each network goes, by kernel",
}
CHARTED = ("ablation", "winograd")


def add_parser(commands: Any) -> None:
    """`shaderfusion bench`, for the parser of commands."""
    bench = commands.add_parser("bench", help="measure this device", allow_abbrev=False)
    benchmarks = bench.add_subparsers(title="benchmarks", metavar="BENCHMARK", required=True)
    for name, meaning in BENCHMARKS.items():
        benchmark = benchmarks.add_parser(name, help=meaning, allow_abbrev=False)
        benchmark.set_defaults(command=_run, benchmark=name, plot=None)
        meaning = (
            "`sd14`, `sd21` or `sdxl`, with random weights, `emoji`, or a folder; default: sd14, and emoji on a CPU"
        )
        benchmark.add_argument("--model", type=not_empty, metavar="MODEL", help=meaning)
        add_size(benchmark)
        add_batch(benchmark)
        add_device(benchmark)
        add_dtype(benchmark, DTYPE_OF_DEVICE)
        add_tuning(benchmark, "off")
        add_memory_at_once(benchmark)
        benchmark.add_argument(
            "--json", type=Path, metavar="FILE.json", help="write all rows, each when it is measured"
        )
        benchmark.add_argument("--markdown", type=Path, metavar="FILE.md", help="write the tables")
        if name in CHARTED:
            benchmark.add_argument("--plot", type=Path, metavar="FILE.png", help="write a chart (needs matplotlib)")


def _run(args: argparse.Namespace) -> None:
    from shaderfusion.bench.command import run_benchmark

    run_benchmark(
        args.benchmark,
        model=args.model,
        device=args.device,
        runtime=args.runtime,
        dtype=args.dtype,
        width=args.width,
        height=args.height,
        batch=args.batch,
        tuning=args.tuning,
        memory=args.memory,
        json_path=args.json,
        markdown_path=args.markdown,
        plot_path=args.plot,
    )
