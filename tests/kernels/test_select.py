"""Which kernel serves an operation. What they compute is tested with each kernel."""

import pytest
from kernel_runner import tensor_out

from shaderfusion.errors import ShapeError
from shaderfusion.kernels.call import KernelCall
from shaderfusion.kernels.common.matmul import Epilogue
from shaderfusion.kernels.select import Kernels

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


@pytest.mark.parametrize("kernels", [GPU, LANES], ids=["gpu", "lanes"])
def test_attention(kernels: Kernels) -> None:
    q, k = tensor_out("q", 2, 10, 24, dtype=kernels.dtype), tensor_out("k", 2, 77, 24, dtype=kernels.dtype)
    calls = kernels.attention(q, k, k, tensor_out("out", 2, 10, 24, dtype=kernels.dtype), num_heads=3)
    scores, softmax, values = calls
    assert [call.name for call in calls] == ["matmul.product", "softmax_unfused", "matmul.product"]
    assert scores.params["scale"] == pytest.approx(8**-0.5)
    padded = scores.bindings[2].tensor
    assert (padded.shape, padded.dtype, padded.role) == ((2, 3, 10, 80), kernels.dtype, "intermediate")
    assert softmax.bindings[0].tensor is padded
    assert values.bindings[0].tensor is softmax.bindings[1].tensor


def test_errors_pass_through() -> None:
    x = tensor_out("x", 2, 4, 6)
    with pytest.raises(ShapeError, match=r"attention_scores: .* with num_heads \(=4\)"):
        GPU.attention(x, x, x, x, num_heads=4)
    with pytest.raises(ShapeError, match=r"group_norm"):
        GPU.group_norm(x, x, x, x, num_groups=4, eps=1e-5)
