"""Hashes by which web UIs and model sites know a file. They are kept in the user's cache folder, as large files take
seconds: by path, size and time of change."""

import hashlib
import json
import os
import struct
from pathlib import Path

from shaderfusion.errors import ModelError, ShaderfusionError
from shaderfusion.files import cache_folder, is_folder, load_json
from shaderfusion.output import write_whole

__all__ = ["embedding_hash", "file_hash", "lora_hash"]

_CACHE = "hashes.json"
_MOST_CACHED = 10_000


def file_hash(path: Path) -> str | None:
    """The first 10 digits of a file's SHA-256, as of models and VAEs; None for a folder, which has none."""
    return None if is_folder(path) else _sha256(path, "whole")[:10]


def lora_hash(path: Path) -> str:
    """The first 12 digits of the SHA-256 of what comes after a safetensors file's header."""
    return _sha256(path, "after header")[:12]


def embedding_hash(path: Path) -> str:
    """The first 12 digits of a file's SHA-256, as of textual inversions."""
    return _sha256(path, "whole")[:12]


def _sha256(path: Path, part: str) -> str:
    """Of a file or the part after its header, from the cache where it knows the file; ModelError where it cannot be
    read."""
    try:
        stat = path.stat()
        key = json.dumps([os.path.abspath(path), part, stat.st_size, stat.st_mtime_ns])
        known = _cached()
        if key not in known:
            known[key] = _compute(path, part)
            _keep(known)
        return known[key]
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); check the path and its permissions") from None


def _compute(path: Path, part: str) -> str:
    with path.open("rb") as stream:
        if part == "after header":
            (length,) = struct.unpack("<Q", stream.read(8).ljust(8, b"\0"))
            stream.seek(min(8 + length, path.stat().st_size))
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _cached() -> dict[str, str]:
    """Of all files that were hashed; none where the cache is not there or damaged."""
    try:
        known = load_json(cache_folder() / _CACHE)
    except ModelError:
        return {}
    return {key: value for key, value in known.items() if isinstance(value, str) and len(value) == 64}


def _keep(known: dict[str, str]) -> None:
    """Writes the cache, the newest files of it; where it cannot be written, hashes are computed again."""
    newest = dict(list(known.items())[-_MOST_CACHED:])
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_whole("the cache", folder / _CACHE, json.dumps(newest, indent=0).encode())
    except (OSError, ShaderfusionError):
        return
