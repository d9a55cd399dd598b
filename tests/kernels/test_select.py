"""Which kernel serves an operation. What they compute is tested with each kernel."""

from dataclasses import replace
from itertools import pairwise

import pytest
from kernel_runner import tensor_out

from shaderfusion.errors import InputError, ShapeError
from shaderfusion.kernels.call import KernelCall
from shaderfusion.kernels.common.matmul import Epilogue
from shaderfusion.kernels.select import Kernels, Optimizations

GPU, LANES = Kernels("f16"), Kernels("f32", lanes=True)


def linear(kernels: Kernels, num_rows: int) -> tuple[KernelCall, ...]:
    """A linear layer of 64 to 320 channels."""
    x, weight = tensor_out("x", num_rows, 64, dtype="f16"), tensor_out("w", 64, 320, dtype="f16")
    return kernels.matmul(x, weight, tensor_out("out", num_rows, 320, dtype="f16"), Epilogue())


def test_products_by_device() -> None:
    assert "LANES" not in linear(GPU, 1024)[0].constants
    assert linear(LANES, 1024)[0].constants["LANES"] is True


def test_products_by_shape() -> None:
    few, many = linear(GPU, 256)[0].constants, linear(GPU, 257)[0].constants
    assert (few["TILE_M"], few["TILE_N"]) == (64, 64)
    assert many["TILE_M"] == 128


@pytest.mark.parametrize("kernels", [GPU, LANES], ids=["gpu", "lanes"])
@pytest.mark.parametrize(("kernel_size", "stride"), [(1, 1), (3, 1), (3, 2)])
def test_convolution_keeps_the_size_at_stride_1(kernels: Kernels, kernel_size: int, stride: int) -> None:
    x, weight = tensor_out("x", 1, 6, 10, 8), tensor_out("w", kernel_size, kernel_size, 8, 12)
    out = tensor_out("out", 1, 6 // stride, 10 // stride, 12)
    product = kernels.conv2d(x, weight, out, Epilogue(), stride=stride)[0]
    assert product.source == "baseline/conv2d_direct.wgsl"
    wanted = {"KERNEL_SIZE": kernel_size, "STRIDE": stride, "PADDING": kernel_size // 2}
    assert {name: product.constants[name] for name in wanted} == wanted


UNFUSED = replace(GPU, optimizations=Optimizations.parse("none"))


@pytest.mark.parametrize("kernels", [GPU, LANES, UNFUSED], ids=["gpu", "lanes", "unfused"])
def test_attention(kernels: Kernels) -> None:
    q, k = tensor_out("q", 2, 10, 24, dtype=kernels.dtype), tensor_out("k", 2, 77, 24, dtype=kernels.dtype)
    calls = kernels.attention(q, k, k, tensor_out("out", 2, 10, 24, dtype=kernels.dtype), num_heads=3)
    scores = calls[0]
    assert scores.params["scale"] == pytest.approx(8**-0.5)
    logits = scores.bindings[2].tensor
    assert (logits.shape, logits.dtype, logits.role) == ((2, 3, 10, 80), kernels.dtype, "intermediate")
    for before, after in pairwise(calls):  # each reads what the one before wrote
        written = {binding.tensor for binding in before.bindings if binding.access == "write"}
        assert written & {binding.tensor for binding in after.bindings if binding.access == "read"}
    assert ("softmax_unfused" in [call.name for call in calls]) is (kernels is UNFUSED)


def test_optimizations_have_baselines() -> None:
    x, channels = tensor_out("x", 1, 4, 64, dtype="f16"), tensor_out("w", 64, dtype="f16")
    y, half = tensor_out("y", 1, 4, 64, dtype="f16"), tensor_out("half", 1, 4, 32, dtype="f16")
    for kernels in (GPU, UNFUSED):
        norm = kernels.group_norm(x, channels, channels, y, num_groups=4, eps=1e-5)
        for calls in (norm, kernels.geglu(x, half)):
            assert any(call.source.startswith("optimized/") for call in calls) is (kernels is GPU)


def test_parse_optimizations() -> None:
    assert Optimizations.parse("all") == Optimizations()
    assert not any(vars(Optimizations.parse("none")).values())
    chosen = vars(Optimizations.parse(" gn, pfs"))
    assert {name for name, value in chosen.items() if value} == {"group_norm", "partially_fused_softmax"}
    for text, wrong in (("gn,fast", "fast"), ("", ""), ("ALL", "ALL"), ("gn,,pfs", "")):
        with pytest.raises(InputError, match=rf"optimizations \(={wrong!r}\) must be all, none, or some of gn, "):
            Optimizations.parse(text)


def test_errors_pass_through() -> None:
    x = tensor_out("x", 2, 4, 6)
    with pytest.raises(ShapeError, match=r"attention_scores: .* with num_heads \(=4\)"):
        GPU.attention(x, x, x, x, num_heads=4)
    with pytest.raises(ShapeError, match=r"group_norm"):
        GPU.group_norm(x, x, x, x, num_groups=4, eps=1e-5)
