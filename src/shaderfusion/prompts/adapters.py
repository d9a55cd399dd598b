"""Adapters that a prompt names: `<lora:name:weight>`, or `<lora:name:te:unet>` with the text encoders' weight first."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from shaderfusion.arguments import LARGEST_F32
from shaderfusion.errors import InputError
from shaderfusion.files import exists, shown
from shaderfusion.prompts.errors import prompt_error

__all__ = ["find_adapter_files", "take_adapters"]

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


def find_adapter_files(
    adapters: Mapping[str, Mapping[str, float]], files: Sequence[tuple[Path, float]], folder: Path | None = None
) -> list[tuple[Path, float | Mapping[str, float]]]:
    """Files with the strength of each: those given, of which adapters that prompts name change it, and the folder's.

    An adapter's name is that of its file without the suffix. InputError, with the names that there are, for another,
    and for one that several files have.
    """
    found: list[tuple[Path, float | Mapping[str, float]]] = list(files)
    for name, strength in adapters.items():
        own = [index for index, (path, _) in enumerate(files) if path.stem == name]
        if len(own) > 1:
            raise InputError(f"prompt: the adapter {shown(name)} must be one file, not {len(own)} given by --lora")
        if own:
            found[own[0]] = (files[own[0]][0], strength)
        elif folder is not None and Path(name).name == name and exists(folder / f"{name}{_SUFFIX}"):
            found.append((folder / f"{name}{_SUFFIX}", strength))
        else:
            in_folder = folder.glob(f"*{_SUFFIX}") if folder is not None else ()
            there = ", ".join(sorted({path.stem for path in (*(path for path, _ in files), *in_folder)}))
            raise InputError(
                f"prompt: the adapter {shown(name)} must be the name of a file given by --lora, or in the folder of "
                f"--lora-dir ({there or 'none'})"
            )
    return found
