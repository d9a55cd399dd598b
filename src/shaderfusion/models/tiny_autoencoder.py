"""The image decoder of a small autoencoder, AutoencoderTiny: latents -> pixels, without attention or norms.

TAESD (Ollin Boer Bohan, github.com/madebyollin/taesd), distilled from the large autoencoder of the same latents.
"""

from itertools import count

from shaderfusion.config import TinyVaeConfig
from shaderfusion.graph.graph import Graph
from shaderfusion.kernels.select import Kernels
from shaderfusion.models.blocks import activation, affine, conv2d
from shaderfusion.tensor import TensorSpec

__all__ = ["tiny_decoder_graph"]

_LARGEST_LATENT = 3.0
"""The first layer sees 3 tanh(x / 3), whatever the configuration says."""


def tiny_decoder_graph(config: TinyVaeConfig, kernels: Kernels, *, batch: int, height: int, width: int) -> Graph:
    """Height and width are in latent cells, f is the model's scale factor.

    Inputs: latents (B, H, W, C), as the sampler leaves them. Outputs: image (B, f H, f W, 3): red, green, blue, about
    -1..1.
    """
    g = Graph("vae", kernels)
    f, C = config.scale_factor, config.decoder_block_out_channels[0]
    h: TensorSpec = g.input("latents", batch, height, width, channels=config.latent_channels)
    h = affine(g, "scaled", h, scale=1 / (_LARGEST_LATENT * config.scaling_factor))
    h = activation(g, h, "tanh")
    layers = map(str, count())  # as in the checkpoint, where activations and upsampling count too
    with g.scope("decoder", "layers"):
        h = conv2d(g, next(layers), h, C, scale=_LARGEST_LATENT)
        h = _relu(g, next(layers), h)
        for block, num_residual in enumerate(config.num_decoder_blocks):
            if block > 0:
                next(layers)  # the convolution upsamples as it reads
                h = conv2d(g, next(layers), h, C, upsample=2, bias=False)
            for _ in range(num_residual):
                h = _residual_block(g, next(layers), h)
        h = conv2d(g, next(layers), h, config.out_channels)
    out = g.output("image", batch, f * height, f * width, channels=config.out_channels)
    affine(g, "image", h, scale=2, shift=-1, out=out)  # from 0..1
    return g


def _residual_block(g: Graph, name: str, x: TensorSpec) -> TensorSpec:
    """relu(x + conv(relu(conv(relu(conv(x)))))); x: (B, H, W, C)."""
    with g.scope(name):
        with g.scope("conv"):
            h = _relu(g, "1", conv2d(g, "0", x, x.channels))
            h = _relu(g, "3", conv2d(g, "2", h, x.channels))
            h = conv2d(g, "4", h, x.channels, residual=x)
        return _relu(g, "fuse", h)


def _relu(g: Graph, name: str, x: TensorSpec) -> TensorSpec:
    with g.scope(name):
        return activation(g, x, "relu")
