"""The image encoder, AutoencoderKL: pixels -> latents. Rombach et al. 2022, arXiv 2112.10752."""

from functools import partial

from shaderfusion.config import VaeConfig
from shaderfusion.graph.graph import Graph
from shaderfusion.kernels.select import Kernels
from shaderfusion.models.blocks import conv2d, downsample, linear, norm_conv2d, resnet_block
from shaderfusion.models.vae import pixel_attention
from shaderfusion.tensor import TensorSpec

__all__ = ["encoder_graph"]

_EPS = 1e-6  # AutoencoderKL has no option for it


def encoder_graph(config: VaeConfig, kernels: Kernels, *, batch: int, height: int, width: int) -> Graph:
    """Height and width are in latent cells, f is the model's scale factor. ModelError where it is not implemented.

    Inputs: image (B, f H, f W, 3): red, green, blue in -1..1.
    Outputs: moments (B, H, W, 2 C): of the latents before scaling, C means and then C logarithms of variances.
    """
    config.require_encoder()
    g = Graph("vae_encoder", kernels)
    f, num_groups = config.scale_factor, config.norm_num_groups
    num_moments = 2 * config.latent_channels
    resnet = partial(resnet_block, g, num_groups=num_groups, eps=_EPS, in_place=True)
    h: TensorSpec = g.input("image", batch, f * height, f * width, channels=config.in_channels)
    out = g.output("moments", batch, height, width, channels=num_moments)
    with g.scope("encoder"):
        h = conv2d(g, "conv_in", h, config.block_out_channels[0])
        for block, C in enumerate(config.block_out_channels):
            with g.scope("down_blocks", block):
                for layer in range(config.layers_per_block):
                    h = resnet(f"resnets.{layer}", h, C)
                if block != len(config.block_out_channels) - 1:
                    h = downsample(g, "downsamplers.0", h, padding=0)
        with g.scope("mid_block"):
            h = resnet("resnets.0", h, h.channels)
            if config.mid_block_add_attention:
                h = pixel_attention(g, "attentions.0", h, num_groups)
            h = resnet("resnets.1", h, h.channels)
        last = None if config.use_quant_conv else out
        h = norm_conv2d(g, "conv_norm_out", "conv_out", h, num_moments, num_groups=num_groups, eps=_EPS, out=last)
    if config.use_quant_conv:
        linear(g, "quant_conv", h, num_moments, out=out)
    return g
