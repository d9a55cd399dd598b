"""report.jsonl: a line for each job that was run, appended as soon as it is known."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shaderfusion.errors import InputError

__all__ = ["append_line"]


def append_line(path: Path, entry: Mapping[str, Any]) -> None:
    """Adds a line in one write, after a line break where what was there before was cut; InputError where it cannot."""
    try:
        with path.open("ab+") as stream:
            is_cut = False
            if stream.tell() > 0:
                stream.seek(-1, os.SEEK_END)
                is_cut = stream.read(1) != b"\n"
            stream.write(b"\n" * is_cut + json.dumps(entry).encode() + b"\n")
    except OSError as error:
        raise InputError(f"the report (={path}) could not be written: {error.strerror}") from error
