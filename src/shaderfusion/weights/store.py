"""Weights on a device: each of a source once in each layout and dtype, as long as a graph needs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from shaderfusion.gpu.device import Device
from shaderfusion.graph.graph import Graph, Weight
from shaderfusion.graph.program import Buffers
from shaderfusion.weights.checkpoint import TensorSource
from shaderfusion.weights.lora.merge import NO_PATCHES, Patch, Patches
from shaderfusion.weights.prepare import WeightLoader, read_rows

__all__ = ["WeightStore"]


class _Loaded(NamedTuple):
    """A buffer, and what it holds."""

    buffer: Any
    weight: Weight
    source: TensorSource


class WeightStore:
    """Buffers by source, paths, layout and dtype, whatever the graphs that share them."""

    def __init__(self, device: Device) -> None:
        self._loader = WeightLoader(device)
        self._loaded: dict[tuple[Any, ...], _Loaded] = {}
        self._users: dict[Graph, set[tuple[Any, ...]]] = {}
        self._patches = NO_PATCHES

    @property
    def size_bytes(self) -> int:
        """Memory of all buffers."""
        return sum(loaded.buffer.size for loaded in list(self._loaded.values()))

    def check(self, sources: Mapping[Graph, TensorSource]) -> None:
        """WeightsError where a source lacks a weight or a table of its graph. Nothing is read."""
        for graph, source in sources.items():
            for weight in (*graph.tables.values(), *graph.weights.values()):
                for path in weight.paths:
                    source.find(path, weight.source_shape)

    def claim(self, sources: Mapping[Graph, TensorSource]) -> None:
        """Of what is there, keeps what these graphs need until they are released. WeightsError as `check`."""
        self.check(sources)
        for graph, source in sources.items():
            self._users[graph] = {_key(source, weight) for weight in graph.weights.values()}

    def load(self, sources: Mapping[Graph, TensorSource]) -> list[Buffers]:
        """Buffers of each graph's weights, which it has claimed then. Those not there yet are read from its source.

        WeightsError, before any is read, as `check`.
        """
        self.claim(sources)
        keys = {graph: {w: _key(source, w) for w in graph.weights.values()} for graph, source in sources.items()}
        missing = {
            key: (weight, sources[graph])
            for graph, own in keys.items()
            for weight, key in own.items()
            if key not in self._loaded
        }
        buffers = self._loader.load(dict(missing.values()), self._patches)
        self._loaded |= {key: _Loaded(buffers[weight.tensor], weight, src) for key, (weight, src) in missing.items()}
        return [{weight.tensor: self._loaded[key].buffer for weight, key in own.items()} for own in keys.values()]

    def set_patches(self, patches: Patches) -> None:
        """Changes by adapters, in place of those before: fills the buffers of all weights whose changes differ anew.

        WeightsError where a weight is then over the range of its dtype; all is then as it was.
        """
        before = self._patches
        changed = [
            loaded
            for loaded in self._loaded.values()
            if any(_patch(patches, loaded, path) != _patch(before, loaded, path) for path in loaded.weight.paths)
        ]
        buffers = {loaded.weight.tensor: loaded.buffer for loaded in changed}
        sources = {loaded.weight: loaded.source for loaded in changed}
        try:
            self._loader.refill(buffers, sources, patches)
        except BaseException:
            self._loader.refill(buffers, sources, before)
            raise
        self._patches = patches

    def release(self, graph: Graph) -> None:
        """Frees those of the graph's weights that no other graph needs."""
        unused = self._users.pop(graph).difference(*self._users.values())
        for key in unused:
            if key in self._loaded:
                self._loaded.pop(key).buffer.destroy()

    def close(self) -> None:
        """Frees all buffers."""
        for graph in list(self._users):
            self.release(graph)

    def read_rows(self, graph: Graph, source: TensorSource, path: str, rows: np.ndarray) -> np.ndarray:
        """For the graph's input `path`: those rows of the table, read from its source.

        WeightsError where they hold NaN, or values over the range of the input's dtype.
        """
        return read_rows(source, graph.tables[path], rows)


def _patch(patches: Patches, loaded: _Loaded, path: str) -> Patch | None:
    return patches.get(loaded.source, {}).get(path)


def _key(source: TensorSource, weight: Weight) -> tuple[Any, ...]:
    return (source, weight.form)
