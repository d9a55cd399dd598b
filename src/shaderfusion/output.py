"""What commands print and write: tables, and files that are checked before the work and whole after it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from shaderfusion.errors import InputError

__all__ = ["Table", "require_writable", "say", "write_whole"]


@dataclass(frozen=True)
class Table:
    """A heading and rows of as many cells; `align` has < (left) or > (right) for each column."""

    heading: Sequence[str]
    rows: Sequence[Sequence[str]]
    align: str
    title: str = ""

    def text(self) -> str:
        """For a terminal: columns as wide as their widest cell."""
        rows = [self.heading, *self.rows]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [f"{self.title}:"] if self.title else []
        for row in rows:
            cells = zip(row, self.align, widths, strict=True)
            lines.append("  ".join(f"{cell:{side}{width}}" for cell, side, width in cells).rstrip())
        return "\n".join(lines)

    def markdown(self) -> str:
        """For a page, the title as a line of its own."""
        rule = ["---" if side == "<" else "---:" for side in self.align]
        lines = [f"{self.title}:", ""] if self.title else []
        lines += [f"| {' | '.join(cells)} |" for cells in (self.heading, rule, *self.rows)]
        return "\n".join(lines)


def require_writable(option: str, path: Path, suffix: str, example: str) -> None:
    """InputError, naming the option, unless a file can be made or replaced at `path`; `example` is a name for it."""
    rule = None
    try:
        if path.is_dir():
            rule = f"is a folder; name a file in it, such as {path / example}"
        elif path.suffix.lower() != suffix:
            rule = f"must end in {suffix}, the only format that is written; try {path.with_suffix(suffix)}"
        elif not path.parent.is_dir():
            rule = f"must be in a folder that exists; make {path.parent} first"
        elif not os.access(path.parent, os.W_OK):
            rule = f"must be in a folder that you may write to; {path.parent} is not"
    except (OSError, ValueError) as error:  # such as a name that is too long, or empty
        reason = error.strerror if isinstance(error, OSError) else error
        rule = f"cannot be a file ({reason}); choose another name"
    if rule:
        raise InputError(f"{option} (={path}) {rule}")


def write_whole(option: str, path: Path, data: bytes | memoryview) -> None:
    """Writes a file that is always whole: the old one, the new one or none. InputError where it cannot."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        raise InputError(f"{option} (={path}) could not be written: {error.strerror}; choose another place") from error
    finally:
        part.unlink(missing_ok=True)


def say(text: str) -> None:
    """A line on stderr, where everything goes that is not a result."""
    print(f"shaderfusion: {text}", file=sys.stderr)
