"""`shaderfusion tune`: the fastest kernels for this device."""

import argparse
from pathlib import Path
from typing import Any

from shaderfusion.cli.options import (
    DTYPE_OF_DEVICE,
    add_batch,
    add_device,
    add_dtype,
    add_memory_at_once,
    add_model,
    add_size,
    whole_number,
)

__all__ = ["add_parser"]


def add_parser(commands: Any) -> None:
    """`shaderfusion tune`, for the parser of commands."""
    tune = commands.add_parser("tune", help="find the fastest kernels for this device", allow_abbrev=False)
    tune.set_defaults(command=_run)
    add_model(tune, "model")
    add_size(tune)
    add_batch(tune)
    add_device(tune)
    add_dtype(tune, DTYPE_OF_DEVICE)
    add_memory_at_once(tune, default=None)
    meaning = "of the search; default: 40, on a CPU 120"
    tune.add_argument("--budget", type=whole_number(1, 60), metavar="SECONDS", help=meaning)
    meaning = "default: the user's cache folder, where the other commands find it"
    tune.add_argument("--output", type=Path, metavar="FILE.json", help=meaning)


def _run(args: argparse.Namespace) -> None:
    from shaderfusion.tune.command import run_tune

    run_tune(
        args.model,
        device=args.device,
        runtime=args.runtime,
        dtype=args.dtype,
        width=args.width,
        height=args.height,
        batch=args.batch,
        memory=args.memory,
        budget_s=args.budget,
        output=args.output,
    )
