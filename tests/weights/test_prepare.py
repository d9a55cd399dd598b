"""From a checkpoint's tensors to buffers in the kernels' layout and dtype."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors_file import write_safetensors

from shaderfusion.errors import WeightsError
from shaderfusion.gpu.buffers import download
from shaderfusion.gpu.device import Device
from shaderfusion.graph.graph import LAYOUT_SHAPES, Graph, Weight, WeightLayout
from shaderfusion.kernels import reference
from shaderfusion.kernels.select import Kernels
from shaderfusion.tensor import DType
from shaderfusion.weights import prepare as prepare_module
from shaderfusion.weights.checkpoint import Checkpoint
from shaderfusion.weights.prepare import load_weights, prepare

NAME = "diffusion_pytorch_model.safetensors"


def make_weight(
    *shape: int, layout: WeightLayout = "as_is", padded_to: int | None = None, dtype: DType = "f32"
) -> Weight:
    """A weight named "w" of the graph "unet"."""
    g = Graph("unet", Kernels(dtype))
    g.weight("w", *shape, layout=layout, padded_to=padded_to)
    return g.weights["w"]


def test_linear_is_torchs() -> None:
    """torch: y_n = sum_k x_k w[n, k]."""
    rng = np.random.default_rng(0)
    w, x = rng.standard_normal((4, 8)).astype(np.float32), rng.standard_normal((3, 8))
    prepared = prepare(w, make_weight(4, 8, layout="linear"))
    np.testing.assert_allclose(reference.matmul(x, prepared), np.einsum("mk,nk->mn", x, w))


def test_convolution_is_torchs() -> None:
    """torch: y[o, r, s] = sum_{c, i, j} x[c, r + i, s + j] w[o, c, i, j], channels first."""
    rng = np.random.default_rng(1)
    w, x = rng.standard_normal((5, 4, 3, 3)).astype(np.float32), rng.standard_normal((4, 6, 7))
    prepared = prepare(w, make_weight(5, 4, 3, 3, layout="conv2d"))
    assert prepared.shape == (3, 3, 4, 5)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    expected = np.einsum("crsij,ocij->rso", windows, w)
    actual = reference.conv2d_direct(x.transpose(1, 2, 0)[None], prepared, padding=0)[0]
    np.testing.assert_allclose(actual, expected)


@pytest.mark.parametrize(
    ("shape", "layout"),
    [((6, 5), "as_is"), ((6, 5), "linear"), ((6, 5, 3, 2), "conv2d")],
    ids=str,
)
def test_layouts_agree_with_the_graph(shape: tuple[int, ...], layout: WeightLayout) -> None:
    array = np.random.default_rng(2).random(shape, np.float32)
    prepared = prepare(array, make_weight(*shape, layout=layout))
    assert prepared.shape == LAYOUT_SHAPES[layout](shape)
    np.testing.assert_array_equal(np.sort(prepared, axis=None), np.sort(array, axis=None))
    assert prepared.flags.c_contiguous


@pytest.mark.parametrize(("shape", "layout"), [((3,), "as_is"), ((3, 4, 3, 3), "conv2d")], ids=["bias", "filter"])
def test_padding_is_zero_output_channels(shape: tuple[int, ...], layout: WeightLayout) -> None:
    array = np.random.default_rng(3).random(shape, np.float32) + 1
    prepared = prepare(array, make_weight(*shape, layout=layout, padded_to=8))
    assert prepared.shape[-1] == 8
    assert np.all(prepared[..., 3:] == 0)
    np.testing.assert_array_equal(prepared[..., :3], prepare(array, make_weight(*shape, layout=layout)))


@pytest.mark.parametrize("dtype", ["f16", "f32"])
@pytest.mark.parametrize("stored", [np.float16, np.float32])
def test_dtype(stored: type, dtype: DType) -> None:
    array = np.array([0.1, -2.5, 1e-6], stored)
    prepared = prepare(array, make_weight(3, dtype=dtype))
    assert prepared.dtype == {"f16": np.float16, "f32": np.float32}[dtype]
    np.testing.assert_array_equal(prepared, array.astype(prepared.dtype))


@pytest.mark.parametrize("dtype", ["f16", "f32"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(value: float, dtype: DType) -> None:
    array = np.array([1, value, 1e5], np.float32)
    with pytest.raises(WeightsError, match=r"unet.w: has NaN or infinite values; the file is damaged"):
        prepare(array, make_weight(3, dtype=dtype))


@pytest.mark.parametrize("value", [65520.0, -1e38])
def test_over_the_range_of_f16(value: float) -> None:
    array = np.array([1, value], np.float32)
    with pytest.raises(WeightsError, match=r"unet.w: has values over the range of f16; use dtype f32"):
        prepare(array, make_weight(2, dtype="f16"))
    assert prepare(array, make_weight(2, dtype="f32"))[1] == np.float32(value)
    assert prepare(array / np.float32(abs(value)), make_weight(2, dtype="f16")).dtype == np.float16


# ---- load_weights


@pytest.fixture
def graph() -> Graph:
    """A convolution padded from 3 to 4 channels, its bias, and a linear layer."""
    g = Graph("unet", Kernels("f32"))
    g.weight("conv.weight", 3, 4, 3, 3, layout="conv2d", padded_to=4)
    g.weight("conv.bias", 3, padded_to=4)
    g.weight("proj.weight", 8, 4, layout="linear")
    return g


@pytest.fixture
def tensors(graph: Graph) -> dict[str, np.ndarray]:
    """Values for it that every dtype holds exactly."""
    rng = np.random.default_rng(4)
    return {path: rng.integers(-8, 9, weight.source_shape) / 4 for path, weight in graph.weights.items()}


@pytest.mark.parametrize("stored", ["f32", "f16", "bf16"])
def test_load_weights(
    device: Device, tmp_path: Path, graph: Graph, tensors: dict[str, np.ndarray], stored: str
) -> None:
    tensors["of another component"] = np.ones(3)
    write_safetensors(tmp_path / NAME, tensors, stored)
    buffers = load_weights(device, graph.weights.values(), Checkpoint(tmp_path))
    assert buffers.keys() == {weight.tensor for weight in graph.weights.values()}
    for path, weight in graph.weights.items():
        actual = download(device, buffers[weight.tensor], weight.tensor)
        np.testing.assert_array_equal(actual, prepare(tensors[path], weight))


def drop(tensors: dict[str, np.ndarray]) -> None:
    """The last tensor is missing."""
    del tensors["proj.weight"]


def reshape(tensors: dict[str, np.ndarray]) -> None:
    """The last tensor has another shape."""
    tensors["proj.weight"] = tensors["proj.weight"].T


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop, r"the weights lack the tensor proj.weight"),
        (reshape, r"proj.weight has shape \(4, 8\), must be \(8, 4\)"),
    ],
)
def test_everything_is_checked_before_the_first_is_read(
    device: Device,
    tmp_path: Path,
    graph: Graph,
    tensors: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[dict[str, np.ndarray]], None],
    message: str,
) -> None:
    damage(tensors)
    write_safetensors(tmp_path / NAME, tensors)
    checkpoint = Checkpoint(tmp_path)
    touched: list[str] = []
    monkeypatch.setattr(checkpoint, "read", lambda path, shape: touched.append(path))
    monkeypatch.setattr(prepare_module, "allocate", lambda *_: touched.append("memory"))
    with pytest.raises(WeightsError, match=message):
        load_weights(device, graph.weights.values(), checkpoint)
    assert touched == []


def test_a_file_of_nan(device: Device, tmp_path: Path, graph: Graph, tensors: dict[str, np.ndarray]) -> None:
    write_safetensors(tmp_path / NAME, {name: np.full(array.shape, np.nan) for name, array in tensors.items()})
    with pytest.raises(WeightsError, match=r"^unet.conv.weight: has NaN or infinite values"):
        load_weights(device, graph.weights.values(), Checkpoint(tmp_path))
