"""What a model folder says about its networks: frozen dataclasses read from diffusers' and transformers' JSON.

Fields keep the JSON's own names and diffusers' (or transformers') defaults, so that an absent key means here what it
means there. Three kinds of keys:

* a field is checked for type and range, whether it came from JSON or from Python;
* a key in `_FIXED` must have the one value that is implemented, because ignoring another would change the image;
* any other key is ignored, as diffusers does.

Everything that is refused raises a ModelError naming the file, the key, its value and what is supported.
"""

import json
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from shaderfusion.errors import ModelError
from shaderfusion.files import is_folder, load_json, shown

__all__ = [
    "CONVERT_PICKLE",
    "PICKLE_SUFFIXES",
    "ClipTextConfig",
    "Config",
    "SchedulerConfig",
    "UNetConfig",
    "VaeConfig",
]

PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth")

CONVERT_PICKLE = (
    "pickle files can run code when opened, so shaderfusion never does; convert it where you trust it: "
    "`StableDiffusionPipeline.from_pretrained(...).save_pretrained(folder, safe_serialization=True)` with diffusers, "
    "or `StableDiffusionPipeline.from_single_file(...)` for a .ckpt"
)


@dataclass(frozen=True)
class _Rule:
    """What a field may hold, as a test and as words that complete "must be"."""

    accepts: Callable[[Any], bool]
    words: str


def _is_int(value: object, minimum: int, maximum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum


def _is_number(value: object, minimum: float, maximum: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and minimum <= value <= maximum


def _is_tuple(value: object, accepts: Callable[[Any], bool]) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and all(accepts(item) for item in value)


def _whole(minimum: int, maximum: int) -> _Rule:
    return _Rule(lambda v: _is_int(v, minimum, maximum), f"a whole number from {minimum} to {maximum}")


def _per_block(item: _Rule) -> _Rule:
    return _Rule(lambda v: item.accepts(v) or _is_tuple(v, item.accepts), f"{item.words}, or a list of them")


def _is_fraction(value: Any) -> bool:
    return _is_number(value, 0, 1) and 0 < value < 1


# The bounds are far beyond any model of these kinds; they keep absurd numbers from being recorded for hours.
_WIDTH = _whole(1, 32768)
_DEPTH = _whole(1, 64)
_MAX_BLOCKS = 8

Width = Annotated[int, _WIDTH]
Depth = Annotated[int, _DEPTH]
Count = Annotated[int, _whole(1, 1_000_000)]
Offset = Annotated[int, _whole(0, 1_000_000)]
Positive = Annotated[float, _Rule(lambda v: _is_number(v, 1e-30, 1e30), "a number from 1e-30 to 1e30")]  # finite in f32
Fraction = Annotated[float, _Rule(_is_fraction, "a number between 0 and 1")]
Fractions = Annotated[
    tuple[float, ...], _Rule(lambda v: _is_tuple(v, _is_fraction), "a list of numbers between 0 and 1")
]
Widths = Annotated[
    tuple[int, ...],
    _Rule(
        lambda v: _is_tuple(v, _WIDTH.accepts) and len(v) <= _MAX_BLOCKS,
        f"a list of 1 to {_MAX_BLOCKS}, each {_WIDTH.words}",
    ),
]
WidthPerBlock = Annotated[int | tuple[int, ...], _per_block(_WIDTH)]
DepthPerBlock = Annotated[int | tuple[int, ...], _per_block(_DEPTH)]
PerSide = Annotated[
    int | tuple[int, int],
    _Rule(
        lambda v: _WIDTH.accepts(v) or (_is_tuple(v, _WIDTH.accepts) and len(v) == 2),
        f"{_WIDTH.words}, or a list of two: height and width",
    ),
]
_BUILT_IN = {
    bool: _Rule(lambda v: isinstance(v, bool), "true or false"),
    str: _Rule(lambda v: isinstance(v, str), "a string"),
}

Fixed = Mapping[str, tuple[object, ...]]  # JSON key -> the values that are implemented

DownBlockType = Literal["CrossAttnDownBlock2D", "DownBlock2D"]
UpBlockType = Literal["CrossAttnUpBlock2D", "UpBlock2D"]


def _rule(annotation: Any) -> _Rule:
    """The rule of a field's annotation: a built-in type, a Literal, one of the aliases above, or any of them | None."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in _BUILT_IN:
        return _BUILT_IN[annotation]
    if origin is Literal:
        return _Rule(lambda v: isinstance(v, str) and v in args, "one of " + ", ".join(map(repr, args)))
    if origin is tuple:
        item = _rule(args[0])
        return _Rule(lambda v: _is_tuple(v, item.accepts), f"a list, each {item.words}")
    if origin is Annotated:
        return annotation.__metadata__[0]
    if origin in (typing.Union, types.UnionType) and args[1:] == (types.NoneType,):
        value = _rule(args[0])
        return _Rule(lambda v: v is None or value.accepts(v), f"{value.words}, or null")
    raise TypeError(f"no rule for the annotation {annotation}")


@dataclass(frozen=True)
class Config:
    """Reading and checking, shared by the four configurations."""

    _FILE: ClassVar[str] = "config.json"
    _FIXED: ClassVar[Fixed] = {}
    _FIELD_OF_KEY: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def from_json(cls, path: Path | str) -> Self:
        """Read the JSON file at `path`, or the one of the usual name when `path` is the component's folder.

        Raises ModelError: no such file, not JSON, an option that is not implemented, a value outside its rule.
        """
        file = Path(path)
        if is_folder(file):
            file = file / cls._FILE
        return cls.from_options(load_json(file), str(file))

    @classmethod
    def from_options(cls, options: Mapping[str, Any], source: str) -> Self:
        """From what such a JSON file holds; errors name the source."""
        for key, supported in cls._FIXED.items():
            if key in options and _without_repeats(options[key]) not in supported:
                choices = " or ".join(json.dumps(value) for value in supported)
                raise ModelError(
                    f"{source}: {key} (={shown(options[key])}) is not supported: only {choices} is implemented; "
                    "choose another model"
                )
        names = {field.name for field in fields(cls)}
        renamed = {cls._FIELD_OF_KEY.get(key, key): _frozen(value) for key, value in options.items()}
        try:
            return cls(**{name: value for name, value in renamed.items() if name in names})
        except ModelError as error:
            raise ModelError(f"{source}: {error}") from None

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self), include_extras=True)
        for field in fields(self):
            value, rule = getattr(self, field.name), _rule(hints[field.name])
            if not rule.accepts(value):
                raise ModelError(f"{type(self).__name__}: {field.name} (={shown(value)}) must be {rule.words}")
        self._check_relations()

    def _check_relations(self) -> None:
        """Rules between two fields; each value alone is already known to be right."""

    def _require(self, holds: bool, key: str, rule: str) -> None:
        if not holds:
            raise ModelError(f"{type(self).__name__}: {key} (={shown(getattr(self, key))}) must {rule}")

    def _require_divisible(self, key: str, divisor: str) -> None:
        """Each number of field `key` is a multiple of field `divisor`."""
        number = getattr(self, divisor)
        numbers = getattr(self, key)
        numbers = numbers if isinstance(numbers, tuple) else (numbers,)
        self._require(all(n % number == 0 for n in numbers), key, f"be divisible by {divisor} (={number})")


def _without_repeats(value: Any) -> Any:
    """A list of one repeated value (an option given per block) as that value."""
    return value[0] if isinstance(value, list) and value and value == value[:1] * len(value) else value


def _frozen(value: Any) -> Any:
    """JSON lists as tuples, so that a frozen dataclass is hashable."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


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


@dataclass(frozen=True)
class UNetConfig(Config):
    """The noise predictor of Stable Diffusion 1.x and 2.x (Rombach et al. 2022), from unet/config.json.

    Blocks are counted from the outermost: block i has `block_out_channels[i]` channels at 2^-i of the latent size.
    """

    _FIXED: ClassVar[Fixed] = {
        "_class_name": ("UNet2DConditionModel",),
        "act_fn": ("silu", "swish"),
        "addition_embed_type": (None,),
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
        "mid_block_type": ("UNetMidBlock2DCrossAttn",),
        "num_attention_heads": (None,),  # diffusers refuses it too: see attention_head_dim
        "num_class_embeds": (None,),
        "only_cross_attention": (False,),
        "resnet_out_scale_factor": (1,),
        "resnet_skip_time_act": (False,),
        "resnet_time_scale_shift": ("default",),
        "reverse_transformer_layers_per_block": (None,),
        "time_cond_proj_dim": (None,),
        "time_embedding_act_fn": (None,),
        "time_embedding_type": ("positional",),
        "timestep_post_act": (None,),
    }

    sample_size: PerSide | None = None  # latent cells of the image the model was trained on
    in_channels: Width = 4
    out_channels: Width = 4
    down_block_types: tuple[DownBlockType, ...] = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)
    up_block_types: tuple[UpBlockType, ...] = ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3
    block_out_channels: Widths = (320, 640, 1280, 1280)
    layers_per_block: DepthPerBlock = 2
    transformer_layers_per_block: DepthPerBlock = 1
    attention_head_dim: WidthPerBlock = 8  # in spite of its name the NUMBER of heads (diffusers issue 2011)
    cross_attention_dim: Width = 1280  # channels of the prompt embedding
    time_embedding_dim: Width | None = None
    norm_num_groups: Width = 32
    norm_eps: Positive = 1e-5
    use_linear_projection: bool = False  # into and out of a transformer: a matmul (2.x) or a 1x1 convolution (1.x)
    flip_sin_to_cos: bool = True
    freq_shift: Offset = 0

    def _check_relations(self) -> None:
        num_blocks = len(self.block_out_channels)
        one_each = f"have one entry for each of block_out_channels (={self.block_out_channels})"
        for key in ("down_block_types", "up_block_types"):
            self._require(len(getattr(self, key)) == num_blocks, key, one_each)
        for key in ("layers_per_block", "transformer_layers_per_block", "attention_head_dim"):
            value = getattr(self, key)
            fits = isinstance(value, int) or len(value) == num_blocks
            self._require(fits, key, f"be one number or {one_each}")
        self._require_divisible("block_out_channels", "norm_num_groups")
        for i, (C, num_heads) in enumerate(zip(self.block_out_channels, self.num_heads_per_block, strict=True)):
            types_at_i = {self.down_block_types[i], self.up_block_types[-1 - i]}
            has_attention = i == num_blocks - 1 or types_at_i & {"CrossAttnDownBlock2D", "CrossAttnUpBlock2D"}
            fits = not has_attention or C % num_heads == 0
            self._require(fits, "attention_head_dim", f"divide block_out_channels (={self.block_out_channels})")
        C = self.block_out_channels[0]
        self._require(C > 1, "block_out_channels", "begin with at least 2, a sine and a cosine of the time step")
        rule = f"be less than half of the first of block_out_channels (={C})"
        self._require(self.freq_shift < C // 2, "freq_shift", rule)

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
    def num_transformer_layers_per_block(self) -> tuple[int, ...]:
        """Transformer layers after each residual block; up blocks take them reversed, the middle block the last."""
        return self._per_block(self.transformer_layers_per_block)

    @property
    def time_embed_dim(self) -> int:
        """Channels of the time embedding after its two layers."""
        return 4 * self.block_out_channels[0] if self.time_embedding_dim is None else self.time_embedding_dim

    def _per_block(self, value: int | tuple[int, ...]) -> tuple[int, ...]:
        return (value,) * len(self.block_out_channels) if isinstance(value, int) else value


@dataclass(frozen=True)
class VaeConfig(Config):
    """The decoder half of the autoencoder (AutoencoderKL), from vae/config.json.

    The decoder's first block has the last of `block_out_channels`; each has `layers_per_block + 1` residual blocks.
    """

    _FIXED: ClassVar[Fixed] = {
        "_class_name": ("AutoencoderKL",),
        "act_fn": ("silu", "swish"),
        "latents_mean": (None,),
        "latents_std": (None,),
        "shift_factor": (None, 0),
    }

    latent_channels: Width = 4
    out_channels: Width = 3
    up_block_types: tuple[Literal["UpDecoderBlock2D"], ...] = ("UpDecoderBlock2D",)
    block_out_channels: Widths = (64,)
    layers_per_block: Depth = 1
    norm_num_groups: Width = 32
    scaling_factor: Positive = 0.18215  # decode(latents / scaling_factor)
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True  # one head over all channels
    force_upcast: bool = False  # to f32; diffusers' default is true, which its pipeline of SD 1.x and 2.x ignores

    def _check_relations(self) -> None:
        fits = len(self.up_block_types) == len(self.block_out_channels)
        rule = f"have one entry for each of block_out_channels (={self.block_out_channels})"
        self._require(fits, "up_block_types", rule)
        self._require_divisible("block_out_channels", "norm_num_groups")

    @property
    def scale_factor(self) -> int:
        """Pixels of the side of the image for each latent cell."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True)
class SchedulerConfig(Config):
    """The noise schedule and the options of update rules, from scheduler/scheduler_config.json.

    As in diffusers' `from_config`, the rule that the file is used with (not the one named in it) decides which options
    count and what the absent ones mean, so `None` stands for an absent key whose default differs by rule. A rule
    refuses the options below the line that it would read in diffusers and that are not implemented.
    """

    _FILE = "scheduler_config.json"
    _FIELD_OF_KEY: ClassVar[Mapping[str, str]] = {"_class_name": "class_name"}

    class_name: str | None = None  # diffusers' class, which names the rule to use when the caller names none
    num_train_timesteps: Count = 1000
    beta_start: Fraction = 0.0001
    beta_end: Fraction = 0.02
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    trained_betas: Fractions | None = None
    rescale_betas_zero_snr: bool = False
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    timestep_spacing: Literal["leading", "linspace", "trailing"] | None = None
    steps_offset: Offset = 0
    set_alpha_to_one: bool | None = None
    clip_sample: bool = True
    clip_sample_range: Positive = 1.0
    final_sigmas_type: Literal["zero", "sigma_min"] = "zero"
    # ---- read only to be refused
    skip_prk_steps: bool = False
    thresholding: bool = False
    use_karras_sigmas: bool | None = None
    use_exponential_sigmas: bool | None = None
    use_beta_sigmas: bool | None = None
    interpolation_type: str = "linear"
    timestep_type: str = "discrete"

    def _check_relations(self) -> None:
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            raise ModelError(
                f"SchedulerConfig: trained_betas has {len(self.trained_betas)} entries, but must have one for each of "
                f"num_train_timesteps (={self.num_train_timesteps})"
            )
