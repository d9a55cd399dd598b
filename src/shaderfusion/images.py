"""Pictures that a run begins with, and masks of where it paints, as arrays of the run's size; arrays as pictures."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from shaderfusion.errors import InputError
from shaderfusion.files import is_file, shown

__all__ = ["LARGEST_PICTURE", "AnyPicture", "Source", "read_source", "to_pictures"]

AnyPicture = Image.Image | str | Path
"""A picture, or the path of its file."""

LARGEST_PICTURE = 1 << 26
"""Pixels. Larger ones are refused before they are decoded."""

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Those that Pillow decodes by itself: others are handed to programs, or decoders that few have tried."""


@dataclass(frozen=True, eq=False)
class Source:
    """What a run begins with."""

    pixels: np.ndarray = field(repr=False)
    """(1 or B, height, width, 3) f32 in -1..1: one for all pictures, or one for each."""
    mask: np.ndarray | None = field(repr=False)
    """(1, height, width, 1) f32: 1 where to paint, 0 where the picture is kept; None paints all of it."""
    strength: float
    """Of all steps, the part that is run."""


def read_source(
    image: AnyPicture | Sequence[AnyPicture],
    mask: AnyPicture | None,
    strength: float,
    *,
    width_px: int,
    height_px: int,
    batch: int,
) -> Source:
    """Resized by Lanczos' filter, whatever its sides are to each other. InputError for what is no picture.

    EXIF's orientation is applied. Transparent parts of pictures are white, and those of masks black, as what is kept.
    A mask's grey is black or white, whichever is nearer.
    """
    pictures = list(image) if isinstance(image, Sequence) and not isinstance(image, str) else [image]
    if len(pictures) not in (1, batch):
        raise InputError(f"image (of {len(pictures)}) must be one picture, or one for each of {batch} to be made")
    size = (width_px, height_px)
    levels = [_resized(_read("image", picture, "white"), size) for picture in pictures]
    pixels = np.stack(levels).astype(np.float32) / 127.5 - 1
    painted = None
    if mask is not None:
        grey = _resized(_read("mask_image", mask, "black").convert("L"), size)
        painted = (grey[None, :, :, None] >= 128).astype(np.float32)
    return Source(pixels, painted, strength)


def _resized(picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(picture.resize(size, Image.Resampling.LANCZOS))


def _read(name: str, picture: AnyPicture, background: str) -> Image.Image:
    """In red, green and blue."""
    if not isinstance(picture, Image.Image | str | Path):
        raise InputError(f"{name} (of type {type(picture).__name__}) must be a PIL.Image.Image or the path of one")
    if isinstance(picture, Image.Image):
        return _converted(name, f"of {picture.width}x{picture.height}", picture, background)
    where = f"={shown(str(picture))}"
    if not is_file(Path(picture)):
        raise InputError(f"{name} ({where}) must be a picture's file, and there is no file of that name")
    try:
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            opened = Image.open(picture, formats=_FORMATS)
    except Image.DecompressionBombError:
        raise _too_large(name, where) from None
    except (OSError, ValueError, SyntaxError) as error:
        raise _not_whole(name, where, error) from None
    with opened:
        return _converted(name, where, opened, background)


def _converted(name: str, where: str, picture: Image.Image, background: str) -> Image.Image:
    if picture.width * picture.height > LARGEST_PICTURE:
        raise _too_large(name, where)
    try:
        return _to_rgb(ImageOps.exif_transpose(picture), background)
    except Exception as error:  # of damaged files Pillow raises nearly anything
        raise _not_whole(name, where, error) from None


def _too_large(name: str, where: str) -> InputError:
    return InputError(f"{name} ({where}) must have at most {LARGEST_PICTURE:,} pixels; make it smaller before")


def _not_whole(name: str, where: str, error: Exception) -> InputError:
    reason = shown(str(error) or type(error).__name__)
    return InputError(f"{name} ({where}) must be a whole picture, such as a PNG or JPEG file ({reason})")


def _to_rgb(picture: Image.Image, background: str) -> Image.Image:
    """Of any mode; 16 bits a value become 8, and so do fractions, as some TIFF files have them: from 0 to 1."""
    if picture.mode == "F":
        levels = np.nan_to_num(np.asarray(picture))
        if levels.max() <= 1:
            picture = Image.fromarray(levels * 255)
    elif picture.mode.startswith("I"):
        levels = np.clip(np.asarray(picture, np.float64) / 257, 0, 255)
        picture = Image.fromarray(np.round(levels).astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        clear = picture.convert("RGBA")
        picture = Image.new("RGBA", clear.size, background)
        picture.alpha_composite(clear)
    return picture.convert("RGB")


def to_pictures(pixels: np.ndarray) -> list[Image.Image]:
    """Of (B, height, width, 3), in -1..1; what is outside is cut off."""
    levels = np.clip(np.round(pixels * 127.5 + 127.5), 0, 255).astype(np.uint8)
    return [Image.fromarray(image) for image in levels]
