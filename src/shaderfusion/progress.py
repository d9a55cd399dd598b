"""How far a job is: which part of it runs, how many steps are done, and how long the others will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

__all__ = ["DENOISE", "JobProgress", "Stage"]

DENOISE = "denoise"
"""The part of a run that has steps."""

_WORDS = {"text": "text", "encode": "encoding", DENOISE: "denoising", "hires": "second pass", "decode": "decoding"}


@dataclass(frozen=True)
class Stage:
    """The steps of one run."""

    num_steps: int
    part: str = DENOISE
    """What its steps are called."""
    work: float = 1.0
    """Of a step, in any unit: a step of twice as much is taken to need twice as long. Pixels will do."""


class JobProgress:
    """Counts the steps of one stage after the other.

    The time of a step is the mean of those of its stage, without the first one, before which programs are compiled and
    prompts read; until there is one, of those of the stage before, by their work.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        *,
        watch: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`watch` is called after each change; `clock` gives seconds."""
        self.part = "loading"
        self.watch = watch
        self._stages = stages
        self._clock = clock
        self._index = 0
        self._done = 0
        """Steps of this stage."""
        self._first_s: float | None = None
        """When its first step was done."""
        self._work_s: float | None = None
        """Seconds for a unit of work."""

    @property
    def num_steps(self) -> int:
        """Of all stages."""
        return sum(stage.num_steps for stage in self._stages)

    @property
    def step(self) -> int:
        """How many are done."""
        return sum(stage.num_steps for stage in self._stages[: self._index]) + self._done

    @property
    def seconds_left(self) -> float | None:
        """Of the steps to come, when the last one was done, without other parts; None until two of a stage are."""
        if self.step == self.num_steps:
            return 0.0
        if self._work_s is None:
            return None
        work = sum(stage.num_steps * stage.work for stage in self._stages[self._index :])
        return self._work_s * (work - self._done * self._stages[self._index].work)

    @property
    def step_s(self) -> float | None:
        """Seconds of a step of the stage that runs; None until two of a stage are done."""
        return None if self._work_s is None else self._work_s * self._stages[self._index].work

    def start(self, index: int) -> None:
        """A stage begins."""
        self._index = index
        self.restart()

    def restart(self) -> None:
        """The stage that runs begins again."""
        self._done, self._first_s = 0, None
        self.watch()

    def begin(self, part: str) -> None:
        """A part of this stage's run begins, as of `run.Run`."""
        self.part = self._stages[self._index].part if part == DENOISE else part
        self.watch()

    def advance(self) -> None:
        """A step of this stage is done."""
        now, stage = self._clock(), self._stages[self._index]
        self._done += 1
        if self._first_s is None:
            self._first_s = now
        else:
            self._work_s = (now - self._first_s) / ((self._done - 1) * stage.work)
        self.watch()

    def __str__(self) -> str:
        """Such as "denoising 3/20, 4 s left"."""
        words = _WORDS.get(self.part, self.part)
        if self.part != self._stages[self._index].part:
            return words
        left = self.seconds_left
        return f"{words} {self.step}/{self.num_steps}" + (f", {left:.0f} s left" if left is not None else "")
