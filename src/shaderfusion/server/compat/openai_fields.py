"""Bodies of OpenAI's images API as fields of our own, which may be among them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image

from shaderfusion.server.compat.errors import FieldError
from shaderfusion.server.compat.pictures import alpha_mask, has_alpha
from shaderfusion.server.refusal import RefusedError
from shaderfusion.server.safety import decode_picture
from shaderfusion.server.settings import KINDS

__all__ = ["EXTRA", "NAMES", "Output", "fields_of_form", "read_fields", "read_output", "read_pictures"]

NAMES: Mapping[str, str] = {"num_images": "n", "width": "size", "height": "size"}
"""Of OpenAI, by ours."""

EXTRA = tuple(name for name in KINDS if name not in (*NAMES, "prompt", "model"))
"""Fields of ours that may be sent on top."""

FORMATS = ("png", "jpeg", "webp")
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "quality": ("auto", "standard"),
    "style": ("vivid",),
    "background": ("auto", "opaque"),
    "moderation": ("auto", "low"),
    "input_fidelity": ("low",),
    "stream": (False,),
    "partial_images": (0,),
}
"""Fields that are accepted where they ask for what is so anyway: OpenAI's defaults."""
_REMEDIES = {"quality": "more steps do it here: send steps", "style": "write it into the prompt"}
_KNOWN = ("prompt", "model", "n", "size", "response_format", "output_format", "output_compression", "user")
_SIZE = re.compile(r"([0-9]{1,6})x([0-9]{1,6})")
_MOST_QUALITY = 100


@dataclass(frozen=True)
class Output:
    """How pictures are sent."""

    is_url: bool
    kind: str
    """One of FORMATS."""
    quality: int | None
    """Of JPEG and WebP, to 100; None is usual."""


def read_fields(body: Mapping[str, Any]) -> dict[str, Any]:
    """The own API's fields, without pictures and what `read_output` reads; RefusedError of what is not done."""
    for name, value in body.items():
        if name in _KNOWN or name in EXTRA or value is None or value in NEUTRAL.get(name, ()):
            continue
        if name in NEUTRAL:
            about = f"it can be {' or '.join(map(json.dumps, NEUTRAL[name]))}; {_REMEDIES.get(name, 'leave it out')}"
            raise FieldError(name, value, about)
        raise FieldError(name, value, f"fields are {', '.join((*_KNOWN, *NEUTRAL, *EXTRA))}")
    own = {name: body.get(name) for name in ("prompt", "model", *EXTRA)}
    size = body.get("size")
    if size not in (None, "auto"):
        match = _SIZE.fullmatch(size) if isinstance(size, str) else None
        if not match:
            raise FieldError("size", size, "it must be WIDTHxHEIGHT in pixels, such as 512x512, or auto")
        own |= {"width": int(match[1]), "height": int(match[2])}
    return {**own, "num_images": body.get("n")}


def read_output(body: Mapping[str, Any]) -> Output:
    """How the body asks for its pictures; RefusedError where there is no such way."""
    how, kind = body.get("response_format") or "b64_json", body.get("output_format") or "png"
    if how not in ("b64_json", "url"):
        raise FieldError("response_format", how, "it must be b64_json or url")
    if kind not in FORMATS:
        raise FieldError("output_format", kind, f"it must be {', '.join(FORMATS)}")
    quality = body.get("output_compression")
    if quality is not None:
        if not isinstance(quality, int) or isinstance(quality, bool) or not 0 <= quality <= _MOST_QUALITY:
            raise FieldError("output_compression", quality, f"it must be a whole number from 0 to {_MOST_QUALITY}")
        if kind == "png" and quality != _MOST_QUALITY:
            raise FieldError(
                "output_compression", quality, "PNG loses nothing: send output_format jpeg or webp with it"
            )
    return Output(how == "url", kind, quality)


def fields_of_form(texts: Mapping[str, str]) -> dict[str, Any]:
    """A form's texts as JSON would have them; what is no number stays text, which is refused later."""
    kinds = {**KINDS, "n": "integer", "output_compression": "integer", "partial_images": "integer"}
    readers = {"integer": int, "number": float}
    found: dict[str, Any] = {}
    for name, text in texts.items():
        try:
            found[name] = readers.get(kinds.get(name, ""), str)(text)
        except ValueError:
            found[name] = text
    if found.get("stream") in ("false", "False"):
        found["stream"] = False
    return found


def read_pictures(image: bytes, mask: bytes | None, max_pixels: int) -> dict[str, Any]:
    """The own API's picture, mask and strength. A mask is transparent where to paint, and so is a picture without one.

    What is masked is made wholly anew, as by OpenAI, where nothing else is given.
    """
    picture = decode_picture("image", image, max_pixels)
    found: dict[str, Image] = {"image": picture}
    if mask is not None:
        given = decode_picture("mask", mask, max_pixels)
        if not has_alpha(given):
            raise RefusedError(400, "mask must have an alpha channel, transparent where to paint", "mask")
        found["mask"] = alpha_mask(given)
    elif has_alpha(picture) and picture.convert("RGBA").getchannel("A").getextrema()[0] == 0:
        found["mask"] = alpha_mask(picture)
    return {**found, "strength": 1.0} if "mask" in found else found
