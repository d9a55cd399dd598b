"""Prompts of any length as chunks, each as long as a text encoder reads, with a weight for each token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from shaderfusion.prompts.emphasis import Span
from shaderfusion.text.tokenizer import Tokenizer

__all__ = ["Chunks", "read_chunks"]

COMMA_BACKTRACK = 20
"""So many tokens after a comma go to the next chunk with those that did not fit."""


@dataclass
class Chunks:
    """Of one prompt and text encoder: ids (n, L) int32, with their begin, end and padding, and weights (n, L) f32."""

    tokenizer: Tokenizer
    ids: list[np.ndarray] = field(default_factory=list)
    weights: list[np.ndarray] = field(default_factory=list)

    def add(self, tokens: Sequence[tuple[int, float]]) -> None:
        """One more, of ids and their weights."""
        L, end = self.tokenizer.max_length, len(tokens) + 1
        ids, weights = np.full(L, self.tokenizer.pad_id, np.int32), np.ones(L, np.float32)
        ids[0], ids[end] = self.tokenizer.bos_id, self.tokenizer.eos_id
        if tokens:
            ids[1:end], weights[1:end] = zip(*tokens, strict=True)
        self.ids.append(ids)
        self.weights.append(weights)

    def pad(self, count: int) -> None:
        """Adds empty ones until there are so many."""
        while len(self.ids) < count:
            self.add(())


def read_chunks(tokenizer: Tokenizer, spans: Sequence[Span]) -> Chunks:
    """At least one chunk of a prompt's spans.

    A chunk ends where the next token does not fit, after its last comma if that is one of its last COMMA_BACKTRACK
    tokens, and at a BREAK. The ids of a word that the model was taught stay together.
    """
    chunks = Chunks(tokenizer)
    limit = tokenizer.max_length - 2
    chunk: list[tuple[int, float]] = []
    after_comma = 0
    for text, weight in spans:
        if text is None:
            chunks.add(chunk)
            chunk, after_comma = [], 0
            continue
        for word in tokenizer.split(text):
            is_comma = word == (tokenizer.comma_id,)
            while len(chunk) + len(word) > limit:
                is_near = after_comma > 0 and len(chunk) - after_comma < COMMA_BACKTRACK
                kept = after_comma if is_near and len(chunk) == limit and not is_comma else len(chunk)
                chunks.add(chunk[:kept])
                chunk, after_comma = chunk[kept:], 0
            chunk += [(token, weight) for token in word]
            after_comma = len(chunk) if is_comma else after_comma
    if chunk or not chunks.ids:
        chunks.add(chunk)
    return chunks
