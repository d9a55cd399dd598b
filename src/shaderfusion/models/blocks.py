"""Layers and blocks that the models share. Each records calls into a graph and returns its output tensor.

`name` is the layer's path in the checkpoint, relative to the graph's scope. Channels are any number: the kernels want
them in fours, so that tensors and weights are padded with zeros, and every layer leaves zeros in the padding.
"""

from functools import partial
from typing import NamedTuple

from shaderfusion.graph.graph import Graph
from shaderfusion.kernels.call import ceil_div
from shaderfusion.kernels.common.elementwise import Activation
from shaderfusion.kernels.common.group_norm_statistics import FoldedGroupNorm
from shaderfusion.kernels.common.matmul import Epilogue
from shaderfusion.tensor import TensorSpec

__all__ = [
    "AttentionNames",
    "activation",
    "affine",
    "attention",
    "concat",
    "conv2d",
    "downsample",
    "group_norm",
    "layer_norm",
    "linear",
    "norm_conv2d",
    "resnet_block",
    "transformer",
    "upsample",
]


_STRIP_BYTES = 16 << 20
"""Of what `linear_in_place` makes at a time."""
_STRIP_ROWS = 64
"""Strips begin at multiples of it: so many rows of 4 values or more are a multiple of 256 bytes."""


class Heads(NamedTuple):
    """The channels of attention's tensors: `num_heads` of `dim`, each padded with zeros to `padded_dim`."""

    num_heads: int
    dim: int
    padded_dim: int


def linear(
    g: Graph,
    name: str | tuple[str, ...],
    x: TensorSpec,
    channels: int,
    *,
    bias: bool = True,
    scale: float = 1.0,
    image_bias: TensorSpec | None = None,
    residual: TensorSpec | None = None,
    from_heads: Heads | None = None,
    to_heads: Heads | None = None,
    out: TensorSpec | None = None,
) -> TensorSpec:
    """scale * x W^T + b + image_bias + residual; x: (..., C) -> (..., channels). On (B, H, W, C) a 1x1 convolution.

    With `from_heads` the channels of x, with `to_heads` those of the output are padded head by head. Several layers
    are one product, whose output has theirs side by side, each with its padding: (..., layers channels).
    """
    names = (name,) if isinstance(name, str) else name
    in_channels = from_heads.num_heads * from_heads.dim if from_heads else x.channels
    label = "+".join(names) if len(names) < 4 else f"{names[0]}+...+{names[-1]}"
    with g.scope(label):
        if to_heads or len(names) > 1:
            width = to_heads.num_heads * to_heads.padded_dim if to_heads else ceil_div(channels, 4) * 4
            out = out or g.tensor("out", *x.shape[:-1], len(names) * width)
        out = out or g.tensor("out", *x.shape[:-1], channels=channels)
    num_heads = to_heads.num_heads if to_heads else 1
    padded = partial(g.weight, padded_to=out.shape[-1] // len(names), out_parts=num_heads)
    weight = padded(
        [f"{layer}.weight" for layer in names],
        channels,
        in_channels,
        layout="linear",
        in_padded_to=x.shape[-1],
        in_parts=from_heads.num_heads if from_heads else 1,
    )
    added = padded([f"{layer}.bias" for layer in names], channels) if bias else None
    with g.scope(label):
        g.add(*g.kernels.matmul(x, weight, out, Epilogue(scale, added, image_bias, residual)))
    return out


def linear_in_place(g: Graph, name: str, x: TensorSpec, channels: int) -> TensorSpec:
    """W x + b, of at most x's channels, at the place of x, which nothing else reads then; x: (..., C).

    Strip by strip, and by way of a small tensor: what is written lies before all that is still to be read. A small x,
    or one that ends with padding, is left as it is.
    """
    out_bytes = x.size_bytes // x.channels * channels
    if x.padding or channels % 4 or channels > x.channels or out_bytes <= _STRIP_BYTES:
        return linear(g, name, x, channels)
    num_rows = x.size // x.shape[-1]
    step = ceil_div(ceil_div(num_rows, ceil_div(out_bytes, _STRIP_BYTES)), _STRIP_ROWS) * _STRIP_ROWS
    rows, values = x.reshape(num_rows, x.shape[-1]), x.reshape(x.size)
    for first in range(0, num_rows, step):
        count = min(step, num_rows - first)
        strip = linear(g, name, rows.rows(first, count), channels)
        with g.scope(name):
            place = values.rows(first * channels, count * channels).reshape(count, channels)
            g.add(*g.kernels.activate(strip, place, activation=None))
    return values.rows(0, num_rows * channels).reshape(*x.shape[:-1], channels)


def conv2d(
    g: Graph,
    name: str,
    x: TensorSpec,
    channels: int,
    *,
    stride: int = 1,
    upsample: int = 1,
    padding: int = 1,
    size: tuple[int, int] | None = None,
    bias: bool = True,
    scale: float = 1.0,
    image_bias: TensorSpec | None = None,
    residual: TensorSpec | None = None,
    norm: FoldedGroupNorm | None = None,
    out: TensorSpec | None = None,
) -> TensorSpec:
    """scale * (3x3 convolution, zero-padded) + biases + residual; x: (B, H, W, C) -> (B, H', W', channels).

    x is normalized by `norm`, then made `upsample` times larger on each side, by its nearest pixels; the convolution
    takes every stride-th pixel. `size` says (H', W') where the last row or column of the larger x is left out. Without
    `padding` nothing pads x before its first row and column: a stride of 2 then begins at a patch that x has whole.
    """
    B, H, W, C_in = x.shape
    with g.scope(name):
        height, width = size or (ceil_div(upsample * H, stride), ceil_div(upsample * W, stride))
        out = out or g.tensor("out", B, height, width, channels=channels)
        C_out = out.shape[-1]
        layout = g.kernels.conv2d_layout(x, out, stride=stride)
        weight = g.weight("weight", channels, x.channels, 3, 3, layout=layout, padded_to=C_out, in_padded_to=C_in)
        added = g.weight("bias", channels, padded_to=C_out) if bias else None
        epilogue = Epilogue(scale, added, image_bias, residual)
        g.add(*g.kernels.conv2d(x, weight, out, epilogue, stride=stride, upsample=upsample, padding=padding, norm=norm))
    return out


def norm_conv2d(
    g: Graph,
    norm_name: str,
    name: str,
    x: TensorSpec,
    channels: int,
    *,
    num_groups: int,
    eps: float,
    image_bias: TensorSpec | None = None,
    residual: TensorSpec | None = None,
    out: TensorSpec | None = None,
) -> TensorSpec:
    """conv(silu(group_norm(x))) + biases + residual; x: (B, H, W, C) -> (B, H, W, channels).

    Where the convolution normalizes what it loads, only the groups' statistics are computed before.
    """
    B, H, W, _ = x.shape
    with g.scope(name):
        out = out or g.tensor("out", B, H, W, channels=channels)
    folded = None
    if g.kernels.folds_group_norm(x, out, num_groups=num_groups):
        with g.scope(norm_name):
            means = g.tensor("mean", B, num_groups, dtype="f32")
            variances = g.tensor("variance", B, num_groups, dtype="f32")
            g.add(*g.kernels.group_norm_statistics(x, means, variances))
            folded = FoldedGroupNorm(means, variances, *_weight_and_bias(g, x), eps, "silu")
    else:
        x = group_norm(g, norm_name, x, num_groups=num_groups, eps=eps, activation="silu")
    return conv2d(g, name, x, channels, image_bias=image_bias, residual=residual, norm=folded, out=out)


def group_norm(
    g: Graph, name: str, x: TensorSpec, *, num_groups: int, eps: float, activation: Activation | None = None
) -> TensorSpec:
    """Group normalization, then the activation; x: (B, ..., C)."""
    with g.scope(name):
        out = g.tensor("out", *x.shape[:-1], channels=x.channels)
        weight, bias = _weight_and_bias(g, x)
        g.add(*g.kernels.group_norm(x, weight, bias, out, num_groups=num_groups, eps=eps, activation=activation))
    return out


def layer_norm(g: Graph, name: str, x: TensorSpec, *, eps: float = 1e-5, out: TensorSpec | None = None) -> TensorSpec:
    """Layer normalization; x: (..., C)."""
    with g.scope(name):
        out = out or g.tensor("out", *x.shape[:-1], channels=x.channels)
        g.add(*g.kernels.layer_norm(x, *_weight_and_bias(g, x), out, eps=eps))
    return out


def _weight_and_bias(g: Graph, x: TensorSpec) -> tuple[TensorSpec, TensorSpec]:
    """Of a normalization of x (..., C) in the current scope: (C,) each."""
    C = x.shape[-1]
    return g.weight("weight", x.channels, padded_to=C), g.weight("bias", x.channels, padded_to=C)


def activation(g: Graph, x: TensorSpec, kind: Activation) -> TensorSpec:
    """An elementwise nonlinearity that takes 0 to 0."""
    out = g.tensor(kind, *x.shape[:-1], channels=x.channels)
    g.add(*g.kernels.activate(x, out, activation=kind))
    return out


def affine(
    g: Graph, name: str, x: TensorSpec, *, scale: float, shift: float = 0.0, out: TensorSpec | None = None
) -> TensorSpec:
    """scale x + shift. With a shift the padding does not stay zero: `out` must be an output that no layer reads."""
    out = out or g.tensor(name, *x.shape[:-1], channels=x.channels)
    g.add(*g.kernels.affine(x, out, scale=scale, shift=shift))
    return out


def concat(g: Graph, name: str, a: TensorSpec, b: TensorSpec) -> TensorSpec:
    """[a, b] along the channels."""
    with g.scope(name):
        out = g.tensor("concat", *a.shape[:-1], channels=a.channels + b.channels)
        g.add(*g.kernels.concat_channels(a, b, out))
    return out


def upsample(g: Graph, name: str, x: TensorSpec, size: tuple[int, int] | None = None) -> TensorSpec:
    """Nearest neighbour to twice the size, or that size (H', W'), a row or column less, then a 3x3 convolution."""
    with g.scope(name):
        return conv2d(g, "conv", x, x.channels, upsample=2, size=size)


def downsample(g: Graph, name: str, x: TensorSpec, *, padding: int = 1) -> TensorSpec:
    """A 3x3 convolution of stride 2: half the size, rounded up; padding as of `conv2d`."""
    with g.scope(name):
        return conv2d(g, "conv", x, x.channels, stride=2, padding=padding)


def resnet_block(
    g: Graph,
    name: str,
    x: TensorSpec,
    channels: int,
    *,
    num_groups: int,
    eps: float,
    time: TensorSpec | None = None,
    in_place: bool = False,
) -> TensorSpec:
    """x + conv(silu(norm(conv(silu(norm(x))) + time))); x: (B, H, W, C) -> (B, H, W, channels), time: (1, channels).

    With `in_place` x, which nothing else reads then, may become the output.
    """
    with g.scope(name):
        layer = partial(norm_conv2d, g, channels=channels, num_groups=num_groups, eps=eps)
        h = layer("norm1", "conv1", x, image_bias=time)
        if x.channels != channels:
            shortcut = linear_in_place if in_place else linear
            x, in_place = shortcut(g, "conv_shortcut", x, channels), True
        return layer("norm2", "conv2", h, residual=x, out=x if in_place else None)


class AttentionNames(NamedTuple):
    """What a checkpoint calls the linear layers of an attention."""

    q: str
    k: str
    v: str
    out: str


DIFFUSERS_ATTENTION = AttentionNames("to_q", "to_k", "to_v", "to_out.0")


def attention(
    g: Graph,
    name: str,
    x: TensorSpec,
    context: TensorSpec | None = None,
    *,
    num_heads: int,
    bias: bool,
    residual: TensorSpec,
    causal: bool = False,
    names: AttentionNames = DIFFUSERS_ATTENTION,
) -> TensorSpec:
    """residual + multi-head attention of x (B, N, C) to itself, or to context (B, M, C_context), an input of the graph.

    `bias`: q, k and v have one. With `causal` a token sees itself and those before it. Keys and values of a context are
    made once for all runs that have it.
    """
    C = x.channels
    D = C // num_heads
    heads = Heads(num_heads, D, g.kernels.padded_head_dim(D))
    with g.scope(name):
        if context is None:
            q, k, v = _to_heads(g, (names.q, names.k, names.v), x, heads, bias=bias)
        else:
            (q,) = _to_heads(g, (names.q,), x, heads, bias=bias)
            with g.once():
                k, v = _to_heads(g, (names.k, names.v), context, heads, bias=bias)
        h = g.tensor("heads", *q.shape)
        g.add(*g.kernels.attention(q, k, v, h, num_heads=num_heads, head_dim=D, causal=causal))
        return linear(g, names.out, h, C, residual=residual, from_heads=heads)


def _to_heads(g: Graph, names: tuple[str, ...], x: TensorSpec, heads: Heads, *, bias: bool) -> tuple[TensorSpec, ...]:
    """What each of these linear layers makes of x (B, N, C), (B, N, heads D): columns of one product's output.

    Where that is too large to bind, each layer is a product of its own.
    """
    layer = partial(linear, g, x=x, channels=heads.num_heads * heads.dim, bias=bias, to_heads=heads)
    if g.kernels.joins(x, len(names) * heads.num_heads * heads.padded_dim):
        return layer(names).split_columns(len(names))
    return tuple(layer(name) for name in names)


def transformer(
    g: Graph, name: str, x: TensorSpec, context: TensorSpec, *, num_heads: int, num_layers: int, num_groups: int
) -> TensorSpec:
    """diffusers' Transformer2DModel: pixels as tokens, `num_layers` of self-attention, cross-attention, feed-forward.

    x: (B, H, W, C), context: (B, L, C_context). Its projections are 1x1 convolutions in SD 1.x and linear layers in
    2.x, which is the same product.
    """
    B, H, W, padded = x.shape
    tokens = (B, H * W, padded)
    with g.scope(name):
        h = group_norm(g, "norm", x, num_groups=num_groups, eps=1e-6).reshape(*tokens)
        h = linear(g, "proj_in", h, x.channels)
        for layer in range(num_layers):
            with g.scope("transformer_blocks", layer):
                n = layer_norm(g, "norm1", h)
                h = attention(g, "attn1", n, num_heads=num_heads, bias=False, residual=h)
                n = layer_norm(g, "norm2", h)
                h = attention(g, "attn2", n, context, num_heads=num_heads, bias=False, residual=h)
                n = layer_norm(g, "norm3", h)
                h = _feed_forward(g, "ff.net", n, residual=h)
        return linear(g, "proj_out", h, x.channels, residual=x.reshape(*tokens)).reshape(*x.shape)


def _feed_forward(g: Graph, name: str, x: TensorSpec, *, residual: TensorSpec) -> TensorSpec:
    """residual + W2 (a GELU(b)) with [a, b] = W1 x, four times as wide as x (B, N, C)."""
    B, N, padded = x.shape
    C = x.channels
    with g.scope(name):
        with g.scope(0):
            weight = g.weight("proj.weight", 8 * C, C, layout="linear", in_padded_to=padded)
            gated = g.tensor("out", B, N, 4 * C)
            g.add(*g.kernels.geglu_linear(x, weight, g.weight("proj.bias", 8 * C), gated))
        return linear(g, "2", gated, C, residual=residual)
