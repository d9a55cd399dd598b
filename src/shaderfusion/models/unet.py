"""The noise predictor, UNet2DConditionModel: (x_t, t, prompt embedding) -> eps. Rombach et al. 2022 (2112.10752)."""

from shaderfusion.config import NUM_TIME_IDS, UNetBlock, UNetConfig
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

    Inputs: latents (B, H, W, C_in), timestep (1,) f32, embedding (B, L, C). Where the configuration has
    time_cond_proj_dim also guidance_embedding (1, C_g), and where its addition_embed_type is text_time pooled (B, C_p)
    and time_ids (B, NUM_TIME_IDS) f32. Outputs: model_output (B, H, W, C_out).
    """
    g = Graph("unet", kernels)
    latents = g.input("latents", batch, height, width, channels=config.in_channels)
    timestep = g.input("timestep", 1, dtype="f32")
    text = g.input("embedding", batch, num_tokens, channels=config.cross_attention_dim)
    time_biases = _time_biases(g, config, _time_embedding(g, config, timestep, batch))

    norm = {"num_groups": config.norm_num_groups, "eps": config.norm_eps}

    def resnet(layer: int, x: TensorSpec, block: UNetBlock) -> TensorSpec:
        """A residual block of the current scope, and the transformer after it."""
        name, depth = f"resnets.{layer}", block.transformers[layer]
        x = resnet_block(g, name, x, block.channels, time=time_biases[g.path(name)], **norm)
        if depth is None:
            return x
        return transformer(
            g,
            f"attentions.{layer}",
            x,
            text,
            num_heads=block.num_heads,
            num_layers=depth,
            num_groups=config.norm_num_groups,
        )

    last = len(config.block_out_channels) - 1
    h = conv2d(g, "conv_in", latents, config.block_out_channels[0])
    skips = [h]
    for level, block in enumerate(config.down_blocks):
        with g.scope("down_blocks", level):
            for layer in range(len(block.transformers)):
                h = resnet(layer, h, block)
                skips.append(h)
            if level != last:
                h = downsample(g, "downsamplers.0", h)
                skips.append(h)

    with g.scope("mid_block"):
        for layer in range(len(config.mid_block.transformers)):
            h = resnet(layer, h, config.mid_block)

    for index, block in enumerate(config.up_blocks):
        with g.scope("up_blocks", index):
            for layer in range(len(block.transformers)):
                h = concat(g, f"resnets.{layer}", h, skips.pop())
                h = resnet(layer, h, block)
            if index != last:
                _, H, W, _ = skips[-1].shape
                h = upsample(g, "upsamplers.0", h, (H, W))

    out = g.output("model_output", batch, height, width, channels=config.out_channels)
    norm_conv2d(g, "conv_norm_out", "conv_out", h, config.out_channels, out=out, **norm)
    return g


def _time_biases(g: Graph, config: UNetConfig, time: TensorSpec) -> dict[str, TensorSpec]:
    """What the embedding (1 or B, C_t) adds to each residual block, by its path: (1 or B, C); one product a width."""
    named = [(f"down_blocks.{i}", block) for i, block in enumerate(config.down_blocks)]
    named += [("mid_block", config.mid_block)]
    named += [(f"up_blocks.{i}", block) for i, block in enumerate(config.up_blocks)]
    paths: dict[int, list[str]] = {}
    for name, block in named:
        paths.setdefault(block.channels, []).extend(f"{name}.resnets.{i}" for i in range(len(block.transformers)))
    biases: dict[str, TensorSpec] = {}
    for channels, blocks in paths.items():
        joined = linear(g, tuple(f"{path}.time_emb_proj" for path in blocks), time, channels)
        biases |= zip(blocks, joined.split_columns(len(blocks)), strict=True)
    return biases


def _time_embedding(g: Graph, config: UNetConfig, timestep: TensorSpec, batch: int) -> TensorSpec:
    """The timestep (1,) as sinusoids, then two layers, after the SiLU of the residual blocks: (1, C_t).

    A guidance embedding is added to the sinusoids; with `text_time` the rest differs by prompt: (B, C_t).
    """
    C_t = config.time_embed_dim
    with g.scope("time_embedding"):
        h = _sinusoids(g, config, timestep, g.tensor("sinusoids", 1, channels=config.block_out_channels[0]))
        if config.time_cond_proj_dim is not None:
            guidance = g.input("guidance_embedding", 1, channels=config.time_cond_proj_dim)
            h = linear(g, "cond_proj", guidance, h.channels, bias=False, residual=h)
        h = linear(g, "linear_1", h, C_t)
        h = activation(g, h, "silu")
        h = linear(g, "linear_2", h, C_t)
    if config.addition_embed_type == "text_time":
        h = _add_text_time(g, config, h, batch)
    with g.scope("time_embedding"):
        return activation(g, h, "silu")


def _add_text_time(g: Graph, config: UNetConfig, time: TensorSpec, batch: int) -> TensorSpec:
    """time (1, C_t) + the pooled text and the sinusoids of the time ids, in two layers: (B, C_t)."""
    pooled = g.input("pooled", batch, channels=config.pooled_dim)
    ids = g.input("time_ids", batch, NUM_TIME_IDS, dtype="f32")
    C = config.addition_time_embed_dim or 0
    with g.scope("add_embedding"):
        with g.once():
            sinusoids = _sinusoids(g, config, ids.reshape(ids.size), g.tensor("sinusoids", ids.size, C))
            h = concat(g, "input", pooled, sinusoids.reshape(batch, NUM_TIME_IDS * C))
            h = linear(g, "linear_1", h, config.time_embed_dim)
            h = activation(g, h, "silu")
        return linear(g, "linear_2", h, config.time_embed_dim, image_bias=time)


def _sinusoids(g: Graph, config: UNetConfig, timestep: TensorSpec, out: TensorSpec) -> TensorSpec:
    """Of each timestep (N,) a row of out (N, C)."""
    flip, shift = config.flip_sin_to_cos, config.freq_shift
    g.add(timestep_embedding(timestep, out, flip_sin_to_cos=flip, freq_shift=shift))
    return out
