"""What commands print and write: tables, progress, and files that are checked before the work and whole after it."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shaderfusion.errors import InputError
from shaderfusion.progress import JobProgress

__all__ = [
    "Table",
    "discard",
    "keep_stdout",
    "progress_bar",
    "progress_line",
    "remove_parts",
    "require_writable",
    "say",
    "show",
    "write_whole",
]

_BAR, _WORDS = 30, 36
"""Widths of a line of progress: of its bar, and of what it says."""

_PART = ".part"
_WRITES_S = 60
"""A file is written in less."""

_drawn: list[str] = []
"""The line of progress that the terminal shows, if it does."""

_kept: list[Any] = []
"""stdout, while it is kept for results."""


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


def require_writable(option: str, path: Path, suffixes: str | Sequence[str], example: str) -> None:
    """InputError, naming the option, unless `write_whole` could write a file at `path`; `example` is a name for it.

    Its suffix must be one of `suffixes`, the first of which is what errors propose.

    What write_whole will do is tried: a file is made and removed, of that name or, where one exists, beside it.
    """
    suffixes = [suffixes] if isinstance(suffixes, str) else suffixes
    rule = None
    try:
        if path.is_dir():
            rule = f"is a folder; name a file in it, such as {path / example}"
        elif path.suffix.lower() not in suffixes:
            only = "the only format that is" if len(suffixes) == 1 else "formats that are"
            rule = f"must end in {' or '.join(suffixes)}, {only} written; try {path.with_suffix(suffixes[0])}"
        elif not path.parent.is_dir():
            rule = f"must be in a folder that exists; make {path.parent} first"
        elif _belongs_to_others(path):
            rule = f"must be a file that you may replace; {path.parent} lets only its owner do that"
        else:
            probe = _part(path) if os.path.lexists(path) else path
            probe.open("xb").close()
            probe.unlink()
    except PermissionError:
        rule = f"must be in a folder that you may write to; {path.parent} is not"
    except (OSError, ValueError) as error:  # such as a name that is too long, or has characters that cannot be
        reason = error.strerror if isinstance(error, OSError) else error
        rule = f"cannot be a file ({reason}); choose another"
    if rule:
        raise InputError(f"{option} (={path}) {rule}")


def write_whole(option: str, path: Path, data: bytes | memoryview) -> None:
    """Writes a file that is always whole: the old one, the new one or none. InputError where it cannot."""
    part = _part(path)
    try:
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        raise InputError(f"{option} (={path}) could not be written: {error.strerror}; choose another place") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def remove_parts(folder: Path) -> None:
    """Deletes what writers left in a folder that were killed; what is younger than a minute may be written just now."""
    for part in folder.glob(f".{'[0-9a-f]' * 16}{_PART}"):
        with contextlib.suppress(OSError):
            if time.time() - part.stat().st_mtime > _WRITES_S:
                part.unlink()


def _part(path: Path) -> Path:
    """A new file's path beside `path`, whose name is shorter than any limit, whatever path's own is."""
    return path.with_name(f".{secrets.token_hex(8)}{_PART}")


def _belongs_to_others(path: Path) -> bool:
    """Whether a file exists in a folder such as /tmp, where only its owner, the folder's and root may replace it."""
    if not hasattr(os, "geteuid") or not os.path.lexists(path):
        return False
    folder, file = path.parent.stat(), path.lstat()
    return bool(folder.st_mode & stat.S_ISVTX) and os.geteuid() not in (0, folder.st_uid, file.st_uid)


def show(text: str) -> None:
    """A result, on stdout. BrokenPipeError where whoever read it has gone, InputError where it cannot be written."""
    _erase()
    stdout = _kept[-1] if _kept else sys.stdout
    try:
        print(text, file=stdout, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        discard(stdout)
        raise InputError(f"the output could not be written: {error.strerror}; send it to another place") from error


@contextlib.contextmanager
def keep_stdout() -> Iterator[None]:
    """Keeps stdout for results: what a library prints there goes to stderr."""
    _kept.append(sys.stdout)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _kept.pop()


def discard(stream: Any) -> None:
    """Lets what a stream still holds go nowhere, so that Python does not fail once more when it flushes it at exit."""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # there is none, or it is closed, or no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def progress_bar(total: int) -> Iterator[Callable[[int], None]]:
    """Gives a function that draws how many of `total` steps are done, on stderr, where that is a terminal."""
    started = time.perf_counter()
    is_terminal = sys.stderr.isatty()

    def draw(done: int) -> None:
        if is_terminal:
            bar = "#" * (30 * done // total)
            seconds = time.perf_counter() - started
            print(f"\r{done}/{total} [{bar:30}] {seconds:.1f} s", end="", file=sys.stderr, flush=True)

    draw(0)
    try:
        yield draw
    finally:
        if is_terminal:
            print(file=sys.stderr)


@contextlib.contextmanager
def progress_line(job: JobProgress) -> Iterator[None]:
    """Draws the job after each of its changes, always on the same line of stderr, where that is a terminal."""
    if not sys.stderr.isatty():
        yield
        return

    def draw() -> None:
        bar = "#" * (_BAR * job.step // job.num_steps)
        _drawn[:] = [f"[{bar:{_BAR}}] {job!s:{_WORDS}}"]
        print(f"\r{_drawn[0]}", end="", file=sys.stderr, flush=True)

    watch, job.watch = job.watch, draw
    draw()
    try:
        yield
    finally:
        job.watch = watch
        if _drawn:
            print(file=sys.stderr)
            _drawn.clear()


def _erase() -> None:
    """Takes the line of progress away, before something else is written there; its next change draws it below."""
    if _drawn:
        print(f"\r{'':{len(_drawn.pop())}}\r", end="", file=sys.stderr, flush=True)


def say(text: str) -> None:
    """A line on stderr, where everything goes that is not a result."""
    _erase()
    print(f"shaderfusion: {text}", file=sys.stderr)
