"""What a device holds of a source: each tensor once in every form that live graphs ask for."""

import numpy as np
import pytest
from array_source import ArraySource

from shaderfusion.errors import WeightsError
from shaderfusion.gpu.buffers import download
from shaderfusion.gpu.device import Device
from shaderfusion.graph.graph import Graph, WeightLayout
from shaderfusion.graph.program import Buffers
from shaderfusion.kernels.select import Kernels
from shaderfusion.tensor import DType
from shaderfusion.weights.store import WeightStore


@pytest.fixture
def source() -> ArraySource:
    """Filters and a table."""
    rng = np.random.default_rng(0)
    return ArraySource({"conv": rng.random((8, 4, 3, 3), np.float32), "table": rng.random((5, 4), np.float32)})


@pytest.fixture
def store(device: Device) -> WeightStore:
    """Empty."""
    return WeightStore(device)


def load(store: WeightStore, graph: Graph, source: ArraySource) -> Buffers:
    """Of one graph."""
    (buffers,) = store.load({graph: source})
    return buffers


def conv_graph(layout: WeightLayout = "conv2d", dtype: DType = "f32", name: str = "unet", **padding: int) -> Graph:
    """With the weight "conv"."""
    g = Graph(name, Kernels(dtype))
    g.weight("conv", 8, 4, 3, 3, layout=layout, **padding)
    return g


def test_two_graphs_share_a_weight(store: WeightStore, source: ArraySource) -> None:
    (first,) = load(store, conv_graph(), source).values()
    (second,) = load(store, conv_graph(name="vae"), source).values()
    assert first is second
    assert source.read_paths == ["conv"]


def test_graphs_loaded_together_share_a_weight(store: WeightStore, source: ArraySource) -> None:
    graphs = (conv_graph(), conv_graph(name="vae"), conv_graph("winograd_2", name="other"))
    (first,), (second,), (third,) = (buffers.values() for buffers in store.load(dict.fromkeys(graphs, source)))
    assert first is second is not third
    assert source.read_paths == ["conv", "conv"]


@pytest.mark.parametrize(
    "other",
    [
        conv_graph("winograd_2"),
        conv_graph(dtype="f16"),
        conv_graph(padded_to=12),
        conv_graph(padded_to=16, out_parts=2),
        conv_graph(padded_to=16),
        conv_graph(in_padded_to=8, in_parts=2),
    ],
    ids=lambda graph: str(next(iter(graph.weights.values()))),
)
def test_every_form_that_is_used(device: Device, store: WeightStore, source: ArraySource, other: Graph) -> None:
    graph = conv_graph()
    (tensor,) = (weight.tensor for weight in graph.weights.values())
    buffers = load(store, graph, source)
    (second,) = load(store, other, source).values()
    assert second is not buffers[tensor]
    assert source.read_paths == ["conv", "conv"]
    expected = source.arrays["conv"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(download(device, buffers[tensor], tensor), expected)
    assert [*load(store, conv_graph(), source).values()] == [buffers[tensor]]


def test_tensors_side_by_side_are_another_form(store: WeightStore, source: ArraySource) -> None:
    source.arrays["conv2"] = source.arrays["conv"]

    def graph(*names: str) -> Graph:
        g = Graph("unet", Kernels("f32"))
        g.weight(names, 8, 4, 3, 3, layout="conv2d")
        return g

    (joined,) = load(store, graph("conv", "conv2"), source).values()
    assert [*load(store, graph("conv", "conv2"), source).values()] == [joined]
    others = {*load(store, graph("conv2", "conv"), source).values(), *load(store, conv_graph(), source).values()}
    assert len(others - {joined}) == 2
    assert source.read_paths == ["conv", "conv2", "conv2", "conv", "conv"]


def test_another_source_has_other_weights(store: WeightStore, source: ArraySource) -> None:
    (first,) = load(store, conv_graph(), source).values()
    (second,) = load(store, conv_graph(), ArraySource(source.arrays)).values()
    assert first is not second


def test_release_frees_what_no_other_graph_needs(
    store: WeightStore, source: ArraySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, other = conv_graph(), conv_graph(), conv_graph("winograd_2")
    (shared,) = load(store, first, source).values()
    load(store, second, source)
    (own,) = load(store, other, source).values()
    destroyed = []
    monkeypatch.setattr(type(shared), "destroy", lambda self: destroyed.append(self))
    store.release(first)
    assert destroyed == []
    store.release(other)
    assert destroyed == [own]
    store.release(second)
    assert destroyed == [own, shared]
    assert source.read_paths == ["conv", "conv"]
    load(store, conv_graph(), source)
    assert source.read_paths == ["conv", "conv", "conv"]


def test_the_table_is_checked_and_not_loaded(store: WeightStore, source: ArraySource) -> None:
    g = conv_graph()
    g.table_rows("table", 5, 4, rows=(1, 2))
    assert len(load(store, g, source)) == 1
    del source.arrays["table"]
    with pytest.raises(WeightsError, match=r"no table of shape \(5, 4\)"):
        load(store, conv_graph_with_table(), source)


def conv_graph_with_table() -> Graph:
    """And a form of "conv" that no other graph has."""
    g = conv_graph("winograd_2")
    g.table_rows("table", 5, 4, rows=(1, 2))
    return g


def test_damaged_weights_are_not_kept(store: WeightStore, source: ArraySource) -> None:
    whole = source.arrays["conv"]
    source.arrays["conv"] = np.full_like(whole, 1e5)
    with pytest.raises(WeightsError, match=r"unet.conv: has values over the range of f16; use dtype f32"):
        load(store, conv_graph(dtype="f16"), source)
    source.arrays["conv"] = whole
    assert len(load(store, conv_graph(dtype="f16"), source)) == 1


def test_close(store: WeightStore, source: ArraySource, monkeypatch: pytest.MonkeyPatch) -> None:
    graphs = (conv_graph(), conv_graph(), conv_graph("winograd_4"))
    buffers = {buffer for graph in graphs for buffer in load(store, graph, source).values()}
    destroyed = []
    monkeypatch.setattr(type(next(iter(buffers))), "destroy", lambda self: destroyed.append(self))
    store.close()
    assert (len(destroyed), set(destroyed)) == (2, buffers)
