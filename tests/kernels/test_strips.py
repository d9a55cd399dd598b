"""Operations in strips, on a device, against their references; what the strips are, and what cannot be cut."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from kernel_runner import relative_error, rounded, run_calls, tensor_in, tensor_out

from shaderfusion.errors import DeviceLimitError, ShapeError
from shaderfusion.gpu.device import Device
from shaderfusion.kernels import reference, tiles
from shaderfusion.kernels.call import KernelCall
from shaderfusion.kernels.capabilities import WEBGPU_DEFAULTS, Capabilities
from shaderfusion.kernels.common.group_norm_statistics import FoldedGroupNorm
from shaderfusion.kernels.common.matmul import Epilogue
from shaderfusion.kernels.optimizations import Optimizations
from shaderfusion.kernels.select import Kernels
from shaderfusion.kernels.strips import convolution_strips, linear_strips, pixel_strips, query_strips, row_strips
from shaderfusion.tensor import DType, TensorSpec, dtype_size_bytes

BOUND = 3e-6
F16_BOUND = 3e-3
KIB = 1 << 10

GPU = WEBGPU_DEFAULTS
CPU = replace(WEBGPU_DEFAULTS, is_cpu=True, has_subgroups=True)


@pytest.fixture(params=[GPU, CPU], ids=["gpu", "cpu"])
def kind(request: pytest.FixtureRequest, device: Device, monkeypatch: pytest.MonkeyPatch) -> Capabilities:
    """Of a GPU and of a CPU, whose products are another kernel's."""
    if request.param is CPU and not device.capabilities.has_subgroups:
        pytest.skip("this device has no subgroups")
    monkeypatch.setattr(tiles, "_ENOUGH_WORKGROUPS", 1)  # no parts of split sums, which take up to 21 MB
    return request.param


def kernels_of(kind: Capabilities, max_binding_bytes: int, optimizations: str = "all", dtype: DType = "f32") -> Kernels:
    return Kernels(dtype, replace(kind, max_binding_bytes=max_binding_bytes), Optimizations.parse(optimizations))


def require_cut(calls: Sequence[KernelCall], max_binding_bytes: int) -> None:
    """Calls bind no more than that, and some a part of a tensor."""
    tensors = [binding.tensor for call in calls for binding in call.bindings]
    assert max(tensor.size_bytes for tensor in tensors) <= max_binding_bytes
    assert any(tensor.offset_bytes for tensor in tensors)


CONVOLUTIONS = [  # dtype, B, (H, W) of x, (H', W') of out, stride, upsample
    ("f32", 1, (24, 24), (24, 24), 1, 1),
    ("f32", 2, (24, 24), (24, 24), 1, 1),  # strips inside each image
    ("f32", 1, (23, 24), (23, 24), 1, 1),  # a last strip of odd height
    ("f32", 1, (24, 24), (12, 12), 2, 1),
    ("f32", 1, (25, 23), (13, 12), 2, 1),
    ("f32", 2, (12, 12), (24, 24), 1, 2),
    ("f32", 1, (13, 12), (25, 23), 1, 2),  # the last row of x counts once
    ("f16", 2, (24, 24), (24, 24), 1, 1),
]


@pytest.mark.parametrize("optimizations", ["all", "none"])
@pytest.mark.parametrize(("dtype", "B", "in_size", "out_size", "stride", "upsample"), CONVOLUTIONS, ids=str)
def test_convolution(
    device: Device,
    kind: Capabilities,
    dtype: DType,
    B: int,
    in_size: tuple[int, int],
    out_size: tuple[int, int],
    stride: int,
    upsample: int,
    optimizations: str,
) -> None:
    if dtype == "f16" and not device.info.has_f16:
        pytest.skip("the device has no f16")
    limit = 38 * KIB * dtype_size_bytes(dtype) // 4  # the filters take 36, in f16 18
    kernels = kernels_of(kind, limit, optimizations, dtype)
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((B, *in_size, 32)), rng.standard_normal((3, 3, 32, 32))
    bias, residual = rng.standard_normal(32), rng.standard_normal((B, *out_size, 32))
    tx, tbias = tensor_in("x", x, dtype), tensor_in("bias", bias, dtype)
    image_biases = rng.standard_normal((B, 96))  # of which the middle columns are a row for each image
    tresidual, tbiases = tensor_in("residual", residual, dtype), tensor_in("image_biases", image_biases, dtype)
    out = tensor_out("out", B, *out_size, 32, dtype=dtype)
    assert kernels.conv2d_layout(tx, out, stride=stride) == "conv2d"
    tweight = tensor_in("weight", weight, dtype)
    epilogue = Epilogue(0.5, bias=tbias, image_bias=tbiases.split_columns(3)[1], residual=tresidual)
    calls = kernels.conv2d(tx, tweight, out, epilogue, stride=stride, upsample=upsample)
    require_cut(calls, limit)
    uses_winograd = "winograd_conv" in {call.name.partition(".")[0] for call in calls}
    assert uses_winograd is (optimizations == "all" and math.prod(out_size) > 400)
    inputs = {tx: x, tweight: weight, tbias: bias, tbiases: image_biases, tresidual: residual}
    (actual,) = run_calls(device, calls, inputs, out)
    x, weight, bias, image_biases, residual = (
        rounded(array, dtype) for array in (x, weight, bias, image_biases, residual)
    )
    size = None if upsample == 1 else out_size
    terms = {"scale": 0.5, "bias": bias, "image_bias": image_biases[:, 32:64], "residual": residual}
    expected = reference.conv2d_direct(x, weight, stride=stride, upsample=upsample, size=size, **terms)
    assert relative_error(actual, expected) < (BOUND if dtype == "f32" else F16_BOUND)


@pytest.mark.parametrize("B", [1, 2])
def test_convolution_padded_at_the_end_alone(device: Device, kind: Capabilities, B: int) -> None:
    limit = 38 * KIB
    kernels = kernels_of(kind, limit)
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((B, 32, 24, 32)), rng.standard_normal((3, 3, 32, 32))
    tx, tweight, out = tensor_in("x", x), tensor_in("weight", weight), tensor_out("out", B, 16, 12, 32)
    calls = kernels.conv2d(tx, tweight, out, Epilogue(), stride=2, padding=0)
    require_cut(calls, limit)
    (actual,) = run_calls(device, calls, {tx: x, tweight: weight}, out)
    x, weight = rounded(x, "f32"), rounded(weight, "f32")
    expected = reference.conv2d_direct(x, weight, stride=2, padding=0, end_padding=1)
    assert relative_error(actual, expected) < BOUND
    with pytest.raises(ShapeError, match=r"conv2d: padding \(=0\) of x.* must be 1 where stride is"):
        kernels.conv2d(tx, tweight, tensor_out("out", B, 32, 24, 32), Epilogue(), padding=0)


@pytest.mark.parametrize("B", [1, 2])
def test_folded_group_norm(device: Device, kind: Capabilities, B: int) -> None:
    limit = 38 * KIB
    kernels = kernels_of(kind, limit)
    rng = np.random.default_rng(0)
    arrays = {"x": 1 + rng.standard_normal((B, 24, 24, 32)), "taps": rng.standard_normal((3, 3, 32, 32))}
    arrays |= {"weight": rng.standard_normal(32), "bias": 2 + rng.standard_normal(32)}
    x, taps, weight, bias = (tensor_in(name, array) for name, array in arrays.items())
    means, variances = (TensorSpec(name, (B, 8), "f32") for name in ("mean", "variance"))
    out = tensor_out("out", B, 24, 24, 32)
    norm = FoldedGroupNorm(means, variances, weight, bias, 1e-5, "silu")
    calls = [*kernels.group_norm_statistics(x, means, variances), *kernels.conv2d(x, taps, out, Epilogue(), norm=norm)]
    require_cut(calls, limit)
    (actual,) = run_calls(device, calls, dict(zip((x, taps, weight, bias), arrays.values(), strict=True)), out)
    images, filters, *affine = (rounded(array, "f32") for array in arrays.values())
    h = reference.group_norm(images, *affine, num_groups=8, eps=1e-5, activation="silu")
    assert relative_error(actual, reference.conv2d_direct(h, filters)) < BOUND


@pytest.mark.parametrize("optimizations", ["all", "none"])
def test_operations_on_rows(device: Device, kind: Capabilities, optimizations: str) -> None:
    limit = 4 * KIB
    kernels = kernels_of(kind, limit, optimizations)
    rng = np.random.default_rng(0)
    shapes = {"x": (2, 75, 16), "y": (2, 75, 12), "w": (16, 24), "b": (24,), "scale": (16,), "shift": (16,)}
    arrays = {name: rounded(rng.standard_normal(shape), "f32") for name, shape in shapes.items()}
    specs = {name: tensor_in(name, array) for name, array in arrays.items()}
    x, y, w, b, scale, shift = specs.values()
    of = arrays
    cases = {
        "linear": (12, lambda out: kernels.matmul(x, w, out, Epilogue(bias=b))),
        "geglu": (12, lambda out: kernels.geglu_linear(x, w, b, out)),
        "layer_norm": (16, lambda out: kernels.layer_norm(x, scale, shift, out, eps=1e-5)),
        "activate": (16, lambda out: kernels.activate(x, out, activation="silu")),
        "concat": (28, lambda out: kernels.concat_channels(x, y, out)),
    }
    cases["linear"] = (24, cases["linear"][1])
    expected = {
        "linear": reference.matmul(of["x"], of["w"], bias=of["b"]),
        "geglu": reference.geglu_linear(of["x"], of["w"], of["b"]),
        "layer_norm": reference.layer_norm(of["x"], of["scale"], of["shift"], eps=1e-5),
        "activate": reference.activate(of["x"], activation="silu"),
        "concat": reference.concat_channels(of["x"], of["y"]),
    }
    for name, (channels, make) in cases.items():
        out = tensor_out("out", 2, 75, channels)
        calls = make(out)
        require_cut(calls, limit)
        inputs = {specs[key]: arrays[key] for key in specs if any(specs[key] in _storages(call) for call in calls)}
        (actual,) = run_calls(device, calls, inputs, out)
        assert relative_error(actual, expected[name]) < BOUND, name


def _storages(call: KernelCall) -> set[TensorSpec]:
    return {binding.tensor.storage for binding in call.bindings}


def test_linear_with_a_residual(device: Device, kind: Capabilities) -> None:
    rng = np.random.default_rng(1)
    x, w, residual = rng.standard_normal((1, 100, 16)), rng.standard_normal((16, 24)), rng.standard_normal((1, 100, 24))
    tx, tw, tresidual = tensor_in("x", x), tensor_in("w", w), tensor_in("residual", residual)
    out = tensor_out("out", 1, 100, 24)
    calls = kernels_of(kind, 4 * KIB).matmul(tx, tw, out, Epilogue(residual=tresidual))
    require_cut(calls, 4 * KIB)
    (actual,) = run_calls(device, calls, {tx: x, tw: w, tresidual: residual}, out)
    assert relative_error(actual, reference.matmul(x, w, residual=residual)) < BOUND


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("optimizations", ["pfs", "none"])
def test_attention(device: Device, kind: Capabilities, optimizations: str, causal: bool) -> None:
    # 90 queries on 90 keys of 2 images and 3 heads: 2208 bytes of scores a query, in strips of 18 and of 64 and 26.
    rng = np.random.default_rng(0)
    q, k, v = (rounded(array, "f32") for array in rng.standard_normal((3, 2, 90, 24)))
    tq, tk, tv = tensor_in("q", q), tensor_in("k", k), tensor_in("v", v)
    out = tensor_out("out", 2, 90, 24)
    expected = reference.flash_attention(q, k, v, num_heads=3, causal=causal)
    for limit, num_strips in ((1 << 27, 1), (150 * KIB, 2), (40 * KIB, 5)):
        calls = kernels_of(kind, limit, optimizations).attention(tq, tk, tv, out, num_heads=3, causal=causal)
        scores = [call.bindings[2].tensor for call in calls if "TRANSPOSE_B" in call.constants]
        assert len(scores) == num_strips
        assert sum(tensor.shape[2] for tensor in scores) == 90
        assert max(binding.tensor.size_bytes for call in calls for binding in call.bindings) <= limit
        (actual,) = run_calls(device, calls, {tq: q, tk: k, tv: v}, out)
        assert relative_error(actual, expected) < BOUND


def test_nothing_is_cut_that_fits() -> None:
    x, out = tensor_out("x", 2, 512, 512, 64), tensor_out("out", 2, 512, 512, 64)
    epilogue = Epilogue(residual=out, image_bias=tensor_out("b", 2, 64))
    assert row_strips(1 << 27, x, out) == [(x, out)]
    assert linear_strips(1 << 27, x, out, epilogue) == [(x, out, epilogue)]
    assert [strip.tensors for strip in pixel_strips(1 << 27, x, out)] == [(x, out)]
    (strip,) = convolution_strips(1 << 27, x, out, epilogue, stride=1, upsample=1)
    assert (strip.x, strip.out, strip.epilogue, strip.rows) == (x, out, epilogue, None)
    assert query_strips(1 << 27, 4096, 1 << 15, "scores") == [range(4096)]


def test_strips_of_a_decoder() -> None:
    # The largest layers of SD 1.4's decoder in f32.
    x, out = tensor_out("x", 1, 512, 512, 256), tensor_out("out", 1, 512, 512, 128)
    strips = convolution_strips(1 << 27, x, out, Epilogue(), stride=1, upsample=1)
    assert [strip.out.shape[1] for strip in strips] == [172, 172, 168]
    assert [strip.x.shape[1] for strip in strips] == [173, 174, 169]  # with the rows above and below
    assert [strip.x.offset_bytes // (512 * 256 * 4) for strip in strips] == [0, 171, 343]
    small = tensor_out("x", 1, 256, 256, 256)
    strips = convolution_strips(1 << 27, small, x, Epilogue(), stride=1, upsample=2)
    assert [(strip.x.shape[1], strip.out.shape[1]) for strip in strips] == [(129, 256), (129, 256)]
    assert query_strips(1 << 27, 4096, 1 << 18, "scores") == [
        range(first, first + 512) for first in range(0, 4096, 512)
    ]


def test_what_cannot_be_cut() -> None:
    wide = tensor_out("unet.out", 1, 2, 1024, 64)
    with pytest.raises(DeviceLimitError, match=r"unet.out: 0.5 MB is over .* \(0.1 MB\), even by a few rows at a time"):
        convolution_strips(1 << 17, wide, wide, Epilogue(), stride=1, upsample=1)
    with pytest.raises(DeviceLimitError, match=r"even by a few rows at a time; use a smaller size or batch"):
        row_strips(128, tensor_out("x", 4, 64))
    ragged = tensor_out("x", 2, 9, 5, 4)
    for cut in (
        lambda: pixel_strips(512, ragged),
        lambda: convolution_strips(1024, ragged, ragged, Epilogue(), stride=1, upsample=1),
    ):
        with pytest.raises(DeviceLimitError, match=r"x: 2 images are too large to bind together, and each cannot be"):
            cut()
    square = tensor_out("x", 2, 16, 16, 16)
    epilogue = Epilogue(image_bias=tensor_out("b", 2, 16))
    with pytest.raises(
        DeviceLimitError, match=r"x: an image_bias for each of 2 images needs tensors that can be bound"
    ):
        linear_strips(1 << 13, square, square, epilogue)
    with pytest.raises(
        DeviceLimitError, match=r"scores: the scores of one query, 1.0 MB, are over what the device can"
    ):
        query_strips(1 << 17, 4096, 1 << 20, "scores")
