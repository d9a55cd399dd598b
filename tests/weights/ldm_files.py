"""Golden checkpoints in the layout of the original releases, written where a test wants them."""

import gzip
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from golden.single_file_weights import stored_bytes, weight

__all__ = ["golden", "write_header", "write_model", "write_weights"]

FILE = Path(__file__).parents[1] / "golden" / "single_files.json.gz"
SIZE_BYTES = {"F8_E4M3": 1, "F8_E5M2": 1, "F16": 2, "BF16": 2, "F32": 4, "I64": 8}


@cache
def golden() -> dict[str, Any]:
    """What make_single_files.py stored, by model."""
    return json.loads(gzip.decompress(FILE.read_bytes()))


def write_header(
    path: Path, shapes: Mapping[str, Any], dtype: str = "F16", metadata: Mapping[str, str] | None = None
) -> Path:
    """A file of zeros, of which only the header takes space on the disk."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + SIZE_BYTES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path


def write_model(path: Path, shapes: Mapping[str, Any]) -> Path:
    """A file of f16 with any bits, those of the golden digests."""
    return _write(path, shapes, lambda name, shape: stored_bytes(name, 2 * math.prod(shape)))


def write_weights(
    path: Path, name: str, dtype: str = "F16", change: Callable[[np.ndarray], np.ndarray] | None = None
) -> Path:
    """The little model of the golden picture, with CLIP's whole vocabulary; `change` takes and gives its values."""
    shapes = golden()[name]["file"]
    whole = {key: [49408, shape[1]] for key, shape in shapes.items() if key.endswith("token_embedding.weight")}
    changed = change or (lambda values: values)
    return _write(path, shapes | whole, lambda name, shape: changed(weight(name, shape)).tobytes(), dtype)


def _write(
    path: Path, shapes: Mapping[str, Any], data: Callable[[str, Sequence[int]], bytes], dtype: str = "F16"
) -> Path:
    write_header(path, shapes, dtype)
    with path.open("r+b") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little"))
        for name, shape in shapes.items():
            file.write(data(name, shape))
    return path
