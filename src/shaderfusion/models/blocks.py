"""Layers and blocks that the models share. Each records calls into a graph and returns its output tensor.

`name` is the layer's path in the checkpoint, relative to the graph's scope.
"""

from functools import partial

from shaderfusion.graph.graph import Graph
from shaderfusion.kernels.call import ceil_div
from shaderfusion.kernels.common.elementwise import Activation
from shaderfusion.kernels.common.group_norm_statistics import FoldedGroupNorm
from shaderfusion.kernels.common.matmul import Epilogue
from shaderfusion.tensor import TensorSpec

__all__ = [
    "activation",
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


def linear(
    g: Graph,
    name: str,
    x: TensorSpec,
    channels: int,
    *,
    bias: bool = True,
    scale: float = 1.0,
    residual: TensorSpec | None = None,
) -> TensorSpec:
    """scale * x W^T + b + residual; x: (..., C) -> (..., channels). On (B, H, W, C) this is a 1x1 convolution."""
    with g.scope(name):
        out = g.tensor("out", *x.shape[:-1], channels)
        weight = g.weight("weight", channels, x.shape[-1], layout="linear")
        epilogue = Epilogue(scale, g.weight("bias", channels) if bias else None, residual=residual)
        g.add(*g.kernels.matmul(x, weight, out, epilogue))
    return out


def conv2d(
    g: Graph,
    name: str,
    x: TensorSpec,
    channels: int,
    *,
    stride: int = 1,
    upsample: int = 1,
    scale: float = 1.0,
    image_bias: TensorSpec | None = None,
    residual: TensorSpec | None = None,
    norm: FoldedGroupNorm | None = None,
    out: TensorSpec | None = None,
) -> TensorSpec:
    """scale * (3x3 convolution, zero-padded) + biases + residual; x: (B, H, W, C) -> (B, H', W', channels).

    x is normalized by `norm`, then made `upsample` times larger on each side, by its nearest pixels; the convolution
    takes every stride-th pixel. The kernels want channels in fours: the output ends with channels of zeros if it must.
    """
    B, H, W, C = x.shape
    padded = ceil_div(channels, 4) * 4
    with g.scope(name):
        out = out or g.tensor("out", B, ceil_div(upsample * H, stride), ceil_div(upsample * W, stride), padded)
        layout = g.kernels.conv2d_layout(x, out, stride=stride)
        weight = g.weight("weight", channels, C, 3, 3, layout=layout, padded_to=padded)
        bias = g.weight("bias", channels, padded_to=padded)
        epilogue = Epilogue(scale, bias, image_bias, residual)
        g.add(*g.kernels.conv2d(x, weight, out, epilogue, stride=stride, upsample=upsample, norm=norm))
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
    B, H, W, C = x.shape
    with g.scope(name):
        out = out or g.tensor("out", B, H, W, ceil_div(channels, 4) * 4)
    folded = None
    if g.kernels.folds_group_norm(x, out, num_groups=num_groups):
        with g.scope(norm_name):
            means = g.tensor("mean", B, num_groups, dtype="f32")
            variances = g.tensor("variance", B, num_groups, dtype="f32")
            g.add(*g.kernels.group_norm_statistics(x, means, variances))
            folded = FoldedGroupNorm(means, variances, g.weight("weight", C), g.weight("bias", C), eps, "silu")
    else:
        x = group_norm(g, norm_name, x, num_groups=num_groups, eps=eps, activation="silu")
    return conv2d(g, name, x, channels, image_bias=image_bias, residual=residual, norm=folded, out=out)


def group_norm(
    g: Graph, name: str, x: TensorSpec, *, num_groups: int, eps: float, activation: Activation | None = None
) -> TensorSpec:
    """Group normalization, then the activation; x: (B, ..., C)."""
    C = x.shape[-1]
    with g.scope(name):
        out = g.tensor("out", *x.shape)
        weight, bias = g.weight("weight", C), g.weight("bias", C)
        g.add(*g.kernels.group_norm(x, weight, bias, out, num_groups=num_groups, eps=eps, activation=activation))
    return out


def layer_norm(g: Graph, name: str, x: TensorSpec, *, eps: float = 1e-5, out: TensorSpec | None = None) -> TensorSpec:
    """Layer normalization; x: (..., C)."""
    C = x.shape[-1]
    with g.scope(name):
        out = out or g.tensor("out", *x.shape)
        g.add(*g.kernels.layer_norm(x, g.weight("weight", C), g.weight("bias", C), out, eps=eps))
    return out


def activation(g: Graph, x: TensorSpec, kind: Activation) -> TensorSpec:
    """An elementwise nonlinearity."""
    out = g.tensor(kind, *x.shape)
    g.add(*g.kernels.activate(x, out, activation=kind))
    return out


def concat(g: Graph, name: str, a: TensorSpec, b: TensorSpec) -> TensorSpec:
    """[a, b] along the channels."""
    with g.scope(name):
        out = g.tensor("concat", *a.shape[:-1], a.shape[-1] + b.shape[-1])
        g.add(*g.kernels.concat_channels(a, b, out))
    return out


def upsample(g: Graph, name: str, x: TensorSpec) -> TensorSpec:
    """Nearest neighbour to twice the size, then a 3x3 convolution."""
    with g.scope(name):
        return conv2d(g, "conv", x, x.shape[-1], upsample=2)


def downsample(g: Graph, name: str, x: TensorSpec) -> TensorSpec:
    """A 3x3 convolution of stride 2."""
    with g.scope(name):
        return conv2d(g, "conv", x, x.shape[-1], stride=2)


def resnet_block(
    g: Graph, name: str, x: TensorSpec, channels: int, *, num_groups: int, eps: float, time: TensorSpec | None = None
) -> TensorSpec:
    """x + conv(silu(norm(conv(silu(norm(x))) + W time))); x: (B, H, W, C) -> (B, H, W, channels), time: (1, C_t)."""
    with g.scope(name):
        layer = partial(norm_conv2d, g, channels=channels, num_groups=num_groups, eps=eps)
        time_bias = linear(g, "time_emb_proj", time, channels) if time else None
        h = layer("norm1", "conv1", x, image_bias=time_bias)
        if x.shape[-1] != channels:
            x = linear(g, "conv_shortcut", x, channels)
        return layer("norm2", "conv2", h, residual=x)


def attention(
    g: Graph, name: str, x: TensorSpec, context: TensorSpec, *, num_heads: int, bias: bool, residual: TensorSpec
) -> TensorSpec:
    """residual + multi-head attention of x (B, N, C) to context (B, M, C_context), in diffusers' names."""
    C = x.shape[-1]
    with g.scope(name):
        q = linear(g, "to_q", x, C, bias=bias)
        k = linear(g, "to_k", context, C, bias=bias)
        v = linear(g, "to_v", context, C, bias=bias)
        h = g.tensor("heads", *x.shape)
        g.add(*g.kernels.attention(q, k, v, h, num_heads=num_heads))
        return linear(g, "to_out.0", h, C, residual=residual)


def transformer(
    g: Graph, name: str, x: TensorSpec, context: TensorSpec, *, num_heads: int, num_layers: int, num_groups: int
) -> TensorSpec:
    """diffusers' Transformer2DModel: pixels as tokens, `num_layers` of self-attention, cross-attention, feed-forward.

    x: (B, H, W, C), context: (B, L, C_context). Its projections are 1x1 convolutions in SD 1.x and linear layers in
    2.x, which is the same product.
    """
    B, H, W, C = x.shape
    with g.scope(name):
        h = group_norm(g, "norm", x, num_groups=num_groups, eps=1e-6).reshape(B, H * W, C)
        h = linear(g, "proj_in", h, C)
        for layer in range(num_layers):
            with g.scope("transformer_blocks", layer):
                n = layer_norm(g, "norm1", h)
                h = attention(g, "attn1", n, n, num_heads=num_heads, bias=False, residual=h)
                n = layer_norm(g, "norm2", h)
                h = attention(g, "attn2", n, context, num_heads=num_heads, bias=False, residual=h)
                n = layer_norm(g, "norm3", h)
                h = _feed_forward(g, "ff.net", n, residual=h)
        return linear(g, "proj_out", h, C, residual=x.reshape(B, H * W, C)).reshape(B, H, W, C)


def _feed_forward(g: Graph, name: str, x: TensorSpec, *, residual: TensorSpec) -> TensorSpec:
    """residual + W2 (a GELU(b)) with [a, b] = W1 x, four times as wide as x (B, N, C)."""
    B, N, C = x.shape
    with g.scope(name):
        with g.scope(0):
            weight = g.weight("proj.weight", 8 * C, C, layout="linear")
            gated = g.tensor("out", B, N, 4 * C)
            g.add(*g.kernels.geglu_linear(x, weight, g.weight("proj.bias", 8 * C), gated))
        return linear(g, "2", gated, C, residual=residual)
