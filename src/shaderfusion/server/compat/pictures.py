"""Pictures in bodies of other APIs, masks among them, and those that are kept for a while to be fetched."""

from __future__ import annotations

import base64
import binascii
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from PIL import Image, ImageOps

from shaderfusion.files import shown
from shaderfusion.server.refusal import RefusedError

__all__ = ["KeptPictures", "Picture", "alpha_mask", "decode_base64", "has_alpha", "inverted"]

_DATA_URL = re.compile(r"data:image/[\w.+-]{1,20};base64,")
_ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")

KEEP_S = 3600.0
MOST_KEPT = 100
MOST_KEPT_BYTES = 200_000_000


def decode_base64(name: str, value: object) -> bytes:
    """The bytes of a field that holds base64, alone or as a data URL; RefusedError where it holds something else."""
    if not isinstance(value, str) or not value:
        raise RefusedError(400, f"{name} (={shown(value)}) must be a PNG, JPEG or WebP file in base64", name)
    start = _DATA_URL.match(value)
    try:
        return base64.b64decode(value[start.end() :] if start else value, validate=True)
    except (binascii.Error, ValueError):
        raise RefusedError(
            400,
            f"{name} (={shown(value)}) must be a PNG, JPEG or WebP file in whole base64; addresses are not read",
            name,
        ) from None


def inverted(mask: Image.Image) -> Image.Image:
    """Black where it was white; what is transparent counts as black, as elsewhere."""
    grey = Image.new("RGBA", mask.size, "black")
    grey.alpha_composite(mask.convert("RGBA"))
    return ImageOps.invert(grey.convert("L"))


def has_alpha(picture: Image.Image) -> bool:
    """Whether a picture can be transparent."""
    return picture.mode in _ALPHA or "transparency" in picture.info


def alpha_mask(picture: Image.Image) -> Image.Image:
    """White where a picture is transparent."""
    return ImageOps.invert(picture.convert("RGBA").getchannel("A"))


class Picture(NamedTuple):
    """A file to be fetched."""

    kind: str
    """Such as image/png."""
    data: bytes
    until: float


class KeptPictures:
    """A bounded number of files, for a bounded time, by names that nobody guesses. One thread calls it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: OrderedDict[str, Picture] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, kind: str, suffix: str, data: bytes) -> str:
        """The file's name. The oldest make room."""
        name = secrets.token_urlsafe(18) + suffix
        self._kept[name] = Picture(kind, data, self._clock() + KEEP_S)
        self._bytes += len(data)
        while len(self._kept) > MOST_KEPT or (self._bytes > MOST_KEPT_BYTES and len(self._kept) > 1):
            self._drop(next(iter(self._kept)))
        self._drop_old()
        return name

    def get(self, name: str) -> Picture | None:
        """The file, while it is kept."""
        self._drop_old()
        return self._kept.get(name)

    def _drop_old(self) -> None:
        now = self._clock()
        while self._kept and next(iter(self._kept.values())).until <= now:
            self._drop(next(iter(self._kept)))

    def _drop(self, name: str) -> None:
        self._bytes -= len(self._kept.pop(name).data)
