"""What the names and shapes of tensors in LDM's layout say of a network, in the words of diffusers' config.json."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shaderfusion.errors import ModelError
from shaderfusion.files import shown
from shaderfusion.weights.ldm_names import UNetBlocks, unet_name

__all__ = ["Shapes", "read_clip", "read_open_clip", "read_unet", "read_vae"]

_NUM_GROUPS = 32  # of all norms of all releases
_TEXT_HEAD_DIM = 64  # of OpenAI's and OpenCLIP's text encoders
_TIME_ID_CHANNELS = 256  # of each of SDXL's
_NUM_HEADS = 8  # at every level of SD 1.x
_OPEN_CLIP_H_LAYERS = 23  # SD 2.x reads what the last but one of its 24 makes; diffusers' folders leave the last out


class Shapes:
    """Shapes of one component's tensors by their names in it, which begin with `prefix` in the file at `path`."""

    def __init__(self, path: Path, shapes: Mapping[str, tuple[int, ...]], prefix: str = "") -> None:
        self.path = path
        self.prefix = prefix
        self._shapes = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}

    def __contains__(self, name: str) -> bool:
        return name in self._shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def children(self, stem: str) -> list[int]:
        """The numbers n of tensors `stem.n.*`, in order."""
        start = f"{stem}."
        parts = {name.removeprefix(start).partition(".")[0] for name in self._shapes if name.startswith(start)}
        return sorted({int(part) for part in parts if part.isdecimal() and len(part) <= 2})  # no network has more

    def size(self, name: str, axis: int) -> int:
        """Of a dimension; ModelError where there is no such tensor, or it has fewer."""
        shape = self._shapes.get(name)
        if shape is None:
            raise ModelError(f"{self.path}: lacks the tensor {self.prefix}{name}; download the file again")
        if not -len(shape) <= axis < len(shape):
            raise ModelError(
                f"{self.path}: {self.prefix}{name} has shape {shown(shape)}, must have more of them; download the file "
                "again"
            )
        return shape[axis]

    def rank(self, name: str) -> int:
        """The number of a tensor's dimensions."""
        return len(self._shapes[name])

    def first(self, suffix: str) -> str:
        """The first name with that end; ModelError where there is none."""
        for name in self._shapes:
            if name.endswith(suffix):
                return name
        raise ModelError(f"{self.path}: lacks a tensor {self.prefix}*{suffix}; choose another model")


class _Layer(NamedTuple):
    """A residual block of the UNet."""

    channels: int
    depth: int | None
    """Layers of the transformer after it; None where there is none."""


_Levels = Sequence[Sequence[_Layer]]


def read_unet(shapes: Shapes, head_dim: int | None) -> tuple[dict[str, Any], UNetBlocks]:
    """The options, and how layers are numbered. Heads have `head_dim` channels, or there are 8 at every level.

    ModelError where the tensors are not those of a UNet2DConditionModel.
    """
    down, up = _down_levels(shapes), _up_levels(shapes)
    mid = [_layer(shapes, "middle_block.0", "middle_block.1")] if shapes.children("middle_block") else []
    blocks = _blocks(shapes, down, up)
    widths = [level[0].channels for level in down]
    options: dict[str, Any] = {
        "_class_name": "UNet2DConditionModel",
        "in_channels": shapes.size("input_blocks.0.0.weight", 1),
        "out_channels": shapes.size("out.2.weight", 0),
        "block_out_channels": widths,
        "layers_per_block": list(blocks.layers),
        "down_block_types": ["DownBlock2D" if level[0].depth is None else "CrossAttnDownBlock2D" for level in down],
        "up_block_types": ["UpBlock2D" if level[0].depth is None else "CrossAttnUpBlock2D" for level in up],
        "mid_block_type": None,
        "attention_head_dim": [_NUM_HEADS if head_dim is None else max(1, C // head_dim) for C in widths],
        "cross_attention_dim": shapes.size(shapes.first(".attn2.to_k.weight"), 1),
        "use_linear_projection": shapes.rank(shapes.first(".proj_in.weight")) == 2,
        "time_embedding_dim": shapes.size("time_embed.0.weight", 0),
        "norm_num_groups": _NUM_GROUPS,
    }
    if mid:
        options["mid_block_type"] = "UNetMidBlock2D" if mid[0].depth is None else "UNetMidBlock2DCrossAttn"
    options |= _transformer_layers(shapes, down, up, mid)
    if "time_embedding.cond_proj.weight" in shapes:
        options["time_cond_proj_dim"] = shapes.size("time_embedding.cond_proj.weight", 1)
    if "label_emb.0.0.weight" in shapes:
        options["addition_embed_type"] = "text_time"
        options["addition_time_embed_dim"] = _TIME_ID_CHANNELS
        options["projection_class_embeddings_input_dim"] = shapes.size("label_emb.0.0.weight", 1)
    return options, blocks


def _layer(shapes: Shapes, stem: str, transformer: str) -> _Layer:
    depth = (
        len(shapes.children(f"{transformer}.transformer_blocks")) if f"{transformer}.norm.weight" in shapes else None
    )
    return _Layer(shapes.size(f"{stem}.in_layers.2.weight", 0), depth)


def _down_levels(shapes: Shapes) -> list[list[_Layer]]:
    """Each ends with a downsample, but the last."""
    levels: list[list[_Layer]] = [[]]
    for n in shapes.children("input_blocks")[1:]:
        if f"input_blocks.{n}.0.op.weight" in shapes:
            levels.append([])
        else:
            levels[-1].append(_layer(shapes, f"input_blocks.{n}.0", f"input_blocks.{n}.1"))
    return levels


def _up_levels(shapes: Shapes) -> list[list[_Layer]]:
    """Each ends with an upsample, but the last. A converter leaves transformers of the first under diffusers' names."""
    levels: list[list[_Layer]] = [[]]
    for n in shapes.children("output_blocks"):
        if f"output_blocks.{n}.0.in_layers.2.weight" in shapes:
            left = f"up_blocks.0.attentions.{n}"
            transformer = left if f"{left}.norm.weight" in shapes else f"output_blocks.{n}.1"
            levels[-1].append(_layer(shapes, f"output_blocks.{n}.0", transformer))
        if any(f"output_blocks.{n}.{k}.conv.weight" in shapes for k in (1, 2)):
            levels.append([])
    return levels


def _blocks(shapes: Shapes, down: _Levels, up: _Levels) -> UNetBlocks:
    """How layers are numbered; ModelError unless that finds them all."""
    is_regular = all(len({(layer.channels, layer.depth is None) for layer in level}) == 1 for level in (*down, *up))
    if is_regular and [len(level) + 1 for level in down[::-1]] == [len(level) for level in up]:
        left = 1 if "up_blocks.0.attentions.0.norm.weight" in shapes else 0
        up_attention = (False,) * left + tuple(level[0].depth is not None for level in up[left:])
        ends = [n for n in shapes.children("input_blocks") if f"input_blocks.{n}.0.op.weight" in shapes]
        for places in (None, *ends[:1]):
            blocks = UNetBlocks(tuple(map(len, down)), up_attention, places)
            if all(unet_name(path, blocks) in shapes for path in _convolutions(down, up)):
                return blocks
    raise ModelError(
        f"{shapes.path}: the blocks of its UNet are not those of diffusers' UNet2DConditionModel; choose another model"
    )


def _convolutions(down: _Levels, up: _Levels) -> Iterator[str]:
    """diffusers' path of one in every layer of those levels."""
    for side, sampler, levels in (("down", "downsamplers", down), ("up", "upsamplers", up)):
        for i, level in enumerate(levels):
            yield from (f"{side}_blocks.{i}.resnets.{layer}.conv1.weight" for layer in range(len(level)))
            if i < len(levels) - 1:
                yield f"{side}_blocks.{i}.{sampler}.0.conv.weight"


def _transformer_layers(shapes: Shapes, down: _Levels, up: _Levels, mid: Sequence[_Layer]) -> dict[str, Any]:
    """One number for a level where that is enough, else one for each residual block."""

    def listed(level: Sequence[_Layer]) -> Any:
        return 1 if level[0].depth is None else [layer.depth for layer in level]

    levels = [[*below, *above] for below, above in zip(down, up[::-1], strict=True)]
    levels[-1] += mid
    found = [{layer.depth for layer in level} - {None} for level in levels]
    if all(len(depths) <= 1 for depths in found):
        return {"transformer_layers_per_block": [depths.pop() if depths else 1 for depths in found]}
    if mid and mid[0].depth not in (None, down[-1][0].depth):
        raise ModelError(
            f"{shapes.path}: the transformer in the middle of its UNet has {mid[0].depth} layers, must have as many as "
            "the one before; choose another model"
        )
    return {
        "transformer_layers_per_block": [listed(level) for level in down],
        "reverse_transformer_layers_per_block": [listed(level) for level in up],
    }


def read_vae(shapes: Shapes) -> dict[str, Any]:
    """Options of an AutoencoderKL, except for what tensors do not say: scaling_factor and force_upcast."""
    levels = shapes.children("decoder.up")
    widths = [shapes.size(f"decoder.up.{level}.block.0.conv2.weight", 0) for level in levels]
    num_blocks = {len(shapes.children(f"decoder.up.{level}.block")) for level in levels}
    if levels != list(range(len(levels))) or len(num_blocks) != 1:
        raise ModelError(
            f"{shapes.path}: the blocks of its VAE are not those of diffusers' AutoencoderKL; choose another one"
        )
    options: dict[str, Any] = {
        "_class_name": "AutoencoderKL",
        "latent_channels": shapes.size("decoder.conv_in.weight", 1),
        "out_channels": shapes.size("decoder.conv_out.weight", 0),
        "block_out_channels": widths,
        "layers_per_block": num_blocks.pop() - 1,
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "norm_num_groups": _NUM_GROUPS,
        "mid_block_add_attention": any(name.startswith("decoder.mid.attn_1.") for name in shapes),
        "use_quant_conv": "quant_conv.weight" in shapes,
        "use_post_quant_conv": "post_quant_conv.weight" in shapes,
    }
    if "encoder.conv_in.weight" in shapes:
        options["in_channels"] = shapes.size("encoder.conv_in.weight", 1)
    return options


def read_clip(shapes: Shapes) -> dict[str, Any]:
    """Options of OpenAI's CLIP, whose tensors have transformers' names, with or without the outer module's."""
    outer = "text_model." if "text_model.final_layer_norm.weight" in shapes else ""
    return _text_encoder(
        shapes,
        embeddings=(
            f"{outer}embeddings.token_embedding.weight",
            f"{outer}embeddings.position_embedding.weight",
        ),
        layers=f"{outer}encoder.layers",
        feed_forward="mlp.fc1",
        hidden_act="quick_gelu",
    )


def read_open_clip(shapes: Shapes, *, penultimate: bool) -> dict[str, Any]:
    """Options of OpenCLIP; with `penultimate` those layers alone that SD 2.x reads, as in diffusers' folders."""
    options = _text_encoder(
        shapes,
        embeddings=("token_embedding.weight", "positional_embedding"),
        layers="transformer.resblocks",
        feed_forward="mlp.c_fc",
        hidden_act="gelu",
    )
    if penultimate:
        options["num_hidden_layers"] = min(options["num_hidden_layers"], _OPEN_CLIP_H_LAYERS)
    if "text_projection" in shapes:
        options["projection_dim"] = shapes.size("text_projection", 1)
    elif "text_projection.weight" in shapes:
        options["projection_dim"] = shapes.size("text_projection.weight", 0)
    return options


def _text_encoder(
    shapes: Shapes, *, embeddings: tuple[str, str], layers: str, feed_forward: str, hidden_act: str
) -> dict[str, Any]:
    tokens, positions = embeddings
    vocab_size, hidden_size = shapes.size(tokens, 0), shapes.size(tokens, 1)
    return {
        "model_type": "clip_text_model",
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": shapes.size(f"{layers}.0.{feed_forward}.weight", 0),
        "num_hidden_layers": len(shapes.children(layers)),
        "num_attention_heads": max(1, hidden_size // _TEXT_HEAD_DIM),
        "max_position_embeddings": shapes.size(positions, 0),
        "hidden_act": hidden_act,
    }
