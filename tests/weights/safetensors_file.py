"""Writes safetensors files byte by byte, so that the tests can also write ones that libraries would refuse to."""

import json
from pathlib import Path

import numpy as np

_DTYPES = {
    "f16": ("F16", np.float16),
    "f32": ("F32", np.float32),
    "f64": ("F64", np.float64),
    "i32": ("I32", np.int32),
    "f8": ("F8_E4M3", np.uint8),
}


def to_bytes(array: np.ndarray, dtype: str) -> bytes:
    """An array in the file's dtype; bf16 is the upper half of f32, here rounded to even."""
    if dtype == "bf16":
        bits = array.astype(np.float32).view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    return array.astype(_DTYPES[dtype][1]).tobytes()


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], dtype: str = "f32") -> None:
    """8 bytes of header size, the header as JSON, the data."""
    name = "BF16" if dtype == "bf16" else _DTYPES[dtype][0]
    header, data = {}, b""
    for key, array in tensors.items():
        block = to_bytes(array, dtype)
        header[key] = {"dtype": name, "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(block)]}
        data += block
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
