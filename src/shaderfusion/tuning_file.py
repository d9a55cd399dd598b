"""Files of choices that `shaderfusion tune` found fast on a device, and which of them a pipeline uses."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import shaderfusion
from shaderfusion.errors import InputError, ModelError
from shaderfusion.files import cache_folder, exists, load_json, shown
from shaderfusion.gpu.device import DeviceInfo
from shaderfusion.kernels.tuning import NO_TUNING, Tuning
from shaderfusion.output import write_whole
from shaderfusion.tensor import DType

__all__ = ["TunedOperation", "default_path", "find_tuning", "read_tuning", "write_tuning"]

FORMAT = 1
AGAIN = "make it again with `shaderfusion tune`"


@dataclass(frozen=True)
class TunedOperation:
    """A row of a file: the names of an operation and of the choice for it, and what the choice gains."""

    operation: str
    choice: str
    static_ms: float
    """By the static rules."""
    tuned_ms: float


def maker_of(info: DeviceInfo, dtype: DType) -> dict[str, str]:
    """What a file is for, and nothing else may use: a device with its driver and runtime, this version, a dtype."""
    device = {"adapter": info.name, "driver": info.driver, "backend": info.backend, "runtime": info.runtime}
    return {**device, "version": shaderfusion.__version__, "dtype": dtype}


def default_path(info: DeviceInfo, dtype: DType) -> Path:
    """Where a device's own file is: in the user's cache folder, or in that of SHADERFUSION_CACHE where it is set."""
    maker = maker_of(info, dtype)
    name = re.sub(r"\W+", "-", info.name.lower())[:40].strip("-")
    digest = hashlib.sha256(json.dumps(maker).encode()).hexdigest()[:12]
    return cache_folder() / f"tuning-{name}-{dtype}-{digest}.json"


def find_tuning(setting: str | Path, info: DeviceInfo, dtype: DType) -> Tuning:
    """The choices of a file: that which is named, or for `auto` the device's own, if there is one; `off` has none.

    InputError for a file that cannot be used. The device's own one is then ignored, with a warning.
    """
    path = default_path(info, dtype) if setting == "auto" else Path(setting)
    if setting == "off" or (setting == "auto" and not exists(path)):
        return NO_TUNING
    try:
        rows = read_tuning(path, info, dtype)
    except InputError as error:
        if setting != "auto":
            raise
        warnings.warn(f"{error}; it is ignored", stacklevel=2)
        return NO_TUNING
    return Tuning({row.operation: row.choice for row in rows}, str(path))


def read_tuning(path: Path, info: DeviceInfo, dtype: DType) -> list[TunedOperation]:
    """The rows of a file; InputError for one that is not there, damaged, or not for this device, version and dtype."""
    if not exists(path):
        raise InputError(f"tuning (={path}) must be auto, off, or a file that `shaderfusion tune` wrote")
    try:
        data = load_json(path, AGAIN)
    except ModelError as error:
        raise InputError(f"tuning: {error}") from error
    if data.get("format") != FORMAT:
        raise InputError(f"tuning: {path}: its format (={shown(data.get('format'))}) must be {FORMAT}; {AGAIN}")
    for name, expected in maker_of(info, dtype).items():
        if data.get(name) != expected:
            raise InputError(f"tuning: {path}: its {name} (={shown(data.get(name))}) must be {expected!r}; {AGAIN}")
    rows = data.get("rows")
    if not isinstance(rows, list):
        raise InputError(f"tuning: {path}: its rows (={shown(rows)}) must be a list; {AGAIN}")
    return [_row(path, row) for row in rows]


def _row(path: Path, row: Any) -> TunedOperation:
    fields = {"operation": str, "choice": str, "static_ms": float, "tuned_ms": float}
    if not isinstance(row, Mapping) or any(not isinstance(row.get(name), kind) for name, kind in fields.items()):
        raise InputError(f"tuning: {path}: a row (={shown(row)}) must have {', '.join(fields)}; {AGAIN}")
    return TunedOperation(**{name: row[name] for name in fields})


def write_tuning(option: str, path: Path, rows: Iterable[TunedOperation], info: DeviceInfo, dtype: DType) -> None:
    """Writes a file whole; InputError, naming the option, where it cannot."""
    data = {"format": FORMAT, **maker_of(info, dtype), "rows": [asdict(row) for row in rows]}
    write_whole(option, path, json.dumps(data, indent=1).encode())
