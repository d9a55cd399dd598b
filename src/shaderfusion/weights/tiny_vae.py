"""TAESD's decoder as it is published: one file without a configuration, which the tensors themselves give."""

import re
from collections.abc import Mapping
from typing import Any

__all__ = ["tiny_vae_options"]

_LAYER = re.compile(r"(?P<prefix>decoder\.layers\.|)(?P<index>\d{1,4})\.(?P<residual>conv\.0\.|)weight")


def tiny_vae_options(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """What vae/config.json would say of an AutoencoderTiny with these tensors; None if they are of anything else.

    They are named as in diffusers, `decoder.layers.2.conv.0.weight`, or as published, with the decoder alone:
    `3.conv.0.weight`. Whether all are there and fit each other shows when they are read.
    """
    found = [(match, shape) for name, shape in shapes.items() if (match := _LAYER.fullmatch(name))]
    layers = sorted((int(match["index"]), bool(match["residual"]), shape) for match, shape in found)
    plain = [shape for _, is_residual, shape in layers if not is_residual]
    if len({match["prefix"] for match, _ in found}) != 1 or len(plain) < 2 or any(len(shape) != 4 for shape in plain):
        return None
    num_residual = [0]
    for _, is_residual, _ in layers[1:]:
        if is_residual:
            num_residual[-1] += 1
        else:  # the convolution after which the next block begins; after the last one there is none
            num_residual.append(0)
    return {
        "_class_name": "AutoencoderTiny",
        "latent_channels": plain[0][1],
        "out_channels": plain[-1][0],
        "decoder_block_out_channels": [shape[0] for shape in plain[:-1]],
        "num_decoder_blocks": num_residual[:-1],
    }
