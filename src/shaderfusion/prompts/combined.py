"""Prompts that a picture shows together, `a cat AND a dog :1.2`, each with a weight. Liu et al. 2022, 2206.01714.

AND is looked for before all other syntax, so that it also divides brackets. A part on one line that ends with a colon
and a number has that weight, and else 1, even where it is the whole prompt.
"""

import re
from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

import numpy as np

from shaderfusion.arguments import LARGEST_F32
from shaderfusion.prompts.errors import prompt_error

__all__ = ["Part", "combine", "read_parts"]

_AND = re.compile(r"\bAND\b")
_WEIGHTED = re.compile(r"(?P<text>\s*.*?)\s*:\s*(?P<weight>[+-]?(?:\d+\.?|\d*\.\d+))\s*")


class Part(NamedTuple):
    """A text between two AND."""

    text: str
    weight: float = 1.0


def read_parts(text: str) -> list[Part]:
    """At least one; InputError for a weight that is too large."""
    parts: list[Part] = []
    begin = 0
    for piece in _AND.split(text):
        match = _WEIGHTED.fullmatch(piece)
        if match and abs(float(match["weight"])) > LARGEST_F32:
            raise prompt_error(text, begin + match.start("weight"), f"the weight must be at most {LARGEST_F32:.2g}")
        parts.append(Part(match["text"], float(match["weight"])) if match else Part(piece))
        begin += len(piece) + len("AND")
    return parts


def combine(texts: Sequence[str]) -> tuple[list[list[str]], np.ndarray | None]:
    """K lists with a part of each prompt, and weights (K, prompts) f32, or None where each prompt is one of weight 1.

    Where a prompt has fewer parts than another it is filled up with empty ones of weight 0.
    """
    parts = list(zip_longest(*map(read_parts, texts), fillvalue=Part("", 0.0)))
    weights = np.array([[part.weight for part in row] for row in parts], np.float32)
    is_plain = len(parts) == 1 and bool((weights == 1).all())
    return [[part.text for part in row] for row in parts], None if is_plain else weights
