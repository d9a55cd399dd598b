"""What a file is that is no safetensors file, by its name or how it begins: what people have all the same."""

from __future__ import annotations

import re

__all__ = ["CONVERT_PICKLE", "NUM_BYTES", "PICKLE_SUFFIXES", "other_format"]

PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth")

CONVERT_PICKLE = (
    "pickle files can run code when opened, so shaderfusion never does; convert it where you trust it: "
    "`StableDiffusionPipeline.from_pretrained(...).save_pretrained(folder, safe_serialization=True)` with diffusers, "
    "or `StableDiffusionPipeline.from_single_file(...)` for a .ckpt"
)

NUM_BYTES = 4096
"""Of a file's beginning, all that tells."""

_AGAIN = "download the file itself, logged in where the site asks for it"
_CONVERT = (
    "which can run code when opened, so shaderfusion never does; take it in the safetensors format, or convert it "
    "where you trust it"
)

_FORMATS = (
    (rb"\Z", "is empty; download it again"),
    (
        rb"version https://git-lfs\.",
        "is a pointer of Git LFS in place of the file; fetch it with `git lfs pull`, or download it from its page",
    ),
    (rb"\s*<", f"is a page of a web site (HTML or XML) in place of the file; {_AGAIN}"),
    (rb"\s*[{\[]", f"is JSON in place of the file, as sites answer; {_AGAIN}"),
    (rb"\x80[\x02-\x05]", f"is a pickle file, {_CONVERT}"),
    (rb"(?s)PK\x03\x04.{,500}data\.pkl", f"is a pickle file of PyTorch, {_CONVERT}"),
    (rb"PK\x03\x04|7z\xbc\xaf|Rar!|\x1f\x8b", "is an archive; unpack it, and give the .safetensors file in it"),
    (rb"GGUF", "is a GGUF file, which shaderfusion does not read; take it in the safetensors format"),
    (rb"\x89PNG|\xff\xd8\xff|RIFF....WEBP", f"is a picture; {_AGAIN}"),
    (rb"[\t\n\r -~]{8,}\Z", f"is a text in place of the file; {_AGAIN}"),
)
"""The first that the beginning matches says it."""

_SAFETENSORS = re.compile(rb"(?s)....\0{4}(\{|\Z)")
"""Of a damaged file that is one: the header's length, which is small, and its JSON."""


def other_format(beginning: bytes) -> str | None:
    """What an error says of a file that is no safetensors file: what it is and what to do; None for what is unknown."""
    if _SAFETENSORS.match(beginning):
        return None
    return next((what for pattern, what in _FORMATS if re.match(pattern, beginning[:NUM_BYTES])), None)
