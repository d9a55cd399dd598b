"""Runs that begin with a picture, in the web UIs' words and in ours.

Both run the last n of N steps. Ours are n = int(N strength), as in diffusers. The web UIs' are int(N strength) + 1, and
in a second pass (hires) `Hires steps` are n itself, of N = int(n / strength); their strength is at most 0.999. (Their
DDIM, PLMS and UniPC run one less.) Their sizes are cut to whole cells of 8 px, where ours are rounded.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from shaderfusion.arguments import LARGEST_COUNT, LARGEST_SCALE

__all__ = ["UPSCALER", "read_second_pass", "read_strength", "write_second_pass"]

UPSCALER = "Lanczos"
"""The web UIs' name of the filter that enlarges our pictures between two passes."""

_MOST = 0.999
_CELL_PX = 8


def read_strength(num_steps: int, strength: float) -> float | None:
    """By ours, what of so many steps a web UI runs from a picture; None where that is not one step or all of them."""
    return _find_strength(int(min(strength, _MOST) * num_steps) + 1, num_steps) if 0 < strength <= 1 else None


def read_second_pass(fields: Mapping[str, str]) -> dict[str, Any] | None:
    """hires, hires_steps and hires_strength of a web UI's fields; None where these say something else."""
    try:
        sides = [int(side) for side in fields["Size"].split("x")]
        num_steps = int(fields.get("Hires steps", "0")) or int(fields["Steps"])
        strength = float(fields["Denoising strength"])
        if not (0 < strength <= 1 and 1 <= num_steps <= LARGEST_COUNT and len(sides) == 2 and min(sides) > 0):
            return None
        of_steps = int(num_steps / min(strength, _MOST))
        scale = _find_scale(sides, fields)
    except (KeyError, ValueError, OverflowError):
        return None
    own = _find_strength(num_steps, of_steps)
    if own is None or scale is None or of_steps > LARGEST_COUNT:
        return None
    keeps = int(of_steps * strength) == num_steps
    return {"hires": scale, "hires_steps": of_steps, "hires_strength": strength if keeps else own}


def write_second_pass(settings: Mapping[str, Any]) -> dict[str, str]:
    """The fields of a web UI, in its order, of our settings; none without hires."""
    if settings.get("hires") is None:
        return {}
    sides, scale = (settings["width"], settings["height"]), settings["hires"]
    cells = [round(side * scale / _CELL_PX) for side in sides]
    if cells == [int(side * scale) // _CELL_PX for side in sides]:
        size = {"Hires upscale": f"{scale:g}"}
    else:
        size = {"Hires resize": "x".join(str(cell * _CELL_PX) for cell in cells)}
    num_steps = int(settings["hires_steps"] * settings["hires_strength"])
    return {**size, "Hires steps": str(num_steps), "Hires upscaler": UPSCALER}


def _find_strength(num_steps: int, of_steps: int) -> float | None:
    """The shortest number by which ours are num_steps of of_steps."""
    if not 1 <= num_steps <= of_steps:
        return None
    for digits in range(1, 12):
        strength = math.ceil(num_steps / of_steps * 10**digits) / 10**digits
        if strength <= 1 and int(of_steps * strength) == num_steps:
            return strength
    return None


def _find_scale(sides: list[int], fields: Mapping[str, str]) -> float | None:
    """By which ours have the web UI's size."""
    width, height = sides
    resize = re.fullmatch(r"(\d{1,6})x(\d{1,6})", fields.get("Hires resize", ""))
    if resize:
        to = [int(side) for side in resize.groups()]
        by_width, by_height = [to[0], to[0] * height // width], [to[1] * width // height, to[1]]
        larger = by_width if to[1] == 0 or (to[0] and width * to[1] < to[0] * height) else by_height
        if 0 not in to and [side // _CELL_PX for side in larger] != [side // _CELL_PX for side in to]:
            return None  # what is more than asked for is cut away there
        scales = [larger[0] / width, larger[1] / height]
    else:
        scale = float(fields["Hires upscale"])
        larger, scales = [int(side * scale) for side in sides], [scale]
    cells = [side // _CELL_PX for side in larger]
    least = max(_CELL_PX * (cell - 0.5) / side for cell, side in zip(cells, sides, strict=True))
    most = min(_CELL_PX * (cell + 0.5) / side for cell, side in zip(cells, sides, strict=True))
    for scale in [*scales, (least + most) / 2]:
        if 1 <= scale <= LARGEST_SCALE and [round(side * scale / _CELL_PX) for side in sides] == cells:
            return scale
    return None
