"""Prompts of one call in the web UIs' syntax: what each step shows, as chunks of token ids with weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from shaderfusion.errors import InputError
from shaderfusion.prompts.adapters import take_adapters
from shaderfusion.prompts.chunks import Chunks, read_chunks
from shaderfusion.prompts.emphasis import emphasize, read_spans
from shaderfusion.prompts.schedule import read_schedule, text_at
from shaderfusion.text.tokenizer import Tokenizer

__all__ = ["ScheduledPrompts", "read_negative", "read_positive", "read_prompts"]


@dataclass(frozen=True, eq=False)
class ScheduledPrompts:
    """Some texts, a row for each, of n chunks for each of E text encoders, and which row each prompt has in a step."""

    ids: np.ndarray = field(repr=False)
    """(rows, n, E, L) int32"""
    weights: np.ndarray = field(repr=False)
    """(rows, n, E, L) f32"""
    row_of: np.ndarray
    """(steps, prompts)"""
    empty_ids: np.ndarray = field(repr=False)
    """(E, L) int32 of a chunk without tokens."""
    restores_mean: bool
    """Whether what weights change of a chunk's mean is undone."""
    second_pass: Callable[[int], ScheduledPrompts] = field(repr=False)
    """The same texts in a pass of so many calls that goes on after this one."""
    repeats: int = 1
    """How often an embedding has its chunks, one time after the other."""

    @property
    def num_tokens(self) -> int:
        """Of an embedding, all chunks of it."""
        _, n, _, L = self.ids.shape
        return n * L * self.repeats

    def lengthened(self, num_tokens: int) -> ScheduledPrompts:
        """So that an embedding has so many tokens: its own again and again, which to attention are the same ones.

        Where they do not fit it has empty chunks, which are not.
        """
        if num_tokens % self.num_tokens == 0:
            return replace(self, repeats=self.repeats * num_tokens // self.num_tokens)
        rows, n, E, L = self.ids.shape
        missing = max(0, num_tokens // L - n)
        empty = np.broadcast_to(self.empty_ids, (rows, missing, E, L))
        return replace(
            self,
            ids=np.concatenate([self.ids, empty], axis=1),
            weights=np.concatenate([self.weights, np.ones(empty.shape, np.float32)], axis=1),
        )

    def changes_at(self, step: int) -> bool:
        """Whether a step, counted from 0, shows something else than the one before."""
        return 0 < step < len(self.row_of) and not np.array_equal(self.row_of[step], self.row_of[step - 1])

    def join(self, made: Mapping[str, np.ndarray], widths: Sequence[int]) -> dict[str, np.ndarray]:
        """Conditioning of each row, from that of each of its chunks, by encoders of those widths.

        The weighted embeddings (rows, num_tokens, C) are of all chunks; all else is of the first one.
        """
        rows, n, E, L = self.ids.shape
        weights = self.weights.reshape(rows * n, E, L)
        embedding = emphasize(made["embedding"], weights, widths, restores_mean=self.restores_mean)
        first = {name: array.reshape(rows, n, *array.shape[1:])[:, 0] for name, array in made.items()}
        return {**first, "embedding": np.tile(embedding.reshape(rows, n * L, -1), (1, self.repeats, 1))}


def read_positive(texts: Sequence[str]) -> tuple[list[str], dict[str, dict[str, float]]]:
    """The prompts without their adapters, and these, as of `take_adapters`, which must be the same for all.

    InputError otherwise.
    """
    taken = [take_adapters(text) for text in texts]
    adapters = taken[0][1]
    if any(others != adapters for _, others in taken):
        raise InputError("prompts of one call must name the same adapters; make a call for each")
    return [text for text, _ in taken], adapters


def read_negative(texts: Sequence[str]) -> list[str]:
    """The texts as they are; InputError for one that names an adapter."""
    for text in texts:
        _, adapters = take_adapters(text)
        if adapters:
            raise InputError(f"negative_prompt must name no adapter (={', '.join(adapters)}); the prompt does")
    return list(texts)


def read_prompts(
    tokenizers: Sequence[Tokenizer],
    texts: Sequence[str],
    num_calls: int,
    *,
    num_steps: int | None = None,
    before: int = 0,
    restores_mean: bool,
) -> ScheduledPrompts:
    """What the prompts are in each call of the denoiser, for text encoders with those tokenizers.

    num_steps is how many calls there would be without a picture to begin with, and `before` as of `text_at`. InputError
    as of readers.
    """
    num_steps = num_calls if num_steps is None else num_steps
    rows: dict[str, int] = {}
    row_of = np.empty((num_calls, len(texts)), np.int64)
    for column, text in enumerate(texts):
        read_spans(text)  # refuses what is wrong with its place in the whole text
        prompt = read_schedule(text)
        for call in range(num_calls):
            step = max(call, 1)  # as in the web UIs, where the first two calls are of step 1
            row_of[call, column] = rows.setdefault(text_at(prompt, step, num_steps, before), len(rows))
    chunks = [[read_chunks(tokenizer, read_spans(text)) for tokenizer in tokenizers] for text in rows]
    num_chunks = max(len(each.ids) for row in chunks for each in row)
    for row in chunks:
        for each in row:
            each.pad(num_chunks)
    empty = [Chunks(tokenizer) for tokenizer in tokenizers]
    for each in empty:
        each.pad(1)
    return ScheduledPrompts(
        np.stack([np.stack([each.ids for each in row], axis=1) for row in chunks]),
        np.stack([np.stack([each.weights for each in row], axis=1) for row in chunks]),
        row_of,
        np.stack([each.ids[0] for each in empty]),
        restores_mean,
        lambda calls: read_prompts(tokenizers, texts, calls, before=before + num_steps, restores_mean=restores_mean),
    )
