"""The weights that a device holds."""

from __future__ import annotations

from typing import Any, NamedTuple

from shaderfusion.errors import InputError
from shaderfusion.gpu.device import Device
from shaderfusion.graph.graph import Graph, Weight, WeightLayout
from shaderfusion.graph.program import Buffers
from shaderfusion.tensor import DType
from shaderfusion.weights.checkpoint import TensorSource
from shaderfusion.weights.prepare import load_weights

__all__ = ["WeightStore"]


class _Tensor(NamedTuple):
    """Of which tensor a buffer is, whatever graph uses it."""

    source: TensorSource
    path: str


class _Form(NamedTuple):
    """In which form."""

    source_shape: tuple[int, ...]
    layout: WeightLayout
    shape: tuple[int, ...]
    dtype: DType
    out_parts: int
    in_parts: int


class WeightStore:
    """Weights on a device, each once in every form that live graphs ask for. Not for several threads at once.

    A graph is live from `load` to `release`. Weights outlive the last graph that used them, as the next one is likely
    to want them again, until a graph loads the same tensor in another form.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._buffers: dict[_Tensor, dict[_Form, Any]] = {}
        self._live: dict[Graph, set[tuple[_Tensor, _Form]]] = {}
        self._is_closed = False

    def load(self, graph: Graph, source: TensorSource) -> Buffers:
        """Buffers of the graph's weights; those that the store lacks are read from the source.

        WeightsError, before any is read, where the source lacks one of them or a table of the graph.
        """
        if self._is_closed:
            raise InputError(f"{graph.name}: these weights are closed; load the model again")
        for weight in (*graph.tables.values(), *graph.weights.values()):
            source.find(weight.path, weight.source_shape)
        keys = {weight: (_Tensor(source, weight.path), _form(weight)) for weight in graph.weights.values()}
        missing = [weight for weight, (tensor, form) in keys.items() if form not in self._buffers.get(tensor, {})]
        for weight in missing:
            self._free_unused(keys[weight][0])
        loaded = load_weights(self._device, missing, source)
        for weight in missing:
            tensor, form = keys[weight]
            self._buffers.setdefault(tensor, {})[form] = loaded[weight.tensor]
        self._live.setdefault(graph, set()).update(keys.values())
        return {weight.tensor: self._buffers[tensor][form] for weight, (tensor, form) in keys.items()}

    def release(self, graph: Graph) -> None:
        """The graph will run no more."""
        self._live.pop(graph, None)

    def close(self) -> None:
        """Frees the memory on the device. Nothing that uses a weight may run after it."""
        for forms in self._buffers.values():
            for buffer in forms.values():
                buffer.destroy()
        self._buffers.clear()
        self._live.clear()
        self._is_closed = True

    def _free_unused(self, tensor: _Tensor) -> None:
        """Frees the forms of a tensor that no live graph uses."""
        forms = self._buffers.get(tensor, {})
        for form in [form for form in forms if not any((tensor, form) in used for used in self._live.values())]:
            forms.pop(form).destroy()


def _form(weight: Weight) -> _Form:
    tensor = weight.tensor
    return _Form(weight.source_shape, weight.layout, tensor.shape, tensor.dtype, weight.out_parts, weight.in_parts)
