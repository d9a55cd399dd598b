"""Winograd convolution against the direct one in float64. As in test_matmul, most cases share quick small tiles."""

from dataclasses import replace

import numpy as np
import pytest
from kernel_runner import relative_error, rounded, run_calls, tensor_in, tensor_out

from shaderfusion.errors import ShapeError
from shaderfusion.gpu.device import Device
from shaderfusion.graph.memory_plan import plan_memory
from shaderfusion.kernels import reference
from shaderfusion.kernels.common.group_norm_statistics import FoldedGroupNorm, group_norm_statistics
from shaderfusion.kernels.common.matmul import Epilogue
from shaderfusion.kernels.optimized.winograd_conv import TILE_SIZES, winograd_conv, winograd_filters
from shaderfusion.kernels.tiles import LaneTile, Tile
from shaderfusion.tensor import DType, TensorSpec, dtype_size_bytes

# Relative error on white noise, the worst of inputs: it grows with m as test_winograd_matrices.test_amplification says,
# to about two thirds of these. Two thirds again on images, whose smooth part no transform amplifies.
BOUNDS: dict[DType, dict[int, float]] = {
    "f32": {2: 3e-7, 4: 1e-6, 6: 3e-6, 8: 2e-5},
    "f16": {2: 1e-3, 4: 3e-3, 6: 1.2e-2, 8: 6e-2},
}
IMAGE_BOUNDS: dict[DType, dict[int, float]] = {
    "f32": {2: 3e-7, 4: 3e-7, 6: 1e-6, 8: 3e-6},
    "f16": {2: 1e-3, 4: 1e-3, 6: 3e-3, 8: 1e-2},
}

SMALL = Tile(16, 16, 8, thread_m=2, thread_n4=1)
SMALL_LANES = LaneTile(4, 32)

CASES = [  # (B, H, W, C_in), C_out
    ((1, 1, 1, 4), 4),  # minimal: one pixel in a tile, the rest of it and its border are padding
    ((1, 5, 5, 8), 4),  # ragged tiles on both sides for all m
    ((2, 9, 7, 12), 20),  # two images, not square, more tiles than a workgroup takes and rows than the product's tile
]


@pytest.mark.parametrize("m", TILE_SIZES)
@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize(("x_shape", "out_channels"), CASES, ids=str)
def test_winograd_conv(
    device: Device, x_shape: tuple[int, int, int, int], out_channels: int, dtype: DType, m: int
) -> None:
    x = np.random.default_rng(0).standard_normal(x_shape)
    actual, expected = _run(device, x, out_channels, dtype, m)
    assert relative_error(actual, expected) < BOUNDS[dtype][m]


@pytest.mark.parametrize("m", TILE_SIZES)
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_image(device: Device, dtype: DType, m: int) -> None:
    # Smooth with a little noise, as a decoder's features are: most of it is where no rounding is amplified.
    actual, expected = _run(device, _image(16, 16, 8), 20, dtype, m)
    assert relative_error(actual, expected) < IMAGE_BOUNDS[dtype][m]


@pytest.mark.parametrize("m", TILE_SIZES)
def test_large_values_in_f16(device: Device, m: int) -> None:
    # Outputs of 43000, near the largest f16: V, U and M must not overflow before them.
    x = 3000 + np.random.default_rng(0).standard_normal((1, 9, 9, 4))
    actual, expected = _run(device, x, 4, "f16", m, weight=np.full((4, 4, 3, 3), 0.4))
    assert expected.max() > 42000
    assert relative_error(actual, expected) < IMAGE_BOUNDS["f16"][m]


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_checked(checked_device: Device, dtype: DType) -> None:
    x = np.random.default_rng(0).standard_normal((2, 9, 7, 12))
    for m in (2, 4):
        actual, expected = _run(checked_device, x, 20, dtype, m)
        assert relative_error(actual, expected) < BOUNDS[dtype][m]


def test_checked_with_large_tiles(checked_device: Device) -> None:
    x = np.random.default_rng(0).standard_normal((2, 9, 7, 12))
    for m in (6, 8):
        actual, expected = _run(checked_device, x, 20, "f32", m)
        assert relative_error(actual, expected) < BOUNDS["f32"][m]


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("m", TILE_SIZES)
def test_transform_filters(any_device: Device, m: int, dtype: DType) -> None:
    # 140 vectors of filters, the third workgroup not full. U is bounded by the filters, and so is its error.
    filters = rounded(np.random.default_rng(0).standard_normal((3, 3, 28, 20)), dtype)
    tfilters, U = tensor_in("filters", filters, dtype), tensor_out("U", (m + 2) ** 2, 28, 20, dtype=dtype)
    (actual,) = run_calls(any_device, winograd_filters(tfilters, U, m=m), {tfilters: filters}, U)
    expected = reference.winograd_filters(filters, m=m)
    assert np.abs(actual - expected).max() < {"f32": 3e-7, "f16": 5e-4}[dtype] * np.abs(filters).max()


def test_winograd_filters_of_some_channels(any_device: Device) -> None:
    # Channels 8 to 20 of the filters become channels 4 to 16 of U, and others stay.
    filters = rounded(np.random.default_rng(0).standard_normal((3, 3, 12, 20)), "f32")
    tfilters, U = tensor_in("filters", filters), tensor_out("U", 16, 12, 16)
    call = winograd_filters(tfilters, U, m=2, first_channel=8, out_first_channel=4)
    (actual,) = run_calls(any_device, call, {tfilters: filters}, U)
    np.testing.assert_allclose(actual[..., 4:], reference.winograd_filters(filters, m=2)[..., 8:], atol=1e-6)
    assert np.isnan(actual[..., :4]).all()


def test_winograd_filters_errors() -> None:
    filters, U = tensor_out("filters", 3, 3, 8, 12), tensor_out("U", 36, 8, 12)
    with pytest.raises(ShapeError, match=r"winograd_conv: m \(=3\) must be one of 2, 4, 6, 8"):
        winograd_filters(filters, U, m=3)
    for m, wrong in ((2, U), (4, tensor_out("U", 36, 12, 12)), (4, tensor_out("U", 36, 8, 12, dtype="f16"))):
        with pytest.raises(ShapeError, match=r"winograd_conv: filters\[3, 3, 8, 12\]:f32 .* U\["):
            winograd_filters(filters, wrong, m=m)
    with pytest.raises(ShapeError, match=r"filters\[3, 3, 8, 12\]:f32 from channel 12 on must give U"):
        winograd_filters(filters, U, m=4, first_channel=12)
    with pytest.raises(ShapeError, match=r"first_channel \(=2\) must be a multiple of 4"):
        winograd_filters(filters, tensor_out("U", 36, 8, 8), m=4, first_channel=2)


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_filters_transformed_in_the_run(any_device: Device, dtype: DType, m: int) -> None:
    # In strips, which share U; then in slices of 8, 8 and 4 channels, each transformed in every strip.
    x = np.random.default_rng(0).standard_normal((2, 9, 7, 12))
    row_bytes = (m + 2) ** 2 * -(-7 // m) * (12 + 20) * dtype_size_bytes(dtype)
    strips = {"names": ("image_bias", "residual"), "max_temporary_bytes": 2 * row_bytes}
    for max_filters_bytes in (2**20, 11 * (m + 2) ** 2 * 12 * dtype_size_bytes(dtype)):
        actual, expected = _run(
            any_device, x, 20, dtype, m, transformed=False, max_filters_bytes=max_filters_bytes, **strips
        )
        assert relative_error(actual, expected) < BOUNDS[dtype][m]


@pytest.mark.parametrize(("dtype", "m", "upsample"), [("f32", 2, 2), ("f32", 4, 2), ("f16", 4, 2), ("f32", 4, 3)])
def test_upsample(any_device: Device, dtype: DType, m: int, upsample: int) -> None:
    # Strips of one row of tiles; the residual is of the output's size.
    x = np.random.default_rng(0).standard_normal((2, 5, 3, 12))
    actual, expected = _run(any_device, x, 20, dtype, m, upsample=upsample, names=("residual",), max_temporary_bytes=1)
    assert relative_error(actual, expected) < BOUNDS[dtype][m]


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("size", [(9, 5), (10, 5), (9, 6)], ids=str)
def test_upsample_to_an_odd_size(any_device: Device, m: int, size: tuple[int, int]) -> None:
    x = np.random.default_rng(0).standard_normal((2, 5, 3, 12))
    actual, expected = _run(any_device, x, 20, "f32", m, upsample=2, size=size, names=("residual",))
    assert relative_error(actual, expected) < BOUNDS["f32"][m]


NORM_CASES = [  # dtype, m, (B, H, W, C_in), groups
    ("f32", 4, (2, 9, 7, 12), 6),  # a vector of 4 channels straddles groups of 2
    ("f16", 4, (2, 9, 7, 16), 2),  # and lies in one, as in the decoder
    ("f32", 2, (1, 5, 3, 8), 8),  # a channel a group
]


@pytest.mark.parametrize(("dtype", "m", "x_shape", "num_groups"), NORM_CASES, ids=str)
def test_folded_group_norm(
    any_device: Device, dtype: DType, m: int, x_shape: tuple[int, int, int, int], num_groups: int
) -> None:
    # Strips of one row of tiles, and a large norm bias, whose activation must not reach the padding.
    rng = np.random.default_rng(0)
    B, C_in = x_shape[0], x_shape[-1]
    arrays = {"x": 1 + rng.standard_normal(x_shape), "taps": rng.standard_normal((3, 3, C_in, 20))}
    arrays |= {"norm.weight": rng.standard_normal(C_in), "norm.bias": 2 + rng.standard_normal(C_in)}
    arrays["residual"] = rng.standard_normal((*x_shape[:3], 20))
    x, taps, weight, bias, residual = (tensor_in(name, array, dtype) for name, array in arrays.items())
    means, variances = (TensorSpec(name, (B, num_groups), "f32") for name in ("mean", "variance"))
    norm = FoldedGroupNorm(means, variances, weight, bias, 1e-5, "silu")
    out = tensor_out("out", *x_shape[:3], 20, dtype=dtype)
    options = {"m": m, "norm": norm, "tile": SMALL, "max_temporary_bytes": 1}
    calls = group_norm_statistics(x, means, variances)
    calls += winograd_conv(x, taps, out, Epilogue(residual=residual), **options)
    inputs = dict(zip((x, taps, weight, bias, residual), arrays.values(), strict=True))
    (actual,) = run_calls(any_device, calls, inputs, out)
    values = {name: rounded(array, dtype) for name, array in arrays.items()}
    h = reference.group_norm_unfused(
        values["x"], values["norm.weight"], values["norm.bias"], num_groups=num_groups, eps=1e-5, activation="silu"
    )
    expected = reference.conv2d_direct(h, values["taps"], residual=values["residual"])
    assert relative_error(actual, expected) < BOUNDS[dtype][m]


def test_folded_group_norm_with_padding_channels(any_device: Device) -> None:
    # 6 channels in 3 groups and 2 of zeros, of which the filters take nothing: a vector of 4 holds both.
    rng = np.random.default_rng(0)
    arrays = {"x": 1 + rng.standard_normal((1, 9, 7, 8)), "taps": rng.standard_normal((3, 3, 8, 20))}
    arrays |= {"weight": rng.standard_normal(8), "bias": 2 + rng.standard_normal(8)}
    for array in (arrays["x"], arrays["weight"], arrays["bias"]):
        array[..., 6:] = 0
    x, taps, weight, bias = (tensor_in(name, array) for name, array in arrays.items())
    x = replace(x, padding=2)
    means, variances = (TensorSpec(name, (1, 3), "f32") for name in ("mean", "variance"))
    norm = FoldedGroupNorm(means, variances, weight, bias, 1e-5, "silu")
    out = tensor_out("out", 1, 9, 7, 20)
    calls = group_norm_statistics(x, means, variances) + winograd_conv(x, taps, out, m=4, norm=norm, tile=SMALL)
    (actual,) = run_calls(any_device, calls, dict(zip((x, taps, weight, bias), arrays.values(), strict=True)), out)
    values = [rounded(array, "f32") for array in arrays.values()]
    images, filters, *affine = (np.delete(values[i], (6, 7), axis=axis) for i, axis in enumerate((-1, 2, -1, -1)))
    h = reference.group_norm(images, *affine, num_groups=3, eps=1e-5, activation="silu")
    assert relative_error(actual, reference.conv2d_direct(h, filters)) < BOUNDS["f32"][4]


def test_lanes(any_device: Device) -> None:
    if not any_device.capabilities.has_subgroups:
        pytest.skip("LaneTile needs subgroups, which this device lacks")
    x = np.random.default_rng(0).standard_normal((2, 9, 7, 12))
    actual, expected = _run(any_device, x, 20, "f32", 4, tile=SMALL_LANES)
    assert relative_error(actual, expected) < BOUNDS["f32"][4]


@pytest.mark.parametrize("names", [("bias",), ("image_bias",), ("residual",), ("bias", "image_bias", "residual")])
def test_epilogue(any_device: Device, names: tuple[str, ...]) -> None:
    x = np.random.default_rng(0).standard_normal((2, 5, 7, 8))
    actual, expected = _run(any_device, x, 12, "f32", 4, names=names)
    assert relative_error(actual, expected) < BOUNDS["f32"][4]


def test_epilogue_in_f16(device: Device) -> None:
    x = np.random.default_rng(0).standard_normal((2, 5, 7, 8))
    actual, expected = _run(device, x, 12, "f16", 4, names=("bias", "image_bias", "residual"))
    assert relative_error(actual, expected) < BOUNDS["f16"][4]


def test_one_row_of_image_bias(device: Device) -> None:
    x = np.random.default_rng(0).standard_normal((2, 5, 7, 8))
    actual, expected = _run(device, x, 12, "f32", 4, names=("image_bias",), num_images=1)
    assert relative_error(actual, expected) < BOUNDS["f32"][4]


@pytest.mark.parametrize("m", [2, 4])
def test_strips(any_device: Device, m: int) -> None:
    # Strips of one row of tiles, and of two, which end within an image; each has the epilogue of its own pixels.
    x = np.random.default_rng(0).standard_normal((2, 9, 7, 8))
    names = ("image_bias", "residual")
    whole, expected = _run(any_device, x, 12, "f32", m, names=names)
    assert relative_error(whole, expected) < BOUNDS["f32"][m]
    row_bytes = (m + 2) ** 2 * -(-7 // m) * (8 + 12) * 4
    for max_temporary_bytes in (1, 2 * row_bytes):
        strips, _ = _run(any_device, x, 12, "f32", m, names=names, max_temporary_bytes=max_temporary_bytes)
        np.testing.assert_array_equal(strips, whole)


@pytest.mark.parametrize("m", TILE_SIZES)
def test_dispatches_and_memory(m: int) -> None:
    x, out = tensor_out("x", 2, 64, 64, 320, dtype="f16"), tensor_out("out", 2, 64, 64, 320, dtype="f16")
    weight = tensor_out("weight", (m + 2) ** 2, 320, 320, dtype="f16")
    tiles = -(-64 // m)
    row_bytes = (m + 2) ** 2 * tiles * (320 + 320) * 2

    calls = winograd_conv(x, weight, out, m=m)
    assert [call.name for call in calls] == [
        "winograd_conv.transform_input",
        "matmul.product",
        "winograd_conv.transform_output",
    ]
    assert plan_memory(calls).total_bytes == 2 * tiles * row_bytes <= 48 * 2**20

    calls = winograd_conv(x, weight, out, m=m, max_temporary_bytes=5 * row_bytes)
    num_strips = -(-2 * tiles // 5)
    assert len(calls) == 3 * num_strips
    assert plan_memory(calls).total_bytes == -(-2 * tiles // num_strips) * row_bytes <= 5 * row_bytes
    assert sum(call.params["num_tiles"] for call in calls[::3]) == 2 * tiles**2

    assert plan_memory(winograd_conv(x, weight, out, m=m, max_temporary_bytes=1)).total_bytes == row_bytes


@pytest.mark.parametrize("m", TILE_SIZES)
def test_filters_are_transformed_once(m: int) -> None:
    x, out = tensor_out("x", 2, 64, 64, 320, dtype="f16"), tensor_out("out", 2, 64, 64, 320, dtype="f16")
    weight = tensor_out("weight", 3, 3, 320, 320, dtype="f16")
    row_bytes = (m + 2) ** 2 * -(-64 // m) * (320 + 320) * 2
    calls = winograd_conv(x, weight, out, m=m, max_temporary_bytes=row_bytes)
    assert [call.entry_point for call in calls].count("transform_filters") == 1
    assert len(calls) == 1 + 3 * 2 * -(-64 // m)
    assert plan_memory(calls).total_bytes == (m + 2) ** 2 * 320 * 320 * 2 + row_bytes


@pytest.mark.parametrize("m", TILE_SIZES)
def test_filters_in_slices(m: int) -> None:
    x, out = tensor_out("x", 2, 16, 16, 1280, dtype="f16"), tensor_out("out", 2, 16, 16, 1280, dtype="f16")
    weight = tensor_out("weight", 3, 3, 1280, 1280, dtype="f16")
    channel_bytes = (m + 2) ** 2 * 1280 * 2
    calls = winograd_conv(x, weight, out, m=m, max_filters_bytes=600 * channel_bytes)
    assert [call.entry_point for call in calls] == [
        "transform_input",
        *["transform_filters", "product", "transform_output"] * 3,
    ]
    outputs = [call.params for call in calls if call.entry_point == "transform_output"]
    assert [params["first_channel"] for params in outputs] == [0, 432, 864]  # in eights
    assert [params["slice_channels"] for params in outputs] == [432, 432, 416]
    tiles_bytes = (m + 2) ** 2 * 2 * (-(-16 // m)) ** 2 * (1280 + 432) * 2
    assert plan_memory(calls).total_bytes == 432 * channel_bytes + tiles_bytes


@pytest.mark.parametrize("m", TILE_SIZES)
def test_reference(m: int) -> None:
    rng = np.random.default_rng(2)
    x, weight = rng.standard_normal((2, 9, 7, 3)), rng.standard_normal((3, 3, 3, 2))
    U = reference.winograd_filters(weight, m=m)
    expected = reference.conv2d_direct(x, weight)
    np.testing.assert_allclose(reference.winograd_conv(x, U, m=m), expected, atol=1e-11)
    expected = reference.conv2d_direct(x, weight, upsample=2)
    np.testing.assert_allclose(reference.winograd_conv(x, U, m=m, upsample=2), expected, atol=1e-11)
    odd = {"upsample": 2, "size": (17, 13)}
    expected = reference.conv2d_direct(x, weight, **odd)
    np.testing.assert_allclose(reference.winograd_conv(x, U, m=m, **odd), expected, atol=1e-11)


def test_shape_errors() -> None:
    x, weight, out = tensor_out("x", 2, 6, 5, 8), tensor_out("weight", 36, 8, 12), tensor_out("out", 2, 6, 5, 12)
    bias = tensor_out("b", 12)
    with pytest.raises(ShapeError, match=r"winograd_conv: m \(=5\) must be one of 2, 4, 6, 8"):
        winograd_conv(x, weight, out, m=5)
    with pytest.raises(ShapeError, match=r"weight\[36, 8, 12\]:f32 \(3, 3, .*, transformed for m \(=2\), \(16, C_in"):
        winograd_conv(x, weight, out, m=2)
    for wrong in ((6, 6, 8, 12), (3, 3, 4, 12), (36, 4, 12)):
        with pytest.raises(ShapeError, match=r"x\[2, 6, 5, 8\]:f32 must be \(B, H, W, C_in\) and weight"):
            winograd_conv(x, tensor_out("weight", *wrong), out, m=4)
    for size, upsample in (((6, 4), 1), ((6, 5), 2), ((12, 10), 1)):
        with pytest.raises(ShapeError, match=rf"upsample \(={upsample}\) must give out\[2, {size[0]}, {size[1]}, 12\]"):
            winograd_conv(x, weight, tensor_out("out", 2, *size, 12), m=4, upsample=upsample)
    with pytest.raises(ShapeError, match=r"winograd_conv: in_channels \(=6\) must be a multiple of 4; pad"):
        winograd_conv(tensor_out("x", 2, 6, 5, 6), tensor_out("weight", 36, 6, 12), out, m=4)
    with pytest.raises(ShapeError, match=r"winograd_conv: out_channels \(=3\) must be a multiple of 4; pad"):
        winograd_conv(x, tensor_out("weight", 36, 8, 3), tensor_out("out", 2, 6, 5, 3), m=4)
    with pytest.raises(ShapeError, match=r"weight\[36, 8, 12\]:f16 must have the dtype of x\[2, 6, 5, 8\]:f32"):
        winograd_conv(x, tensor_out("weight", 36, 8, 12, dtype="f16"), out, m=4)
    channels = tensor_out("w", 8)
    for images, norm_bias, message in (
        (1, channels, r"must be \(B, G\) f32 for x"),
        (2, bias, r"b.* must have shape \(8,\)"),
    ):
        statistics = tensor_out("mean", images, 4)
        with pytest.raises(ShapeError, match=rf"group_norm: .*{message}"):
            winograd_conv(x, weight, out, m=4, norm=FoldedGroupNorm(statistics, statistics, channels, norm_bias, 1e-5))
    bias, residual, image_bias = tensor_out("b", 8), tensor_out("r", 2, 6, 5, 8), tensor_out("i", 3, 12)
    for epilogue, message in (
        (Epilogue(bias=bias), r"bias b\[8\]:f32 must have shape \(12,\)"),
        (Epilogue(residual=residual), r"residual r.* must have shape \(2, 6, 5, 12\)"),
        (Epilogue(image_bias=image_bias), r"image_bias i\[3, 12\]:f32 must be \(images, 12\), for the images of x"),
    ):
        with pytest.raises(ShapeError, match=message):
            winograd_conv(x, weight, out, epilogue, m=4)
    with pytest.raises(ShapeError, match=r"b\[12\]:f16 must have the dtype"):
        winograd_conv(x, weight, out, Epilogue(bias=tensor_out("b", 12, dtype="f16")), m=4)


def _image(H: int, W: int, C: int) -> np.ndarray:
    """(1, H, W, C): waves longer than the image, shifted by channel, with noise of 5 % of them."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:H, :W, :1][:2] / max(H, W)
    phase = rng.uniform(0, 2 * np.pi, C)
    image = 1.5 * np.sin(3 * y + phase) + np.cos(4 * x - phase)
    return (image + 0.07 * rng.standard_normal(image.shape))[None]


def _run(
    device: Device,
    x: np.ndarray,
    out_channels: int,
    dtype: DType,
    m: int,
    *,
    weight: np.ndarray | None = None,
    tile: Tile | LaneTile = SMALL,
    names: tuple[str, ...] = (),
    num_images: int = 2,
    transformed: bool = True,
    upsample: int = 1,
    size: tuple[int, int] | None = None,
    max_filters_bytes: int = 2**20,
    max_temporary_bytes: int = 2**20,
) -> tuple[np.ndarray, np.ndarray]:
    """What the kernel makes of x, and the direct convolution in float64 of what the device holds of x and filters."""
    rng = np.random.default_rng(1)
    if weight is None:
        weight = rng.standard_normal((out_channels, x.shape[-1], 3, 3))
    weight = rounded(weight, dtype)
    B, H, W, _ = x.shape
    out = tensor_out("out", B, *(size or (upsample * H, upsample * W)), out_channels, dtype=dtype)
    shapes = {"bias": (out_channels,), "image_bias": (num_images, out_channels), "residual": out.shape}
    arrays = {name: 3 * rng.standard_normal(shapes[name]) for name in names}
    taps = weight.transpose(2, 3, 1, 0)
    filters = reference.winograd_filters(taps, m=m) if transformed else taps
    tx, tweight = tensor_in("x", x, dtype), tensor_in("weight", filters, dtype)
    added = {name: tensor_in(name, array, dtype) for name, array in arrays.items()}
    scale = 0.75 if names else 1.0
    calls = winograd_conv(
        tx,
        tweight,
        out,
        Epilogue(scale, **added),
        m=m,
        upsample=upsample,
        tile=tile,
        max_filters_bytes=max_filters_bytes,
        max_temporary_bytes=max_temporary_bytes,
    )
    inputs = {tx: x, tweight: filters, **{added[name]: arrays[name] for name in names}}
    (actual,) = run_calls(device, calls, inputs, out)
    bias, image_bias, residual = (
        rounded(arrays[name], dtype) if name in arrays else None for name in ("bias", "image_bias", "residual")
    )
    terms = {"scale": scale, "bias": bias, "image_bias": image_bias, "residual": residual}
    expected = reference.conv2d_direct(rounded(x, dtype), taps, upsample=upsample, size=size, **terms)
    return actual, expected
