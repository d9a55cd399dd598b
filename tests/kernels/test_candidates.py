"""Every candidate of an operation, run on the device, against the reference."""

from collections.abc import Callable
from dataclasses import replace
from itertools import count

import numpy as np
import pytest
from kernel_runner import own_capabilities, relative_error, rounded, run_calls, tensor_in, tensor_out

from shaderfusion.gpu.device import Device
from shaderfusion.graph.graph import LAYOUT_SHAPES
from shaderfusion.kernels import reference
from shaderfusion.kernels.candidates import attention_candidates, convolution_candidates, linear_candidates
from shaderfusion.kernels.capabilities import DESKTOP_GPU, WEBGPU_DEFAULTS, Capabilities
from shaderfusion.kernels.common.matmul import Epilogue
from shaderfusion.kernels.select import Kernels
from shaderfusion.kernels.tiles import Tile
from shaderfusion.kernels.tuning import Attention, Convolution, Flash, Linear, Scores, Tiling, Winograd
from shaderfusion.tensor import DType, TensorSpec
from shaderfusion.tune.survey import NthChoice

CAPS: dict[DType, float] = {"f32": 1e-5, "f16": 3e-3}
LANES = Capabilities(is_cpu=True, has_subgroups=True, has_int64=True)


Layer = Callable[[Kernels], tuple[np.ndarray, np.ndarray]]
"""Runs one operation: its output, and the reference's."""


def normal(*shape: int) -> np.ndarray:
    """Standard normal values, the same in every run."""
    return np.random.default_rng(0).standard_normal(shape)


def linear(device: Device, kernels: Kernels) -> tuple[np.ndarray, np.ndarray]:
    """Ragged rows and columns, K deep enough to be split."""
    x, weight, bias = normal(70, 520), normal(520, 104) / 20, normal(104)
    tensors = [tensor_in(name, array, kernels.dtype) for name, array in (("x", x), ("w", weight), ("b", bias))]
    out = tensor_out("out", 70, 104, dtype=kernels.dtype)
    calls = kernels.matmul(tensors[0], tensors[1], out, Epilogue(bias=tensors[2]))
    (actual,) = run_calls(device, calls, dict(zip(tensors, (x, weight, bias), strict=True)), out)
    x, weight, bias = (rounded(array, kernels.dtype) for array in (x, weight, bias))
    return actual, reference.matmul(x, weight, bias=bias)


def gated_linear(device: Device, kernels: Kernels) -> tuple[np.ndarray, np.ndarray]:
    """The last tile has columns of a and some beyond the end."""
    x, weight, bias = normal(2, 35, 136), normal(136, 208) / 12, normal(208)
    tensors = [tensor_in(name, array, kernels.dtype) for name, array in (("x", x), ("w", weight), ("b", bias))]
    out = tensor_out("out", 2, 35, 104, dtype=kernels.dtype)
    calls = kernels.geglu_linear(tensors[0], tensors[1], tensors[2], out)
    (actual,) = run_calls(device, calls, dict(zip(tensors, (x, weight, bias), strict=True)), out)
    x, weight, bias = (rounded(array, kernels.dtype) for array in (x, weight, bias))
    return actual, reference.geglu_linear(x, weight, bias)


def convolution(device: Device, kernels: Kernels) -> tuple[np.ndarray, np.ndarray]:
    """Sides that no tile divides; the filters as each choice wants them."""
    x, taps = normal(2, 9, 11, 40), normal(3, 3, 40, 48) / 19
    out = tensor_out("out", 2, 9, 11, 48, dtype=kernels.dtype)
    spec = tensor_in("x", x, kernels.dtype)
    layout = kernels.conv2d_layout(spec, out)
    held = rounded(taps, kernels.dtype)
    if layout != "conv2d":
        held = reference.winograd_filters(held, m=int(layout[-1]))
    weight = TensorSpec("w", LAYOUT_SHAPES[layout]((48, 40, 3, 3)), kernels.dtype, "input")
    (actual,) = run_calls(device, kernels.conv2d(spec, weight, out, Epilogue()), {spec: x, weight: held}, out)
    return actual, reference.conv2d_direct(rounded(x, kernels.dtype), rounded(taps, kernels.dtype))


def attention(device: Device, kernels: Kernels) -> tuple[np.ndarray, np.ndarray]:
    """Rows and keys that no tile divides, masked."""
    q, k, v = normal(2, 70, 48), normal(2, 77, 48) + 0.1, normal(2, 77, 48) - 0.1
    tensors = [tensor_in(name, array, kernels.dtype) for name, array in (("q", q), ("k", k), ("v", v))]
    out = tensor_out("out", 2, 70, 48, dtype=kernels.dtype)
    calls = kernels.attention(tensors[0], tensors[1], tensors[2], out, num_heads=2, causal=True)
    (actual,) = run_calls(device, calls, dict(zip(tensors, (q, k, v), strict=True)), out)
    q, k, v = (rounded(array, kernels.dtype) for array in (q, k, v))
    return actual, reference.flash_attention(q, k, v, num_heads=2, causal=True)


LAYERS = {"linear": linear, "gated_linear": gated_linear, "convolution": convolution, "attention": attention}


@pytest.mark.parametrize(("kind", "dtype"), [("gpu", "f32"), ("gpu", "f16"), ("lanes", "f32"), ("matrices", "f16")])
@pytest.mark.parametrize("layer", LAYERS)
def test_every_candidate(device: Device, layer: str, kind: str, dtype: DType) -> None:
    if (kind in ("lanes", "matrices") and not device.capabilities.has_subgroups) or (
        dtype == "f16" and not device.info.has_f16
    ):
        pytest.skip("the device lacks it")
    kinds = {"gpu": WEBGPU_DEFAULTS, "matrices": own_capabilities(device) if kind == "matrices" else None}
    capabilities = kinds.get(kind) or replace(LANES, has_int64=device.capabilities.has_int64)
    choose = NthChoice()
    found = []
    for n in count():
        actual, expected = LAYERS[layer](device, Kernels(dtype, capabilities, tuning=replace(choose, n=n)))
        error = relative_error(actual, expected)
        ((_, ways),) = choose.ways.items()
        assert error < CAPS[dtype], ways[n]
        found.append(ways[n])
        if n == len(ways) - 1:
            break
    assert len(found) == len(set(found)) > 2
    assert any("MatrixTile" in repr(way) for way in found) is (kind == "matrices")


def test_some_are_tried_of_each_kind() -> None:
    x = Convolution("f16", (2, 32, 32, 320), (2, 32, 32, 640), 1)
    found = convolution_candidates(x, WEBGPU_DEFAULTS, winograd=True)
    assert {way.m for way in found if isinstance(way, Winograd)} == {2, 4}
    direct = [way for way in found if isinstance(way, Tiling)]
    assert {1, 2} < {way.num_splits for way in direct}
    assert convolution_candidates(x, WEBGPU_DEFAULTS, winograd=False) == direct
    assert convolution_candidates(replace(x, stride=2), WEBGPU_DEFAULTS, winograd=True) == direct

    heads = Attention("f16", 2, 8, 256, 77, 160, False)
    found = attention_candidates(heads, DESKTOP_GPU, flash=True)
    assert {type(way) for way in found} == {Flash, Scores}
    for other in (replace(heads, head_dim=164), replace(heads, head_dim=168)):  # no multiple of 8, too large
        assert not any(isinstance(way, Flash) for way in attention_candidates(other, DESKTOP_GPU, flash=True))
    assert not any(isinstance(way, Flash) for way in attention_candidates(heads, DESKTOP_GPU, flash=False))
    assert not any(isinstance(way, Flash) for way in attention_candidates(heads, LANES, flash=True))
    large = replace(heads, queries=4096, keys=4096)  # 537 MB of scores
    assert {type(way) for way in attention_candidates(large, DESKTOP_GPU, flash=True)} == {Flash}


def test_tiles_are_not_much_larger_than_the_product() -> None:
    for rows, columns in ((1, 4), (40, 40), (200, 1000)):
        tiles = [way.tile for way in linear_candidates(Linear("f32", rows, columns, 64), WEBGPU_DEFAULTS)]
        assert all(isinstance(tile, Tile) for tile in tiles)
        assert all(tile.m < max(2 * rows, 64) and tile.n < max(2 * columns, 64) for tile in tiles if tile)
    tiles = [way.tile for way in linear_candidates(Linear("f32", 9, 40, 64), LANES) if way.tile]
    assert [(tile.m, tile.n) for tile in tiles] == [(m, n) for m in (4, 8, 16) for n in (32, 64)]
