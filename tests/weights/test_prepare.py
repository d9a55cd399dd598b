"""From what a source stores to buffers in the kernels' layout and dtype."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from array_source import ArraySource
from safetensors_file import write_safetensors

from shaderfusion.errors import ShapeError, WeightsError
from shaderfusion.gpu.buffers import download
from shaderfusion.gpu.device import Device
from shaderfusion.graph.graph import LAYOUT_SHAPES, Graph, WeightLayout
from shaderfusion.graph.program import Buffers
from shaderfusion.kernels import reference
from shaderfusion.kernels.select import Kernels
from shaderfusion.tensor import DType
from shaderfusion.weights import footprint
from shaderfusion.weights import prepare as prepare_module
from shaderfusion.weights.checkpoint import Checkpoint, TensorSource
from shaderfusion.weights.prepare import WeightLoader, read_rows

NAME = "diffusion_pytorch_model.safetensors"


def prepare(
    device: Device,
    array: np.ndarray,
    layout: WeightLayout = "as_is",
    dtype: DType = "f32",
    **padding: Any,
) -> np.ndarray:
    """What the device holds of a weight named "w" of the graph "unet"."""
    g = Graph("unet", Kernels(dtype))
    tensor = g.weight("w", *array.shape, layout=layout, **padding)
    return download(device, load(device, g, ArraySource({"w": array}))[tensor], tensor)


def load(device: Device, g: Graph, source: TensorSource) -> Buffers:
    """All weights of a graph."""
    return WeightLoader(device).load(dict.fromkeys(g.weights.values(), source))


def random(*shape: int) -> np.ndarray:
    """Values that f32 holds."""
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.fixture(params=["host", "device"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a small weight that is as it is gets prepared."""
    if request.param == "device":
        monkeypatch.setattr(footprint, "_SMALL_BYTES", 0)


def test_linear_is_torchs(device: Device) -> None:
    """torch: y_n = sum_k x_k w[n, k]."""
    w, x = random(4, 8), random(3, 8)
    prepared = prepare(device, w, "linear")
    np.testing.assert_allclose(reference.matmul(x, prepared), np.einsum("mk,nk->mn", x, w), rtol=1e-5)


def test_convolution_is_torchs(device: Device) -> None:
    """torch: y[o, r, s] = sum_{c, i, j} x[c, r + i, s + j] w[o, c, i, j], channels first."""
    w, x = random(8, 3, 3, 3), random(3, 6, 7).astype(np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))
    expected = np.einsum("crsij,ocij->rso", windows, w)
    actual = reference.conv2d_direct(x.transpose(1, 2, 0)[None], prepare(device, w, "conv2d"), padding=0)[0]
    np.testing.assert_allclose(actual, expected)


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("m", [2, 4])
def test_winograd(device: Device, m: int, dtype: DType) -> None:
    w = random(8, 12, 3, 3)
    prepared = prepare(device, w, "winograd_2" if m == 2 else "winograd_4", dtype)
    expected = reference.winograd_filters(w.transpose(2, 3, 1, 0), m=m)
    np.testing.assert_allclose(prepared, expected, atol={"f32": 1e-6, "f16": 2e-3}[dtype])


@pytest.mark.parametrize(
    ("shape", "layout"), [((6, 5), "as_is"), ((8, 5), "linear"), ((8, 5, 3, 2), "conv2d"), ((3,), "as_is")], ids=str
)
def test_layouts_agree_with_the_graph(device: Device, shape: tuple[int, ...], layout: WeightLayout) -> None:
    array = random(*shape)
    prepared = prepare(device, array, layout)
    assert prepared.shape == LAYOUT_SHAPES[layout](shape)
    np.testing.assert_array_equal(np.sort(prepared, axis=None), np.sort(array, axis=None))


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 3)], ids=str)
def test_padding_of_what_is_as_it_is(device: Device, shape: tuple[int, ...]) -> None:
    array = random(*shape)
    prepared = prepare(device, array, padded_to=8)
    np.testing.assert_array_equal(prepared, np.pad(array, [(0, 0)] * (len(shape) - 1) + [(0, 5)]))


@pytest.mark.parametrize("layout", ["linear", "conv2d", "winograd_2"])
def test_padding(device: Device, layout: WeightLayout) -> None:
    array = random(6, 10, 3, 3) if layout != "linear" else random(6, 10)
    full = np.zeros((8, 12, *array.shape[2:]), np.float32)
    for o, i in np.ndindex(6, 10):  # 2 parts of 3 in 4, 2 parts of 5 in 6
        full[o // 3 * 4 + o % 3, i // 5 * 6 + i % 5] = array[o, i]
    prepared = prepare(device, array, layout, padded_to=8, out_parts=2, in_padded_to=12, in_parts=2)
    np.testing.assert_array_equal(prepared, prepare(device, full, layout))


# Heads that are padded; tensors that are padded as a whole; and none that is. 33 KB are more than one batch.
@pytest.mark.parametrize(("out_parts", "padded_to"), [(3, 48), (1, 48), (1, None)], ids=str)
@pytest.mark.parametrize("batch_bytes", [1024, 8 << 20])
@pytest.mark.parametrize("layout", ["linear", "winograd_2"])
def test_several_tensors_side_by_side(
    device: Device,
    layout: WeightLayout,
    batch_bytes: int,
    out_parts: int,
    padded_to: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    padding: dict[str, Any] = {"layout": layout, "padded_to": padded_to, "out_parts": out_parts}
    shape = (36, 10, 3, 3) if layout != "linear" else (36, 10)
    arrays = dict(zip("qkv", random(3, *shape), strict=True))
    expected = [prepare(device, array, **padding) for array in arrays.values()]
    monkeypatch.setattr(footprint, "_BATCH_BYTES", batch_bytes)
    g = Graph("unet", Kernels("f32"))
    joined = g.weight(tuple("qkv"), *shape, **padding)
    source = ArraySource(arrays)
    buffers = load(device, g, source)
    np.testing.assert_array_equal(download(device, buffers[joined], joined), np.concatenate(expected, axis=-1))
    assert source.read_paths == ["q", "k", "v"]


@pytest.mark.usefixtures("either")
def test_several_biases_side_by_side(device: Device) -> None:
    arrays = dict(zip("kv", random(2, 10), strict=True))
    g = Graph("unet", Kernels("f32"))
    joined = g.weight(("k", "v"), 10, padded_to=16, out_parts=2)
    buffers = load(device, g, ArraySource(arrays))
    heads = np.concatenate(list(arrays.values())).reshape(4, 5)
    np.testing.assert_array_equal(
        download(device, buffers[joined], joined), np.pad(heads, [(0, 0), (0, 3)]).reshape(-1)
    )


def test_several_tensors_of_different_dtypes(device: Device, tmp_path: Path) -> None:
    arrays = {name: np.arange(32).reshape(4, 8) + place for place, name in enumerate(("k", "v"))}
    write_safetensors(tmp_path / "model-1.safetensors", {"k": arrays["k"]}, "bf16")
    write_safetensors(tmp_path / "model-2.safetensors", {"v": arrays["v"]}, "f32")
    index = {"weight_map": {"k": "model-1.safetensors", "v": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    g = Graph("unet", Kernels("f16"))
    joined = g.weight(("k", "v"), 4, 8, layout="linear")
    buffers = load(device, g, Checkpoint(tmp_path))
    np.testing.assert_array_equal(download(device, buffers[joined], joined), np.concatenate(list(arrays.values())).T)


def test_padding_of_rows_needs_a_layout(device: Device) -> None:
    with pytest.raises(ShapeError, match=r"only the last dimension of \(3, 4\) can be padded in the layout as_is"):
        prepare(device, random(3, 4), in_padded_to=4)


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("dtype", ["f16", "f32"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite(device: Device, value: float, dtype: DType) -> None:
    with pytest.raises(WeightsError, match=r"unet.w: has NaN or infinite values; the file is damaged"):
        prepare(device, np.array([1, value, 1e5], np.float32), dtype=dtype)


def test_every_tensor_of_several_is_checked(device: Device) -> None:
    g = Graph("unet", Kernels("f32"))
    g.weight(("attn.q", "attn.k"), 4, 4, layout="linear")
    arrays = {"attn.q": np.ones((4, 4)), "attn.k": np.full((4, 4), np.nan)}
    with pytest.raises(WeightsError, match=r"unet.attn.q\+attn.k: has NaN or infinite values"):
        load(device, g, ArraySource(arrays))
    with pytest.raises(WeightsError, match=r"no attn.k of shape \(4, 4\)"):
        load(device, g, ArraySource({"attn.q": np.ones((4, 4))}))


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("value", [65520.0, -1e38])
def test_over_the_range_of_f16(device: Device, value: float) -> None:
    array = np.array([1, value], np.float32)
    with pytest.raises(WeightsError, match=r"unet.w: has values over the range of f16; use dtype f32"):
        prepare(device, array, dtype="f16")
    assert prepare(device, array)[1] == np.float32(value)


# ---- WeightLoader


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


@pytest.mark.parametrize("stored", ["f32", "f16", "bf16", "f8_e4m3", "f8_e5m2"])
def test_load_weights(
    device: Device, tmp_path: Path, graph: Graph, tensors: dict[str, np.ndarray], stored: str
) -> None:
    # Behind a tensor of 3 values, so that none begins at a whole word of the file.
    write_safetensors(tmp_path / NAME, {"of another component": np.ones(3), **tensors}, stored)
    buffers = load(device, graph, Checkpoint(tmp_path))
    expected = {
        "conv.weight": np.pad(tensors["conv.weight"].transpose(2, 3, 1, 0), [(0, 0)] * 3 + [(0, 1)]),
        "conv.bias": np.pad(tensors["conv.bias"], (0, 1)),
        "proj.weight": tensors["proj.weight"].T,
    }
    assert buffers.keys() == {weight.tensor for weight in graph.weights.values()}
    for path, weight in graph.weights.items():
        np.testing.assert_array_equal(download(device, buffers[weight.tensor], weight.tensor), expected[path])


@pytest.mark.parametrize("batch_bytes", [256, 1024, 4096])
@pytest.mark.parametrize("layout", ["linear", "conv2d", "winograd_4", "as_is"])
def test_slices(device: Device, layout: WeightLayout, batch_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights larger than a batch go in slices; the fewest are 4 channels."""
    array = random(*{"linear": (12, 15), "as_is": (700,)}.get(layout, (12, 3, 3, 3)))
    padding: dict[str, Any] = {} if layout == "as_is" else {"padded_to": 16, "out_parts": 2}
    expected = prepare(device, array, layout, **padding)
    batches = []
    submit = prepare_module.Program.submit
    monkeypatch.setattr(prepare_module.Program, "submit", lambda self: (batches.append(self), submit(self)))
    monkeypatch.setattr(footprint, "_BATCH_BYTES", batch_bytes)
    monkeypatch.setattr(footprint, "_SMALL_BYTES", 0)
    np.testing.assert_array_equal(prepare(device, array, layout, **padding), expected)
    assert len(batches) > 1 or array.nbytes <= batch_bytes


def test_many_batches(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each half of the staging memory is written again while the other is copied."""
    monkeypatch.setattr(footprint, "_BATCH_BYTES", 4096)
    monkeypatch.setattr(footprint, "_SMALL_BYTES", 2048)
    arrays = {f"w{k}": np.full((4, 100 + k), k, np.float32) for k in range(40)}
    g = Graph("unet", Kernels("f32"))
    layouts: tuple[WeightLayout, ...] = ("linear", "as_is")
    specs = [g.weight(f"w{k}", *arrays[f"w{k}"].shape, layout=layouts[k % 2]) for k in range(40)]
    buffers = load(device, g, ArraySource(arrays))
    for k, spec in enumerate(specs):
        assert (download(device, buffers[spec], spec) == k).all()


def test_large_tensors_are_copied_in_pieces(device: Device) -> None:
    array = random(4100, 256)  # two pieces and a part of one
    np.testing.assert_array_equal(prepare(device, array, "linear"), array.T)


def drop(tensors: dict[str, np.ndarray]) -> None:
    """The last tensor is missing."""
    del tensors["proj.weight"]


def reshape(tensors: dict[str, np.ndarray]) -> None:
    """The last tensor has another shape."""
    tensors["proj.weight"] = tensors["proj.weight"].T


@pytest.mark.parametrize("damage", [drop, reshape])
def test_everything_is_checked_before_the_first_is_read(
    device: Device,
    graph: Graph,
    tensors: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[dict[str, np.ndarray]], None],
) -> None:
    damage(tensors)
    source = ArraySource(tensors)
    allocated: list[str] = []
    monkeypatch.setattr(prepare_module, "allocate", lambda *_: allocated.append("memory"))
    with pytest.raises(WeightsError, match=r"no proj.weight of shape \(8, 4\)"):
        load(device, graph, source)
    assert (source.read_paths, allocated) == ([], [])


def test_the_first_bad_weight_is_named(device: Device, graph: Graph, tensors: dict[str, np.ndarray]) -> None:
    """Also where one is prepared on the host and the other on the device."""
    for name in ("conv.weight", "conv.bias"):
        tensors[name] = np.full(tensors[name].shape, np.nan)
    with pytest.raises(WeightsError, match=r"^unet.conv.weight: has NaN or infinite values"):
        load(device, graph, ArraySource(tensors))


# ---- read_rows


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("stored", ["f32", "f16", "bf16"])
def test_read_rows(tmp_path: Path, stored: str, dtype: DType) -> None:
    table = np.arange(44.0).reshape(11, 4)
    write_safetensors(tmp_path / NAME, {"odd": np.ones(3), "table": table}, stored)
    g = Graph("text_encoder", Kernels(dtype))
    g.table_rows("table", 11, 4, rows=(2, 3))
    rows = np.array([[10, 3, 3], [0, 10, 7]])
    actual = read_rows(Checkpoint(tmp_path), g.tables["table"], rows)
    assert actual.dtype == {"f16": np.float16, "f32": np.float32}[dtype]
    np.testing.assert_array_equal(actual, table[rows])
