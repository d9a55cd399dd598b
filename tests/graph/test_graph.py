"""Recording: scopes, labels, weights and names."""

import pytest

from shaderfusion.errors import DeviceLimitError, ShapeError
from shaderfusion.graph.graph import LAYOUT_SHAPES, Graph
from shaderfusion.kernels.capabilities import Capabilities
from shaderfusion.kernels.common.elementwise import add
from shaderfusion.kernels.select import Kernels


@pytest.fixture
def g() -> Graph:
    """An empty graph in f16."""
    return Graph("unet", Kernels("f16"))


def test_scopes_make_paths_and_labels(g: Graph) -> None:
    a = g.input("a", 4)
    with g.scope("down_blocks", 0):
        with g.scope("resnets.1"):
            assert g.path("conv1", "weight") == "down_blocks.0.resnets.1.conv1.weight"
            out = g.tensor("out", 4)
            g.add(add(a, a, out))
        assert g.path("norm") == "down_blocks.0.norm"
    assert g.path("conv_in") == "conv_in"
    assert out.name == "unet.down_blocks.0.resnets.1.out"
    g.add(add(a, out, g.output("b", 4)))
    assert [call.label for call in g.calls] == ["unet.down_blocks.0.resnets.1/elementwise", "unet/elementwise"]


def test_what_a_device_cannot_bind_is_refused_by_name() -> None:
    g = Graph("unet", Kernels("f32", Capabilities(max_binding_bytes=1 << 10)))
    x, out = g.input("x", 256), g.output("out", 256)
    g.add(add(x, x, out))
    wide, sum_ = g.input("wide", 260), g.output("sum", 260)
    with (
        g.scope("mid"),
        pytest.raises(DeviceLimitError, match=r"^unet.mid/elementwise: unet.wide\[260\]:f32, 0.0 MB, is"),
    ):
        g.add(add(wide, wide, sum_))
    g.add(add(x.reshape(4, 64).rows(0, 2), x.reshape(4, 64).rows(2, 2), out.reshape(4, 64).rows(0, 2)))
    assert len(g.calls) == 2


def test_scope_ends_with_an_exception(g: Graph) -> None:
    with pytest.raises(ShapeError), g.scope("block"):
        g.tensor("bad", 0)
    assert g.path("conv_in") == "conv_in"


def test_roles_and_dtypes(g: Graph) -> None:
    tensors = [g.tensor("x", 2), g.input("i", 2), g.output("o", 2), g.weight("w", 2)]
    assert [tensor.role for tensor in tensors] == ["intermediate", "input", "output", "weight"]
    assert {tensor.dtype for tensor in tensors} == {"f16"}
    assert g.tensor("statistics", 2, dtype="f32").dtype == "f32"
    assert g.inputs == {"i": tensors[1]}
    assert g.outputs == {"o": tensors[2]}


def test_channels_are_padded_to_fours(g: Graph) -> None:
    tensors = [g.tensor("x", 2, channels=6), g.input("i", 3, channels=5), g.output("o", channels=8)]
    assert [(tensor.shape, tensor.channels, tensor.padding) for tensor in tensors] == [
        ((2, 8), 6, 2),
        ((3, 8), 5, 3),
        ((8,), 8, 0),
    ]
    assert (tensors[0].reshape(1, 2, 8).padding, tensors[1].role) == (2, "input")
    rows = g.table_rows("table", 50, 6, rows=(1, 7))
    assert (rows.shape, rows.padding, g.tables["table"].source_shape) == ((1, 7, 8), 2, (50, 6))


def test_external_names_are_unique(g: Graph) -> None:
    g.input("latents", 2)
    with pytest.raises(ShapeError, match=r"unet: input 'latents' is declared twice; give each a name of its own"):
        g.input("latents", 2)
    g.output("latents", 2)  # of another table
    with pytest.raises(ShapeError, match=r"unet: output 'latents' is declared twice"):
        g.output("latents", 3)


def test_weight_layouts(g: Graph) -> None:
    with g.scope("conv1"):
        kernel = g.weight("weight", 6, 4, 3, 3, layout="conv2d", padded_to=8)
        bias = g.weight("bias", 6, padded_to=8)
    linear = g.weight("proj", 6, 4, layout="linear")
    assert (kernel.shape, bias.shape, linear.shape) == ((3, 3, 4, 8), (8,), (4, 6))
    known = g.weights["conv1.weight"]
    assert (known.paths, known.source_shape, known.layout) == (("conv1.weight",), (6, 4, 3, 3), "conv2d")
    assert known.tensor is kernel
    assert kernel.name == "unet.conv1.weight"
    assert g.num_parameters == 6 * 4 * 9 + 6 + 6 * 4  # without the padding
    assert g.weights_bytes == 2 * (9 * 4 * 8 + 8 + 4 * 6)  # with it
    winograd = g.weight("conv2.weight", 6, 4, 3, 3, layout="winograd_4")
    assert winograd.shape == (36, 4, 6)
    assert set(LAYOUT_SHAPES) == {"as_is", "linear", "conv2d", *(f"winograd_{m}" for m in (2, 4))}


def test_several_tensors_are_one_weight(g: Graph) -> None:
    with g.scope("attn"):
        joined = g.weight(("q.weight", "k.weight"), 6, 5, layout="linear", padded_to=8, in_padded_to=8, out_parts=2)
        bias = g.weight(("q.bias", "k.bias"), 6, padded_to=8, out_parts=2)
    assert (joined.shape, bias.shape) == ((8, 16), (16,))
    known = g.weights["attn.q.weight+k.weight"]
    assert (known.paths, known.source_shape) == (("attn.q.weight", "attn.k.weight"), (6, 5))
    assert known.joined_shape == (12, 5)
    assert g.num_parameters == 2 * (6 * 5 + 6)


def test_table_rows(g: Graph) -> None:
    with g.scope("embeddings"):
        rows = g.table_rows("weight", 50, 4, rows=(1, 7))
    assert (rows.name, rows.shape, rows.role) == ("unet.embeddings.weight", (1, 7, 4), "input")
    assert g.inputs == {"embeddings.weight": rows}
    table = g.tables["embeddings.weight"]
    assert (table.paths, table.source_shape, table.tensor) == (("embeddings.weight",), (50, 4), rows)
    assert (g.num_parameters, g.weights_bytes, g.weights) == (200, 0, {})


def test_same_weight_twice_is_one(g: Graph) -> None:
    first = g.weight("proj", 8, 4, layout="linear")
    assert g.weight("proj", 8, 4, layout="linear") is first
    assert len(g.weights) == 1


@pytest.mark.parametrize(
    ("shape", "layout", "padded_to"),
    [
        ((4, 8), "linear", None),
        ((8, 4), "as_is", None),
        ((8, 4), "linear", 12),
    ],
)
def test_same_weight_with_another_shape(g: Graph, shape: tuple[int, ...], layout, padded_to: int | None) -> None:
    g.weight("proj", 8, 4, layout="linear")
    with pytest.raises(ShapeError, match=r"unet.proj: used as \(8, 4\), linear, \(4, 8\) and as .*; give it one shape"):
        g.weight("proj", *shape, layout=layout, padded_to=padded_to)
