"""One picture with many, each above a label."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

__all__ = ["MOST_PICTURES", "make_contact_sheet"]

MOST_PICTURES = 400
_CELL_PX, _GAP_PX = 192, 8
_FONT_PX, _LINE_PX, _MOST_LINES, _LETTERS = 12, 15, 4, 30


def make_contact_sheet(pictures: Sequence[tuple[Path | None, str]], columns: int) -> Image.Image:
    """The pictures of these files with their labels, in rows; one that is not there leaves its place empty."""
    labels = [_wrap(label) for _, label in pictures]
    label_px = _LINE_PX * max(label.count("\n") + 1 for label in labels)
    width, height = _CELL_PX + _GAP_PX, _CELL_PX + label_px + _GAP_PX
    sheet = Image.new(
        "RGB", (columns * width + _GAP_PX, math.ceil(len(pictures) / columns) * height + _GAP_PX), "white"
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_FONT_PX)
    for index, ((path, _), label) in enumerate(zip(pictures, labels, strict=True)):
        row, column = divmod(index, columns)
        x, y = _GAP_PX + column * width, _GAP_PX + row * height
        if path is not None and (picture := _thumbnail(path)) is not None:
            sheet.paste(picture, (x + (_CELL_PX - picture.width) // 2, y + _CELL_PX - picture.height))
        else:
            draw.rectangle((x, y, x + _CELL_PX - 1, y + _CELL_PX - 1), outline="gray")
        draw.multiline_text((x, y + _CELL_PX + 2), label, "black", font, spacing=2)
    return sheet


def _thumbnail(path: Path) -> Image.Image | None:
    try:
        with Image.open(path) as image:
            image.thumbnail((_CELL_PX, _CELL_PX))
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError):  # not there, or no picture of ours
        return None


def _wrap(label: str) -> str:
    """In a few short lines."""
    lines = textwrap.wrap(label, _LETTERS, max_lines=_MOST_LINES, placeholder=" …")
    return "\n".join(lines)
