"""Adapters that a prompt names: `<lora:name:weight>`, or `<lora:name:te:unet>` with the text encoders' weight first."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from shaderfusion.arguments import LARGEST_F32
from shaderfusion.errors import InputError
from shaderfusion.files import exists, shown
from shaderfusion.prompts.errors import prompt_error

__all__ = ["find_adapter_file", "take_adapters"]

_TAG = re.compile(r"<(\w+):([^<>]+)>")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")
_KINDS = ("lora", "lyco")
_SUFFIX = ".safetensors"


def take_adapters(text: str) -> tuple[str, dict[str, dict[str, float]]]:
    """The text without its adapters, and of each by name its strength by component.

    InputError for one without a name or with another number than such, for one named twice, and for other kinds.
    """
    found: dict[str, dict[str, float]] = {}
    for match in _TAG.finditer(text):
        kind, arguments = match.groups()
        if kind not in _KINDS:
            raise prompt_error(text, match.start(), f"<{kind}:> is not implemented; only <lora:name:weight> is")
        name, *numbers = map(str.strip, arguments.split(":"))
        if not name or len(numbers) > 2 or not all(map(_is_number, numbers)):
            raise prompt_error(
                text, match.start(), "an adapter must be <lora:name>, <lora:name:weight> or <lora:name:te:unet>"
            )
        if name in found:
            raise prompt_error(text, match.start(), f"the adapter {shown(name)} must be named once")
        te, unet = (float(numbers[0]), float(numbers[-1])) if numbers else (1.0, 1.0)
        found[name] = {"unet": unet, "text_encoder": te, "text_encoder_2": te}
    return _TAG.sub("", text), found


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None and abs(float(text)) <= LARGEST_F32


def find_adapter_file(name: str, given: Iterable[str], folder: Path | None = None) -> Path:
    """The folder's file of that name, its own without the suffix; InputError, with the names that there are, beside
    those of files that are given, where there is none."""
    if folder is not None and Path(name).name == name and exists(folder / f"{name}{_SUFFIX}"):
        return folder / f"{name}{_SUFFIX}"
    in_folder = (path.stem for path in folder.glob(f"*{_SUFFIX}")) if folder is not None else ()
    raise InputError(
        f"prompt: the adapter {shown(name)} must be the name of a file given by --lora, or in the folder of --lora-dir "
        f"({', '.join(sorted({*given, *in_folder})) or 'none'})"
    )
