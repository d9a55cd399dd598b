"""config: real model files as published, diffusers' defaults, and a refusal for each option that is not implemented."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from shaderfusion.config import ClipTextConfig, TinyVaeConfig, UNetConfig, VaeConfig
from shaderfusion.errors import ModelError
from shaderfusion.schedulers.config import SchedulerConfig

SD1_UNET = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.2.2",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}
SD2_UNET = SD1_UNET | {
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": [False, False, False, False],
    "sample_size": 96,
    "upcast_attention": True,
    "use_linear_projection": True,
}
SDXL_UNET = SD1_UNET | {
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "class_embed_type": None,
    "cross_attention_dim": 2048,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "mid_block_only_cross_attention": None,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "projection_class_embeddings_input_dim": 2816,
    "sample_size": 128,
    "time_cond_proj_dim": None,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "upcast_attention": None,
    "use_linear_projection": True,
}
SD1_VAE = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
TAESD = {
    "_class_name": "AutoencoderTiny",
    "_diffusers_version": "0.20.0.dev0",
    "act_fn": "relu",
    "decoder_block_out_channels": [64, 64, 64, 64],
    "encoder_block_out_channels": [64, 64, 64, 64],
    "force_upcast": False,
    "in_channels": 3,
    "latent_channels": 4,
    "latent_magnitude": 3,
    "latent_shift": 0.5,
    "num_decoder_blocks": [3, 3, 3, 1],
    "num_encoder_blocks": [1, 3, 3, 3],
    "out_channels": 3,
    "scaling_factor": 1.0,
    "upsampling_scaling_factor": 2,
}
SD2_CLIP = {
    "architectures": ["CLIPTextModel"],
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "torch_dtype": "float32",
    "vocab_size": 49408,
}
SD1_SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
    "clip_sample": False,
}


def write(folder: Path, options: object, name: str = "config.json") -> Path:
    (folder / name).write_text(json.dumps(options))
    return folder


def test_unet_of_sd_1(tmp_path: Path) -> None:
    config = UNetConfig.from_json(write(tmp_path, SD1_UNET))
    assert config.sample_size == 64
    assert config.cross_attention_dim == 768
    assert config.num_heads_per_block == (8, 8, 8, 8)
    assert config.num_layers_per_block == (2, 2, 2, 2)
    assert [block.transformers for block in config.down_blocks] == [(1, 1)] * 3 + [(None, None)]
    assert config.mid_block == (1280, 8, (1, None))
    assert [block.transformers for block in config.up_blocks] == [(None,) * 3] + [(1, 1, 1)] * 3
    assert config.pooled_dim == 0
    assert config.time_embed_dim == 1280
    assert config.down_block_types[3] == "DownBlock2D"
    assert config.use_linear_projection is False


def test_unet_of_sd_2(tmp_path: Path) -> None:
    config = UNetConfig.from_json(write(tmp_path, SD2_UNET) / "config.json")  # the file, not its folder
    assert config.sample_size == 96
    assert config.num_heads_per_block == (5, 10, 20, 20)
    assert config.use_linear_projection is True


def test_unet_of_sdxl(tmp_path: Path) -> None:
    config = UNetConfig.from_json(write(tmp_path, SDXL_UNET))
    assert [block.channels for block in config.down_blocks] == [320, 640, 1280]
    assert [block.num_heads for block in config.up_blocks] == [20, 10, 5]
    assert [block.transformers for block in config.down_blocks] == [(None, None), (2, 2), (10, 10)]
    assert config.mid_block.transformers == (10, None)
    assert [block.transformers for block in config.up_blocks] == [(10,) * 3, (2,) * 3, (None,) * 3]
    assert (config.pooled_dim, config.time_cond_proj_dim) == (1280, None)


def test_unet_distilled_from_sdxl(tmp_path: Path) -> None:
    """A list for a block may have more entries than it has residual blocks; the middle block takes the last's first."""
    depths = {
        "transformer_layers_per_block": [0, [2, 3], [4, 5, 6]],
        "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1, 7], 1],
    }
    config = UNetConfig.from_json(write(tmp_path, SDXL_UNET | depths))
    assert [block.transformers for block in config.down_blocks] == [(None, None), (2, 3), (4, 5)]
    assert config.mid_block.transformers == (4, None)
    assert [block.transformers for block in config.up_blocks] == [(4, 4, 10), (2, 1, 1), (None,) * 3]
    config = UNetConfig.from_json(write(tmp_path, SDXL_UNET | depths | {"mid_block_type": "UNetMidBlock2D"}))
    assert config.mid_block == (1280, 20, (None,))
    config = UNetConfig.from_json(write(tmp_path, SDXL_UNET | {"mid_block_type": None, "time_cond_proj_dim": 256}))
    assert config.mid_block.transformers == ()
    assert config.time_cond_proj_dim == 256


@pytest.mark.parametrize(
    ("key", "value", "rule"),
    [
        ("addition_time_embed_dim", None, "be given where addition_embed_type is 'text_time'"),
        ("addition_time_embed_dim", 1, "be at least 2 and more than twice freq_shift"),
        ("addition_time_embed_dim", 1024, "projection_class_embeddings_input_dim .* more than 6 times"),
        ("projection_class_embeddings_input_dim", None, "be given where addition_embed_type is 'text_time'"),
        ("projection_class_embeddings_input_dim", 1536, "more than 6 times addition_time_embed_dim"),
    ],
)
def test_unet_of_sdxl_refuses(tmp_path: Path, key: str, value: object, rule: str) -> None:
    with pytest.raises(ModelError, match=rule):
        UNetConfig.from_json(write(tmp_path, SDXL_UNET | {key: value}))


def test_vae_of_sd_1(tmp_path: Path) -> None:
    config = VaeConfig.from_json(write(tmp_path, SD1_VAE))
    assert config.block_out_channels == (128, 256, 512, 512)
    assert config.scale_factor == 8
    assert config.scaling_factor == 0.18215
    assert config.use_post_quant_conv is True
    assert config.mid_block_add_attention is True


def test_taesd(tmp_path: Path) -> None:
    config = TinyVaeConfig.from_json(write(tmp_path, TAESD))
    assert config == TinyVaeConfig()
    assert (config.scale_factor, config.scaling_factor, config.force_upcast) == (8, 1.0, False)
    assert config.block_out_channels == (64, 64, 64, 64)


def test_clip_of_sd_2(tmp_path: Path) -> None:
    config = ClipTextConfig.from_json(write(tmp_path, SD2_CLIP))
    assert (config.hidden_size, config.num_hidden_layers, config.hidden_act) == (1024, 23, "gelu")
    assert config.head_dim == 64


def test_scheduler_of_sd_1(tmp_path: Path) -> None:
    config = SchedulerConfig.from_json(write(tmp_path, SD1_SCHEDULER, "scheduler_config.json"))
    assert config.class_name == "PNDMScheduler"
    assert (config.beta_start, config.beta_end, config.beta_schedule) == (0.00085, 0.012, "scaled_linear")
    assert (config.steps_offset, config.set_alpha_to_one, config.skip_prk_steps) == (1, False, True)
    assert config.timestep_spacing is None  # absent: the rule's own default


def test_defaults_are_those_of_diffusers_and_transformers() -> None:
    clip, unet, vae, scheduler = ClipTextConfig(), UNetConfig(), VaeConfig(), SchedulerConfig()
    assert (clip.vocab_size, clip.hidden_size, clip.num_attention_heads, clip.hidden_act) == (
        49408,
        512,
        8,
        "quick_gelu",
    )
    assert (unet.block_out_channels, unet.cross_attention_dim, unet.norm_eps) == ((320, 640, 1280, 1280), 1280, 1e-5)
    assert unet.up_block_types == ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
    assert (vae.block_out_channels, vae.layers_per_block, vae.scale_factor) == ((64,), 1, 1)
    assert (scheduler.solver_order, scheduler.original_inference_steps, scheduler.timestep_scaling) == (2, 50, 10.0)
    absent = (scheduler.beta_start, scheduler.beta_end, scheduler.beta_schedule, scheduler.clip_sample)
    assert absent == (None,) * 4  # their defaults differ by rule


def test_defaults_of_a_rule_are_for_absent_keys() -> None:
    config = SchedulerConfig(beta_start=0.5).with_defaults(beta_start=0.1, beta_end=0.9, clip_sample=False)
    assert (config.beta_start, config.beta_end, config.clip_sample) == (0.5, 0.9, False)


def test_scheduler_of_diffusers_dpm_solver(tmp_path: Path) -> None:
    """It writes -Infinity, which is not JSON."""
    options = {"lambda_min_clipped": float("-inf"), "solver_order": 2, "use_karras_sigmas": False, "sigma_min": None}
    config = SchedulerConfig.from_json(write(tmp_path, options, "scheduler_config.json"))
    assert config == SchedulerConfig(use_karras_sigmas=False)


@pytest.mark.parametrize("config", [ClipTextConfig(), UNetConfig(), VaeConfig(), SchedulerConfig()])
def test_configs_are_frozen_and_hashable(config: Any) -> None:
    assert hash(config) == hash(dataclasses.replace(config))
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.hidden_size = 1


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_class_name", "UNet3DConditionModel"),
        ("act_fn", "gelu"),
        ("addition_embed_type", "text_image"),
        ("addition_embed_type", "text_time"),  # without its two sizes
        ("attention_type", "gated"),
        ("center_input_sample", True),
        ("class_embed_type", "timestep"),
        ("class_embeddings_concat", True),
        ("conv_in_kernel", 1),
        ("conv_out_kernel", 5),
        ("cross_attention_norm", "layer_norm"),
        ("downsample_padding", 0),
        ("dual_cross_attention", True),
        ("encoder_hid_dim", 768),
        ("encoder_hid_dim_type", "text_proj"),
        ("mid_block_only_cross_attention", True),
        ("mid_block_scale_factor", 1.5),
        ("mid_block_type", "UNetMidBlock2DSimpleCrossAttn"),
        ("num_attention_heads", 8),
        ("num_class_embeds", 1000),
        ("only_cross_attention", True),
        ("only_cross_attention", [True, True, True, False]),
        ("resnet_out_scale_factor", 0.5),
        ("resnet_skip_time_act", True),
        ("resnet_time_scale_shift", "scale_shift"),
        ("reverse_transformer_layers_per_block", [1, 1, 1]),
        ("reverse_transformer_layers_per_block", [1, [1, 1], 1, 1]),  # up blocks have three residual blocks
        ("time_cond_proj_dim", 3),
        ("time_embedding_act_fn", "silu"),
        ("time_embedding_type", "fourier"),
        ("timestep_post_act", "silu"),
        # fields: a value of the wrong type or outside its range
        ("attention_head_dim", [8, 8]),
        ("attention_head_dim", 7),
        ("block_out_channels", 320),
        ("block_out_channels", []),
        ("block_out_channels", [320, 640, 1280, 1290]),
        ("block_out_channels", [320, 640, 1280]),
        ("cross_attention_dim", [768, 768, 768, 768]),
        ("down_block_types", ["CrossAttnDownBlock2D"] * 3 + ["AttnDownBlock2D"]),
        ("down_block_types", ["CrossAttnDownBlock2D"] * 3),
        ("flip_sin_to_cos", 1),
        ("freq_shift", -1),
        ("in_channels", 0),
        ("in_channels", True),
        ("in_channels", "4"),
        ("layers_per_block", [2, 2]),
        ("layers_per_block", 2.0),
        ("norm_eps", 0),
        ("norm_eps", "1e-5"),
        ("norm_num_groups", None),
        ("norm_num_groups", -32),
        ("freq_shift", 160),
        ("sample_size", [64, 96, 64]),
        ("sample_size", [64, 0]),
        ("transformer_layers_per_block", [[1, 1]] * 4),  # without reverse_transformer_layers_per_block
        ("transformer_layers_per_block", [[[1, 1], 1], 1, 1, 1]),
        ("transformer_layers_per_block", [1, -1, 1, 1]),
        ("transformer_layers_per_block", 64),  # after each of 16 residual blocks
        ("up_block_types", ["UpBlock2D"] * 3 + ["SimpleCrossAttnUpBlock2D"]),
        ("use_linear_projection", None),
    ],
)
def test_unet_refuses(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(ModelError) as error:
        UNetConfig.from_json(write(tmp_path, SD1_UNET | {key: value}))
    assert key in str(error.value)
    assert str(tmp_path / "config.json") in str(error.value)


def test_unet_of_one_channel_is_refused() -> None:
    with pytest.raises(ModelError, match=r"block_out_channels \(=\(1, 2, 3, 4\)\) must begin with at least 2, a sine"):
        UNetConfig(block_out_channels=(1, 2, 3, 4), norm_num_groups=1, attention_head_dim=1)


def test_unet_of_any_channels_and_heads() -> None:
    config = UNetConfig(
        in_channels=9,
        out_channels=3,
        block_out_channels=(9, 15, 21, 6),
        norm_num_groups=3,
        attention_head_dim=(9, 5, 3, 1),
        cross_attention_dim=10,
        sample_size=(5, 7),
    )
    assert (config.sample_sides, config.time_embed_dim) == ((5, 7), 36)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_class_name", "AutoencoderTiny"),
        ("act_fn", "gelu"),
        ("block_out_channels", [128, 256, 512, 500]),
        ("latent_channels", 0),
        ("latents_mean", [0.0] * 4),
        ("latents_std", [1.0] * 4),
        ("layers_per_block", [2, 2, 2, 2]),
        ("mid_block_add_attention", "yes"),
        ("scaling_factor", 0),
        ("shift_factor", 0.1159),
        ("up_block_types", ["UpDecoderBlock2D"] * 3),
        ("up_block_types", ["AttnUpDecoderBlock2D"] * 4),
        ("use_post_quant_conv", None),
    ],
)
def test_vae_refuses(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(ModelError, match=key):
        VaeConfig.from_json(write(tmp_path, SD1_VAE | {key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("_class_name", "AutoencoderKL"),
        ("act_fn", "silu"),
        ("decoder_block_out_channels", [64, 64, 32, 64]),
        ("decoder_block_out_channels", [64] * 3),
        ("latent_channels", 0),
        ("latents_mean", [0.0] * 4),
        ("num_decoder_blocks", [3, 3, 3, 0]),
        ("scaling_factor", -1),
        ("shift_factor", 0.1159),
        ("upsample_fn", "bilinear"),
        ("upsampling_scaling_factor", 3),
    ],
)
def test_tiny_vae_refuses(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(ModelError, match=key):
        TinyVaeConfig.from_json(write(tmp_path, TAESD | {key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_act", "relu"),
        ("hidden_act", ["gelu"]),
        ("hidden_size", 1000),
        ("layer_norm_eps", -1e-5),
        ("max_position_embeddings", 0),
        ("model_type", "xlm-roberta"),
        ("num_attention_heads", 0),
        ("vocab_size", None),
    ],
)
def test_clip_refuses(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(ModelError, match=key):
        ClipTextConfig.from_json(write(tmp_path, SD2_CLIP | {key: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("beta_end", 1.0),
        ("beta_schedule", "sigmoid"),
        ("beta_start", 0),
        ("clip_sample", "no"),
        ("clip_sample_range", 0),
        ("final_sigmas_type", "max"),
        ("lambda_min_clipped", "-5"),
        ("num_train_timesteps", 0),
        ("original_inference_steps", 0),
        ("prediction_type", "sample"),
        ("set_alpha_to_one", 1),
        ("solver_order", 0),
        ("steps_offset", -1),
        ("timestep_scaling", 0),
        ("timestep_spacing", "log"),
        ("trained_betas", [0.1, 0.2]),
        ("trained_betas", [0.1] * 999 + [1.5]),
    ],
)
def test_scheduler_refuses(tmp_path: Path, key: str, value: object) -> None:
    with pytest.raises(ModelError, match=key):
        SchedulerConfig.from_json(write(tmp_path, SD1_SCHEDULER | {key: value}, "scheduler_config.json"))


def test_values_from_python_are_checked_too() -> None:
    with pytest.raises(
        ModelError, match=r"ClipTextConfig: num_hidden_layers \(=0\) must be a whole number from 1 to 64"
    ):
        ClipTextConfig(num_hidden_layers=0)


def test_heads_need_only_divide_blocks_with_attention() -> None:
    options: dict[str, Any] = {"block_out_channels": (32, 96), "norm_num_groups": 16, "attention_head_dim": 3}
    plain_outside = UNetConfig(
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **options,
    )
    assert plain_outside.num_heads_per_block == (3, 3)
    with pytest.raises(ModelError, match="attention_head_dim"):
        UNetConfig(
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            **options,
        )


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such file"):
        UNetConfig.from_json(tmp_path)


def test_a_file_that_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config.json: is not valid JSON"):
        UNetConfig.from_json(tmp_path)
