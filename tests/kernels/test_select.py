"""Which kernel serves an operation. What they compute is tested with each kernel."""

from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import pytest
from golden.models import model_folder
from kernel_runner import tensor_out

from shaderfusion.errors import InputError, ShapeError
from shaderfusion.families import open_model
from shaderfusion.graph.graph import LAYOUT_SHAPES, WeightLayout
from shaderfusion.kernels.call import KernelCall
from shaderfusion.kernels.capabilities import DESKTOP_GPU, WEBGPU_DEFAULTS, Capabilities, MatrixShape
from shaderfusion.kernels.common.group_norm_statistics import FoldedGroupNorm
from shaderfusion.kernels.common.matmul import Epilogue
from shaderfusion.kernels.optimizations import Optimizations
from shaderfusion.kernels.optimized.group_norm import group_norm
from shaderfusion.kernels.select import Kernels

GPU = Kernels("f16")
LANES = Kernels("f32", Capabilities(is_cpu=True, has_subgroups=True))
FOUR_LANES = Kernels("f32", Capabilities(is_cpu=True, has_subgroups=True, subgroup_sizes=(4, 4)))
NVIDIA = replace(DESKTOP_GPU, matrix_shapes=(MatrixShape(16, 16, 16, "f16", "f32"),), subgroup_sizes=(32, 32))
MATRICES = Kernels("f16", NVIDIA)


def linear(kernels: Kernels, num_rows: int) -> tuple[KernelCall, ...]:
    """A linear layer of 64 to 320 channels."""
    x, weight = tensor_out("x", num_rows, 64, dtype="f16"), tensor_out("w", 64, 320, dtype="f16")
    return kernels.matmul(x, weight, tensor_out("out", num_rows, 320, dtype="f16"), Epilogue())


def test_products_by_device() -> None:
    assert "LANES" not in linear(GPU, 1024)[0].constants
    assert linear(LANES, 1024)[0].constants["LANES"] is True
    assert linear(FOUR_LANES, 1024)[0].constants["UNROLLED"] is True


def test_winograd_does_not_pay_lane_by_lane() -> None:
    x, out = tensor_out("x", 1, 64, 64, 64), tensor_out("out", 1, 64, 64, 64)
    assert LANES.conv2d_layout(x, out) == "winograd_4"
    assert FOUR_LANES.conv2d_layout(x, out) == "conv2d"


@pytest.mark.parametrize(("kernels", "lanes"), [(GPU, 32), (LANES, 8)], ids=["gpu", "lanes"])
@pytest.mark.parametrize("optimizations", ["none", "pfs"])
def test_lanes_of_rows(kernels: Kernels, lanes: int, optimizations: str) -> None:
    kernels = replace(kernels, optimizations=Optimizations.parse(optimizations))
    q, channels = tensor_out("q", 1, 64, 240, dtype=kernels.dtype), tensor_out("w", 240, dtype=kernels.dtype)
    calls = (*kernels.attention(q, q, q, q, num_heads=3), *kernels.layer_norm(q, channels, channels, q, eps=1e-5))
    assert [call.constants["ROW_LANES"] for call in calls if "ROW_LANES" in call.constants] == [lanes, lanes]


def test_linear_layers_are_joined_where_their_weight_and_output_can_be_bound() -> None:
    few, many = tensor_out("few", 2, 64, 320, dtype="f16"), tensor_out("many", 2, 640, 320, dtype="f16")
    kernels = replace(GPU, capabilities=replace(WEBGPU_DEFAULTS, max_binding_bytes=320 * 960 * 2))
    assert kernels.joins(few, 960)
    assert not kernels.joins(few, 964)  # the weight
    assert kernels.joins(many, 240)
    assert not kernels.joins(many, 244)  # the output


@pytest.mark.parametrize("kernels", [GPU, LANES], ids=["gpu", "lanes"])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_keeps_the_size_at_stride_1(kernels: Kernels, stride: int) -> None:
    x, weight = tensor_out("x", 1, 6, 10, 8), tensor_out("w", 3, 3, 8, 12)
    out = tensor_out("out", 1, 6 // stride, 10 // stride, 12)
    product = kernels.conv2d(x, weight, out, Epilogue(), stride=stride)[0]
    assert product.source == "baseline/conv2d_direct.wgsl"
    wanted = {"KERNEL_SIZE": 3, "STRIDE": stride, "PADDING": 1}
    assert {name: product.constants[name] for name in wanted} == wanted


UNFUSED = replace(GPU, optimizations=Optimizations.parse("none"))
FUSED = replace(GPU, optimizations=Optimizations.parse("pfs"))


@pytest.mark.parametrize(("heads", "kernels", "flash"), [(3, GPU, True), (1, GPU, False), (3, LANES, False)])
def test_flash_attention_where_it_pays(heads: int, kernels: Kernels, flash: bool) -> None:
    q = tensor_out("q", 2, 64, 240, dtype=kernels.dtype)  # head dims 80 and 240
    calls = kernels.attention(q, q, q, tensor_out("out", 2, 64, 240, dtype=kernels.dtype), num_heads=heads)
    assert ([call.name for call in calls] == ["flash_attention"]) is flash


def test_heads_are_padded_to_what_their_kernel_takes() -> None:
    dims = (1, 4, 5, 12, 40, 73, 81, 512)
    assert [GPU.padded_head_dim(D) for D in dims] == [8, 8, 8, 16, 40, 80, 84, 512]  # FlashAttention's eights up to 80
    for kernels in (LANES, UNFUSED, FUSED):
        assert [kernels.padded_head_dim(D) for D in dims] == [4, 4, 8, 12, 40, 76, 84, 512]


def test_padding_of_heads_does_not_depend_on_the_dtype() -> None:
    """A network in f32 hands its keys to one in f16, where heads of more channels than 80 are FlashAttention's too."""
    for capabilities in (WEBGPU_DEFAULTS, DESKTOP_GPU, NVIDIA):
        for D in (40, 73, 84, 150, 170):
            assert Kernels("f16", capabilities).padded_head_dim(D) == Kernels("f32", capabilities).padded_head_dim(D)
    assert MATRICES.padded_head_dim(84) == 88


@pytest.mark.parametrize(
    "sizes", [(4, 4), (8, 8), (8, 32), (16, 16), (32, 64), (64, 64), (64, 128), (128, 128)], ids=str
)
@pytest.mark.parametrize("shape", [*product((8, 16), repeat=3), (12, 12, 12), (64, 64, 16), (1, 64, 16)], ids=str)
def test_matrix_units_are_those_that_the_adapter_has(shape: tuple[int, int, int], sizes: tuple[int, int]) -> None:
    """Whatever it reports: no model fails to be recorded, and nothing asks for what the device does not grant."""
    granted = replace(DESKTOP_GPU, max_invocations=256, max_workgroup_size_x=256, subgroup_sizes=sizes)
    can = replace(granted, matrix_shapes=(MatrixShape(*shape, "f16", "f32"),))
    model = open_model(model_folder("sd1"))
    graphs = model.record(Kernels("f16", can), model.run_size()).values()
    all_constants = [dict[str, Any](call.constants) for graph in graphs for call in graph.calls]
    on_matrices = [constants for constants in all_constants if constants.get("MATRIX_UNITS")]
    assert bool(on_matrices) is (set(shape) <= {8, 16} and sizes not in ((4, 4), (128, 128)))
    for constants in on_matrices:
        assert tuple(constants[f"MATRIX_{side}"] for side in "MNK") == shape
        size = constants["SUBGROUP_SIZE"]
        assert sizes[0] <= size <= sizes[1]
        assert constants["SIZED_SUBGROUPS"] is (sizes[0] < sizes[1])
        count = constants["SUBGROUPS_M"] * constants["SUBGROUPS_N"] if "TILE_M" in constants else constants["SUBGROUPS"]
        assert count * size <= 256


@pytest.mark.parametrize(
    ("kernels", "shape", "out_channels", "stride", "layout", "m"),
    [
        (GPU, (2, 32, 32, 640), 640, 1, "conv2d", 4),
        (GPU, (2, 32, 32, 640), 640, 2, "conv2d", None),
        (GPU, (2, 16, 16, 1280), 1280, 1, "conv2d", 2),  # 32 tiles of 4x4
        (GPU, (1, 64, 64, 240), 240, 1, "winograd_4", 4),  # 4.1 MB of transformed filters
        (GPU, (1, 64, 64, 244), 244, 1, "conv2d", 4),  # 4.3 MB
        (GPU, (2, 16, 16, 320), 320, 1, "winograd_2", 2),
        (GPU, (2, 8, 8, 1280), 1280, 1, "conv2d", None),  # too few tiles
        (GPU, (1, 512, 512, 128), 4, 1, "conv2d", None),  # too few channels
        (UNFUSED, (2, 32, 32, 640), 640, 1, "conv2d", None),
        (replace(GPU, keeps_filters=True), (2, 32, 32, 640), 640, 1, "winograd_4", 4),  # 29 MB
        (replace(GPU, keeps_filters=True), (1, 128, 128, 2560), 1280, 1, "conv2d", 4),  # 236 MB, over the least binding
        (MATRICES, (2, 16, 16, 1280), 1280, 1, "conv2d", None),
        (replace(MATRICES, keeps_filters=True), (2, 16, 16, 1280), 1280, 1, "winograd_2", 2),
        (replace(MATRICES, keeps_filters=True), (2, 8, 8, 1280), 1280, 1, "conv2d", None),
        (LANES, (2, 16, 16, 128), 128, 1, "winograd_4", 4),
        (LANES, (2, 16, 16, 640), 640, 1, "winograd_4", 4),  # transformed when loaded
        (LANES, (1, 128, 128, 2560), 1280, 1, "conv2d", 4),  # but for 236 MB, over WebGPU's least binding
    ],
)
def test_winograd_where_it_pays(
    kernels: Kernels, shape: tuple[int, ...], out_channels: int, stride: int, layout: WeightLayout, m: int | None
) -> None:
    x = tensor_out("x", *shape, dtype=kernels.dtype)
    B, H, W, C = shape
    out = tensor_out("out", B, H // stride, W // stride, out_channels, dtype=kernels.dtype)
    assert kernels.conv2d_layout(x, out, stride=stride) == layout
    weight = tensor_out("w", *LAYOUT_SHAPES[layout]((out_channels, C, 3, 3)), dtype=kernels.dtype)
    calls = kernels.conv2d(x, weight, out, Epilogue(), stride=stride)
    if m is None:
        assert calls[0].name == "conv2d_direct.product"
    else:
        first = "transform_filters" if layout == "conv2d" else "product"
        assert (calls[0].constants["M"], calls[1].entry_point) == (m, first)


def test_upsampled_convolution_counts_the_tiles_of_its_output() -> None:
    x, weight = tensor_out("x", 2, 8, 8, 1280, dtype="f16"), tensor_out("w", 3, 3, 1280, 1280, dtype="f16")
    out = tensor_out("out", 2, 16, 16, 1280, dtype="f16")
    calls = GPU.conv2d(x, weight, out, Epilogue(), upsample=2)
    assert calls[0].name == "winograd_conv.transform_input"
    assert calls[0].constants["UPSAMPLE"] == 2


def test_a_weight_of_another_layout_is_refused() -> None:
    x, weight = tensor_out("x", 1, 8, 8, 32, dtype="f16"), tensor_out("w", 36, 32, 32, dtype="f16")
    with pytest.raises(ShapeError, match=r"conv2d: x.* must be \(B, H, W, C_in\), w.* \(k, k, C_in, C_out\)"):
        GPU.conv2d(x, weight, tensor_out("out", 1, 8, 8, 32, dtype="f16"), Epilogue())  # 4 tiles: direct


def test_group_norm_where_it_pays() -> None:
    weight = tensor_out("w", 128, dtype="f16")
    for side, fused in ((64, True), (512, False)):  # groups of 16,384 and 1,048,576 values
        x = tensor_out("x", 1, side, side, 128, dtype="f16")
        calls = GPU.group_norm(x, weight, weight, x, num_groups=32, eps=1e-6)
        assert (len(calls) == 1) is fused


def test_group_norm_of_padding_channels_is_unfused() -> None:
    weight = tensor_out("w", 8, dtype="f16")
    x = replace(tensor_out("x", 1, 4, 4, 8, dtype="f16"), padding=2)
    calls = GPU.group_norm(x, weight, weight, x, num_groups=3, eps=1e-6)
    assert calls[-1].name == "group_norm_unfused"
    with pytest.raises(ShapeError, match=r"group_norm: x\[1, 4, 4, 8\]:f16 must have no padding channels \(=2\)"):
        group_norm(x, weight, weight, x, num_groups=3, eps=1e-6)


def test_workgroups_are_no_larger_than_the_device_allows() -> None:
    x, weight = tensor_out("x", 1, 64, 64, 256, dtype="f16"), tensor_out("w", 256, dtype="f16")
    for capabilities, size in ((WEBGPU_DEFAULTS, 256), (DESKTOP_GPU, 1024)):
        (call,) = Kernels("f16", capabilities).group_norm(x, weight, weight, x, num_groups=16, eps=1e-6)
        assert call.constants["WORKGROUP_SIZE"] == size


def test_few_groups_of_many_channels_are_unfused() -> None:
    x, weight = tensor_out("x", 1, 4, 4, 1280, dtype="f16"), tensor_out("w", 1280, dtype="f16")
    fused, unfused = (len(GPU.group_norm(x, weight, weight, x, num_groups=n, eps=1e-6)) for n in (5, 4))
    assert fused == 1 < unfused


def test_group_norm_is_folded_where_its_tensor_is_large() -> None:
    def folds(kernels: Kernels, side: int, C_out: int) -> bool:
        x, out = tensor_out("x", 1, side, side, 128, dtype="f16"), tensor_out("out", 1, side, side, C_out, dtype="f16")
        return kernels.folds_group_norm(x, out, num_groups=32)

    assert folds(GPU, 512, 128)
    assert not folds(GPU, 256, 128)  # groups of 262,144 values
    assert not folds(GPU, 512, 4)  # the direct convolution
    for names in ("gn", "winograd"):
        assert not folds(replace(GPU, optimizations=Optimizations.parse(names)), 512, 128)
    assert folds(replace(GPU, optimizations=Optimizations.parse("gn,winograd")), 512, 128)


def test_direct_convolution_takes_no_norm() -> None:
    x, statistics, channels = tensor_out("x", 1, 4, 4, 8), tensor_out("mean", 1, 2), tensor_out("w", 8)
    norm = FoldedGroupNorm(statistics, statistics, channels, channels, 1e-5)
    with pytest.raises(ShapeError, match=r"conv2d: the direct convolution of x\[1, 4, 4, 8\]:f32 takes no norm"):
        GPU.conv2d(x, tensor_out("w", 3, 3, 8, 8), x, Epilogue(), norm=norm)


@pytest.mark.parametrize("kernels", [FUSED, LANES, UNFUSED], ids=["fused", "lanes", "unfused"])
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
    y, weight = tensor_out("y", 1, 4, 64, dtype="f16"), tensor_out("w", 64, 128, dtype="f16")
    bias = tensor_out("b", 128, dtype="f16")
    for kernels in (GPU, UNFUSED):
        norm = kernels.group_norm(x, channels, channels, y, num_groups=4, eps=1e-5)
        for calls in (norm, kernels.geglu_linear(x, weight, bias, y)):
            assert any(call.source.startswith("optimized/") for call in calls) is (kernels is GPU)


@pytest.mark.parametrize(
    ("kernels", "num_rows", "names"),
    [
        (GPU, 2048, ["matmul.product"]),
        (GPU, 1024, ["matmul.product", "geglu"]),  # too few tiles
        (LANES, 2048, ["matmul.product", "geglu"]),
        (UNFUSED, 2048, ["matmul.product", "geglu_unfused.split", "elementwise", "elementwise"]),
    ],
    ids=["gpu", "few rows", "lanes", "unfused"],
)
def test_geglu_is_the_epilogue_of_large_projections(kernels: Kernels, num_rows: int, names: list[str]) -> None:
    shapes = {"x": (2, num_rows // 2, 320), "w": (320, 2560), "b": (2560,), "out": (2, num_rows // 2, 1280)}
    tensors = (tensor_out(name, *shape, dtype=kernels.dtype) for name, shape in shapes.items())
    calls = kernels.geglu_linear(*tensors)
    assert [call.name for call in calls] == names
    assert ("GEGLU" in calls[0].constants) is (len(names) == 1)


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
        LANES.attention(x, x, x, x, num_heads=4)
    with pytest.raises(ShapeError, match=r"group_norm"):
        GPU.group_norm(x, x, x, x, num_groups=4, eps=1e-5)
