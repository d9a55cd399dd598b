"""Tensor lifetimes to shared memory, without a device.

Intermediate tensors whose lifetimes do not overlap share a buffer. WebGPU forbids one buffer as read-only and
read-write in one dispatch, even at different offsets, so a buffer holds one tensor at a time, at offset 0
("shared objects", greedy by size: Pisarchyk and Lee 2020, arXiv 2001.03288, section 4.3).
"""

from collections.abc import Sequence
from dataclasses import dataclass

from shaderfusion.errors import ShapeError
from shaderfusion.kernels.call import KernelCall
from shaderfusion.tensor import TensorSpec

__all__ = ["Lifetime", "MemoryPlan", "find_lifetimes", "plan_memory"]


@dataclass(frozen=True)
class Lifetime:
    """A tensor is alive from the call that writes it first to the call that uses it last, both included."""

    tensor: TensorSpec
    first: int
    last: int

    def overlaps(self, other: "Lifetime") -> bool:
        """Whether both are alive during some call."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class MemoryPlan:
    """Which shared buffer each intermediate tensor lives in."""

    buffer_sizes_bytes: tuple[int, ...]
    buffer_of: dict[TensorSpec, int]
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
    """Assigns tensors to buffers, largest first, each to the smallest buffer that is free during its lifetime."""
    lifetimes = find_lifetimes(calls)
    live_bytes = [0] * len(calls)
    for lifetime in lifetimes:
        for index in range(lifetime.first, lifetime.last + 1):
            live_bytes[index] += lifetime.tensor.size_bytes

    tenants: list[list[Lifetime]] = []  # by buffer; the first tenant is its largest
    buffer_of: dict[TensorSpec, int] = {}
    for lifetime in sorted(lifetimes, key=lambda lifetime: -lifetime.tensor.size_bytes):
        # Buffers are made in falling size, so the last free one is the smallest.
        free = (b for b in reversed(range(len(tenants))) if not any(lifetime.overlaps(t) for t in tenants[b]))
        index = next(free, len(tenants))
        if index == len(tenants):
            tenants.append([])
        tenants[index].append(lifetime)
        buffer_of[lifetime.tensor] = index
    sizes = tuple(buffer[0].tensor.size_bytes for buffer in tenants)
    return MemoryPlan(sizes, buffer_of, max(live_bytes, default=0))
