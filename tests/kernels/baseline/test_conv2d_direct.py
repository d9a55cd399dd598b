"""Direct convolution against its reference. As in test_matmul, most cases share tiles that compile quickly."""

from typing import Any

import numpy as np
import pytest
from kernel_runner import matrix_tile, relative_error, rounded, run_calls, skip_without, tensor_in, tensor_out

from shaderfusion.errors import ShapeError
from shaderfusion.gpu.device import Device
from shaderfusion.kernels import reference
from shaderfusion.kernels.baseline.conv2d_direct import conv2d_direct
from shaderfusion.kernels.capabilities import Capabilities
from shaderfusion.kernels.common.matmul import Epilogue
from shaderfusion.kernels.select import Kernels
from shaderfusion.kernels.tiles import LaneTile, MatrixTile, Tile
from shaderfusion.tensor import DType, TensorSpec

BOUNDS: dict[DType, float] = {"f32": 1e-6, "f16": 5e-4}

SMALL = Tile(16, 16, 8, thread_m=2, thread_n4=1)
SMALL_LANES = LaneTile(4, 32)
SMALL_FOUR = LaneTile(4, 32, lanes=4, unrolled=True)


@pytest.fixture(params=[SMALL, SMALL_LANES, SMALL_FOUR], ids=["tile", "lanes", "four lanes"])
def small(request: pytest.FixtureRequest, any_device: Device) -> Tile | LaneTile:
    """A tile of each algorithm that compiles quickly."""
    if isinstance(request.param, LaneTile) and not any_device.capabilities.has_subgroups:
        pytest.skip("LaneTile needs subgroups, which this device lacks")
    return request.param


CASES = [  # (B, H, W, C_in), C_out, kernel size, stride
    ((1, 1, 1, 4), 4, 3, 1),  # minimal: eight of nine taps are padding
    ((2, 5, 7, 12), 20, 3, 1),  # not square, ragged tiles, the second image starts inside a tile
    ((1, 4, 4, 4), 4, 3, 1),  # latents
    ((2, 6, 4, 8), 12, 3, 2),  # even size, stride 2: the right and lower padding is not read
    ((1, 7, 5, 8), 12, 3, 2),  # odd size, stride 2: it is
    ((2, 3, 5, 12), 8, 1, 1),  # 1x1
]


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize(("x_shape", "out_channels", "kernel_size", "stride"), CASES, ids=str)
def test_conv2d_direct(
    device: Device,
    x_shape: tuple[int, int, int, int],
    out_channels: int,
    kernel_size: int,
    stride: int,
    dtype: DType,
) -> None:
    assert _error(device, x_shape, out_channels, dtype, kernel_size, stride, tile=SMALL) < BOUNDS[dtype]


@pytest.mark.parametrize("stride", [1, 2])
def test_both_algorithms(any_device: Device, small: Tile | LaneTile, stride: int) -> None:
    assert _error(any_device, (2, 5, 7, 12), 20, "f32", stride=stride, tile=small) < BOUNDS["f32"]


@pytest.mark.parametrize("sides", [(6, 4), (7, 5)], ids=str)
def test_padding_at_the_end_alone(any_device: Device, small: Tile | LaneTile, sides: tuple[int, int]) -> None:
    # As in an encoder of pictures; odd sides need no padding.
    out_size = (sides[0] // 2, sides[1] // 2)
    options: dict[str, Any] = {"stride": 2, "tile": small, "padding": 0, "end_padding": 1, "out_size": out_size}
    error = _error(any_device, (2, *sides, 8), 12, "f32", **options)
    assert error < BOUNDS["f32"]


@pytest.mark.parametrize(("dtype", "upsample", "stride"), [("f32", 2, 1), ("f16", 2, 1), ("f32", 3, 2)])
def test_upsample(any_device: Device, dtype: DType, upsample: int, stride: int) -> None:
    # Ragged tiles; the second image starts inside one.
    error = _error(any_device, (2, 5, 7, 12), 20, dtype, stride=stride, tile=SMALL, upsample=upsample)
    assert error < BOUNDS[dtype]


@pytest.mark.parametrize("size", [(9, 13), (10, 13), (9, 14)], ids=str)
def test_upsample_to_an_odd_size(any_device: Device, small: Tile | LaneTile, size: tuple[int, int]) -> None:
    # As torch's nearest interpolation to a skip connection's size; the second image starts inside a tile.
    assert _error(any_device, (2, 5, 7, 12), 20, "f32", tile=small, upsample=2, size=size) < BOUNDS["f32"]


def test_upsample_by_lanes(any_device: Device) -> None:
    if not any_device.capabilities.has_subgroups:
        pytest.skip("LaneTile needs subgroups, which this device lacks")
    assert _error(any_device, (2, 5, 7, 12), 20, "f32", tile=SMALL_LANES, upsample=2) < BOUNDS["f32"]


def test_lanes_in_f16(device: Device) -> None:
    if not device.capabilities.has_subgroups:
        pytest.skip("LaneTile needs subgroups, which this device lacks")
    assert _error(device, (2, 5, 7, 12), 20, "f16", tile=SMALL_LANES) < BOUNDS["f16"]


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_epilogue(any_device: Device, dtype: DType) -> None:
    # Over split K, whose second pass adds the terms: a ragged end of K, and a residual block's terms.
    names = ("bias", "image_bias", "residual")
    error = _error(any_device, (2, 3, 5, 8), 12, dtype, tile=SMALL, names=names, num_splits=2)
    assert error < BOUNDS[dtype]


@pytest.mark.parametrize("num_images", [1, 2])
def test_epilogue_of_one_pass(device: Device, num_images: int) -> None:
    names = ("bias", "image_bias", "residual")
    error = _error(device, (2, 3, 5, 8), 12, "f32", tile=SMALL, names=names, num_images=num_images)
    assert error < BOUNDS["f32"]


def test_great_depth_in_f16(device: Device) -> None:
    # K = 9 x 460; the offset makes the sums grow to 1000, where adding in f16 would lose most of each product.
    assert _error(device, (1, 2, 2, 460), 4, "f16", tile=SMALL, offset=0.5) < BOUNDS["f16"]


KERNELS = {
    "gpu": Kernels("f32"),
    "lanes": Kernels("f32", Capabilities(is_cpu=True, has_subgroups=True)),
    "lanes-int64": Kernels("f32", Capabilities(is_cpu=True, has_subgroups=True, has_int64=True)),
}


@pytest.mark.parametrize("kernels", KERNELS.values(), ids=KERNELS)
def test_tiles_of_models(device: Device, kernels: Kernels) -> None:
    skip_without(device, kernels.capabilities)
    # What select.py runs: more pixels and channels than a tile of 64 x 128, and split K on a GPU.
    rng = np.random.default_rng(1)
    x, weight = rng.standard_normal((1, 10, 7, 20)), rng.standard_normal((3, 3, 20, 132))
    tx, tweight, out = tensor_in("x", x), tensor_in("weight", weight), tensor_out("out", 1, 10, 7, 132)
    (actual,) = run_calls(device, kernels.conv2d(tx, tweight, out, Epilogue()), {tx: x, tweight: weight}, out)
    assert relative_error(actual, reference.conv2d_direct(rounded(x, "f32"), rounded(weight, "f32"))) < BOUNDS["f32"]


@pytest.mark.parametrize(("stride", "upsample"), [(1, 1), (2, 1), (1, 2)])
def test_matrix_units(any_device: Device, stride: int, upsample: int) -> None:
    tile, names = matrix_tile(any_device), ("bias", "image_bias", "residual")
    error = _error(any_device, (2, 5, 7, 8), 24, "f16", stride=stride, tile=tile, names=names, upsample=upsample)
    assert error < BOUNDS["f16"]


def _error(
    device: Device,
    x_shape: tuple[int, int, int, int],
    out_channels: int,
    dtype: DType,
    kernel_size: int = 3,
    stride: int = 1,
    *,
    tile: Tile | LaneTile | MatrixTile,
    names: tuple[str, ...] = (),
    num_splits: int = 1,
    num_images: int = 2,
    upsample: int = 1,
    size: tuple[int, int] | None = None,
    offset: float = 0.0,
    padding: int | None = None,
    end_padding: int | None = None,
    out_size: tuple[int, int] | None = None,
) -> float:
    rng = np.random.default_rng(0)
    B, H, W, C_in = x_shape
    padding = kernel_size // 2 if padding is None else padding
    x = rng.standard_normal(x_shape) + offset
    weight = rng.standard_normal((kernel_size, kernel_size, C_in, out_channels)) + offset
    if out_size is None:
        out_size = size or (-(-upsample * H // stride), -(-upsample * W // stride))
    out = tensor_out("out", B, *out_size, out_channels, dtype=dtype)
    shapes = {"bias": (out_channels,), "image_bias": (num_images, out_channels), "residual": out.shape}
    arrays = {name: 3 * rng.standard_normal(shapes[name]) for name in names}
    tx, tweight = tensor_in("x", x, dtype), tensor_in("weight", weight, dtype)
    added = {name: tensor_in(name, array, dtype) for name, array in arrays.items()}
    scale = 0.75 if names else 1.0
    splits = {"num_splits": num_splits} if isinstance(tile, Tile) else {}
    options: dict[str, Any] = {"stride": stride, "padding": padding, "end_padding": end_padding, "upsample": upsample}
    calls = conv2d_direct(tx, tweight, out, Epilogue(scale, **added), rows=None, tile=tile, **options, **splits)
    assert len(calls) == (1 if num_splits == 1 else 2)
    inputs = {tx: x, tweight: weight, **{added[name]: arrays[name] for name in names}}
    (actual,) = run_calls(device, calls, inputs, out)
    terms: dict[str, Any] = {name: rounded(array, dtype) for name, array in arrays.items()}
    arguments = (rounded(x, dtype), rounded(weight, dtype))
    expected = reference.conv2d_direct(*arguments, size=size, scale=scale, **options, **terms)
    return relative_error(actual, expected)


@pytest.mark.parametrize(("stride", "upsample"), [(1, 1), (2, 1), (1, 2), (2, 3)])
def test_reference(stride: int, upsample: int) -> None:
    """The sum written out, so that the specification itself is not taken on trust."""
    rng = np.random.default_rng(2)
    x, weight = rng.standard_normal((2, 4, 5, 3)), rng.standard_normal((3, 3, 3, 2))
    H, W = 4 * upsample, 5 * upsample
    expected = np.zeros((2, -(-H // stride), -(-W // stride), 2))
    for b, y, column, o in np.ndindex(*expected.shape):
        for i, j in np.ndindex(3, 3):
            source_y, source_x = stride * y + i - 1, stride * column + j - 1
            if 0 <= source_y < H and 0 <= source_x < W:
                expected[b, y, column, o] += x[b, source_y // upsample, source_x // upsample] @ weight[i, j, :, o]
    np.testing.assert_allclose(reference.conv2d_direct(x, weight, stride=stride, upsample=upsample), expected)


def test_reference_padded_at_the_end_alone() -> None:
    rng = np.random.default_rng(3)
    x, weight = rng.standard_normal((1, 4, 6, 3)), rng.standard_normal((3, 3, 3, 2))
    expected = np.zeros((1, 2, 3, 2))
    for _, y, column, o in np.ndindex(*expected.shape):
        for i, j in np.ndindex(3, 3):
            if 2 * y + i < 4 and 2 * column + j < 6:
                expected[0, y, column, o] += x[0, 2 * y + i, 2 * column + j] @ weight[i, j, :, o]
    np.testing.assert_allclose(reference.conv2d_direct(x, weight, stride=2, padding=0, end_padding=1), expected)


def test_shape_errors() -> None:
    x, weight, out = tensor_out("x", 2, 6, 4, 8), tensor_out("weight", 3, 3, 8, 12), tensor_out("out", 2, 6, 4, 12)
    with pytest.raises(ShapeError, match=r"conv2d: x.* with weight.*, stride \(=2\), padding \(=1, 1\), upsample"):
        conv2d_direct(x, weight, out, stride=2)
    with pytest.raises(ShapeError, match=r"padding \(=0, 0\), upsample \(=1\) must give out\[2, 6, 4, 12\]:f32"):
        conv2d_direct(x, weight, out, padding=0)
    with pytest.raises(ShapeError, match=r"upsample \(=2\) must give out\[2, 6, 4, 12\]:f32"):
        conv2d_direct(x, weight, out, upsample=2)
    for size in ((10, 8), (13, 8), (12, 6), (12, 9)):  # of x, 11 or 12 rows and 7 or 8 columns
        with pytest.raises(ShapeError, match=rf"upsample \(=2\) must give out\[2, {size[0]}, {size[1]}, 12\]:f32"):
            conv2d_direct(x, weight, tensor_out("out", 2, *size, 12), upsample=2)
    with pytest.raises(ShapeError, match=r"with weight\[3, 1, 8, 12\]:f32"):
        conv2d_direct(x, tensor_out("weight", 3, 1, 8, 12), out)
    with pytest.raises(ShapeError, match=r"with weight\[3, 3, 4, 12\]:f32"):
        conv2d_direct(x, tensor_out("weight", 3, 3, 4, 12), out)
    with pytest.raises(ShapeError, match=r"conv2d: in_channels \(=6\) must be a multiple of 4; pad"):
        conv2d_direct(tensor_out("x", 2, 6, 4, 6), tensor_out("weight", 3, 3, 6, 12), out)
    with pytest.raises(ShapeError, match=r"conv2d: out_channels \(=3\) must be a multiple of 4; pad"):
        conv2d_direct(x, tensor_out("weight", 3, 3, 8, 3), tensor_out("out", 2, 6, 4, 3))
    with pytest.raises(ShapeError, match=r"conv2d: x\[6, 4, 8\]:f32 must be \(B, H, W, C_in\), weight"):
        conv2d_direct(tensor_out("x", 6, 4, 8), weight, out)
    residual: TensorSpec = tensor_out("residual", 2, 6, 4, 8)
    with pytest.raises(ShapeError, match=r"conv2d_direct: residual .* must have shape \(2, 6, 4, 12\)"):
        conv2d_direct(x, weight, out, Epilogue(residual=residual))
