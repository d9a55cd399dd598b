"""The noise predictor, UNet2DConditionModel: (x_t, t, prompt embedding) -> eps. Rombach et al. 2022 (2112.10752)."""

from collections.abc import Iterator

from shaderfusion.config import UNetConfig
from shaderfusion.graph.graph import Graph
from shaderfusion.kernels.common.timestep_embedding import timestep_embedding
from shaderfusion.kernels.select import Kernels
from shaderfusion.models.blocks import (
    activation,
    concat,
    conv2d,
    downsample,
    linear,
    norm_conv2d,
    resnet_block,
    transformer,
    upsample,
)
from shaderfusion.tensor import TensorSpec

__all__ = ["unet_graph"]


def unet_graph(config: UNetConfig, kernels: Kernels, *, batch: int, height: int, width: int, num_tokens: int) -> Graph:
    """Height and width are in latent cells, any number: each level has half the cells of the one above, rounded up.

    Inputs: latents (B, H, W, C_in), timestep (1,) f32, embedding (B, L, C). Outputs: model_output (B, H, W, C_out).
    """
    g = Graph("unet", kernels)
    latents = g.input("latents", batch, height, width, channels=config.in_channels)
    timestep = g.input("timestep", 1, dtype="f32")
    text = g.input("embedding", batch, num_tokens, channels=config.cross_attention_dim)
    time_biases = _time_biases(g, config, _time_embedding(g, config, timestep))

    norm = {"num_groups": config.norm_num_groups, "eps": config.norm_eps}

    def resnet(name: str, x: TensorSpec, channels: int) -> TensorSpec:
        return resnet_block(g, name, x, channels, time=time_biases[g.path(name)], **norm)

    def attend(name: str, x: TensorSpec, block: int) -> TensorSpec:
        return transformer(
            g,
            name,
            x,
            text,
            num_heads=config.num_heads_per_block[block],
            num_layers=config.num_transformer_layers_per_block[block],
            num_groups=config.norm_num_groups,
        )

    num_blocks = len(config.block_out_channels)
    last = num_blocks - 1
    h = conv2d(g, "conv_in", latents, config.block_out_channels[0])
    skips = [h]
    for block, channels in enumerate(config.block_out_channels):
        with g.scope("down_blocks", block):
            for layer in range(config.num_layers_per_block[block]):
                h = resnet(f"resnets.{layer}", h, channels)
                if config.down_block_types[block] == "CrossAttnDownBlock2D":
                    h = attend(f"attentions.{layer}", h, block)
                skips.append(h)
            if block != last:
                h = downsample(g, "downsamplers.0", h)
                skips.append(h)

    with g.scope("mid_block"):
        h = resnet("resnets.0", h, config.block_out_channels[-1])
        h = attend("attentions.0", h, last)
        h = resnet("resnets.1", h, config.block_out_channels[-1])

    for up_block in range(num_blocks):
        block = last - up_block
        with g.scope("up_blocks", up_block):
            for layer in range(config.num_layers_per_block[block] + 1):
                h = concat(g, f"resnets.{layer}", h, skips.pop())
                h = resnet(f"resnets.{layer}", h, config.block_out_channels[block])
                if config.up_block_types[up_block] == "CrossAttnUpBlock2D":
                    h = attend(f"attentions.{layer}", h, block)
            if up_block != last:
                _, H, W, _ = skips[-1].shape
                h = upsample(g, "upsamplers.0", h, (H, W))

    out = g.output("model_output", batch, height, width, channels=config.out_channels)
    norm_conv2d(g, "conv_norm_out", "conv_out", h, config.out_channels, out=out, **norm)
    return g


def _residual_blocks(config: UNetConfig) -> Iterator[tuple[str, int]]:
    """The path of each, and the channels of its output."""
    channels = config.block_out_channels
    for block, num_layers in enumerate(config.num_layers_per_block):
        yield from ((f"down_blocks.{block}.resnets.{layer}", channels[block]) for layer in range(num_layers))
    yield from ((f"mid_block.resnets.{layer}", channels[-1]) for layer in range(2))
    for up_block, num_layers in enumerate(config.num_layers_per_block[::-1]):
        C = channels[-1 - up_block]
        yield from ((f"up_blocks.{up_block}.resnets.{layer}", C) for layer in range(num_layers + 1))


def _time_biases(g: Graph, config: UNetConfig, time: TensorSpec) -> dict[str, TensorSpec]:
    """What the embedding (1, C_t) adds to each residual block, by its path: (1, C); one product for all of a width."""
    paths: dict[int, list[str]] = {}
    for path, channels in _residual_blocks(config):
        paths.setdefault(channels, []).append(path)
    biases: dict[str, TensorSpec] = {}
    for channels, blocks in paths.items():
        joined = linear(g, tuple(f"{path}.time_emb_proj" for path in blocks), time, channels)
        biases |= zip(blocks, joined.split_columns(len(blocks)), strict=True)
    return biases


def _time_embedding(g: Graph, config: UNetConfig, timestep: TensorSpec) -> TensorSpec:
    """The timestep (1,) as sinusoids, then two layers: (1, C_t), after the SiLU of the residual blocks."""
    with g.scope("time_embedding"):
        sinusoids = g.tensor("sinusoids", 1, channels=config.block_out_channels[0])
        flip, shift = config.flip_sin_to_cos, config.freq_shift
        g.add(timestep_embedding(timestep, sinusoids, flip_sin_to_cos=flip, freq_shift=shift))
        h = linear(g, "linear_1", sinusoids, config.time_embed_dim)
        h = activation(g, h, "silu")
        h = linear(g, "linear_2", h, config.time_embed_dim)
        return activation(g, h, "silu")
