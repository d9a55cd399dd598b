"""Tint and naga compile every shader of every model in every variant: one that only one of them accepts fails here.

Neither needs a GPU: Tint compiles on Dawn's null adapter, naga on any adapter of wgpu-native.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache
from typing import get_args

import numpy as np
import pytest
from recorded_calls import adapter_calls, models, recorded_graphs

from shaderfusion.errors import ShaderError
from shaderfusion.gpu.backend import RUNTIMES
from shaderfusion.gpu.device import Device, list_devices, open_device
from shaderfusion.gpu.shader import compose
from shaderfusion.graph.graph import Graph
from shaderfusion.kernels.call import KernelCall
from shaderfusion.kernels.capabilities import DESKTOP_GPU, WEBGPU_DEFAULTS, Capabilities, MatrixShape
from shaderfusion.kernels.common.prepare_weight import STORED_SIZE_BYTES, StoredDType
from shaderfusion.kernels.optimizations import Optimizations
from shaderfusion.kernels.select import Kernels
from shaderfusion.tensor import DType, TensorSpec
from shaderfusion.tune.survey import find_cases
from shaderfusion.weights import footprint
from shaderfusion.weights.checkpoint import StoredTensor
from shaderfusion.weights.slices import filters_room, prepare_calls, slices

OPTIMIZATIONS = ("all", "none", "gn", "geglu", "pfs", "flash", "winograd")


def with_matrices(m: int, n: int, k: int, subgroup_sizes: tuple[int, int]) -> Capabilities:
    """A GPU with matrix units of that shape."""
    shapes = (MatrixShape(m, n, k, "f16", "f32"),)
    return replace(DESKTOP_GPU, matrix_shapes=shapes, subgroup_sizes=subgroup_sizes)


LANES = replace(WEBGPU_DEFAULTS, is_cpu=True, has_subgroups=True)
FOUR_LANES = replace(LANES, subgroup_sizes=(4, 4))
DEVICES: dict[str, tuple[Capabilities, tuple[DType, ...]]] = {
    "least": (WEBGPU_DEFAULTS, ("f16", "f32")),
    "desktop": (DESKTOP_GPU, ("f16", "f32")),
    "lanes": (LANES, ("f16", "f32")),
    "four-lanes": (FOUR_LANES, ("f16", "f32")),
    "lanes-int64": (replace(LANES, has_int64=True), ("f32",)),
    "nvidia": (with_matrices(16, 16, 16, (32, 32)), ("f16",)),
    "intel": (with_matrices(8, 16, 16, (8, 32)), ("f16",)),
    "apple": (with_matrices(8, 8, 8, (32, 32)), ("f16",)),
}
TINT = [name for name, (can, _) in DEVICES.items() if not can.has_int64]
"""Without what it lacks, as all of WebGPU does."""
NAGA = [name for name, (can, _) in DEVICES.items() if not can.matrix_shapes]
"""The same of it."""


@cache
def calls_of(name: str) -> tuple[KernelCall, ...]:
    """One call for each distinct shader and entry point that the models record on a device."""
    capabilities, dtypes = DEVICES[name]
    variants = [Kernels(dtype, capabilities, Optimizations.parse(o)) for dtype in dtypes for o in OPTIMIZATIONS]
    weights: set[object] = set()
    graphs = recorded_graphs(variants, guidance=[True])
    recorded = (call for graph in graphs for call in itertools.chain(graph.calls, weight_calls(graph, weights)))
    return distinct(itertools.chain(recorded, adapter_calls(Kernels("f32", capabilities))))


@cache
def candidates_of(name: str) -> tuple[KernelCall, ...]:
    """One call for each that `shaderfusion tune` may try for SD 1.4 on a device, in its own dtype."""
    capabilities, (dtype, *_) = DEVICES[name]
    *_, model = models()
    cases = find_cases(lambda kernels: model.record(kernels, model.run_size()), Kernels(dtype, capabilities))
    return distinct(call for case in cases for calls in case.ways.values() for call in calls)


def distinct(calls: Iterable[KernelCall]) -> tuple[KernelCall, ...]:
    """The first of those that are one shader and entry point."""
    found: dict[object, KernelCall] = {}
    for call in calls:
        constants = (*call.constants.items(), *map(type, call.constants.values()))
        found.setdefault((call.source, call.entry_point, call.dtype, constants, *call.params), call)
    return tuple(found.values())


def weight_calls(graph: Graph, known: set[object]) -> Iterator[KernelCall]:
    """Those that prepare the graph's weights, however they are stored, where such a weight is not yet known."""
    words, flags = TensorSpec("words", (1 << 27,), "u32", "weight"), TensorSpec("flags", (1,), "u32", "weight")
    for weight in graph.weights.values():
        parities = [size % 2 for size in (*weight.source_shape[:2], *weight.tensor.shape[-2:])]
        kind = (weight.layout, weight.tensor.dtype, weight.in_parts, weight.out_parts, *parities)
        if kind in known:
            continue
        known.add(kind)
        for dtype in get_args(StoredDType):
            stored = StoredTensor(
                dtype, np.zeros(STORED_SIZE_BYTES[dtype] * int(np.prod(weight.source_shape)), np.uint8)
            )
            tensors = [stored] * len(weight.paths)
            for part in itertools.islice(slices(weight, tensors, footprint._BATCH_BYTES), 1):
                filters = filters_room(weight.tensor.dtype, 1 << 30)
                yield from prepare_calls(words, dtype, weight, part, flags, filters, 0)


_compiled: set[tuple[str, str]] = set()


def refusals(device: Device, calls: Iterable[KernelCall]) -> list[str]:
    """What the device's compiler says of the shaders that it has not compiled yet."""
    found: list[str] = []
    runtime = RUNTIMES[device.info.runtime]
    for call in calls:
        source = compose(call, runtime.directives)
        if (runtime.name, source.code) in _compiled:
            continue
        _compiled.add((runtime.name, source.code))
        try:
            runtime.create_module(device.handle, source.code, call.source, trusted=False)
        except Exception as error:
            found.append(f"{call.name}, {call.dtype}, {dict(call.constants)}: {source.map_lines(str(error))}")
    return found


@pytest.mark.parametrize("name", TINT)
def test_tint(null_dawn: None, name: str) -> None:
    device = open_device(runtime="dawn")
    assert refusals(device, calls_of(name)) == []
    uses_matrices = {call.source for call in calls_of(name) if call.constants.get("MATRIX_UNITS")}
    assert bool(uses_matrices) is bool(DEVICES[name][0].matrix_shapes)
    if DEVICES[name][0] is WEBGPU_DEFAULTS:  # whole pipelines too, within limits that naga does not know
        assert len(device.pipelines.get_all(calls_of(name))) > 100


@pytest.mark.parametrize("name", NAGA)
def test_naga(name: str) -> None:
    if not list_devices("wgpu"):
        pytest.skip("no adapter of wgpu on this machine")
    assert refusals(open_device(runtime="wgpu"), calls_of(name)) == []


@pytest.mark.parametrize("name", ["desktop", "nvidia", "intel", "apple"])
def test_what_tuning_tries(null_dawn: None, name: str) -> None:
    device = open_device(runtime="dawn")
    assert refusals(device, candidates_of(name)) == []
    tiles = {call.constants.get("TILE_M") for call in candidates_of(name) if call.entry_point == "product"}
    assert {32, 64, 128} <= tiles
    uses_matrices = {call.source for call in candidates_of(name) if call.constants.get("MATRIX_UNITS")}
    assert bool(uses_matrices) is bool(DEVICES[name][0].matrix_shapes)


def test_what_one_of_them_refuses_is_found(null_dawn: None) -> None:
    call = next(call for call in calls_of("lanes-int64") if call.constants.get("INT64_PAIRS"))
    with pytest.raises(ShaderError, match=r"fragments/pair.wgsl:5:\d+ error: expected"):
        open_device(runtime="dawn").pipelines.get(call)
