"""Winograd's output tile size m beside the direct convolution, at every 3x3 layer shape of the UNet and the decoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from shaderfusion.bench.measure import DOES_NOT_FIT, measure, program_of, relative_error
from shaderfusion.bench.subject import Subject
from shaderfusion.bench.values import image_like, normal
from shaderfusion.kernels import reference
from shaderfusion.kernels.common.matmul import Epilogue
from shaderfusion.kernels.optimizations import Optimizations
from shaderfusion.kernels.optimized.winograd_conv import TILE_SIZES, winograd_costs
from shaderfusion.output import Table, say
from shaderfusion.tensor import TensorSpec

__all__ = ["Layer", "find_layers", "measure_rows", "tables"]

_CORNER_PX = 15  # checked; a tile of m = 8 and most of the next
_CHECKED_CHANNELS = 16


@dataclass(frozen=True)
class Layer:
    """A 3x3 convolution of stride 1."""

    network: str
    x_shape: tuple[int, int, int, int]
    """(B, H, W, C_in), after upsampling where that is part of the convolution."""
    out_channels: int

    def __str__(self) -> str:
        return f"{self.network} {'x'.join(map(str, self.x_shape))} to {self.out_channels}"


def find_layers(subject: Subject) -> dict[Layer, list[int]]:
    """Distinct layers of the recorded graphs, and for each place that has one the m it takes there, 0 for direct."""
    direct = subject.graphs(subject.kernels(Optimizations(winograd_conv=False)))
    chosen: dict[str, int] = {}
    for graph in subject.graphs(subject.kernels()).values():
        for call in graph.calls:
            if call.name.startswith("winograd_conv."):
                chosen[call.label.partition("/")[0]] = int(call.constants["M"])
    layers: dict[Layer, list[int]] = {}
    for network, graph in direct.items():
        for call in graph.calls:
            if call.name == "conv2d_direct.product" and call.constants["STRIDE"] == 1:
                B, _, _, C_in = call.bindings[0].tensor.shape
                H, W = int(call.params["in_height"]), int(call.params["in_width"])
                layer = Layer(network, (B, H, W, C_in), int(call.params["num_columns"]))
                layers.setdefault(layer, []).append(chosen.get(call.label.partition("/")[0], 0))
    return layers


def measure_rows(subject: Subject) -> Iterator[dict[str, Any]]:
    """A row for each layer and each m, 0 being the direct convolution. What does not fit on the device is left out."""
    for layer, used in find_layers(subject).items():
        inputs = {"noise": normal("x", layer.x_shape), "image": image_like("x", layer.x_shape)}
        for m in (0, *TILE_SIZES):
            name = f"{layer}, {f'm = {m}' if m else 'direct'}"
            try:
                row = _measure(subject, layer, m, inputs)
            except DOES_NOT_FIT as error:
                say(f"{name} left out: {error}")
                continue
            what = {"name": name, "network": layer.network, "layer": str(layer), "m": m}
            yield {**what, "count": len(used), "used": used.count(m), **row}


def _measure(subject: Subject, layer: Layer, m: int, inputs: dict[str, np.ndarray]) -> dict[str, Any]:
    kernels = subject.kernels(Optimizations(winograd_conv=False))
    *_, C_in = layer.x_shape
    x = TensorSpec("x", layer.x_shape, subject.dtype, "input")
    out = TensorSpec("out", (*layer.x_shape[:3], layer.out_channels), subject.dtype, "output")
    weight = TensorSpec("weight", (3, 3, C_in, layer.out_channels), subject.dtype, "input")
    convolve = kernels.conv2d if m == 0 else lambda *args: kernels.winograd_conv(*args, m=m)

    program, arrays = program_of(subject.device, convolve(x, weight, out, Epilogue()))
    taps = arrays["weight"] * arrays["weight"].dtype.type((9 * C_in) ** -0.5)  # outputs of variance 1, as in a network
    program.write("weight", taps)
    errors = {}
    for kind, values in inputs.items():
        rounded = values.astype(arrays["x"].dtype)
        program.write("x", rounded)
        program.run()
        errors[f"error_{kind}"] = _error(program.read("out"), rounded, taps)
    program.write("x", arrays["x"])
    timed = measure(program)
    row = {**asdict(timed), **errors, "temporary_bytes": program.plan.total_bytes, "loaded_ms": timed.p50_ms}
    if m:  # filters transformed when weights are loaded
        del program
        loaded = TensorSpec("weight", ((m + 2) ** 2, C_in, layer.out_channels), subject.dtype, "input")
        program, _ = program_of(subject.device, convolve(x, loaded, out, Epilogue()))
        row["loaded_ms"] = measure(program).p50_ms
    return row


def _error(out: np.ndarray, x: np.ndarray, taps: np.ndarray) -> float:
    """Against float64, in a corner of the first image, whose border is the image's zeros on two sides."""
    side = _CORNER_PX
    corner = x[:1, : side + 1, : side + 1].astype(np.float64)
    expected = reference.conv2d_direct(corner, taps[..., :_CHECKED_CHANNELS].astype(np.float64))[:, :side, :side]
    return relative_error(out[:1, :side, :side, :_CHECKED_CHANNELS], expected)


def tables(rows: Sequence[dict[str, Any]]) -> list[Table]:
    """What each m costs and loses, then the time of each layer by each m."""
    columns = (
        "m",
        "multiplications saved",
        "intermediate tensors",
        "weights",
        "error, white noise",
        "error, image-like",
    )
    costs = []
    for m in (0, *TILE_SIZES):
        own = [row for row in rows if row["m"] == m]
        errors = [
            f"{np.median([row[f'error_{kind}'] for row in own]):.1e}" if own else "" for kind in ("noise", "image")
        ]
        ratios = [f"{ratio:.2f}x" for ratio in winograd_costs(m)] if m else ["1.00x"] * 3
        costs.append((str(m) if m else "direct", *ratios, *errors))
    return [
        Table(columns, costs, "<>>>>>", "Output tiles of m x m; errors are relative, medians of the layers below"),
        _times(rows, "loaded_ms", "Milliseconds, the filters transformed when weights are loaded"),
        _times(rows, "p50_ms", "Milliseconds, the filters transformed in the run"),
    ]


def _times(rows: Sequence[dict[str, Any]], key: str, title: str) -> Table:
    heading = ("layer", "count", "direct", *(f"m = {m}" for m in TILE_SIZES), "fastest", "used")
    cells = []
    for layer in dict.fromkeys(row["layer"] for row in rows):
        own = {row["m"]: row for row in rows if row["layer"] == layer}
        times = [f"{own[m][key]:.3f}" if m in own else "" for m in (0, *TILE_SIZES)]
        fastest = min(own, key=lambda m: own[m][key])
        used = ", ".join(_algorithm(m) for m in own if own[m]["used"])
        count = next(iter(own.values()))["count"]
        cells.append((layer, str(count), *times, _algorithm(fastest), used))
    return Table(heading, cells, "<>" + ">" * (1 + len(TILE_SIZES)) + "<<", title)


def _algorithm(m: int) -> str:
    return str(m) if m else "direct"
