"""The embedded model's networks: Stable Diffusion's classes at small size, and the names of their weights on disk."""

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import save_file
from tokenizer import MAX_LENGTH, VOCAB_SIZE
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

TEXT_WIDTH = 256


def make_text_encoder() -> CLIPTextModel:
    """CLIP's text transformer: 4 layers of 256, 32 tokens."""
    config = CLIPTextConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        hidden_act="quick_gelu",
        bos_token_id=VOCAB_SIZE - 2,
        eos_token_id=VOCAB_SIZE - 1,
        pad_token_id=VOCAB_SIZE - 1,
    )
    return CLIPTextModel(config)


def make_unet() -> UNet2DConditionModel:
    """Latents of 32x32x4; text attention on the three inner levels, 4 heads (diffusers: `attention_head_dim`)."""
    return UNet2DConditionModel(
        sample_size=32,
        block_out_channels=(64, 96, 128, 192),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=32,
    )


def make_vae() -> AutoencoderKL:
    """128x128 pixels to 32x32x4 latents. Eight groups: with 32 the outermost level would have groups of one channel."""
    return AutoencoderKL(
        sample_size=128,
        block_out_channels=(32, 64, 128),
        layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=8,
        force_upcast=False,  # f16 holds all its values
    )


def make_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule, sampled by DDIM."""
    scheduler = DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
    )
    scheduler.register_to_config(skip_prk_steps=True)  # for those who sample by PNDM with this file
    return scheduler


def disk_names(network: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rename to Stable Diffusion 1's names: there the text encoder's weights all start with `text_model.`."""
    prefix = "text_model." if network == "text_encoder" else ""
    return {prefix + name.removeprefix(prefix): tensor for name, tensor in state.items()}


def load_weights(model: nn.Module, path: Path) -> dict[str, str]:
    """Load one network's file of weights; return the metadata stored with them."""
    own = model.state_dict().keys()
    with safe_open(path, "pt") as file:
        names = file.keys()
        state = {name: file.get_tensor(name) for name in names}
        metadata = file.metadata() or {}
    state = {name if name in own else name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    missing, unexpected = model.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("position_ids")]
    if missing or unexpected:
        raise ValueError(f"{path}: missing {missing}, unexpected {unexpected}")
    return metadata


def save_weights(network: str, state: dict[str, torch.Tensor], path: Path, **metadata: str) -> None:
    """Write one network's weights as f16, replacing the file only when it is complete."""
    state = {name: tensor.detach().half().cpu().contiguous() for name, tensor in state.items()}
    part = path.with_suffix(".part")
    save_file(disk_names(network, state), part, {"format": "pt", **metadata})
    part.chmod(0o644)
    part.replace(path)
