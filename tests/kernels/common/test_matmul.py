"""Linear layers and attention's products against their references.

Pipelines take seconds to compile on software Vulkan, so that most cases share one small tile.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from kernel_runner import (
    matrix_tile,
    own_units,
    relative_error,
    rounded,
    run_calls,
    skip_without,
    tensor_in,
    tensor_out,
)

from shaderfusion.errors import ShapeError
from shaderfusion.gpu.device import Device
from shaderfusion.graph.memory_plan import plan_memory
from shaderfusion.kernels import reference
from shaderfusion.kernels.capabilities import WEBGPU_DEFAULTS, Capabilities
from shaderfusion.kernels.common.matmul import Epilogue, attention_scores, attention_values, matmul
from shaderfusion.kernels.optimizations import Optimizations
from shaderfusion.kernels.select import Kernels
from shaderfusion.kernels.tiles import (
    Lanes,
    LaneTile,
    MatrixTile,
    MatrixUnits,
    Tile,
    choose_lane_tile,
    choose_matrix_tile,
    choose_splits,
    choose_tile,
)
from shaderfusion.tensor import DType, TensorSpec

BOUNDS: dict[DType, float] = {"f32": 1e-6, "f16": 5e-4}

SMALL = Tile(16, 16, 8, thread_m=2, thread_n4=1)
SMALL_PAIRS = Tile(16, 16, 16, thread_m=2, thread_n4=1, pairs=True)
SMALL_LANES = LaneTile(4, 32)
SMALL_FOUR = LaneTile(4, 32, lanes=4, unrolled=True)

SHAPES = [
    ((1, 4), 4),  # minimal
    ((5, 12), 20),  # less than a tile of rows, a ragged second tile of columns, a ragged second K
    ((16, 16), 16),  # whole tiles
    ((2, 17, 36), 12),  # leading dimensions are rows; one row in the last tile
    ((1, 320), 48),  # the time embedding: one row
]


@pytest.fixture(params=[SMALL, SMALL_PAIRS, SMALL_LANES, SMALL_FOUR], ids=["tile", "pairs", "lanes", "four lanes"])
def small(request: pytest.FixtureRequest, any_device: Device) -> Tile | LaneTile:
    """A tile of each algorithm that compiles quickly."""
    if isinstance(request.param, LaneTile) and not any_device.capabilities.has_subgroups:
        pytest.skip("LaneTile needs subgroups, which this device lacks")
    return request.param


def bound(tile: Tile | LaneTile, dtype: DType) -> float:
    """Pairs round as they add: by a few units of f16 in a single value, by about one in the norm of many."""
    return 2e-3 if tile is SMALL_PAIRS and dtype == "f16" else BOUNDS[dtype]


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize(("a_shape", "num_columns"), SHAPES, ids=str)
def test_matmul(
    any_device: Device, small: Tile | LaneTile, a_shape: tuple[int, ...], num_columns: int, dtype: DType
) -> None:
    assert _matmul_error(any_device, a_shape, num_columns, dtype, small) < bound(small, dtype)


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_great_depth(any_device: Device, small: Tile | LaneTile, dtype: DType) -> None:
    # With the offset the sums grow to 1000, where adding in f16 would lose most of each product.
    assert _matmul_error(any_device, (3, 4100), 8, dtype, small, offset=0.5) < bound(small, dtype)


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("num_splits", [2, 5])  # of K = 44: 2 x 24 with a ragged end, and 5 x 16, of which 3 are used
def test_split_depth(any_device: Device, num_splits: int, dtype: DType) -> None:
    names = ("bias", "image_bias", "residual")
    error = _matmul_error(any_device, (2, 9, 44), 20, dtype, SMALL, names, num_splits=num_splits)
    assert error < BOUNDS[dtype]


EPILOGUES = [
    ("bias",),
    ("image_bias",),
    ("residual",),
    ("bias", "image_bias"),
    ("bias", "residual"),
    ("image_bias", "residual"),
    ("bias", "image_bias", "residual"),
]


@pytest.mark.parametrize("names", EPILOGUES, ids="+".join)
def test_epilogue(device: Device, names: tuple[str, ...]) -> None:
    # With split K, as sum_splits compiles quickly and stores by the same code.
    assert _matmul_error(device, (2, 9, 44), 20, "f32", SMALL, names, num_splits=2) < BOUNDS["f32"]


@pytest.mark.parametrize("num_images", [1, 2, 18])
def test_epilogue_of_one_pass(any_device: Device, small: Tile | LaneTile, num_images: int) -> None:
    names = ("bias", "image_bias", "residual")
    error = _matmul_error(any_device, (2, 9, 12), 20, "f32", small, names, num_images=num_images)
    assert error < BOUNDS["f32"]


@pytest.mark.parametrize("num_splits", [1, 3])
def test_residual_in_place(any_device: Device, small: Tile | LaneTile, num_splits: int) -> None:
    # Bit for bit as from a tensor of its own.
    if isinstance(small, LaneTile) and num_splits > 1:
        pytest.skip("lanes do not split K")
    a, b = np.random.default_rng(0).standard_normal((2, 2, 9, 44)), np.random.default_rng(1).standard_normal((44, 20))
    c = np.random.default_rng(2).standard_normal((2, 2, 9, 20))
    ta, tb, tc, out = tensor_in("a", a), tensor_in("b", b), tensor_in("c", c), tensor_out("out", *c.shape)
    options: dict[str, Any] = {"tile": small} | ({} if isinstance(small, LaneTile) else {"num_splits": num_splits})
    apart = run_calls(any_device, matmul(ta, tb, out, Epilogue(residual=tc), **options), {ta: a, tb: b, tc: c}, out)
    calls = matmul(ta, tb, out, Epilogue(residual=out), **options)
    np.testing.assert_array_equal(run_calls(any_device, calls, {ta: a, tb: b, out: c}, out), apart)


def test_residual_of_another_part() -> None:
    whole = tensor_out("whole", 128, 8)
    with pytest.raises(ShapeError, match=r"must be the same part of whole"):
        matmul(
            tensor_out("a", 64, 12), tensor_out("b", 12, 8), whole.rows(0, 64), Epilogue(residual=whole.rows(64, 64))
        )


@pytest.mark.parametrize(
    ("a_shape", "num_columns", "num_splits"),
    [
        ((1, 8), 8, 1),  # minimal
        ((2, 19, 40), 24, 1),  # ragged rows, columns and K
        ((37, 104), 24, 3),  # the last part of K is ragged
    ],
    ids=str,
)
def test_matrix_units(any_device: Device, a_shape: tuple[int, ...], num_columns: int, num_splits: int) -> None:
    tile, names = matrix_tile(any_device), ("bias", "image_bias", "residual")
    options = {"num_splits": num_splits, "num_images": a_shape[0]}
    assert _matmul_error(any_device, a_shape, num_columns, "f16", tile, names, **options) < BOUNDS["f16"]


def test_matrices_that_are_not_square(device: Device) -> None:
    # Of Intel's kind: where they are square, rows, columns and depth could be taken for each other.
    if own_units(device):
        pytest.skip("it has units of its own, which emulated ones stand for")
    tile = MatrixTile(4, 32, 16, 1, 1, MatrixUnits(2, 16, 8, 8, emulated=True))
    names = ("bias", "image_bias", "residual")
    assert _matmul_error(device, (2, 9, 40), 40, "f16", tile, names, num_images=2) < BOUNDS["f16"]
    q, k = np.random.default_rng(5).standard_normal((2, 1, 9, 24))
    tq, tk, out = tensor_in("q", q, "f16"), tensor_in("k", k, "f16"), tensor_out("out", 1, 1, 9, 12, dtype="f16")
    calls = attention_scores(tq, tk, out, num_heads=1, scale=1.0, tile=tile)
    (scores,) = run_calls(device, calls, {tq: q, tk: k}, out)
    assert relative_error(scores[0, 0, :, :9], rounded(q[0], "f16") @ rounded(k[0], "f16").T) < BOUNDS["f16"]


def test_great_depth_on_matrix_units(any_device: Device) -> None:
    # With the offset the sums grow to 500: they are added in f32. llvmpipe ends a shader's loops after 65,536 turns in
    # all, of which emulation takes many: hence no greater depth.
    assert _matmul_error(any_device, (3, 2056), 8, "f16", matrix_tile(any_device), offset=0.5) < BOUNDS["f16"]


def test_image_bias_of_columns(any_device: Device) -> None:
    rng = np.random.default_rng(8)
    a, b, biases = rng.standard_normal((6, 12)), rng.standard_normal((12, 8)), rng.standard_normal((2, 24))
    ta, tb, tbiases, out = tensor_in("a", a), tensor_in("b", b), tensor_in("biases", biases), tensor_out("out", 6, 8)
    for part in range(3):
        calls = matmul(ta, tb, out, Epilogue(image_bias=tbiases.split_columns(3)[part]), tile=SMALL)
        (actual,) = run_calls(any_device, calls, {ta: a, tb: b, tbiases: biases}, out)
        image_bias = rounded(biases, "f32")[:, 8 * part : 8 * part + 8]
        expected = reference.matmul(rounded(a, "f32"), rounded(b, "f32"), image_bias=image_bias)
        assert relative_error(actual, expected) < BOUNDS["f32"]


def _matmul_error(
    device: Device,
    a_shape: tuple[int, ...],
    num_columns: int,
    dtype: DType,
    tile: Tile | LaneTile | MatrixTile,
    names: tuple[str, ...] = (),
    *,
    num_splits: int = 1,
    num_images: int = 2,
    offset: float = 0.0,
) -> float:
    rng = np.random.default_rng(0)
    a = rng.standard_normal(a_shape) + offset
    b = rng.standard_normal((a_shape[-1], num_columns)) + offset
    out = tensor_out("out", *a_shape[:-1], num_columns, dtype=dtype)
    shapes = {"bias": (num_columns,), "image_bias": (num_images, num_columns), "residual": out.shape}
    arrays = {name: 3 * rng.standard_normal(shapes[name]) for name in names}
    ta, tb = tensor_in("a", a, dtype), tensor_in("b", b, dtype)
    added = {name: tensor_in(name, array, dtype) for name, array in arrays.items()}
    scale = 0.75 if names else 1.0
    splits = {} if isinstance(tile, LaneTile) else {"num_splits": num_splits}
    calls = matmul(ta, tb, out, Epilogue(scale, **added), tile=tile, **splits)
    assert len(calls) == (1 if num_splits == 1 else 2)
    inputs = {ta: a, tb: b, **{added[name]: arrays[name] for name in names}}
    (actual,) = run_calls(device, calls, inputs, out)
    terms = {name: rounded(array, dtype) for name, array in arrays.items()}
    return relative_error(actual, reference.matmul(rounded(a, dtype), rounded(b, dtype), scale=scale, **terms))


ATTENTION = [
    ((1, 1, 1, 4), 1),  # (B, N, M, D), heads: minimal, 3 padding columns
    ((2, 17, 20, 12), 3),  # several heads and images; nothing to pad
    ((2, 5, 77, 40), 2),  # cross attention of SD 1.x: 77 keys padded to 80; past them are the next image's
]


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize(("sizes", "num_heads"), ATTENTION, ids=str)
def test_attention_scores(
    any_device: Device, small: Tile | LaneTile, sizes: tuple[int, int, int, int], num_heads: int, dtype: DType
) -> None:
    B, N, M, D = sizes
    rng = np.random.default_rng(1)
    q, k = rng.standard_normal((B, N, num_heads * D)), rng.standard_normal((B, M, num_heads * D))
    tq, tk = tensor_in("q", q, dtype), tensor_in("k", k, dtype)
    out = tensor_out("out", B, num_heads, N, -(-M // 4) * 4, dtype=dtype)
    calls = attention_scores(tq, tk, out, num_heads=num_heads, scale=D**-0.5, tile=small)
    (actual,) = run_calls(any_device, calls, {tq: q, tk: k}, out)
    expected = reference.attention_scores(rounded(q, dtype), rounded(k, dtype), num_heads=num_heads, scale=D**-0.5)
    assert relative_error(actual, expected) < bound(small, dtype)
    assert np.all(actual[..., M:] == 0)


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("padding", [0.0, 7.0])  # softmax leaves zeros; the product must not depend on them
@pytest.mark.parametrize(("sizes", "num_heads"), ATTENTION, ids=str)
def test_attention_values(
    any_device: Device,
    small: Tile | LaneTile,
    sizes: tuple[int, int, int, int],
    num_heads: int,
    padding: float,
    dtype: DType,
) -> None:
    B, N, M, D = sizes
    rng = np.random.default_rng(2)
    probs = rng.random((B, num_heads, N, -(-M // 4) * 4))
    probs[..., M:] = padding
    v = rng.standard_normal((B, M, num_heads * D))
    tprobs, tv = tensor_in("probs", probs, dtype), tensor_in("v", v, dtype)
    out = tensor_out("out", B, N, num_heads * D, dtype=dtype)
    calls = attention_values(tprobs, tv, out, num_heads=num_heads, tile=small)
    (actual,) = run_calls(any_device, calls, {tprobs: probs, tv: v}, out)
    expected = reference.attention_values(rounded(probs, dtype), rounded(v, dtype), num_heads=num_heads)
    assert relative_error(actual, expected) < bound(small, dtype)


def test_reference_of_attention() -> None:
    """A loop over images and heads, so that the specification itself is not taken on trust."""
    rng = np.random.default_rng(3)
    q, k, v = rng.standard_normal((2, 3, 8)), rng.standard_normal((2, 5, 8)), rng.standard_normal((2, 5, 8))
    scores = reference.attention_scores(q, k, num_heads=2, scale=0.5)
    values = reference.attention_values(scores, v, num_heads=2)
    assert scores.shape == (2, 2, 3, 8)
    assert np.all(scores[..., 5:] == 0)
    for b in range(2):
        for h, head in enumerate((slice(0, 4), slice(4, 8))):
            np.testing.assert_allclose(scores[b, h, :, :5], 0.5 * q[b, :, head] @ k[b, :, head].T)
            np.testing.assert_allclose(values[b, :, head], scores[b, h, :, :5] @ v[b, :, head])


# What select.py runs on GPUs and on software Vulkan: the tile for few rows, then the general one, with ragged edges.
KERNELS = {
    "gpu": Kernels("f32"),
    "lanes": Kernels("f32", Capabilities(is_cpu=True, has_subgroups=True)),
    "lanes-int64": Kernels("f32", Capabilities(is_cpu=True, has_subgroups=True, has_int64=True)),
}


@pytest.mark.parametrize("kernels", KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize("num_rows", [3, 70, 260])
def test_tiles_of_linear_layers(device: Device, kernels: Kernels, num_rows: int) -> None:
    skip_without(device, kernels.capabilities)
    rng = np.random.default_rng(4)
    a, b = rng.standard_normal((num_rows, 68)), rng.standard_normal((68, 72))
    ta, tb, out = tensor_in("a", a), tensor_in("b", b), tensor_out("out", num_rows, 72)
    (actual,) = run_calls(device, kernels.matmul(ta, tb, out, Epilogue()), {ta: a, tb: b}, out)
    assert relative_error(actual, reference.matmul(rounded(a, "f32"), rounded(b, "f32"))) < BOUNDS["f32"]


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("kernels", KERNELS.values(), ids=KERNELS)
def test_tiles_of_attention(device: Device, kernels: Kernels, causal: bool) -> None:
    skip_without(device, kernels.capabilities)
    rng = np.random.default_rng(5)
    q, k, v = rng.standard_normal((3, 2, 77, 24))
    tq, tk, tv, out = tensor_in("q", q), tensor_in("k", k), tensor_in("v", v), tensor_out("out", 2, 77, 24)
    calls = kernels.attention(tq, tk, tv, out, num_heads=3, causal=causal)
    (actual,) = run_calls(device, calls, {tq: q, tk: k, tv: v}, out)
    q, k, v = (rounded(x, "f32") for x in (q, k, v))
    scores = reference.attention_scores(q, k, num_heads=3, scale=8**-0.5)
    probs = reference.softmax_unfused(scores, num_columns=77, causal=causal)
    assert relative_error(actual, reference.attention_values(probs, v, num_heads=3)) < 4 * BOUNDS["f32"]


# Of one tensor side by side, with columns between that no head reads, in the ragged shapes of both products.
@pytest.mark.parametrize("optimizations", ["none", "pfs", "flash"])
@pytest.mark.parametrize("kernels", KERNELS.values(), ids=KERNELS)
def test_attention_of_columns(any_device: Device, kernels: Kernels, optimizations: str) -> None:
    skip_without(any_device, kernels.capabilities)
    kernels = replace(kernels, optimizations=Optimizations.parse(optimizations))
    rng = np.random.default_rng(6)
    B, N, M, C = 2, 67, 13, 24
    x, kv = rng.standard_normal((B, N, 3 * C + 4)), rng.standard_normal((B, M, 2 * C))
    tx, tkv, out = tensor_in("x", x), tensor_in("kv", kv), tensor_out("out", B, N, C)
    places = (0, C + 4, 2 * C + 4)
    own = tuple(tx.columns(first, C) for first in places)
    arrays = tuple(x[..., first : first + C] for first in places)
    others, other_arrays = tkv.split_columns(2), np.split(kv, 2, axis=-1)
    for specs, values in ((own, arrays), ((own[2], *others), (arrays[2], *other_arrays))):
        q, k, v = specs
        calls = kernels.attention(q, k, v, out, num_heads=3)
        (actual,) = run_calls(any_device, calls, {tx: x, tkv: kv}, out)
        expected = reference.flash_attention(*(rounded(value, "f32") for value in values), num_heads=3)
        assert relative_error(actual, expected) < 4 * BOUNDS["f32"]


def test_strips_of_queries_of_columns(device: Device) -> None:
    x = np.random.default_rng(7).standard_normal((1, 70, 72))
    tx, out = tensor_in("x", x), tensor_out("out", 1, 70, 24)
    strips = Kernels("f32", replace(WEBGPU_DEFAULTS, max_binding_bytes=40_000), Optimizations.parse("pfs"))
    q, k, v = tx.split_columns(3)
    calls = strips.attention(q, k, v, out, num_heads=3)
    assert len(calls) > 3  # more than one strip
    (actual,) = run_calls(device, calls, {tx: x}, out)
    expected = reference.flash_attention(*np.split(rounded(x, "f32"), 3, axis=-1), num_heads=3)
    assert relative_error(actual, expected) < 4 * BOUNDS["f32"]


def test_linear_layers_take_whole_rows() -> None:
    a, b, out = tensor_out("a", 3, 16), tensor_out("b", 8, 12), tensor_out("out", 3, 12)
    with pytest.raises(ShapeError, match=r"a\[3, 8\]:f32: a view of columns is only for kernels that go by strides"):
        matmul(a.columns(8, 8), b, out)


def test_small_products_of_great_depth_are_split() -> None:
    a, b, out = tensor_out("a", 2, 8, 1280), tensor_out("b", 1280, 320), tensor_out("out", 2, 8, 320)
    product, total = matmul(a, b, out)
    assert product.workgroups == (5, 1, 10)  # 5 tiles of 64 columns, 10 parts of 128 of K
    assert (product.entry_point, total.entry_point) == ("product", "sum_splits")
    assert plan_memory([product, total]).total_bytes == 10 * 16 * 320 * 4  # the parts, in f32
    assert len(matmul(a, b, out, tile=LaneTile())) == 1
    assert len(matmul(a, b, out, num_splits=1)) == 1
    tall = tensor_out("tall", 1 << 17, 1280)
    assert len(matmul(tall, b, tensor_out("out", 1 << 17, 320))) == 1  # fills a GPU without


@pytest.mark.parametrize(
    ("rows", "columns", "batches", "depth", "size", "splits"),
    [
        (8192, 2560, 1, 320, (64, 128), 1),  # many workgroups
        (8192, 320, 1, 320, (64, 64), 1),  # columns that 128 does not divide
        (2048, 640, 1, 640, (32, 64), 1),  # few workgroups of the larger tiles, and too shallow to split
        (512, 1280, 1, 1280, (64, 64), 4),  # few, but deep
        (128, 1280, 1, 11520, (64, 128), 12),  # very deep
        (154, 1280, 1, 768, (32, 64), 6),  # few rows
        (32, 1280, 36, 1280, (32, 64), 1),  # few rows in each of many batches
        (4096, 4, 1, 1152, (64, 32), 9),  # few columns
    ],
)
@pytest.mark.parametrize("pairs", [False, True], ids=["f32", "pairs"])
def test_tiles_by_size(
    rows: int, columns: int, batches: int, depth: int, size: tuple[int, int], splits: int, pairs: bool
) -> None:
    tile = choose_tile(rows, columns, batches, depth, pairs=pairs)
    assert (tile.m, tile.n) == size
    assert choose_splits(tile, rows, columns, batches, depth) == splits
    assert tile.constants["PAIRS"] is pairs
    assert tile.constants["TILE_K"] == (32 if pairs else 16)


# Ragged in rows, columns and K, of which one row of B has no second beside it.
@pytest.mark.parametrize("int64_pairs", [False, True])
@pytest.mark.parametrize("n", [64, 96])
def test_wide_lane_tiles(any_device: Device, n: int, int64_pairs: bool) -> None:
    skip_without(any_device, Capabilities(has_subgroups=True, has_int64=int64_pairs))
    tile, names = LaneTile(8, n, int64_pairs), ("bias", "image_bias", "residual")
    assert _matmul_error(any_device, (2, 9, 44), 116, "f32", tile, names) < BOUNDS["f32"]
    rng = np.random.default_rng(8)
    probs, v = rng.random((1, 2, 9, 12)), rng.standard_normal((1, 9, 2 * 76))
    tprobs, tv, out = tensor_in("probs", probs), tensor_in("v", v), tensor_out("out", 1, 9, 2 * 76)
    (actual,) = run_calls(
        any_device, attention_values(tprobs, tv, out, num_heads=2, tile=tile), {tprobs: probs, tv: v}, out
    )
    expected = reference.attention_values(rounded(probs, "f32"), rounded(v, "f32"), num_heads=2)
    assert relative_error(actual, expected) < BOUNDS["f32"]


@pytest.mark.parametrize(("rows", "m"), [(1, 4), (4, 4), (9, 16), (17, 32), (4096, 32)])
def test_lane_tiles_by_rows(rows: int, m: int) -> None:
    assert choose_lane_tile(Lanes(int64_pairs=True), rows) == LaneTile(m, 32, int64_pairs=True)


def test_shape_errors() -> None:
    a, b, out = tensor_out("a", 3, 8), tensor_out("b", 8, 12), tensor_out("out", 3, 12)
    with pytest.raises(ShapeError, match=r"matmul: a\[3, 8\]:f32 times b\[8, 12\]:f32 must give out\[3, 8\]:f32"):
        matmul(a, b, tensor_out("out", 3, 8))
    with pytest.raises(ShapeError, match=r"matmul: a\[3, 4\]:f32 times b\[8, 12\]:f32"):
        matmul(tensor_out("a", 3, 4), b, out)
    with pytest.raises(ShapeError, match=r"matmul: K \(=6\) must be a multiple of 4; pad"):
        matmul(tensor_out("a", 3, 6), tensor_out("b", 6, 12), out)
    with pytest.raises(ShapeError, match=r"matmul: N \(=10\) must be a multiple of 4; pad"):
        matmul(a, tensor_out("b", 8, 10), tensor_out("out", 3, 10))
    with pytest.raises(ShapeError, match=r"matmul: b\[1, 8, 12\]:f32 must be \(K, N\)"):
        matmul(a, tensor_out("b", 1, 8, 12), out)
    for num_splits in (0, -1):
        with pytest.raises(ShapeError, match=rf"matmul: num_splits \(={num_splits}\) must be at least 1, or None"):
            matmul(a, b, out, num_splits=num_splits)


def test_one_dtype() -> None:
    a, b, out = tensor_out("a", 3, 8), tensor_out("b", 8, 12), tensor_out("out", 3, 12)
    half = tensor_out("half", 8, 12, dtype="f16")
    with pytest.raises(ShapeError, match=r"matmul: half\[8, 12\]:f16 must have the dtype of out\[3, 12\]:f32"):
        matmul(a, half, out)
    with pytest.raises(ShapeError, match=r"matmul: a\[3, 8\]:f32 must have the dtype of out\[3, 12\]:f16"):
        matmul(a, half, tensor_out("out", 3, 12, dtype="f16"))
    with pytest.raises(ShapeError, match=r"matmul: bias\[12\]:f16 must have the dtype of out"):
        matmul(a, b, out, Epilogue(bias=tensor_out("bias", 12, dtype="f16")))


@pytest.mark.parametrize(
    ("epilogue", "message"),
    [
        (Epilogue(bias=tensor_out("x", 3)), r"matmul: bias x\[3\]:f32 must have shape \(12,\)"),
        (Epilogue(residual=tensor_out("x", 3, 8)), r"matmul: residual x\[3, 8\]:f32 must have shape \(12, 12\)"),
        (
            Epilogue(image_bias=tensor_out("x", 2, 8)),
            r"matmul: image_bias x\[2, 8\]:f32 must be \(images, 12\), for 12 rows",
        ),
        (
            Epilogue(image_bias=tensor_out("x", 12)),
            r"matmul: image_bias x\[12\]:f32 must be \(images, 12\), for 12 rows",
        ),
        (
            Epilogue(image_bias=tensor_out("x", 5, 12)),
            r"matmul: image_bias x\[5, 12\]:f32 must be \(images, 12\), for 12 rows",
        ),
    ],
)
def test_epilogue_errors(epilogue: Epilogue, message: str) -> None:
    a, b, out = tensor_out("a", 12, 8), tensor_out("b", 8, 12), tensor_out("out", 12, 12)
    with pytest.raises(ShapeError, match=message):
        matmul(a, b, out, epilogue)


def test_attention_errors() -> None:
    q, k = tensor_out("q", 2, 5, 24), tensor_out("k", 2, 7, 24)
    scores, out = tensor_out("scores", 2, 2, 5, 8), tensor_out("out", 2, 5, 24)
    with pytest.raises(ShapeError, match=r"attention_scores: q.* times k.* with num_heads \(=3\) must give scores"):
        attention_scores(q, k, scores, num_heads=3, scale=1)
    with pytest.raises(ShapeError, match=r"must give scores\[2, 2, 5, 7\]:f32"):  # not rounded up to 8
        attention_scores(q, k, tensor_out("scores", 2, 2, 5, 7), num_heads=2, scale=1)
    with pytest.raises(ShapeError, match=r"attention_scores: q.* times k\[1, 7, 24\]:f32"):
        attention_scores(q, tensor_out("k", 1, 7, 24), scores, num_heads=2, scale=1)
    with pytest.raises(ShapeError, match=r"attention_values: scores.* times k\[2, 9, 24\]"):
        attention_values(scores, tensor_out("k", 2, 9, 24), out, num_heads=2)
    with pytest.raises(ShapeError, match=r"attention_values: .* with num_heads \(=5\) must give out"):
        attention_values(tensor_out("scores", 2, 5, 5, 8), k, out, num_heads=5)
    flat = tensor_out("flat", 240)
    with pytest.raises(ShapeError, match=r"attention_scores: q.* and flat\[240\]:f32 must be \(B, tokens, heads D\)"):
        attention_scores(q, flat, scores, num_heads=2, scale=1)
    with pytest.raises(ShapeError, match=r"attention_scores: flat.* and k.* must be \(B, tokens, heads D\)"):
        attention_scores(flat, k, scores, num_heads=2, scale=1)
    with pytest.raises(ShapeError, match=r"attention_values: out.* and flat.* must be \(B, tokens, heads D\)"):
        attention_values(scores, flat, out, num_heads=2)
    with pytest.raises(ShapeError, match=r"attention_values: .* num_heads \(=0\) at least 1"):
        attention_values(scores, k, out, num_heads=0)
    heads = tensor_out("scores", 2, 4, 5, 8)
    with pytest.raises(ShapeError, match=r"attention_scores: D \(=6\) must be a multiple of 4"):
        attention_scores(q, k, heads, num_heads=4, scale=1)
    with pytest.raises(ShapeError, match=r"attention_values: D \(=6\) must be a multiple of 4"):
        attention_values(heads, k, out, num_heads=4)


@pytest.mark.parametrize(
    ("tile", "message"),
    [
        (Tile(m=20), r"m=20.* m, n and k must be multiples of 2 thread_m, 8 thread_n4 and 4"),
        (Tile(k=18), r"k=18.* must be multiples"),
        (Tile(n=12), r"n=12.* must be multiples"),
        (Tile(16, 16, 4, 1, 1), r"its 64 threads must be a multiple of k / 4 and divide m k / 4"),
        (LaneTile(4, 48), r"n=48.* m must be at least 1, and n a multiple of 32"),
    ],
)
def test_tile_errors(tile: Tile | LaneTile, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        _ = tile.constants


UNITS = MatrixUnits(16, 16, 16, 32)


@pytest.mark.parametrize(
    ("tile", "message"),
    [
        (MatrixTile(72, 64, 32, 2, 2, UNITS), r"m=72.* m, n and k must be multiples of what its subgroups multiply"),
        (MatrixTile(64, 64, 24, 2, 2, UNITS), r"k=24.* must be multiples of what"),
        (MatrixTile(16, 64, 16, 1, 4, UNITS), r"its 128 threads must divide m k / 8 and k n / 8"),
        (MatrixTile(192, 192, 16, 3, 1, MatrixUnits(16, 16, 16, 1)), r"its 3 threads must be a multiple of k / 8"),
    ],
)
def test_matrix_tile_errors(tile: MatrixTile, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        _ = tile.constants


@pytest.mark.parametrize(
    ("rows", "columns", "batches", "depth", "size", "splits"),
    [
        (8192, 2560, 1, 320, (128, 128), 1),  # many workgroups
        (8192, 320, 1, 320, (128, 64), 1),  # columns that 128 does not divide
        (512, 1280, 1, 1280, (32, 64), 1),  # few workgroups of the larger tiles
        (512, 1280, 1, 5120, (128, 128), 6),  # few, but deep: 240 workgroups at once
        (512, 1280, 1, 11520, (128, 128), 6),  # no more of them for deeper sums
        (128, 640, 36, 640, (128, 64), 1),  # batches, which are not split
    ],
)
def test_matrix_tiles_by_size(
    rows: int, columns: int, batches: int, depth: int, size: tuple[int, int], splits: int
) -> None:
    tile, found = choose_matrix_tile(UNITS, rows, columns, batches, depth, None if batches == 1 else 1)
    assert ((tile.m, tile.n), found) == (size, splits)
    assert tile.shared_bytes() <= 32768
    assert choose_matrix_tile(UNITS, rows, columns, batches, depth, 3)[1] == 3


def test_matrix_units_take_eights_alone() -> None:
    def tensors(K: int, N: int) -> tuple[TensorSpec, TensorSpec, TensorSpec]:
        sizes = {"a": (64, K), "b": (K, N), "out": (64, N)}
        a, b, out = (tensor_out(name, *shape, dtype="f16") for name, shape in sizes.items())
        return a, b, out

    def takes(K: int, N: int) -> bool:
        return "MATRIX_UNITS" in matmul(*tensors(K, N), tile=UNITS)[0].constants

    assert (takes(64, 64), takes(60, 64), takes(64, 60)) == (True, False, False)
    with pytest.raises(ShapeError, match=r"matmul: MatrixTile.* needs f16, and rows .* in multiples of 8 values"):
        matmul(*tensors(60, 64), tile=MatrixTile(64, 64, 32, 2, 2, UNITS))
