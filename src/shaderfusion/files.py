"""A model's JSON and text files, whatever they hold: their contents, or a ModelError that names the file.

And where the user's caches are.
"""

import json
import math
import os
import stat
import sys
from pathlib import Path
from typing import Any

from shaderfusion.errors import ModelError

__all__ = [
    "cache_folder",
    "exists",
    "is_file",
    "is_folder",
    "load_bytes",
    "load_json",
    "load_text",
    "parse_json",
    "shown",
]

LARGEST_BYTES = 16_000_000
"""SD 1.x's vocabulary, the largest such file of a model, has 1 MB."""
DEEPEST_NESTING = 64
SHOWN_CHARACTERS = 120
_MISSING = "the model folder is incomplete, fetch it again"


def cache_folder() -> Path:
    """The user's for this package, as the platform has it, or that of SHADERFUSION_CACHE where it is set."""
    if chosen := os.environ.get("SHADERFUSION_CACHE"):
        return Path(chosen)
    home = Path(os.path.expanduser("~"))
    match sys.platform:
        case "win32":
            folder = os.environ.get("LOCALAPPDATA") or home / "AppData" / "Local"
        case "darwin":
            folder = home / "Library" / "Caches"
        case _:
            folder = os.environ.get("XDG_CACHE_HOME") or home / ".cache"
    return Path(folder) / "shaderfusion"


def is_folder(path: Path) -> bool:
    """Whether there is a folder at `path`; no where it cannot be looked at, whatever the reason."""
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that is too long, a folder above that is closed, a null character
        return False


def is_file(path: Path) -> bool:
    """Whether there is a regular file at `path`, which opens without waiting as a pipe would; no as `is_folder`."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def exists(path: Path) -> bool:
    """Whether there is anything at `path`; no where it cannot be looked at."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def load_bytes(
    file: Path,
    remedy: str = "fetch the file again",
    *,
    largest_bytes: int = LARGEST_BYTES,
    missing: str = _MISSING,
) -> bytes:
    """What is in `file`. ModelError: no such file, not a regular file, over `largest_bytes`, not readable."""
    try:
        if not stat.S_ISREG(file.stat().st_mode):  # opening a pipe would wait, and a device need not end
            raise ModelError(f"{file}: must be a regular file; {remedy}")
        with file.open("rb") as stream:
            data = stream.read(largest_bytes + 1)
    except FileNotFoundError:
        raise ModelError(f"{file}: no such file; {missing}") from None
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror}); check the path and its permissions") from None
    except ValueError:
        raise ModelError(f"{str(file)!r}: has a null character, which no path has; check it") from None
    if len(data) > largest_bytes:
        raise ModelError(f"{file}: must have at most {largest_bytes:,} bytes; {remedy}")
    return data


def load_text(file: Path, remedy: str = "fetch the file again", *, missing: str = _MISSING) -> str:
    """The text in `file`, UTF-8. ModelError: no such file, not a regular file, over 16 MB, not readable, not UTF-8."""
    data = load_bytes(file, remedy, missing=missing)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(f"{file}: must be UTF-8 ({error.reason} at byte {error.start}); {remedy}") from None


def load_json(file: Path, remedy: str = "fetch the file again") -> dict[str, Any]:
    """The JSON object in `file`. ModelError as `load_text`, and: not JSON, nested over 64 deep, not an object.

    What JSON has not and Python reads all the same, NaN and Infinity, is refused too; but -Infinity is read, which
    diffusers writes into scheduler_config.json.
    """
    return parse_json(str(file), load_text(file, remedy), remedy)


def parse_json(name: str, text: str, remedy: str = "fetch the file again") -> dict[str, Any]:
    """The JSON object of a text, as `load_json`; errors begin with `name`."""
    try:
        options = json.loads(text, parse_constant=_read_constant)
        if not _is_shallow(options):
            raise RecursionError
    except RecursionError:
        raise ModelError(f"{name}: must be nested at most {DEEPEST_NESTING} deep; {remedy}") from None
    except ValueError as error:  # a number of over 4300 digits too
        raise ModelError(f"{name}: is not valid JSON ({error}); {remedy}") from None
    if not isinstance(options, dict):
        raise ModelError(f"{name}: must hold a JSON object, not a {type(options).__name__}; {remedy}")
    return options


def _read_constant(name: str) -> float:
    if name == "-Infinity":
        return -math.inf
    raise ValueError(f"{name} is no number")


def _is_shallow(value: object) -> bool:
    level = [value]
    for _ in range(DEEPEST_NESTING + 1):
        level = [
            child
            for item in level
            if isinstance(item, (dict, list))
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return True
    return False


def shown(value: object) -> str:
    """A value as errors show it: its repr, cut where it is long."""
    try:
        text = repr(value)
    except ValueError:  # of an integer with more digits than Python writes
        text = "a number of thousands of digits"
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}..."
