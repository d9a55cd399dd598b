"""What of a model could be done in several ways: each distinct operation of its graphs, with the calls of each way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from shaderfusion.bench.measure import isolate
from shaderfusion.graph.graph import Graph
from shaderfusion.kernels.call import KernelCall
from shaderfusion.kernels.select import Kernels
from shaderfusion.kernels.tuning import Choice, Operation, Tuning

__all__ = ["Case", "NthChoice", "find_cases", "same_calls"]

Record = Callable[[Kernels], dict[str, Graph]]
"""The graphs of a model's networks, by name."""


@dataclass(frozen=True, eq=False)
class NthChoice(Tuning):
    """The n-th way to do each operation, or the last, of one that has fewer; the first is the static rules' own."""

    n: int = 0
    ways: dict[Operation, Sequence[Any]] = field(default_factory=dict)
    """What there was to choose from, the static rules' choice first."""

    def choose(self, operation: Operation, static: Any, candidates: Callable[[], Sequence[Any]]) -> Any:
        """The n-th way."""
        if operation not in self.ways:
            self.ways[operation] = [static, *(way for way in candidates() if way != static)]
        ways = self.ways[operation]
        return ways[min(self.n, len(ways) - 1)]


@dataclass
class Case:
    """An operation, the layers that do it, and the calls of each way to do it, which read weights, or add to one."""

    operation: Operation
    layers: Counter[str]
    """By network, how many."""
    ways: dict[Choice, list[KernelCall]]
    """The static rules' choice first. No two are the same calls."""


def find_cases(record: Record, kernels: Kernels) -> list[Case]:
    """Those of a model's graphs, of which there is more than one way to do them."""
    cases: dict[Operation, Case] = {}
    choose = NthChoice()
    while choose.n == 0 or choose.n < max(map(len, choose.ways.values()), default=0):
        graphs = record(replace(kernels, tuning=choose))
        for operation, layers in _layers_of(graphs).items():
            if choose.n == 0:
                cases[operation] = Case(operation, Counter(network for network, _ in layers), {})
            calls, known = isolate(next(iter(layers.values())), "weight"), cases[operation].ways
            if not any(same_calls(calls, others) for others in known.values()):
                known[choose.ways[operation][choose.n]] = calls
        choose = replace(choose, n=choose.n + 1)
    return [case for case in cases.values() if len(case.ways) > 1]


def _layers_of(graphs: dict[str, Graph]) -> dict[Operation, dict[tuple[str, str], list[KernelCall]]]:
    """By operation the layers that do it, as (network, path in it), with their calls."""
    found: dict[Any, dict[tuple[str, str], list[KernelCall]]] = {}
    for network, graph in graphs.items():
        for call in graph.calls:
            if call.operation is not None:
                path = call.label.rpartition("/")[0]
                found.setdefault(call.operation, {}).setdefault((network, path), []).append(call)
    return found


def same_calls(some: Sequence[KernelCall], others: Sequence[KernelCall]) -> bool:
    """Whether two lists of calls do the same, on whatever tensors."""

    def numbers(calls: Sequence[KernelCall]) -> list[Any]:
        return [(c.source, c.entry_point, dict(c.constants), dict(c.params), c.workgroups) for c in calls]

    return numbers(some) == numbers(others)
