"""Names of tensors in the layout of Stable Diffusion's own releases, LDM, from diffusers' paths of the same tensors.

The functions give names within a component; in a file of a whole model `*_PREFIX` comes before them. Rombach et al.
2022 (github.com/CompVis/latent-diffusion) numbers the layers of the UNet through; OpenCLIP has names of its own.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from shaderfusion.errors import ModelError

__all__ = [
    "NUM_PARTS",
    "UNET_PREFIX",
    "VAE_PREFIX",
    "StoredAs",
    "UNetBlocks",
    "open_clip_name",
    "unet_name",
    "vae_name",
]

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."

_UNET_OUTSIDE = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_OPEN_CLIP_STACK = ("q_proj", "k_proj", "v_proj")
NUM_PARTS = len(_OPEN_CLIP_STACK)
"""Tensors that one is stacked of, if any."""


class UNetBlocks(NamedTuple):
    """What of a UNet its layers' numbers depend on."""

    layers: tuple[int, ...]
    """Residual blocks of each down block; up blocks have them reversed, and one more each."""
    up_attention: tuple[bool, ...]
    """Whether each up block has transformers."""
    places: int | None = None
    """Numbers that each block takes: one for each layer and one more, unless a converter always counts as many."""

    def first_place(self, block: int, *, up: bool) -> int:
        """The number of a block's first layer."""
        return 1 - up + sum(self.num_places(index, up=up) for index in range(block))

    def num_places(self, block: int, *, up: bool) -> int:
        """Numbers that the block takes."""
        return (self.layers[::-1] if up else self.layers)[block] + 1 if self.places is None else self.places


def unet_name(path: str, blocks: UNetBlocks) -> str:
    """`down_blocks.1.resnets.0.conv1.weight` -> `input_blocks.4.0.in_layers.2.weight`, where blocks have two layers.

    A path that LDM has no name for keeps its own. ModelError for a block or layer that `blocks` has not.
    """
    module, _, kind = path.rpartition(".")
    if module in _UNET_OUTSIDE:
        return f"{_UNET_OUTSIDE[module]}.{kind}"
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", path):
        part, index, inner = match.groups()
        is_resnet = part == "resnets"
        return f"middle_block.{2 * int(index) + (not is_resnet)}.{_resnet_name(inner) if is_resnet else inner}"
    if not (match := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", path)):
        return path
    side, block, part, layer, inner = match[1], int(match[2]), match[3], int(match[4]), match[5]
    up = side == "up"
    if block >= len(blocks.layers) or layer >= blocks.num_places(block, up=up):
        raise ModelError(f"{path}: must be one of {len(blocks.layers)} blocks of the UNet, of {blocks.layers} layers")
    first = blocks.first_place(block, up=up)
    last = first + blocks.num_places(block, up=up) - 1
    stem = "output_blocks" if up else "input_blocks"
    if part == "resnets":
        return f"{stem}.{first + layer}.0.{_resnet_name(inner)}"
    if part == "attentions" and not (up and not blocks.up_attention[block]):
        return f"{stem}.{first + layer}.1.{inner}"
    if part == "downsamplers":
        return f"{stem}.{last}.0.{inner.replace('conv.', 'op.')}"
    if part == "upsamplers":
        return f"{stem}.{last}.{2 if blocks.up_attention[block] else 1}.{inner}"
    return path


def vae_name(path: str, num_blocks: int) -> str:
    """`decoder.up_blocks.0.resnets.0.conv1.weight` -> `decoder.up.3.block.0.conv1.weight`, of 4 blocks."""
    path = path.replace(".conv_norm_out.", ".norm_out.").replace(".conv_shortcut.", ".nin_shortcut.")
    if match := re.fullmatch(r"(.+)\.mid_block\.attentions\.0\.(.+)\.(\w+)", path):
        return f"{match[1]}.mid.attn_1.{_VAE_ATTENTION.get(match[2], match[2])}.{match[3]}"
    if match := re.fullmatch(r"(.+)\.mid_block\.resnets\.(\d+)\.(.+)", path):
        return f"{match[1]}.mid.block_{int(match[2]) + 1}.{match[3]}"
    if match := re.fullmatch(r"(.+)\.(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", path):
        coder, side, block, part, layer, inner = match.groups()
        level = num_blocks - 1 - int(block) if side == "up" else int(block)
        return f"{coder}.{side}.{level}." + (f"block.{layer}.{inner}" if part == "resnets" else f"{side}sample.{inner}")
    return path


class StoredAs(NamedTuple):
    """Where a tensor is in a file: all of one stored there, some of its rows, or the same transposed."""

    name: str
    part: int | None = None
    """Which of NUM_PARTS equal parts of the rows, where it is one."""
    transposed: bool = False


def open_clip_name(path: str) -> StoredAs:
    """transformers' CLIP to OpenCLIP, which stores q, k and v as one tensor, and the projection as it multiplies rows.

    `text_model.encoder.layers.0.mlp.fc1.weight` -> `transformer.resblocks.0.mlp.c_fc.weight`.
    """
    path = path.removeprefix("text_model.")
    outside = {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm.weight": "ln_final.weight",
        "final_layer_norm.bias": "ln_final.bias",
    }
    if path == "text_projection.weight":
        return StoredAs("text_projection", transposed=True)
    if not (match := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(\w+)", path)):
        return StoredAs(outside.get(path, path))
    block, module, kind = f"transformer.resblocks.{match[1]}", match[2], match[3]
    if module.startswith("self_attn.") and (projection := module.removeprefix("self_attn.")) in _OPEN_CLIP_STACK:
        return StoredAs(f"{block}.attn.in_proj_{kind}", part=_OPEN_CLIP_STACK.index(projection))
    return StoredAs(f"{block}.{_OPEN_CLIP_LAYER.get(module, module)}.{kind}")


def _resnet_name(inner: str) -> str:
    module, _, kind = inner.rpartition(".")
    return f"{_UNET_RESNET.get(module, module)}.{kind}"
