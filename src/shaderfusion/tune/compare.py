"""Whole networks by the static rules and by a tuning, run in turn: what a tuning gains, and whether it is right."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import numpy as np

from shaderfusion.bench.measure import relative_error, time_once_ms
from shaderfusion.bench.subject import Subject
from shaderfusion.bench.values import normal
from shaderfusion.graph.arena import Arena
from shaderfusion.graph.graph import Graph
from shaderfusion.graph.program import Program
from shaderfusion.kernels.tuning import NO_TUNING, Tuning
from shaderfusion.tune.survey import same_calls
from shaderfusion.weights.checkpoint import TensorSource
from shaderfusion.weights.store import WeightStore

__all__ = ["Comparison", "compare"]

_MAX_RUNS = 20
_MIN_RUNS = 3
_MAX_S = 8.0
"""Of a network, once it has run _MIN_RUNS times each way."""

_LEAST_GAIN = 0.01
"""Less is noise, and the static rules stay."""

_MAX_DIFFERENCE = {2: 0.05, 4: 1e-3}
"""Of two outputs of values of so many bytes, relative: a larger one comes from a driver that runs a kernel wrongly."""


@dataclass(frozen=True)
class Comparison:
    """The least milliseconds of one network."""

    network: str
    static_ms: float
    tuned_ms: float
    agree: bool
    """Whether the outputs do."""

    @property
    def is_gain(self) -> bool:
        """Whether the network's choices are to be kept."""
        return self.agree and self.tuned_ms <= (1 - _LEAST_GAIN) * self.static_ms


def compare(subject: Subject, tuning: Tuning) -> Iterator[Comparison]:
    """One for each network that the tuning changes, with the model's weights, on normal values."""
    kernels = subject.model.kernels_in(subject.memory, subject.kernels())
    for name, network in subject.model.networks.items():
        static, tuned = (
            network.record(replace(kernels[name], tuning=choices), subject.size) for choices in (NO_TUNING, tuning)
        )
        if not same_calls(static.calls, tuned.calls):
            yield Comparison(name, *_time(subject, subject.model.sources[network.source], static, tuned))


def _time(subject: Subject, source: TensorSource, static: Graph, tuned: Graph) -> tuple[float, float, bool]:
    """The least milliseconds of each, and whether their outputs agree."""
    arena, store = Arena(subject.device), WeightStore(subject.device)
    with ExitStack() as cleanup:
        cleanup.callback(arena.close)
        cleanup.callback(store.close)
        weights = store.load({static: source, tuned: source})
        programs = [Program(subject.device, *item, arena) for item in zip((static, tuned), weights, strict=True)]
        for program in programs:
            cleanup.callback(program.close)
        agree = _agree(*map(_outputs, programs))
        times_ms: list[list[float]] = [[], []]
        started = time.perf_counter()
        for num_runs in range(_MAX_RUNS):
            if num_runs >= _MIN_RUNS and time.perf_counter() - started > _MAX_S:
                break
            for program, own in zip(programs, times_ms, strict=True):
                _fill(program)  # denoise_step changes some inputs
                own.append(time_once_ms(program))
        return min(times_ms[0]), min(times_ms[1]), agree


def _fill(program: Program) -> None:
    for name, tensor in program.graph.inputs.items():
        program.write(name, normal(name, (*tensor.shape[:-1], tensor.channels)))


def _outputs(program: Program) -> list[np.ndarray]:
    _fill(program)
    program.run()
    return list(program.read_all(list(program.graph.outputs)).values())


def _agree(static: Sequence[np.ndarray], tuned: Sequence[np.ndarray]) -> bool:
    """Whether the outputs differ by rounding alone, as far as the static ones are finite."""
    return all(
        relative_error(b, a) < _MAX_DIFFERENCE[a.dtype.itemsize]
        for a, b in zip(static, tuned, strict=True)
        if np.isfinite(a).all()
    )
