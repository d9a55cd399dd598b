"""What a model folder says about its networks: frozen dataclasses read from diffusers' and transformers' JSON.

Fields keep the JSON's own names and diffusers' (or transformers') defaults, so that an absent key means here what it
means there. Three kinds of keys:

* a field is checked for type and range, whether it came from JSON or from Python;
* a key in `_FIXED` must have the one value that is implemented, because ignoring another would change the image;
* any other key is ignored, as diffusers does.

Everything that is refused raises a ModelError naming the file, the key, its value and what is supported.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, TypeVar

from shaderfusion.config_rules import (
    Config,
    Count,
    Depth,
    DepthPerBlock,
    DepthPerLayer,
    Fixed,
    Offset,
    PerSide,
    Positive,
    Width,
    WidthPerBlock,
    Widths,
)

__all__ = [
    "NUM_TIME_IDS",
    "ClipTextConfig",
    "Config",
    "TinyVaeConfig",
    "UNetBlock",
    "UNetConfig",
    "VaeConfig",
]

_MOST_LAYERS = 1000  # of a UNet's transformers: with more it would be recorded for minutes

T = TypeVar("T")

DownBlockType = Literal["CrossAttnDownBlock2D", "DownBlock2D"]
UpBlockType = Literal["CrossAttnUpBlock2D", "UpBlock2D"]
MidBlockType = Literal["UNetMidBlock2DCrossAttn", "UNetMidBlock2D"]

NUM_TIME_IDS = 6
"""Of `text_time`: sides of the original picture, its crop's top and left, sides of the picture (SDXL, 2307.01952)."""


@dataclass(frozen=True)
class ClipTextConfig(Config):
    """CLIP's text transformer (Radford et al. 2021), from text_encoder/config.json; defaults of transformers.

    Stable Diffusion's prompt embedding is the last hidden state after the final layer norm, (B, L, hidden_size).
    """

    _FIXED: ClassVar[Fixed] = {"model_type": ("clip_text_model",)}

    vocab_size: Count = 49408
    hidden_size: Width = 512
    intermediate_size: Width = 2048
    num_hidden_layers: Depth = 12
    num_attention_heads: Width = 8
    max_position_embeddings: Width = 77  # L, tokens of a prompt
    hidden_act: Literal["quick_gelu", "gelu"] = "quick_gelu"
    layer_norm_eps: Positive = 1e-5
    projection_dim: Width = 512  # channels of the pooled output where it is projected
    eos_token_id: Offset = 49407  # end of text

    def _check_relations(self) -> None:
        self._require_divisible("hidden_size", "num_attention_heads")

    @property
    def head_dim(self) -> int:
        """Channels of one attention head, D."""
        return self.hidden_size // self.num_attention_heads


class UNetBlock(NamedTuple):
    """The layers at one level of the UNet."""

    channels: int
    num_heads: int
    transformers: tuple[int | None, ...]
    """For each residual block the layers of the transformer after it, which projects even with none; None where there
    is no transformer."""


@dataclass(frozen=True)
class UNetConfig(Config):
    """The noise predictor of Stable Diffusion 1.x and 2.x (Rombach et al. 2022, 2112.10752), SDXL (Podell et al. 2023,
    2307.01952) and models distilled from them, from unet/config.json.

    Blocks are counted from the outermost: block i has `block_out_channels[i]` channels at 2^-i of the latent size.
    """

    _FIXED: ClassVar[Fixed] = {
        "_class_name": ("UNet2DConditionModel",),
        "act_fn": ("silu", "swish"),
        "attention_type": ("default",),
        "center_input_sample": (False,),
        "class_embed_type": (None,),
        "class_embeddings_concat": (False,),
        "conv_in_kernel": (3,),
        "conv_out_kernel": (3,),
        "cross_attention_norm": (None,),
        "downsample_padding": (1,),
        "dual_cross_attention": (False,),
        "encoder_hid_dim": (None,),
        "encoder_hid_dim_type": (None,),
        "mid_block_only_cross_attention": (None, False),
        "mid_block_scale_factor": (1,),
        "num_attention_heads": (None,),  # diffusers refuses it too: see attention_head_dim
        "num_class_embeds": (None,),
        "only_cross_attention": (False,),
        "resnet_out_scale_factor": (1,),
        "resnet_skip_time_act": (False,),
        "resnet_time_scale_shift": ("default",),
        "time_embedding_act_fn": (None,),
        "time_embedding_type": ("positional",),
        "timestep_post_act": (None,),
    }

    sample_size: PerSide | None = None  # latent cells of the image the model was trained on
    in_channels: Width = 4
    out_channels: Width = 4
    down_block_types: tuple[DownBlockType, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    mid_block_type: MidBlockType | None = "UNetMidBlock2DCrossAttn"
    up_block_types: tuple[UpBlockType, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    block_out_channels: Widths = (320, 640, 1280, 1280)
    layers_per_block: DepthPerBlock = 2
    transformer_layers_per_block: DepthPerLayer = 1  # of a block, or a list: after each of its residual blocks
    reverse_transformer_layers_per_block: DepthPerLayer | None = None  # of the up blocks, in their own order
    attention_head_dim: WidthPerBlock = 8  # in spite of its name the NUMBER of heads (diffusers issue 2011)
    cross_attention_dim: Width = 1280  # channels of the prompt embedding
    time_embedding_dim: Width | None = None
    norm_num_groups: Width = 32
    norm_eps: Positive = 1e-5
    use_linear_projection: bool = False  # into and out of a transformer: a matmul (2.x) or a 1x1 convolution (1.x)
    flip_sin_to_cos: bool = True
    freq_shift: Offset = 0
    time_cond_proj_dim: Width | None = None  # channels of an embedding of the guidance scale (LCM, 2310.04378)
    addition_embed_type: Literal["text_time"] | None = None  # what the time embedding adds: pooled text, time ids
    addition_time_embed_dim: Width | None = None  # sinusoids of each of the NUM_TIME_IDS
    projection_class_embeddings_input_dim: Width | None = None  # channels of the pooled text and all those sinusoids

    def _check_relations(self) -> None:
        num_blocks = len(self.block_out_channels)
        one_each = f"have one entry for each of block_out_channels (={self.block_out_channels})"
        for key in ("down_block_types", "up_block_types"):
            self._require(len(getattr(self, key)) == num_blocks, key, one_each)
        per_block = ("transformer_layers_per_block", "reverse_transformer_layers_per_block")
        for key in ("layers_per_block", *per_block, "attention_head_dim"):
            value = getattr(self, key)
            fits = value is None or isinstance(value, int) or len(value) == num_blocks
            self._require(fits, key, f"be one number or {one_each}")
        self._check_transformer_layers()
        self._require_divisible("block_out_channels", "norm_num_groups")
        for block in (*self.down_blocks, self.mid_block, *self.up_blocks):
            fits = set(block.transformers) <= {None} or block.channels % block.num_heads == 0
            self._require(fits, "attention_head_dim", f"divide block_out_channels (={self.block_out_channels})")
        C = self.block_out_channels[0]
        self._require(C > 1, "block_out_channels", "begin with at least 2, a sine and a cosine of the time step")
        rule = f"be less than half of the first of block_out_channels (={C})"
        self._require(self.freq_shift < C // 2, "freq_shift", rule)
        fits = self.time_cond_proj_dim is None or self.time_cond_proj_dim >= 4
        self._require(fits, "time_cond_proj_dim", "be at least 4, two sines and two cosines of the guidance scale")
        if self.addition_embed_type == "text_time":
            self._check_time_ids()

    def _check_transformer_layers(self) -> None:
        """A list for a block has an entry for each of its residual blocks; diffusers lets it have more."""
        key, reverse_key = "transformer_layers_per_block", "reverse_transformer_layers_per_block"
        is_nested = any(isinstance(value, tuple) for value in self._per_block(self.transformer_layers_per_block))
        rule = f"come with {reverse_key}, which says the same of the up blocks, where it has a list for a block"
        self._require(not is_nested or self.reverse_transformer_layers_per_block is not None, key, rule)
        down = zip(self.down_blocks, self.num_layers_per_block, strict=True)
        up = zip(self.up_blocks, self.num_layers_per_block[::-1], strict=True)
        rule = "have an entry for each residual block where it has a list for a block"
        self._require(all(len(block.transformers) == count for block, count in down), key, rule)
        self._require(all(len(block.transformers) == count + 1 for block, count in up), reverse_key, rule)
        blocks = (*self.down_blocks, self.mid_block, *self.up_blocks)
        num_layers = sum(depth or 0 for block in blocks for depth in block.transformers)
        self._require(num_layers <= _MOST_LAYERS, key, f"come to at most {_MOST_LAYERS} layers in all blocks")

    def _check_time_ids(self) -> None:
        for key in ("addition_time_embed_dim", "projection_class_embeddings_input_dim"):
            self._require(getattr(self, key) is not None, key, "be given where addition_embed_type is 'text_time'")
        C = self.addition_time_embed_dim or 0
        rule = f"be at least 2 and more than twice freq_shift (={self.freq_shift})"
        self._require(self.freq_shift < C // 2, "addition_time_embed_dim", rule)
        rule = (
            f"be more than {NUM_TIME_IDS} times addition_time_embed_dim (={C}), which leaves the pooled text's channels"
        )
        self._require(self.pooled_dim > 0, "projection_class_embeddings_input_dim", rule)

    @property
    def sample_sides(self) -> tuple[int, int]:
        """Height and width of `sample_size`, by default 64."""
        cells = 64 if self.sample_size is None else self.sample_size
        return (cells, cells) if isinstance(cells, int) else cells

    @property
    def num_heads_per_block(self) -> tuple[int, ...]:
        """Attention heads of each down block; up blocks take them reversed, the middle block the last."""
        return self._per_block(self.attention_head_dim)

    @property
    def num_layers_per_block(self) -> tuple[int, ...]:
        """Residual blocks of each down block; up blocks take them reversed and have one more."""
        return self._per_block(self.layers_per_block)

    @property
    def down_blocks(self) -> tuple[UNetBlock, ...]:
        """From the outermost on."""
        depths = self._per_block(self.transformer_layers_per_block)
        return tuple(
            self._block(i, depths[i], self.num_layers_per_block[i], self.down_block_types[i] == "CrossAttnDownBlock2D")
            for i in range(len(depths))
        )

    @property
    def mid_block(self) -> UNetBlock:
        """Two residual blocks and a transformer between them, one residual block, or none."""
        last = len(self.block_out_channels) - 1
        depth = self._per_block(self.transformer_layers_per_block)[last]
        depth = depth if isinstance(depth, int) else depth[0]
        transformers = {"UNetMidBlock2DCrossAttn": (depth, None), "UNetMidBlock2D": (None,), None: ()}
        channels, num_heads = self.block_out_channels[last], self.num_heads_per_block[last]
        return UNetBlock(channels, num_heads, transformers[self.mid_block_type])

    @property
    def up_blocks(self) -> tuple[UNetBlock, ...]:
        """From the innermost on; each has one residual block more than the down block of its level."""
        depths = self._per_block(self.transformer_layers_per_block)[::-1]
        if self.reverse_transformer_layers_per_block is not None:
            depths = self._per_block(self.reverse_transformer_layers_per_block)
        levels = range(len(depths) - 1, -1, -1)
        return tuple(
            self._block(i, depth, self.num_layers_per_block[i] + 1, kind == "CrossAttnUpBlock2D")
            for i, depth, kind in zip(levels, depths, self.up_block_types, strict=True)
        )

    @property
    def pooled_dim(self) -> int:
        """Channels of the pooled prompt where `addition_embed_type` is "text_time", else 0."""
        if self.addition_embed_type is None:
            return 0
        return (self.projection_class_embeddings_input_dim or 0) - NUM_TIME_IDS * (self.addition_time_embed_dim or 0)

    @property
    def time_embed_dim(self) -> int:
        """Channels of the time embedding after its two layers."""
        return 4 * self.block_out_channels[0] if self.time_embedding_dim is None else self.time_embedding_dim

    def _block(self, level: int, depth: int | tuple[int, ...], num_layers: int, has_attention: bool) -> UNetBlock:
        depths = (depth,) * num_layers if isinstance(depth, int) else depth[:num_layers]
        transformers = depths if has_attention else (None,) * num_layers
        return UNetBlock(self.block_out_channels[level], self.num_heads_per_block[level], transformers)

    def _per_block(self, value: int | tuple[T, ...]) -> tuple[int | T, ...]:
        return (value,) * len(self.block_out_channels) if isinstance(value, int) else value


@dataclass(frozen=True)
class VaeConfig(Config):
    """The autoencoder (AutoencoderKL), from vae/config.json.

    The decoder's first block has the last of `block_out_channels`; each has `layers_per_block + 1` residual blocks. The
    encoder's first block has the first; each has `layers_per_block`. What only the encoder needs is checked when it is.
    """

    _FIXED: ClassVar[Fixed] = {
        "_class_name": ("AutoencoderKL",),
        "act_fn": ("silu", "swish"),
        "latents_mean": (None,),
        "latents_std": (None,),
        "shift_factor": (None, 0),
    }

    latent_channels: Width = 4
    in_channels: Width = 3
    out_channels: Width = 3
    down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",)
    up_block_types: tuple[Literal["UpDecoderBlock2D"], ...] = ("UpDecoderBlock2D",)
    block_out_channels: Widths = (64,)
    layers_per_block: Depth = 1
    norm_num_groups: Width = 32
    scaling_factor: Positive = 0.18215  # decode(latents / scaling_factor)
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True  # one head over all channels
    force_upcast: bool | None = None  # to f32; absent it is true to diffusers' SDXL, and its SD 1.x and 2.x ignore it

    def _check_relations(self) -> None:
        fits = len(self.up_block_types) == len(self.block_out_channels)
        rule = f"have one entry for each of block_out_channels (={self.block_out_channels})"
        self._require(fits, "up_block_types", rule)
        self._require_divisible("block_out_channels", "norm_num_groups")

    def require_encoder(self) -> None:
        """ModelError unless the encoder is one of pictures in colour, of the blocks that are implemented."""
        self._require(self.in_channels == 3, "in_channels", "be 3 to encode pictures: red, green and blue")
        blocks = ("DownEncoderBlock2D",) * len(self.block_out_channels)
        self._require(self.down_block_types == blocks, "down_block_types", f"be {list(blocks)} to encode pictures")

    @property
    def scale_factor(self) -> int:
        """Pixels of the side of the image for each latent cell."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True)
class TinyVaeConfig(Config):
    """The decoder half of a small autoencoder (AutoencoderTiny), from vae/config.json; the defaults are TAESD's.

    Block i has `num_decoder_blocks[i]` residual blocks at 2^i times the latent size, the outermost comes last. As in
    diffusers latent_magnitude and latent_shift say nothing about decoding.
    """

    _FIXED: ClassVar[Fixed] = {
        "_class_name": ("AutoencoderTiny",),
        "act_fn": ("relu",),
        "latents_mean": (None,),
        "latents_std": (None,),
        "shift_factor": (None, 0),
        "upsample_fn": ("nearest",),
        "upsampling_scaling_factor": (2,),
    }

    force_upcast: ClassVar[bool] = False  # diffusers ignores the key here

    latent_channels: Width = 4
    out_channels: Width = 3
    decoder_block_out_channels: Widths = (64, 64, 64, 64)
    num_decoder_blocks: tuple[Depth, ...] = (3, 3, 3, 1)
    scaling_factor: Positive = 1.0  # decode(latents / scaling_factor)

    def _check_relations(self) -> None:
        widths = self.decoder_block_out_channels
        self._require(len(set(widths)) == 1, "decoder_block_out_channels", "be the same number in all blocks")
        rule = f"have one entry for each of decoder_block_out_channels (={widths})"
        self._require(len(self.num_decoder_blocks) == len(widths), "num_decoder_blocks", rule)

    @property
    def block_out_channels(self) -> tuple[int, ...]:
        """From the outermost block, as VaeConfig's."""
        return self.decoder_block_out_channels[::-1]

    @property
    def scale_factor(self) -> int:
        """Pixels of the side of the image for each latent cell."""
        return 2 ** (len(self.decoder_block_out_channels) - 1)
