"""The image decoder, AutoencoderKL: latents -> pixels. Rombach et al. 2022, arXiv 2112.10752."""

from functools import partial

from shaderfusion.config import VaeConfig
from shaderfusion.graph.graph import Graph
from shaderfusion.kernels.select import Kernels
from shaderfusion.models.blocks import attention, conv2d, group_norm, linear, norm_conv2d, resnet_block, upsample
from shaderfusion.tensor import TensorSpec

__all__ = ["decoder_graph", "pixel_attention"]

_EPS = 1e-6  # AutoencoderKL has no option for it


def decoder_graph(config: VaeConfig, kernels: Kernels, *, batch: int, height: int, width: int) -> Graph:
    """Height and width are in latent cells, f is the model's scale factor.

    Inputs: latents (B, H, W, C), as the sampler leaves them: the first layer divides by the scaling factor.
    Outputs: image (B, f H, f W, 3): red, green, blue in -1..1.
    """
    g = Graph("vae", kernels)
    num_groups = config.norm_num_groups
    resnet = partial(resnet_block, g, num_groups=num_groups, eps=_EPS, in_place=True)
    h: TensorSpec = g.input("latents", batch, height, width, channels=config.latent_channels)
    scale = 1 / config.scaling_factor
    if config.use_post_quant_conv:
        h = linear(g, "post_quant_conv", h, config.latent_channels, scale=scale)
        scale = 1.0
    with g.scope("decoder"):
        channels = config.block_out_channels[::-1]
        h = conv2d(g, "conv_in", h, channels[0], scale=scale)
        with g.scope("mid_block"):
            h = resnet("resnets.0", h, channels[0])
            if config.mid_block_add_attention:
                h = pixel_attention(g, "attentions.0", h, num_groups)
            h = resnet("resnets.1", h, channels[0])
        for block, C in enumerate(channels):
            with g.scope("up_blocks", block):
                for layer in range(config.layers_per_block + 1):
                    h = resnet(f"resnets.{layer}", h, C)
                if block != len(channels) - 1:
                    h = upsample(g, "upsamplers.0", h)
        f = config.scale_factor
        out = g.output("image", batch, f * height, f * width, channels=config.out_channels)
        norm_conv2d(g, "conv_norm_out", "conv_out", h, config.out_channels, num_groups=num_groups, eps=_EPS, out=out)
    return g


def pixel_attention(g: Graph, name: str, x: TensorSpec, num_groups: int) -> TensorSpec:
    """x + attention among all pixels, one head over all channels; x: (B, H, W, C)."""
    B, H, W, padded = x.shape
    tokens = (B, H * W, padded)
    with g.scope(name):
        h = group_norm(g, "group_norm", x, num_groups=num_groups, eps=_EPS).reshape(*tokens)
    h = attention(g, name, h, num_heads=1, bias=True, residual=x.reshape(*tokens))
    return h.reshape(*x.shape)
