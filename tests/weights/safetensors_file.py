"""Writes safetensors files byte by byte, so that the tests can also write ones that libraries would refuse to."""

import json
from pathlib import Path

import numpy as np

_DTYPES = {
    "f16": ("F16", np.float16),
    "f32": ("F32", np.float32),
    "f64": ("F64", np.float64),
    "i32": ("I32", np.int32),
    "i8": ("I8", np.int8),
}
_E4M3 = np.array(
    [m / 8 * 2.0**-6 for m in range(8)] + [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8)]
)
"""Of the 7 lower bits; the last stands for NaN."""


def to_bytes(array: np.ndarray, dtype: str) -> bytes:
    """An array in the file's dtype; bf16 is the upper half of f32, here rounded to even; f8 is rounded in some way."""
    if dtype == "f8_e5m2":  # the upper half of f16
        return (array.astype(np.float16).view(np.uint16) >> 8).astype(np.uint8).tobytes()
    if dtype == "f8_e4m3":
        magnitude = np.minimum(np.searchsorted(_E4M3, np.abs(array)), 126)
        return (magnitude | (np.signbit(array) << 7)).astype(np.uint8).tobytes()
    if dtype == "bf16":
        bits = array.astype(np.float32).view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
    return array.astype(_DTYPES[dtype][1]).tobytes()


def write_safetensors(path: Path, tensors: dict[str, np.ndarray], dtype: str = "f32") -> None:
    """8 bytes of header size, the header as JSON, the data."""
    name = _DTYPES[dtype][0] if dtype in _DTYPES else dtype.upper()
    header, data = {}, b""
    for key, array in tensors.items():
        block = to_bytes(array, dtype)
        header[key] = {"dtype": name, "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(block)]}
        data += block
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
