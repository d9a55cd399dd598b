"""`shaderfusion info`: what a model costs, without running it."""

import argparse
import json
from typing import Any

from shaderfusion.cli.options import add_batch, add_dtype, add_json, add_model, add_optimizations, add_size
from shaderfusion.output import Table, show

__all__ = ["add_parser"]


def add_parser(commands: Any) -> None:
    """`shaderfusion info`, for the parser of commands."""
    info = commands.add_parser(
        "info", help="a model's size, memory and dispatches, without running it", allow_abbrev=False
    )
    info.set_defaults(command=_run)
    add_model(info, "model")
    add_size(info)
    add_batch(info)
    add_dtype(info, "f16")
    add_optimizations(info)
    add_json(info)


def _run(args: argparse.Namespace) -> None:
    from shaderfusion.info import describe
    from shaderfusion.kernels.optimizations import Optimizations

    info = describe(
        args.model,
        width=args.width,
        height=args.height,
        batch=args.batch,
        dtype=args.dtype,
        optimizations=Optimizations.parse(args.optimizations),
    )
    if args.json:
        show(json.dumps(info.as_dict()))
        return
    show(f"{info.model}: {info.batch} of {info.width}x{info.height} px with guidance, in {info.dtype}")
    rows = []
    for c in info.components:
        weights, tensors = (f"{size / 1e6:.1f}" for size in (c.weights_bytes, c.tensors_bytes))
        rows.append((c.name, f"{c.parameters:,}", weights, tensors, str(c.dispatches)))
    show(Table(("component", "parameters", "weights MB", "tensors MB", "dispatches"), rows, "<>>>>").text())
