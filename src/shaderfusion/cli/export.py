"""`shaderfusion export`: a model for other places to run it."""

import argparse
from pathlib import Path
from typing import Any

from shaderfusion.cli.options import Names, add_batch, add_model, add_model_options, add_size, scheduler, schedulers
from shaderfusion.output import show

__all__ = ["add_parser"]


def add_parser(commands: Any) -> None:
    """`shaderfusion export`, for the parser of commands."""
    export = commands.add_parser("export", help="a model as files that a browser runs", allow_abbrev=False)
    targets = export.add_subparsers(title="targets", metavar="TARGET", required=True)
    web = targets.add_parser("web", help="a folder for any file server: page, shaders, weights", allow_abbrev=False)
    web.set_defaults(command=_run)
    add_model(web, "model")
    web.add_argument(
        "--output", type=Path, required=True, metavar="FOLDER", help="is made; must be empty or an earlier export"
    )
    add_model_options(web)
    add_size(web)
    add_batch(web)
    meaning = "f16, f32 or auto (the default): f16 weights, and shaders for browsers with f16 and for those without"
    web.add_argument("--dtype", choices=("f16", "f32", "auto"), default="auto", help=meaning)
    meaning = "of which the page has the tables, one of %(choices)s; most take a spacing; default: the model's own"
    names = Names(schedulers, has_other_names=True)
    web.add_argument("--scheduler", type=scheduler, choices=names, metavar="NAME", help=meaning)
    web.add_argument("--ablation", action="store_true", help="with the paper's five rows, for the page to measure")


def _run(args: argparse.Namespace) -> None:
    from shaderfusion.web.export import export_web

    manifest = export_web(
        args.model,
        args.output,
        width=args.width,
        height=args.height,
        batch=args.batch,
        dtype=args.dtype,
        ablation=args.ablation,
        scheduler=args.scheduler,
        vae=args.vae,
        prediction_type=args.prediction_type,
        revision=args.revision,
    )
    megabytes = sum(file["bytes"] for file in manifest["files"]) / 1e6
    show(f"{args.output}: {len(manifest['files']) + 1} files, {megabytes:,.1f} MB")
