"""Prompts that change from step to step: `[from:to:when]`, `[to:when]`, and `[a|b]`, which alternates.

`when` is the number of steps after which it changes, or with a point a part of all steps: 0.5 is half of them. Every
part may hold others. All else is text: brackets that do not match, `[a]`, which says a weight, and `(a|b)`.
A backslash makes text of the character after it. Backslashes and round brackets stay in the text, for `emphasis`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from shaderfusion.prompts.errors import MOST_BRACKETS, prompt_error

__all__ = ["Alternating", "Changing", "Scheduled", "read_schedule", "text_at", "write_schedule"]

_TOKEN = re.compile(r"\\.|[\[\]()|:]|[^\\\[\]()|:]+|\\", re.DOTALL)
_WHEN = re.compile(r"\s*([+-]?(?:\d{1,9}(?:\.\d{0,9})?|\.\d{1,9}))")
_OPENS = {"]": "[", ")": "("}

Scheduled = tuple["str | Changing | Alternating", ...]
"""A prompt: texts, and what depends on the step."""


@dataclass(frozen=True)
class Changing:
    """`before` up to a step, and `after` from then on."""

    before: Scheduled
    after: Scheduled
    when: int | float
    """A number of steps, or, as a float, a part of all steps."""


@dataclass(frozen=True)
class Alternating:
    """One option each step, in turn."""

    options: tuple[Scheduled, ...]


_Pieces = list["str | Changing | Alternating"]


class _Open:
    """What was read since a bracket opened: segments, and the `:` or `|` after each but the last."""

    def __init__(self, bracket: str) -> None:
        self.bracket = bracket
        self.segments: list[_Pieces] = [[]]
        self.separators: list[str] = []

    def separate(self, by: str) -> None:
        self.separators.append(by)
        self.segments.append([])

    def split(self, by: str) -> list[Scheduled]:
        """The segments, where the other separator is text."""
        parts = [self.segments[0].copy()]
        for separator, segment in zip(self.separators, self.segments[1:], strict=True):
            if separator == by:
                parts.append(segment.copy())
            else:
                parts[-1] += [separator, *segment]
        return [_merge(part) for part in parts]

    def as_text(self) -> _Pieces:
        """All of it, where the bracket says nothing about steps."""
        pieces: _Pieces = [self.bracket]
        for segment, separator in zip(self.segments, [*self.separators, ""], strict=True):
            pieces += [*segment, separator]
        return pieces

    def close(self, bracket: str) -> Scheduled:
        """What it is, once its own bracket closes it."""
        *parts, last = self.split(":")
        when = _WHEN.fullmatch(last[0]) if len(last) == 1 and isinstance(last[0], str) else None
        if when and len(parts) in (1, 2):
            number = float(when[1]) if "." in when[1] else int(when[1])
            return (Changing(parts[0] if len(parts) == 2 else (), parts[-1], number),)
        if "|" in self.separators:
            return (Alternating(tuple(self.split("|"))),)
        return _merge([*self.as_text(), bracket])


def read_schedule(text: str) -> Scheduled:
    """A prompt's text, read; InputError where too many brackets are open."""
    stack = [_Open("")]
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in ("[", "("):
            if len(stack) > MOST_BRACKETS:
                raise prompt_error(text, match.start(), f"at most {MOST_BRACKETS} brackets may be open; close some")
            stack.append(_Open(token))
        elif token in _OPENS and stack[-1].bracket == _OPENS[token]:
            closed = stack.pop().close(token)
            stack[-1].segments[-1] += closed
        elif token in _OPENS:  # no bracket around it can be one of a pair any more
            _flatten(stack)
            stack[0].segments[0].append(token)
        elif token in (":", "|") and stack[-1].bracket == "[":
            stack[-1].separate(token)
        else:
            stack[-1].segments[-1].append(token)
    _flatten(stack)
    return _merge(stack[0].segments[0])


def _flatten(stack: list[_Open]) -> None:
    """Makes text of all brackets that are open."""
    for opened in stack[1:]:
        stack[0].segments[0] += opened.as_text()
    del stack[1:]


def _merge(pieces: _Pieces) -> Scheduled:
    """Without empty texts, and with no text beside another."""
    merged: _Pieces = []
    for is_text, group in groupby(pieces, lambda piece: isinstance(piece, str)):
        if not is_text:
            merged += group
        elif text := "".join(map(str, group)):
            merged.append(text)
    return tuple(merged)


def text_at(prompt: Scheduled, step: int, num_steps: int, before: int = 0) -> str:
    """The prompt's text in a step, counted from 1.

    In a second pass, after so many steps `before`, changes go on: numbers count those steps too, and parts the first
    pass as 1, so that what changes at 0.5 has changed, and 1.5 is half of this one.
    """
    return "".join(_piece_at(piece, step, num_steps, before) for piece in prompt)


def _piece_at(piece: str | Changing | Alternating, step: int, num_steps: int, before: int) -> str:
    match piece:
        case str():
            return piece
        case Changing(first, then, when):
            last = int((when - (before > 0)) * num_steps) if isinstance(when, float) else when - before
            return text_at(first if step <= last else then, step, num_steps, before)
        case Alternating(options):
            return text_at(options[(step - 1) % len(options)], step, num_steps, before)


def write_schedule(prompt: Scheduled) -> str:
    """A text that reads as the prompt."""
    return "".join(map(_write_piece, prompt))


def _write_piece(piece: str | Changing | Alternating) -> str:
    match piece:
        case str():
            return piece
        case Changing(before, after, when):
            number = np.format_float_positional(when, trim="0") if isinstance(when, float) else str(when)
            return f"[{write_schedule(before)}:{write_schedule(after)}:{number}]"
        case Alternating(options):
            return f"[{'|'.join(map(write_schedule, options))}]"
