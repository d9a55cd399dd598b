"""`shaderfusion verify`: a published model's pictures beside the values that diffusers' tests publish."""

import argparse
from typing import Any

from shaderfusion.cli.options import (
    add_device,
    add_dtype,
    add_json,
    add_model,
    add_optimizations,
    add_tuning,
)

__all__ = ["add_parser"]


def add_parser(commands: Any) -> None:
    """`shaderfusion verify`, for the parser of commands."""
    verify = commands.add_parser(
        "verify", help="compare a published model's pictures with diffusers' own values", allow_abbrev=False
    )
    verify.set_defaults(command=_run)
    add_model(verify, "model")
    meaning = "with commas between, such as sd14-pndm,sd14-ddim; default: all that the model's configuration fits"
    verify.add_argument("--cases", metavar="NAMES", help=meaning)
    add_device(verify)
    add_dtype(verify, "f32, as most of the values were made")
    add_optimizations(verify)
    add_tuning(verify, "auto")
    add_json(verify)


def _run(args: argparse.Namespace) -> int:
    from shaderfusion.verify.command import run_verify

    return run_verify(
        args.model,
        cases=args.cases,
        device=args.device,
        runtime=args.runtime,
        dtype=args.dtype or "f32",
        optimizations=args.optimizations,
        tuning=args.tuning,
        as_json=args.json,
    )
