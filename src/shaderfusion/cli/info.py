"""`shaderfusion info`: what a model costs, without running it."""

import argparse
import json
from typing import Any

from shaderfusion.cli.options import (
    add_batch,
    add_dtype,
    add_json,
    add_memory,
    add_model,
    add_model_options,
    add_optimizations,
    add_size,
)
from shaderfusion.output import show

__all__ = ["add_parser"]


def add_parser(commands: Any) -> None:
    """`shaderfusion info`, for the parser of commands."""
    info = commands.add_parser(
        "info", help="what a model is, and what memory and dispatches it takes, without running it", allow_abbrev=False
    )
    info.set_defaults(command=_run)
    add_model(info, "model")
    add_model_options(info)
    add_size(info)
    add_batch(info)
    add_dtype(info, "f16")
    add_optimizations(info)
    add_memory(info, "all three")
    add_json(info)


def _run(args: argparse.Namespace) -> None:
    from shaderfusion.info import describe
    from shaderfusion.kernels.optimizations import Optimizations

    info = describe(
        args.model,
        vae=args.vae,
        prediction_type=args.prediction_type,
        revision=args.revision,
        width=args.width,
        height=args.height,
        batch=args.batch,
        dtype=args.dtype,
        optimizations=Optimizations.parse(args.optimizations),
        memory=args.memory,
    )
    show(json.dumps(info.as_dict()) if args.json else info.text())
