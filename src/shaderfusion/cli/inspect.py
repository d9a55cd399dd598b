"""`shaderfusion inspect`: what the files of pictures say of how these were made."""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shaderfusion.cli.like import met_by
from shaderfusion.cli.options import add_json
from shaderfusion.output import show

if TYPE_CHECKING:
    from shaderfusion.metadata.recipe import Recipe

__all__ = ["add_parser"]


def add_parser(commands: Any) -> None:
    """`shaderfusion inspect`, for the parser of commands."""
    inspect = commands.add_parser(
        "inspect", help="the settings that a picture's file holds, ours or a web UI's", allow_abbrev=False
    )
    inspect.set_defaults(command=_run)
    inspect.add_argument("files", type=Path, nargs="+", metavar="FILE", help="a PNG, JPEG or WebP file")
    add_json(inspect)


def _run(args: argparse.Namespace) -> None:
    from shaderfusion.metadata.image_files import read_texts
    from shaderfusion.metadata.recipe import read_recipes

    reports = []
    for path in args.files:
        texts = read_texts(path)
        reports.append(_report(path, texts, read_recipes(str(path), texts)))
    show(json.dumps(reports) if args.json else "\n\n".join(map(_text, reports)))


def _report(path: Path, texts: Mapping[str, str], recipes: "list[Recipe]") -> dict[str, Any]:
    from shaderfusion.metadata.recipe import is_read

    parts = [
        {
            "source": recipe.source,
            "settings": recipe.options,
            "facts": recipe.facts,
            "not_met": recipe.demands,
            "not_said": _missing(recipe),
        }
        for recipe in recipes
    ]
    others = {key: len(text) for key, text in texts.items() if not is_read(key, texts)}
    return {
        "file": str(path),
        "read": parts,
        "others": others,
        "texts": {key: text for key, text in texts.items() if is_read(key, texts)},
    }


def _missing(recipe: "Recipe") -> list[str]:
    """What a picture can be made again by, and the text does not say."""
    return recipe.not_said + ([] if {"model", "Model"} & set(recipe.facts) else ["model"])


def _text(report: Mapping[str, Any]) -> str:
    from shaderfusion.metadata.recipe import COMFY_UI

    lines = [f"{report['file']}:"]
    for part in report["read"]:
        lines.append(f"  written by {part['source']}:")
        lines += [f"    {name}: {_one_line(value)}" for name, value in {**part["settings"], **part["facts"]}.items()]
        if part["not_met"]:
            lines.append("  not known or not done by itself:")
        for name, value in part["not_met"].items():
            lines.append(f"    {name}: {_one_line(value)} ({met_by(name)}--ignore {name!r})")
        if part["not_said"]:
            lines.append(f"  not said: {', '.join(part['not_said'])}")
    for key, length in report["others"].items():
        whose = "ComfyUI's, " if key in COMFY_UI else ""
        lines.append(f"  {_one_line(key)}: {whose}not read, {length:,} characters")
    if len(lines) == 1:
        lines.append("  no texts")
    return "\n".join(lines)


def _one_line(value: Any) -> str:
    """Without what a terminal might obey."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(value))
