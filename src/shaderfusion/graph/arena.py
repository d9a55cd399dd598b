"""Memory that programs share which never run at the same time: as many buffers as the neediest of them plans."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from shaderfusion.gpu.buffers import allocate
from shaderfusion.gpu.device import Device
from shaderfusion.graph.memory_plan import largest_of_each

__all__ = ["Arena"]


class Arena:
    """Buffers of intermediate tensors. They follow the programs' plans: they grow with a new one, and shrink after
    one has left. A program binds them anew whenever `version` has changed since."""

    def __init__(self, device: Device) -> None:
        self.version = 0
        self.buffers: list[Any] = []
        self._device = device
        self._plans: dict[object, Sequence[tuple[int, str]]] = {}

    @property
    def size_bytes(self) -> int:
        """Memory of all buffers."""
        return sum(buffer.size for buffer in self.buffers)

    def join(self, program: object, plan: Sequence[tuple[int, str]]) -> None:
        """A program that needs buffers of these sizes in bytes, largest first, each with the name of a tensor in it.

        DeviceLimitError or GpuMemoryError where they cannot be had; the program has not joined then.
        """
        self._plans[program] = plan
        try:
            self._fit()
        except BaseException:
            del self._plans[program]
            self._fit()
            raise

    def leave(self, program: object) -> None:
        """Forgets a program's plan. What only it needed is freed with the next program that joins, or by `trim`."""
        self._plans.pop(program, None)

    def trim(self) -> None:
        """Frees what no program needs any more."""
        self._fit()

    def close(self) -> None:
        """Frees all buffers."""
        self._plans.clear()
        self._fit()

    def _fit(self) -> None:
        """Buffer i is as large as the largest i-th buffer of a plan. A new one replaces one of another size."""
        largest = largest_of_each(self._plans.values())
        wanted = [size for size, _ in largest]
        if wanted == [buffer.size for buffer in self.buffers]:
            return
        self.version += 1
        kept = {
            index: buffer
            for index, (buffer, size) in enumerate(zip(self.buffers, wanted, strict=False))
            if buffer.size == size
        }
        for index, buffer in enumerate(self.buffers):
            if index not in kept:
                buffer.destroy()  # first, so that the new ones may take its place
        self.buffers = []
        for index, (size, name) in enumerate(largest):
            self.buffers.append(kept[index] if index in kept else allocate(self._device, size, name))
