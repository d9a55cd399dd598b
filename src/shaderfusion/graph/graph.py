"""A model as an ordered list of kernel calls over tensors without memory. Knows no device."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from shaderfusion.errors import ShapeError
from shaderfusion.kernels.call import KernelCall
from shaderfusion.tensor import DType, Role, TensorSpec

__all__ = ["Graph", "Weight", "WeightLayout"]

WeightLayout = str
"""How a checkpoint's tensor becomes the kernel's: a key of weights.prepare.LAYOUTS."""


@dataclass(frozen=True)
class Weight:
    """A tensor of the checkpoint: its path there, our spec, and the layout that leads from one to the other."""

    path: str
    tensor: TensorSpec
    layout: WeightLayout


class Graph:
    """Records calls and names. Paths are the checkpoint's own (`down_blocks.0.resnets.1.conv1`), prefixed with
    the graph's name in labels, so that graph, buffers, timestamps and errors all say the same."""

    def __init__(self, name: str, dtype: DType) -> None:
        self.name = name
        self.dtype: DType = dtype
        self.calls: list[KernelCall] = []
        self.weights: dict[str, Weight] = {}
        self.inputs: dict[str, TensorSpec] = {}
        self.outputs: dict[str, TensorSpec] = {}
        self._scope: tuple[str, ...] = ()

    @contextmanager
    def scope(self, *names: str | int) -> Iterator[None]:
        """Prefixes the paths recorded inside."""
        outer = self._scope
        self._scope = (*outer, *map(str, names))
        try:
            yield
        finally:
            self._scope = outer

    def path(self, *names: str) -> str:
        """The dotted path of a name in the current scope."""
        return ".".join((*self._scope, *names))

    def tensor(self, name: str, *shape: int, dtype: DType | None = None) -> TensorSpec:
        """An intermediate tensor of the current scope."""
        return TensorSpec(self._label(name), shape, dtype or self.dtype)

    def input(self, name: str, *shape: int, dtype: DType | None = None) -> TensorSpec:
        """A tensor that the caller fills before a run."""
        return self._external(self.inputs, "input", name, shape, dtype)

    def output(self, name: str, *shape: int, dtype: DType | None = None) -> TensorSpec:
        """A tensor that the caller reads after a run; it may also be an input of the next run."""
        return self._external(self.outputs, "output", name, shape, dtype)

    def _external(
        self, table: dict[str, TensorSpec], role: Role, name: str, shape: tuple[int, ...], dtype: DType | None
    ) -> TensorSpec:
        if name in table:
            raise ShapeError(f"{self.name}: {role} {name!r} is declared twice; give each a name of its own")
        table[name] = TensorSpec(f"{self.name}.{name}", shape, dtype or self.dtype, role)
        return table[name]

    def weight(self, name: str, *shape: int, layout: WeightLayout = "as_is") -> TensorSpec:
        """The checkpoint's tensor `name` of the current scope, in the kernel's `shape` and `layout`."""
        path = self.path(name)
        if path not in self.weights:
            self.weights[path] = Weight(path, TensorSpec(f"{self.name}.{path}", shape, self.dtype, "weight"), layout)
        known = self.weights[path]
        if known.tensor.shape != shape or known.layout != layout:
            raise ShapeError(f"{known.tensor.name}: used as {known.tensor.shape} and as {shape}; one shape per weight")
        return known.tensor

    def add(self, *calls: KernelCall) -> None:
        """Appends calls, labelled `graph.scope/kernel`."""
        label = self._label()
        self.calls.extend(replace(call, label=f"{label}/{call.name}") for call in calls)

    def _label(self, *names: str) -> str:
        return ".".join((self.name, *self._scope, *names))

    @property
    def weights_bytes(self) -> int:
        """Memory of all weights in the kernels' layout."""
        return sum(weight.tensor.size_bytes for weight in self.weights.values())
