"""A model as an ordered list of kernel calls over tensors without memory. Knows no device."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

from shaderfusion.errors import DeviceLimitError, ShapeError
from shaderfusion.kernels.call import KernelCall
from shaderfusion.kernels.select import Kernels
from shaderfusion.tensor import DType, Role, TensorSpec

__all__ = ["LAYOUT_SHAPES", "Graph", "Weight", "WeightLayout"]

WeightLayout = Literal["as_is", "linear", "conv2d", "winograd_2", "winograd_4"]

LAYOUT_SHAPES: dict[WeightLayout, Callable[[tuple[int, ...]], tuple[int, ...]]] = {
    "as_is": lambda shape: shape,
    "linear": lambda shape: shape[::-1],  # (N, K) -> (K, N)
    "conv2d": lambda shape: (shape[2], shape[3], shape[1], shape[0]),  # (C_out, C_in, k, k) -> (k, k, C_in, C_out)
    "winograd_2": lambda shape: (16, shape[1], shape[0]),  # (C_out, C_in, 3, 3) -> ((m + 2)^2, C_in, C_out)
    "winograd_4": lambda shape: (36, shape[1], shape[0]),
}
"""The kernel's shape for the checkpoint's."""


@dataclass(frozen=True)
class Weight:
    """Tensors of the checkpoint, their paths and shape there, and our one spec in the kernel's layout.

    Of several tensors the spec has the output channels (the last dimension) side by side, in equal parts. Where it has
    more output channels of each, or more input channels (the dimension before), than the checkpoint, zeros fill them
    up: at the end of each of as many equal parts as `out_parts` or `in_parts` says, such as heads. Of one in
    `Graph.tables` the spec is the input for some of its rows.
    """

    paths: tuple[str, ...]
    source_shape: tuple[int, ...]
    """Of each tensor."""
    layout: WeightLayout
    tensor: TensorSpec
    out_parts: int = 1
    in_parts: int = 1

    @property
    def joined_shape(self) -> tuple[int, ...]:
        """Of all its tensors in one, as the checkpoint would have it."""
        return (len(self.paths) * self.source_shape[0], *self.source_shape[1:])

    @property
    def form(self) -> tuple[object, ...]:
        """Weights of one source that are equal in this have the same bytes on a device."""
        tensor = self.tensor
        return (self.paths, self.layout, tensor.dtype, tensor.shape, self.in_parts, self.out_parts)


class Graph:
    """Records calls and names. Paths are the checkpoint's own (`down_blocks.0.resnets.1.conv1`), prefixed with
    the graph's name in labels, so that graph, buffers, timestamps and errors all say the same."""

    def __init__(self, name: str, kernels: Kernels) -> None:
        self.name = name
        self.kernels = kernels
        self.dtype: DType = kernels.dtype
        self.calls: list[KernelCall] = []
        self.weights: dict[str, Weight] = {}
        self.tables: dict[str, Weight] = {}
        self.inputs: dict[str, TensorSpec] = {}
        self.outputs: dict[str, TensorSpec] = {}
        self.kept: list[TensorSpec] = []
        """What the calls of `once` leave for those that follow, in this run and the next ones."""
        self.num_once = 0
        """So many of the calls, the first ones, need not be done again as long as the inputs that they read stay."""
        self._is_once = False
        self._scope: tuple[str, ...] = ()

    @contextmanager
    def scope(self, *names: str | int, absolute: bool = False) -> Iterator[None]:
        """Prefixes the paths recorded inside; with `absolute` none of the scopes around it does."""
        outer = self._scope
        self._scope = (*(() if absolute else outer), *map(str, names))
        try:
            yield
        finally:
            self._scope = outer

    @contextmanager
    def once(self) -> Iterator[None]:
        """Calls recorded inside come first, and what they write is kept: a run may leave them to the one before."""
        self._is_once = True
        try:
            yield
        finally:
            self._is_once = False

    def path(self, *names: str) -> str:
        """The dotted path of a name in the current scope."""
        return ".".join((*self._scope, *names))

    def tensor(self, name: str, *shape: int, channels: int | None = None, dtype: DType | None = None) -> TensorSpec:
        """An intermediate tensor of the current scope, or one that is kept (`once`).

        `channels`, where given, are its last dimension, which padding then rounds up to a multiple of 4.
        """
        if not self._is_once:
            return self._spec(self._label(name), shape, channels, dtype, "intermediate")
        self.kept.append(self._spec(self._label(name), shape, channels, dtype, "output"))
        return self.kept[-1]

    def input(self, name: str, *shape: int, channels: int | None = None, dtype: DType | None = None) -> TensorSpec:
        """A tensor that the caller fills before a run; `channels` as in `tensor`."""
        return self._external(self.inputs, "input", name, shape, channels, dtype)

    def output(self, name: str, *shape: int, channels: int | None = None, dtype: DType | None = None) -> TensorSpec:
        """A tensor that the caller reads after a run; it may also be an input of the next run."""
        return self._external(self.outputs, "output", name, shape, channels, dtype)

    def _external(
        self,
        table: dict[str, TensorSpec],
        role: Role,
        name: str,
        shape: tuple[int, ...],
        channels: int | None,
        dtype: DType | None,
    ) -> TensorSpec:
        if name in table:
            raise ShapeError(f"{self.name}: {role} {name!r} is declared twice; give each a name of its own")
        table[name] = self._spec(f"{self.name}.{name}", shape, channels, dtype, role)
        return table[name]

    def _spec(
        self, name: str, shape: tuple[int, ...], channels: int | None, dtype: DType | None, role: Role
    ) -> TensorSpec:
        if channels is None:
            return TensorSpec(name, shape, dtype or self.dtype, role)
        return TensorSpec(name, (*shape, channels + -channels % 4), dtype or self.dtype, role, padding=-channels % 4)

    def weight(
        self,
        names: str | Sequence[str],
        *shape: int,
        layout: WeightLayout = "as_is",
        padded_to: int | None = None,
        in_padded_to: int | None = None,
        out_parts: int = 1,
        in_parts: int = 1,
    ) -> TensorSpec:
        """The checkpoint's tensor of that name in the current scope, of that shape there; or several, side by side.

        The spec has the kernel's layout, with the output channels of each tensor zero-padded to `padded_to` and the
        input channels to `in_padded_to` where they are given, part by part (see Weight).
        """
        names = [names] if isinstance(names, str) else names
        path = self.path("+".join(names))
        kernel_shape = LAYOUT_SHAPES[layout](shape)
        *_, out_channels = kernel_shape
        kernel_shape = (*kernel_shape[:-1], len(names) * (out_channels if padded_to is None else padded_to))
        if in_padded_to is not None:
            kernel_shape = (*kernel_shape[:-2], in_padded_to, kernel_shape[-1])
        tensor = TensorSpec(f"{self.name}.{path}", kernel_shape, self.dtype, "weight")
        asked = Weight(tuple(map(self.path, names)), shape, layout, tensor, out_parts, in_parts)
        known = self.weights.setdefault(path, asked)
        if known != replace(asked, tensor=known.tensor) or known.tensor.shape != kernel_shape:
            raise ShapeError(
                f"{tensor.name}: used as {known.source_shape}, {known.layout}, {known.tensor.shape} and as "
                f"{shape}, {layout}, {kernel_shape}; give it one shape and layout"
            )
        return known.tensor

    def table_rows(self, name: str, *table_shape: int, rows: tuple[int, ...]) -> TensorSpec:
        """An input (*rows, C), named as the checkpoint's table (V, C) of which the caller fills in some rows; padded.

        The table stays in its file: it counts among the parameters, but takes no memory of the device.
        """
        path = self.path(name)
        *inner, channels = table_shape[1:]
        self.tables[path] = Weight((path,), table_shape, "as_is", self.input(path, *rows, *inner, channels=channels))
        return self.inputs[path]

    def add(self, *calls: KernelCall) -> None:
        """Appends calls, labelled `graph.scope/kernel`; DeviceLimitError for one that binds more than a device can."""
        most = self.kernels.capabilities.max_binding_bytes
        for call in calls:
            labelled = replace(call, label=f"{self._label()}/{call.name}")
            for tensor in (binding.tensor for binding in call.bindings):
                if tensor.size_bytes > most:
                    raise DeviceLimitError(
                        f"{labelled.label}: {tensor}, {tensor.size_bytes / 1e6:.1f} MB, is over what the device can "
                        f"bind ({most / 1e6:.1f} MB); use a smaller size or batch, or another device or dtype"
                    )
            self.calls.insert(self.num_once if self._is_once else len(self.calls), labelled)
            self.num_once += self._is_once

    def _label(self, *names: str) -> str:
        return ".".join((self.name, *self._scope, *names))

    @property
    def externals(self) -> list[TensorSpec]:
        """Tensors with memory of their own, beside the weights: inputs, outputs, and what is kept."""
        return [*self.inputs.values(), *self.outputs.values(), *self.kept]

    @property
    def weights_bytes(self) -> int:
        """Memory of all weights in the kernels' layout; `tables` are none of it."""
        return sum(weight.tensor.size_bytes for weight in self.weights.values())

    @property
    def num_parameters(self) -> int:
        """Values of all weights and tables in the checkpoint."""
        return sum(math.prod(weight.joined_shape) for weight in (*self.weights.values(), *self.tables.values()))
