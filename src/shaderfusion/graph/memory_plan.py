"""Tensor lifetimes to shared memory, without a device.

Intermediate tensors share a buffer at different offsets, or at the same where their lifetimes do not overlap (greedy by
size: Pisarchyk and Lee 2020, arXiv 2001.03288). WebGPU forbids one buffer as read-only and as read-write in one
dispatch, even at different offsets, so a tensor that a call writes has a buffer apart from all others of that call.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations, zip_longest
from typing import NamedTuple

from shaderfusion.errors import ShapeError
from shaderfusion.kernels.call import KernelCall
from shaderfusion.tensor import VIEW_ALIGNMENT_BYTES, TensorSpec

__all__ = ["Lifetime", "MemoryPlan", "Place", "find_lifetimes", "largest_of_each", "plan_memory"]

_PERIOD = 64
"""Lifetimes that may overlap are looked for by periods of so many calls, as a graph may have many thousands."""


@dataclass(frozen=True)
class Lifetime:
    """A tensor is alive from the call that writes it first to the call that uses it last, both included."""

    tensor: TensorSpec
    first: int
    last: int

    def overlaps(self, other: "Lifetime") -> bool:
        """Whether both are alive during some call."""
        return self.first <= other.last and other.first <= self.last

    @property
    def periods(self) -> range:
        """Those of `_PERIOD` calls each in which it is alive."""
        return range(self.first // _PERIOD, self.last // _PERIOD + 1)


class Place(NamedTuple):
    """Where a tensor lives."""

    buffer: int
    offset_bytes: int


@dataclass(frozen=True)
class MemoryPlan:
    """Where in shared buffers each intermediate tensor lives."""

    buffer_sizes_bytes: tuple[int, ...]
    """Largest first."""
    place_of: dict[TensorSpec, Place]
    live_bytes: int
    """The largest sum of tensors alive during one call: no plan needs less."""

    @property
    def total_bytes(self) -> int:
        """What the plan allocates."""
        return sum(self.buffer_sizes_bytes)


def find_lifetimes(calls: Sequence[KernelCall]) -> list[Lifetime]:
    """Lifetimes of the intermediate tensors; ShapeError for one that is read before any call wrote it."""
    spans: dict[TensorSpec, tuple[int, int]] = {}
    for index, call in enumerate(calls):
        for binding in call.bindings:
            storage = binding.tensor.storage
            if storage.role != "intermediate":
                continue
            if storage not in spans and binding.access != "write":
                raise ShapeError(f"{call.label}: {storage.name} is read before a call has written it")
            spans[storage] = (spans.get(storage, (index, index))[0], index)
    return [Lifetime(tensor, first, last) for tensor, (first, last) in spans.items()]


def plan_memory(calls: Sequence[KernelCall]) -> MemoryPlan:
    """Places tensors, largest first, each into the first buffer with a gap during its lifetime, or a new one."""
    lifetimes = find_lifetimes(calls)
    live_bytes = [0] * len(calls)
    for lifetime in lifetimes:
        for index in range(lifetime.first, lifetime.last + 1):
            live_bytes[index] += lifetime.tensor.size_bytes

    apart = _find_apart(calls)
    sizes: list[int] = []
    tenants: list[dict[int, list[Lifetime]]] = []  # by buffer and period
    place_of: dict[TensorSpec, Place] = {}
    for lifetime in sorted(lifetimes, key=lambda lifetime: -lifetime.tensor.size_bytes):
        tensor = lifetime.tensor
        for index in range(len(sizes) + 1):
            if index == len(sizes):
                sizes.append(tensor.size_bytes)
                tenants.append({})
            near = (other for period in lifetime.periods for other in tenants[index].get(period, ()))
            others = {other.tensor for other in near if lifetime.overlaps(other)}
            taken = ((place_of[other].offset_bytes, other.size_bytes) for other in others)
            offset = _find_gap(tensor.size_bytes, taken)
            fits = offset + tensor.size_bytes <= sizes[index]
            if fits and not any((tensor, other) in apart for other in others):
                for period in lifetime.periods:
                    tenants[index].setdefault(period, []).append(lifetime)
                place_of[tensor] = Place(index, offset)
                break
    return MemoryPlan(tuple(sizes), place_of, max(live_bytes, default=0))


def largest_of_each(plans: Iterable[Sequence[tuple[int, str]]]) -> list[tuple[int, str]]:
    """What plans need that share their buffers, each by sizes in bytes and names: of all i-th buffers the largest."""
    return [max(needed for needed in same if needed) for same in zip_longest(*plans)]


def _find_apart(calls: Sequence[KernelCall]) -> set[tuple[TensorSpec, TensorSpec]]:
    """Pairs, both ways round, that some call binds and of which it writes one."""
    return {
        (a.tensor.storage, b.tensor.storage)
        for call in calls
        for a, b in permutations(call.bindings, 2)
        if (a.access, b.access) != ("read", "read")
    }


def _find_gap(size_bytes: int, taken: Iterable[tuple[int, int]]) -> int:
    """The lowest aligned offset of size_bytes free bytes, given the offsets and sizes of what is taken."""
    start = 0
    for offset, taken_bytes in sorted(taken):
        if start + size_bytes <= offset:
            break
        start = max(start, -(-(offset + taken_bytes) // VIEW_ALIGNMENT_BYTES) * VIEW_ALIGNMENT_BYTES)
    return start
