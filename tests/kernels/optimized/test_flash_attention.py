"""Attention in one dispatch against its reference and against the three dispatches that it replaces.

Pipelines take seconds to compile on software Vulkan: most cases share the small tile, and one pipeline a head dim.
"""

from dataclasses import replace

import numpy as np
import pytest
from kernel_runner import own_units, relative_error, rounded, run_calls, tensor_in, tensor_out

from shaderfusion.errors import ShapeError
from shaderfusion.gpu.device import Device
from shaderfusion.graph.memory_plan import find_lifetimes
from shaderfusion.kernels import reference
from shaderfusion.kernels.baseline.softmax_unfused import softmax_unfused
from shaderfusion.kernels.call import KernelCall
from shaderfusion.kernels.capabilities import DESKTOP_GPU, WEBGPU_DEFAULTS, Capabilities
from shaderfusion.kernels.common.matmul import attention_scores, attention_values
from shaderfusion.kernels.optimized.flash_attention import (
    FlashTile,
    MatrixFlashTile,
    choose_flash_tile,
    choose_matrix_flash_tile,
    flash_attention,
    matrix_flash_tiles,
)
from shaderfusion.kernels.tiles import MatrixUnits, Tile
from shaderfusion.tensor import DType, TensorSpec

BOUNDS: dict[DType, float] = {"f32": 1e-6, "f16": 1e-3}

SMALL = FlashTile(queries=16, keys=16, thread_queries=1, thread_keys=4, widened="k")
SMALL_PRODUCT = Tile(16, 16, 8, thread_m=2, thread_n4=1)

# Matrix units, emulated: one matrix a tile; two of rows, which two lanes share each; depth 16, to which 24 is padded.
ONE_MATRIX = MatrixFlashTile(8, 8, 1, MatrixUnits(8, 8, 8, 8, emulated=True))
SHARED_ROWS = MatrixFlashTile(8, 16, 2, MatrixUnits(2, 8, 8, 8, emulated=True))
DEEP_MATRIX = MatrixFlashTile(4, 32, 2, MatrixUnits(2, 8, 16, 8, emulated=True))
MATRIX_TILES = [
    ("device", ONE_MATRIX, 8),
    ("checked_device", ONE_MATRIX, 8),
    ("device", SHARED_ROWS, 40),
    ("checked_device", SHARED_ROWS, 40),
    ("device", DEEP_MATRIX, 24),
]


def own_tile(device: Device, tile: FlashTile | MatrixFlashTile, head_dim: int) -> FlashTile | MatrixFlashTile:
    """The tile, or in place of emulated matrix units that of the device's own."""
    units = own_units(device) if isinstance(tile, MatrixFlashTile) else None
    return (units and choose_matrix_flash_tile(head_dim, units, device.capabilities)) or tile


HEAD_DIMS = [8, 24, 40, 64, 80, 160]  # minimal; the embedded model's; CLIP's and SD's four

SIZES = [
    ((1, 1, 1), 1),  # (B, N, M), heads: minimal
    ((2, 5, 77), 3),  # cross attention: 77 keys are 4 whole tiles and one of 13
    ((1, 65, 65), 2),  # a last tile of one row and one key
    ((1, 8, 32), 1),  # whole tiles
]


class Attention:
    """Random inputs, and what attention makes of them."""

    def __init__(self, sizes: tuple[int, int, int], num_heads: int, head_dim: int, dtype: DType, seed: int = 0) -> None:
        (B, N, M), C = sizes, num_heads * head_dim
        rng = np.random.default_rng(seed)
        self.num_heads = num_heads
        self.q = rng.standard_normal((B, N, C))
        self.k, self.v = rng.standard_normal((2, B, M, C))
        self.specs = [tensor_in(name, x, dtype) for name, x in (("q", self.q), ("k", self.k), ("v", self.v))]
        self.out = tensor_out("out", B, N, C, dtype=dtype)
        self.dtype: DType = dtype

    def flash(self, tile: FlashTile | MatrixFlashTile = SMALL, *, causal: bool = False) -> list[KernelCall]:
        q, k, v = self.specs
        return [flash_attention(q, k, v, self.out, num_heads=self.num_heads, causal=causal, tile=tile)]

    def unfused(self, *, causal: bool = False) -> list[KernelCall]:
        q, k, v = self.specs
        B, N, C = q.shape
        M = k.shape[1]
        scores = TensorSpec("scores", (B, self.num_heads, N, -(-M // 4) * 4), self.dtype)
        probs = replace(scores, name="probs")
        heads, scale = self.num_heads, (C // self.num_heads) ** -0.5
        return [
            *attention_scores(q, k, scores, num_heads=heads, scale=scale, tile=SMALL_PRODUCT),
            softmax_unfused(scores, probs, num_columns=M, causal=causal),
            *attention_values(probs, v, self.out, num_heads=heads, tile=SMALL_PRODUCT),
        ]

    def run(self, device: Device, calls: list[KernelCall]) -> np.ndarray:
        inputs = dict(zip(self.specs, (self.q, self.k, self.v), strict=True))
        return run_calls(device, calls, inputs, self.out)[0]

    def expected(self, *, causal: bool = False) -> np.ndarray:
        q, k, v = (rounded(x, self.dtype) for x in (self.q, self.k, self.v))
        return reference.flash_attention(q, k, v, num_heads=self.num_heads, causal=causal)


# Every head dim in both dtypes, and as a trusted and as a checked module; 40 in all four combinations.
@pytest.mark.parametrize(
    ("device_name", "head_dim", "dtype"),
    [
        *(("device", head_dim, "f32") for head_dim in HEAD_DIMS),
        *(("checked_device", head_dim, "f16") for head_dim in HEAD_DIMS),
        ("device", 40, "f16"),
        ("checked_device", 40, "f32"),
    ],
)
def test_flash_attention(request: pytest.FixtureRequest, device_name: str, head_dim: int, dtype: DType) -> None:
    any_device: Device = request.getfixturevalue(device_name)
    tile = SMALL if SMALL.shared_bytes(head_dim, dtype) <= 32768 else replace(SMALL, queries=8)
    check(any_device, tile, head_dim, dtype)


@pytest.mark.parametrize(("device_name", "tile", "head_dim"), MATRIX_TILES)
def test_matrix_units(request: pytest.FixtureRequest, device_name: str, tile: MatrixFlashTile, head_dim: int) -> None:
    check(request.getfixturevalue(device_name), tile, head_dim, "f16")


@pytest.mark.parametrize("head_dim", [*HEAD_DIMS, 16, 48, 72, 104, 128, 136])
def test_the_devices_own_matrix_units(any_device: Device, head_dim: int) -> None:
    """Head dims that would compile too slowly on emulated ones."""
    units = any_device.capabilities.matrix_units
    if units is None:
        pytest.skip("this device has no matrix units")
    tile = choose_matrix_flash_tile(head_dim, units, any_device.capabilities)
    assert tile is not None
    check(any_device, tile, head_dim, "f16")


def check(device: Device, tile: FlashTile | MatrixFlashTile, head_dim: int, dtype: DType) -> None:
    """Asserts that it is as exact as it may be, and nearly as exact as the unfused kernels, on all sizes."""
    tile = own_tile(device, tile, head_dim)
    for sizes, num_heads in SIZES:
        case = Attention(sizes, num_heads, head_dim, dtype)
        for causal in (False, True):
            expected = case.expected(causal=causal)
            error = relative_error(case.run(device, case.flash(tile, causal=causal)), expected)
            unfused = relative_error(case.run(device, case.unfused(causal=causal)), expected)
            assert error < BOUNDS[dtype], (sizes, causal)
            assert error <= 2 * unfused + 1e-7, (sizes, causal)  # with one key both may be exact


def test_default_tile(device: Device) -> None:
    case = Attention((1, 70, 77), 2, 40, "f16")
    tile = choose_flash_tile(40, "f16", DESKTOP_GPU)
    for causal in (False, True):
        actual = case.run(device, case.flash(tile, causal=causal))
        assert relative_error(actual, case.expected(causal=causal)) < BOUNDS["f16"]


@pytest.mark.parametrize(("tile", "dtype"), [(SMALL, "f32"), (ONE_MATRIX, "f16")], ids=["registers", "matrices"])
def test_padded_heads(any_device: Device, tile: FlashTile | MatrixFlashTile, dtype: DType) -> None:
    case = Attention((2, 9, 21), 3, 8, dtype)
    plain = Attention((2, 9, 21), 3, 5, dtype)
    for wide, narrow in ((case.q, plain.q), (case.k, plain.k), (case.v, plain.v)):
        wide[:] = np.pad(narrow.reshape(*narrow.shape[:2], 3, 5), [(0, 0)] * 3 + [(0, 3)]).reshape(wide.shape)
    q, k, v = case.specs
    tile = own_tile(any_device, tile, 8)
    call = flash_attention(q, k, v, case.out, num_heads=3, head_dim=5, tile=tile)
    actual = case.run(any_device, [call]).reshape(2, 9, 3, 8)
    assert relative_error(actual[..., :5].reshape(2, 9, 15), plain.expected()) < BOUNDS[dtype]
    assert not actual[..., 5:].any()


@pytest.mark.parametrize(("tile", "dtype"), [(SMALL, "f32"), (ONE_MATRIX, "f16")], ids=["registers", "matrices"])
def test_views_of_columns(any_device: Device, tile: FlashTile | MatrixFlashTile, dtype: DType) -> None:
    """q after keys that no head reads, k and v as halves of one tensor."""
    x, kv = np.random.default_rng(4).standard_normal((2, 2, 13, 48))
    tx, tkv, out = tensor_in("x", x, dtype), tensor_in("kv", kv, dtype), tensor_out("out", 2, 13, 24, dtype=dtype)
    q, (k, v) = tx.columns(16, 24), tkv.split_columns(2)
    call = flash_attention(q, k, v, out, num_heads=3, tile=own_tile(any_device, tile, 8))
    (actual,) = run_calls(any_device, call, {tx: x, tkv: kv}, out)
    arrays = (rounded(array, dtype) for array in (x[..., 16:40], kv[..., :24], kv[..., 24:]))
    assert relative_error(actual, reference.flash_attention(*arrays, num_heads=3)) < BOUNDS[dtype]


@pytest.mark.parametrize(("device_name", "tile", "head_dim"), MATRIX_TILES)
def test_growing_maxima(request: pytest.FixtureRequest, device_name: str, tile: MatrixFlashTile, head_dim: int) -> None:
    """Row i's logits grow by 0.6 i per 8 keys, and one key's leaps ahead: m is raised late or early."""
    case = Attention((1, 13, 61), 2, head_dim, "f16", seed=3)
    keys = np.arange(61) / 8
    keys[50] *= 4
    case.q[..., ::head_dim] = np.arange(13)[None, :, None]
    case.k[..., ::head_dim] = 0.6 * np.sqrt(head_dim) * keys[None, :, None]
    device: Device = request.getfixturevalue(device_name)
    for causal in (False, True):
        actual = case.run(device, case.flash(own_tile(device, tile, head_dim), causal=causal))
        assert relative_error(actual, case.expected(causal=causal)) < BOUNDS["f16"]


def test_rows_of_threads(device: Device) -> None:
    case = Attention((1, 9, 35), 2, 8, "f32")
    tile = FlashTile(queries=6, keys=32, thread_queries=2, thread_keys=8, interleaved=False)
    assert relative_error(case.run(device, case.flash(tile)), case.expected()) < BOUNDS["f32"]


@pytest.mark.parametrize(("tile", "dtype"), [(SMALL, "f32"), (SMALL, "f16"), (SHARED_ROWS, "f16")])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_outliers(any_device: Device, causal: bool, tile: FlashTile | MatrixFlashTile, dtype: DType) -> None:
    case = Attention((1, 21, 40), 2, 40, dtype, seed=1)
    case.q[0, 3] = 0
    case.q[0, 4, 7] = 1e3  # logits of 1e3 times a key's: exp overflows without the subtracted maximum
    case.q[0, 5] = 1e3
    case.q[0, 6] = -1e3
    case.k[0, 2, 7] = 1e3  # with row 4: a logit of 1e6 in the first tile
    case.k[0, 39] = 1e3  # with row 5: 4e7 in the last tile, so that all sums before become 0; with row 6: -4e7
    case.v[0, 20] = 1e3
    expected = case.expected(causal=causal)
    actual = case.run(any_device, case.flash(own_tile(any_device, tile, 40), causal=causal))
    assert np.isfinite(actual).all()
    assert relative_error(actual, expected) < 4 * BOUNDS[dtype]
    assert np.max(np.abs(actual - expected)) < 1e3 * BOUNDS[dtype]


@pytest.mark.parametrize("tile", [SMALL, SHARED_ROWS], ids=["registers", "matrices"])
def test_largest_f16_values(any_device: Device, tile: FlashTile | MatrixFlashTile) -> None:
    case = Attention((1, 5, 20), 1, 40, "f16", seed=2)
    case.q *= 6e4 / np.abs(case.q).max()
    case.k *= 6e4 / np.abs(case.k).max()  # logits up to 1e10, which f16 can't hold, but f32 can
    actual = case.run(any_device, case.flash(own_tile(any_device, tile, 40)))
    assert relative_error(actual, case.expected()) < BOUNDS["f16"]


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("head_dim", range(8, 168, 8))
def test_one_dispatch_and_no_other_tensor(head_dim: int, dtype: DType) -> None:
    case = Attention((2, 300, 77), 1, head_dim, dtype)
    tile = choose_flash_tile(head_dim, dtype, DESKTOP_GPU)
    (call,) = case.flash(tile)
    assert call.workgroups == (-(-300 // tile.queries), 1, 2)
    assert find_lifetimes([call]) == []
    assert [binding.tensor for binding in call.bindings] == [*case.specs, case.out]
    assert tile.num_threads in (32, 64, 128)
    assert tile.thread_queries * head_dim // (tile.keys // tile.thread_keys) <= 64  # sums in registers


@pytest.mark.parametrize("capabilities", [WEBGPU_DEFAULTS, DESKTOP_GPU], ids=["webgpu", "desktop"])
@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("head_dim", range(8, 88, 8))
def test_tiles_fit_a_workgroup(head_dim: int, dtype: DType, capabilities: Capabilities) -> None:
    tile = choose_flash_tile(head_dim, dtype, capabilities)
    assert tile.shared_bytes(head_dim, dtype) <= capabilities.max_workgroup_bytes
    assert tile.num_threads <= capabilities.max_invocations
    assert tile.queries >= (64 if capabilities is DESKTOP_GPU and head_dim <= 40 else 8)


UNITS = {
    "nvidia": MatrixUnits(16, 16, 16, 32),
    "intel": MatrixUnits(8, 16, 16, 16),
    "apple": MatrixUnits(8, 8, 8, 32),
}


@pytest.mark.parametrize("capabilities", [WEBGPU_DEFAULTS, DESKTOP_GPU], ids=["webgpu", "desktop"])
@pytest.mark.parametrize("units", UNITS.values(), ids=UNITS)
@pytest.mark.parametrize("head_dim", range(8, 168, 8))
def test_matrix_tiles_fit_a_workgroup(head_dim: int, units: MatrixUnits, capabilities: Capabilities) -> None:
    tiles = matrix_flash_tiles(head_dim, units, capabilities)
    for tile in tiles:
        assert tile.constants(head_dim, "f16")["D_BLOCKS"] >= 1  # no ShapeError
        assert tile.shared_bytes(head_dim, "f16") <= capabilities.max_workgroup_bytes
        assert tile.num_threads <= capabilities.max_invocations
    assert choose_matrix_flash_tile(head_dim, units, capabilities) in tiles


# D: queries, keys and subgroups of the tile
@pytest.mark.parametrize(
    ("head_dim", "expected"), [(40, (128, 16, 4)), (64, (64, 32, 2)), (80, (128, 32, 4)), (160, (64, 32, 4))]
)
def test_chosen_matrix_tile(head_dim: int, expected: tuple[int, int, int]) -> None:
    nvidia = replace(DESKTOP_GPU, max_workgroup_bytes=49152)
    tile = choose_matrix_flash_tile(head_dim, UNITS["nvidia"], nvidia)
    assert tile is not None
    assert (tile.queries, tile.keys, tile.subgroups) == expected


def test_no_tile_fits() -> None:
    with pytest.raises(ShapeError, match=r"no tile of head dim 160 in f32 fits 16384 bytes"):
        choose_flash_tile(160, "f32", WEBGPU_DEFAULTS)


def test_reference() -> None:
    """A loop over rows, so that the specification itself is not taken on trust."""
    case = Attention((2, 5, 7), 2, 8, "f32")
    out = reference.flash_attention(case.q, case.k, case.v, num_heads=2, causal=True)
    for b in range(2):
        for head in (slice(0, 8), slice(8, 16)):
            for i in range(5):
                p = np.exp(case.k[b, : i + 1, head] @ case.q[b, i, head] / np.sqrt(8))
                np.testing.assert_allclose(out[b, i, head], p @ case.v[b, : i + 1, head] / p.sum())


def test_shape_errors() -> None:
    q, k, out = tensor_out("q", 2, 5, 48), tensor_out("k", 2, 7, 48), tensor_out("out", 2, 5, 48)
    with pytest.raises(ShapeError, match=r"flash_attention: q\[2, 5, 48\]:f32 must be \(B, N, heads D\) with"):
        flash_attention(q, k, k, out, num_heads=5, tile=SMALL)
    with pytest.raises(ShapeError, match=r"num_heads \(=0\)"):
        flash_attention(q, k, k, out, num_heads=0, tile=SMALL)
    with pytest.raises(ShapeError, match=r"q\[240, 2\]:f32 must be \(B, N, heads D\)"):
        flash_attention(tensor_out("q", 240, 2), k, k, out, num_heads=2, tile=SMALL)
    with pytest.raises(ShapeError, match=r"flash_attention: q.* on k.* and k.* must give out\[2, 7, 48\]"):
        flash_attention(q, k, k, tensor_out("out", 2, 7, 48), num_heads=2, tile=SMALL)
    with pytest.raises(ShapeError, match=r"on k\[1, 7, 48\]:f32 and v"):
        flash_attention(q, tensor_out("k", 1, 7, 48), tensor_out("v", 1, 7, 48), out, num_heads=2, tile=SMALL)
    with pytest.raises(ShapeError, match=r"on k\[2, 7, 48\]:f32 and v\[2, 8, 48\]:f32"):
        flash_attention(q, k, tensor_out("v", 2, 8, 48), out, num_heads=2, tile=SMALL)
    with pytest.raises(ShapeError, match=r"on k\[336, 2\]:f32"):
        flash_attention(q, tensor_out("k", 336, 2), k, out, num_heads=2, tile=SMALL)
    with pytest.raises(ShapeError, match=r"must have one dtype"):
        flash_attention(q, k, tensor_out("v", 2, 7, 48, dtype="f16"), out, num_heads=2, tile=SMALL)
    with pytest.raises(ShapeError, match=r"head dim \(=12\) must be a multiple of 8 up to 160"):
        flash_attention(q, k, k, out, num_heads=4, tile=SMALL)
    for head_dim in (0, 9):
        with pytest.raises(ShapeError, match=rf"head_dim \(={head_dim}\) must be from 1 to the 8 channels of a head"):
            flash_attention(q, k, k, out, num_heads=6, head_dim=head_dim, tile=SMALL)
    wide = tensor_out("wide", 1, 2, 168)
    with pytest.raises(ShapeError, match=r"head dim \(=168\) must be"):
        flash_attention(wide, wide, wide, wide, num_heads=1, tile=SMALL)


@pytest.mark.parametrize(
    ("tile", "message"),
    [
        (FlashTile(queries=60), r"queries=60.* queries must be a multiple of thread_queries"),
        (FlashTile(thread_keys=6), r"thread_keys=6.* must be"),
        (FlashTile(thread_keys=16), r"thread_keys=16.* keys / thread_keys of 4"),
        (FlashTile(keys=64, thread_keys=4), r"keys / thread_keys \(=16\) must divide the head dim \(=40\)"),
        (FlashTile(queries=8), r"interleaved threads need an even queries / thread_queries"),
        (FlashTile(widened="kx"), r"widened must name some of q and k"),
        (MatrixFlashTile(40, 32, 4, MatrixUnits()), r"queries=40.* must divide queries into matrices"),
        (MatrixFlashTile(64, 24, 4, MatrixUnits()), r"keys=24.* keys be whole matrices"),
        (MatrixFlashTile(48, 32, 1, MatrixUnits()), r"lanes must share its 48 rows"),
        (MatrixFlashTile(16, 8, 1, MatrixUnits(8, 8, 8)), r"lanes must share its 16 rows, each 8 keys of one or more"),
    ],
)
def test_tile_errors(tile: FlashTile | MatrixFlashTile, message: str) -> None:
    with pytest.raises(ShapeError, match=message):
        tile.constants(40, "f16")


def test_matrices_are_of_f16_in_vectors_of_8() -> None:
    out, x = tensor_out("out", 1, 5, 24), tensor_out("x", 1, 5, 84)
    with pytest.raises(ShapeError, match=r"its matrices are of f16, not f32"):
        flash_attention(out, out, out, out, num_heads=3, tile=ONE_MATRIX)
    q = x.columns(4, 24)
    with pytest.raises(ShapeError, match=r"begins at column 4 of 84; with MatrixFlashTile.* must be multiples of 8"):
        flash_attention(q, q, q, out, num_heads=3, tile=ONE_MATRIX)
