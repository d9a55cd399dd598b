"""The fastest way to do each operation, by running all of them in turn."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from shaderfusion.bench.measure import DOES_NOT_FIT, time_once_ms
from shaderfusion.bench.values import normal
from shaderfusion.bench.work import work_of
from shaderfusion.errors import ShaderError
from shaderfusion.gpu.buffers import allocate, upload
from shaderfusion.gpu.device import Device
from shaderfusion.graph.arena import Arena
from shaderfusion.graph.graph import Graph
from shaderfusion.graph.program import Buffers, Program
from shaderfusion.kernels.call import KernelCall
from shaderfusion.kernels.select import Kernels
from shaderfusion.tensor import DType
from shaderfusion.tune.survey import Case
from shaderfusion.tuning_file import TunedOperation

__all__ = ["Search"]

_LEAST_GAIN = 0.03
"""A way must be faster than the static rules' by so much, or they stay."""
_LEAST_SHARE = 0.001
"""Operations that take less of the model's time are left as they are."""

_REPEATED_MS = 1.0
"""The calls are repeated to take about so long, as the clock's steps and the start of a pass take microseconds."""
_MAX_REPEATS = 50

_TOLERANCES = (1.5, 1.25, 1.1, 1.1, 1.1, 1.1, 1.1)
"""After each round those go on that take at most so many times as long as the fastest."""


class Search:
    """Times the ways of cases on a device until `budget_s` are over, those with the most work for a picture first.

    `runs` says how often a network runs for a picture. Tensors that are read hold normal values.
    """

    def __init__(self, device: Device, cases: Sequence[Case], runs: Mapping[str, int], budget_s: float) -> None:
        self._device = device
        self._cases = sorted(cases, key=lambda case: -_flop(case, runs))
        self._runs = runs
        self._budget_s = budget_s
        self._arena = Arena(device)
        self._inputs: dict[tuple[int, DType, bool], Any] = {}
        self._pipelines: list[Any] = []  # kept, as operations share them

    def __iter__(self) -> Iterator[tuple[Case, TunedOperation | None]]:
        """For each case what was found; None where the static rules stay."""
        ends = time.perf_counter() + self._budget_s
        total_ms = 0.0
        for case in self._cases:
            if time.perf_counter() > ends:
                return
            static_ms = self._time_static_ms(case)
            taken_ms = static_ms * _num_calls(case, self._runs)
            total_ms += taken_ms
            yield case, self._search(case, static_ms, ends) if taken_ms > _LEAST_SHARE * total_ms else None

    def close(self) -> None:
        """Frees the device's memory."""
        for buffer in self._inputs.values():
            buffer.destroy()
        self._inputs.clear()
        self._arena.close()

    def _time_static_ms(self, case: Case) -> float:
        """What the static rules take, roughly; 0 where that does not fit on the device."""
        try:
            program = self._program(next(iter(case.ways.values())))
        except DOES_NOT_FIT:
            return 0.0
        program.run()
        once_ms = time_once_ms(program)
        program.close()
        return once_ms

    def _search(self, case: Case, static_ms: float, ends: float) -> TunedOperation | None:
        with suppress(ShaderError):  # ways that the driver does not compile are left out, as those that do not fit
            self._pipelines += self._device.pipelines.get_all(call for calls in case.ways.values() for call in calls)
        repeats = max(1, min(_MAX_REPEATS, round(_REPEATED_MS / static_ms)))
        programs: dict[Any, Program] = {}
        for choice, calls in case.ways.items():
            with suppress(*DOES_NOT_FIT, ShaderError):
                programs[choice] = self._program(calls * repeats)
        best_ms = dict(zip(programs, self._race(list(programs.values()), ends), strict=True))
        for program in programs.values():
            program.close()
        static = next(iter(case.ways))
        if static not in best_ms:
            return None
        fastest = min(best_ms, key=lambda choice: best_ms[choice])
        if best_ms[fastest] > (1 - _LEAST_GAIN) * best_ms[static]:
            return None
        names = (repr(case.operation), repr(fastest))
        return TunedOperation(*names, best_ms[static] / repeats, best_ms[fastest] / repeats)

    def _race(self, programs: Sequence[Program], ends: float) -> list[float]:
        """The least milliseconds of each, run in turn; those that are far behind drop out, but never the first."""
        for program in programs:
            program.run()
        best_ms = [math.inf] * len(programs)
        running = list(range(len(programs)))
        for tolerance in _TOLERANCES:
            for index in running:
                best_ms[index] = min(best_ms[index], time_once_ms(programs[index]))
            most_ms = tolerance * min(best_ms)
            running = [index for index in running if index == 0 or best_ms[index] <= most_ms]
            if len(running) == 1 or time.perf_counter() > ends:
                break
        return best_ms

    def _program(self, calls: Sequence[KernelCall]) -> Program:
        graph = Graph("tune", Kernels(calls[0].dtype))
        graph.calls = list(calls)
        return Program(self._device, graph, self._buffers(calls), self._arena)

    def _buffers(self, calls: Sequence[KernelCall]) -> Buffers:
        """For each tensor that is read a buffer, which the tensor of that place among other calls' uses too.

        Those that are added to grow from run to run: no other calls read them.
        """
        bindings = [binding for call in calls for binding in call.bindings]
        tensors = dict.fromkeys(b.tensor.storage for b in bindings if b.tensor.storage.role == "weight")
        added_to = {b.tensor.storage for b in bindings if b.access == "read_write"}
        found: Buffers = {}
        for place, tensor in enumerate(tensors):
            key = (place, tensor.dtype, tensor in added_to)
            if key not in self._inputs or self._inputs[key].size < tensor.size_bytes:
                self._inputs[key] = allocate(self._device, tensor.size_bytes, tensor.name)
                upload(self._device, self._inputs[key], tensor, normal(f"{place}", tensor.shape))
            found[tensor] = self._inputs[key]
        return found


def _num_calls(case: Case, runs: Mapping[str, int]) -> int:
    """How often the operation is done for a picture."""
    return sum(runs[network] * layers for network, layers in case.layers.items())


def _flop(case: Case, runs: Mapping[str, int]) -> int:
    """Of its products for a picture, by the static rules."""
    return _num_calls(case, runs) * sum(work_of(call).flop for call in next(iter(case.ways.values())))
