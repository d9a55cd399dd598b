"""The blocks whose kernels depend on the shape, against the same computation in float64."""

from functools import partial

import numpy as np
import pytest
from kernel_runner import relative_error, rounded
from weights.array_source import ArraySource

import shaderfusion.kernels.select as select
import shaderfusion.models.blocks as blocks
from shaderfusion.gpu.device import Device
from shaderfusion.graph.graph import Graph
from shaderfusion.graph.memory_plan import find_lifetimes
from shaderfusion.graph.program import Program
from shaderfusion.kernels import reference
from shaderfusion.kernels.optimizations import Optimizations
from shaderfusion.kernels.select import Kernels
from shaderfusion.models.blocks import attention, downsample, linear, norm_conv2d, resnet_block, upsample
from shaderfusion.weights.prepare import WeightLoader

BOUND = 2e-6
EPS = 1e-5
NORM = {"num_groups": 4, "eps": EPS}
SHAPE = (2, 16, 16, 32)  # 32 tiles of 4x4, the fewest by Winograd


def run_block(device: Device, g: Graph, x: np.ndarray, tensors: dict[str, np.ndarray]) -> np.ndarray:
    """The output "out" of a graph with the input "x" and the checkpoint's tensors."""
    program = Program(device, g, WeightLoader(device).load(dict.fromkeys(g.weights.values(), ArraySource(tensors))))
    program.write("x", x)
    program.run()
    return program.read("out").astype(np.float64)


def random_tensors(g: Graph) -> dict[str, np.ndarray]:
    """A checkpoint's tensors for the graph's weights, by path."""
    rng = np.random.default_rng(1)
    weights = g.weights.values()
    return {path: 0.3 * rng.standard_normal(weight.source_shape) for weight in weights for path in weight.paths}


def norm_conv(x: np.ndarray, tensors: dict[str, np.ndarray], norm: str, conv: str, num_groups: int = 4) -> np.ndarray:
    """conv(silu(group_norm(x))) of a checkpoint's tensors, in float64."""
    weight, bias = tensors[f"{norm}.weight"], tensors[f"{norm}.bias"]
    h = reference.group_norm_unfused(x, weight, bias, num_groups=num_groups, eps=EPS, activation="silu")
    taps = tensors[f"{conv}.weight"].transpose(2, 3, 1, 0)
    return reference.conv2d_direct(h, taps, bias=tensors[f"{conv}.bias"])


@pytest.fixture(params=["all", "gn", "winograd", "none"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kernels:
    """Kernels that treat small layers as large ones: filters transformed in the run, group norms folded."""
    monkeypatch.setattr(select, "_MAX_LOADED_FILTERS_BYTES", 0)
    monkeypatch.setattr(select, "_FOLDED_GROUP_SIZE", 0)
    return Kernels("f32", optimizations=Optimizations.parse(request.param))


def test_norm_conv2d(device: Device, kernels: Kernels) -> None:
    g = Graph("test", kernels)
    norm_conv2d(g, "norm", "conv", g.input("x", *SHAPE), 32, out=g.output("out", *SHAPE), **NORM)
    tensors_made = {life.tensor.name for life in find_lifetimes(g.calls)}
    if kernels.optimizations == Optimizations():
        statistics = ["slice_statistics", "join_slices"]
        convolution = ["transform_input", "transform_filters", "product", "transform_output"]
        assert [call.entry_point for call in g.calls] == statistics + convolution
        assert "test.norm.out" not in tensors_made
    else:
        assert "test.norm.out" in tensors_made
    x, tensors = np.random.default_rng(0).standard_normal(SHAPE), random_tensors(g)
    actual = run_block(device, g, x, tensors)
    assert relative_error(actual, norm_conv(rounded(x, "f32"), tensors, "norm", "conv")) < BOUND


@pytest.mark.parametrize("channels", [32, 48])
def test_resnet_block(device: Device, kernels: Kernels, channels: int) -> None:
    g = Graph("test", kernels)
    out = resnet_block(g, "block", g.input("x", *SHAPE), channels, **NORM)
    norm_conv2d(g, "norm", "conv", out, 32, out=g.output("out", *SHAPE), **NORM)
    x, tensors = np.random.default_rng(0).standard_normal(SHAPE), random_tensors(g)
    h = norm_conv(rounded(x, "f32"), tensors, "block.norm1", "block.conv1")
    h = norm_conv(h, tensors, "block.norm2", "block.conv2")
    if channels == 32:
        h += rounded(x, "f32")
    else:
        h += x @ tensors["block.conv_shortcut.weight"].T + tensors["block.conv_shortcut.bias"]
    actual = run_block(device, g, x, tensors)
    assert relative_error(actual, norm_conv(h, tensors, "norm", "conv")) < 2 * BOUND


def test_upsample(device: Device, kernels: Kernels) -> None:
    g = Graph("test", kernels)
    small = (2, 8, 8, 32)
    wide = upsample(g, "up", g.input("x", *small))
    assert wide.shape == SHAPE
    norm_conv2d(g, "norm", "conv", wide, 32, out=g.output("out", *SHAPE), **NORM)
    x, tensors = np.random.default_rng(0).standard_normal(small), random_tensors(g)
    taps = tensors["up.conv.weight"].transpose(2, 3, 1, 0)
    h = reference.conv2d_direct(rounded(x, "f32"), taps, bias=tensors["up.conv.bias"], upsample=2)
    actual = run_block(device, g, x, tensors)
    assert relative_error(actual, norm_conv(h, tensors, "norm", "conv")) < 2 * BOUND


def test_resnet_block_of_channels_that_are_padded(device: Device, kernels: Kernels) -> None:
    g = Graph("test", kernels)
    out = resnet_block(g, "block", g.input("x", *SHAPE[:3], channels=33), 45, num_groups=3, eps=EPS)
    norm_conv2d(g, "norm", "conv", out, 5, num_groups=3, eps=EPS, out=g.output("out", *SHAPE[:3], channels=5))
    x, tensors = np.random.default_rng(0).standard_normal((*SHAPE[:3], 33)), random_tensors(g)
    h = norm_conv(rounded(x, "f32"), tensors, "block.norm1", "block.conv1", num_groups=3)
    h = norm_conv(h, tensors, "block.norm2", "block.conv2", num_groups=3)
    h += x @ tensors["block.conv_shortcut.weight"].T + tensors["block.conv_shortcut.bias"]
    actual = run_block(device, g, x, tensors)
    assert relative_error(actual, norm_conv(h, tensors, "norm", "conv", num_groups=3)) < 2 * BOUND


@pytest.mark.parametrize(("H", "W"), [(5, 8), (7, 1), (16, 15)])
def test_down_and_up_again(device: Device, kernels: Kernels, H: int, W: int) -> None:
    """A side's half is rounded up, and its double cut to the side."""
    g = Graph("test", kernels)
    small = downsample(g, "down", g.input("x", 1, H, W, channels=6))
    assert small.shape == (1, (H + 1) // 2, (W + 1) // 2, 8)
    wide = upsample(g, "up", small, (H, W))
    norm_conv2d(g, "norm", "conv", wide, 6, num_groups=2, eps=EPS, out=g.output("out", 1, H, W, channels=6))
    x, tensors = np.random.default_rng(0).standard_normal((1, H, W, 6)), random_tensors(g)
    taps, bias = tensors["down.conv.weight"].transpose(2, 3, 1, 0), tensors["down.conv.bias"]
    h = reference.conv2d_direct(rounded(x, "f32"), taps, bias=bias, stride=2)
    taps, bias = tensors["up.conv.weight"].transpose(2, 3, 1, 0), tensors["up.conv.bias"]
    h = reference.conv2d_direct(h, taps, bias=bias, upsample=2, size=(H, W))
    actual = run_block(device, g, x, tensors)
    assert relative_error(actual, norm_conv(h, tensors, "norm", "conv", num_groups=2)) < 4 * BOUND


# q, k and v as one product, and apart, as where its output cannot be bound.
@pytest.mark.parametrize("joined", [True, False])
@pytest.mark.parametrize("optimizations", ["all", "pfs", "none"])
@pytest.mark.parametrize(("num_heads", "head_dim"), [(1, 6), (2, 5), (3, 3), (5, 4), (2, 27)])
def test_attention_of_any_heads(
    device: Device,
    monkeypatch: pytest.MonkeyPatch,
    num_heads: int,
    head_dim: int,
    optimizations: str,
    joined: bool,
) -> None:
    monkeypatch.setattr(Kernels, "joins", lambda *_: joined)
    C = num_heads * head_dim
    g = Graph("test", Kernels("f32", optimizations=Optimizations.parse(optimizations)))
    x = g.input("x", 2, 9, channels=C)
    h = attention(g, "attn", x, num_heads=num_heads, bias=True, residual=x, causal=True)
    assert ("attn.to_q.weight+to_k.weight+to_v.weight" in g.weights) == joined
    linear(g, "out", h, 3, out=g.output("out", 2, 9, channels=3))
    array, tensors = np.random.default_rng(0).standard_normal((2, 9, C)), random_tensors(g)

    def layer(name: str, x: np.ndarray) -> np.ndarray:
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    q, k, v = (layer(f"attn.to_{name}", rounded(array, "f32")) for name in "qkv")
    expected = layer("attn.to_out.0", reference.flash_attention(q, k, v, num_heads=num_heads, causal=True)) + array
    assert relative_error(run_block(device, g, array, tensors), layer("out", expected)) < 2 * BOUND


@pytest.mark.parametrize("channels", [32, 16, 12])
def test_resnet_block_in_place(
    device: Device, kernels: Kernels, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As apart from its input, with a shortcut too, whose strips of 64 rows take the input's place."""
    monkeypatch.setattr(blocks, "_STRIP_BYTES", 64 * 4 * channels)
    x = np.random.default_rng(0).standard_normal(SHAPE)
    found: list[np.ndarray] = []
    for in_place in (False, True):
        g = Graph("test", kernels)
        resnet = partial(resnet_block, g, **NORM)
        h = linear(g, "first", g.input("x", *SHAPE), 32)
        h = resnet("block", h, channels, in_place=in_place)
        linear(g, "last", h, channels, out=g.output("out", *SHAPE[:3], channels))
        if in_place:
            assert h.storage.name == "test.first.out"
        found.append(run_block(device, g, x, random_tensors(g)))
    assert relative_error(found[1], found[0]) < BOUND
