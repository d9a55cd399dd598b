"""Weights in a prompt: `(x)` 1.1, `(x:1.3)`, `[x]` 1 / 1.1, and BREAK, which ends a chunk.

They multiply where they are nested. A bracket that is not closed holds up to the end, and one that was not opened is
text; round and square brackets do not look at each other. A backslash makes text of a bracket or backslash after it,
and is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from shaderfusion.arguments import LARGEST_F32
from shaderfusion.prompts.errors import MOST_BRACKETS, prompt_error

__all__ = ["Span", "emphasize", "read_spans"]

_TOKEN = re.compile(r"\\[()\[\]\\]?|[(\[\])]|:(?P<weight>[+-]?[.\d]+)\)|[^\\()\[\]:]+|:")
_BREAK = re.compile(r"\bBREAK\b")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)")
_STEP = 1.1


class Span(NamedTuple):
    """A piece of a prompt's text of one weight; None in place of a text ends a chunk."""

    text: str | None
    weight: float = 1.0


def read_spans(text: str) -> list[Span]:
    """The text's pieces, in order; InputError for a weight that is no number, and for too many open brackets."""
    texts: list[str | None] = []
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def close(bracket: str, factor: float) -> None:
        for index in range(opened[bracket].pop(), len(weights)):
            weights[index] *= factor

    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in opened:
            if sum(map(len, opened.values())) == MOST_BRACKETS:
                raise prompt_error(text, match.start(), f"at most {MOST_BRACKETS} brackets may be open; close some")
            opened[token].append(len(texts))
        elif match["weight"] is not None and opened["("]:
            close("(", _read_weight(text, match))
        elif token == ")" and opened["("]:
            close("(", _STEP)
        elif token == "]" and opened["["]:
            close("[", 1 / _STEP)
        else:
            pieces = [token[1:]] if token[0] == "\\" else _BREAK.split(token)
            for index, piece in enumerate(pieces):  # without the white space around BREAK
                begun = piece if index == 0 else piece.lstrip()
                texts += [begun if index == len(pieces) - 1 else begun.rstrip(), None]
            texts.pop()
            weights += [1.0] * (2 * len(pieces) - 1)
    for bracket, factor in (("(", _STEP), ("[", 1 / _STEP)):
        while opened[bracket]:
            close(bracket, factor)
    return _merge(map(Span, texts, weights))


def _read_weight(text: str, match: re.Match[str]) -> float:
    weight = match["weight"]
    value = float(weight) if _NUMBER.fullmatch(weight) else None
    if value is None or abs(value) > LARGEST_F32:
        raise prompt_error(
            text,
            match.start(),
            f"the weight (={weight[:20]}) must be a number such as 1.3; a backslash before a bracket makes it text",
        )
    return value


def _merge(spans: Iterable[Span]) -> list[Span]:
    """Without empty ones, and those of equal weight beside each other as one."""
    merged: list[Span] = []
    for span in spans:
        if span.text is None:
            merged.append(Span(None))
        elif span.text and merged and merged[-1].text is not None and merged[-1].weight == span.weight:
            merged[-1] = Span(merged[-1].text + span.text, span.weight)
        elif span.text:
            merged.append(span)
    return merged


def emphasize(embedding: np.ndarray, weights: np.ndarray, widths: Sequence[int], *, restores_mean: bool) -> np.ndarray:
    """Embeddings (chunks, L, C) f32 with the row of each token times its weight.

    weights are (chunks, encoders, L), `widths` the channels of each text encoder, side by side in C. With restores_mean
    each chunk of each encoder is scaled to the mean that it had. Chunks whose weights are all 1 stay as they are.
    """
    ends = np.cumsum(widths)[:-1]
    parts = np.split(embedding.astype(np.float64), ends, axis=2)
    scaled = [part * weights[:, encoder, :, None] for encoder, part in enumerate(parts)]
    if restores_mean:
        for part, result in zip(parts, scaled, strict=True):
            before, after = (each.mean(axis=(1, 2), keepdims=True) for each in (part, result))
            result *= np.divide(before, after, out=np.ones_like(after), where=after != 0)
    plain = (weights == 1).all(axis=(1, 2))[:, None, None]
    return np.where(plain, embedding, np.concatenate(scaled, axis=2)).astype(np.float32)
