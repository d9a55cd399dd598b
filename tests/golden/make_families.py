"""Write models/ and <model>.npz of SDXL, of models distilled from it and from SD 1.x, and of one for inpainting.

It is done as in make_models.py.
`make_families.py ssd` makes only that model anew, and so on. Needs the `golden` extra.
"""

# pyright: reportMissingImports=false

import sys

import diffusers
import torch
import transformers
from make_models import EOS, MODELS, STABLE_DIFFUSION, Model, case, size_bytes, write_golden, write_model

EULER = STABLE_DIFFUSION | {"_class_name": "EulerDiscreteScheduler", "clip_sample": False}

# As SDXL: no attention on the outermost level, deeper transformers below, two text encoders, force_upcast; the pooled
# prompt, the sinusoids and the projection are of odd widths. Each run's negative prompt is given, or zeros.
SDXL = Model(
    text_encoder={"hidden_size": 10, "num_attention_heads": 2, "num_hidden_layers": 3, "hidden_act": "quick_gelu"},
    pipeline="StableDiffusionXLPipeline",
    text_encoder_2={
        "hidden_size": 14,
        "num_attention_heads": 7,
        "num_hidden_layers": 2,
        "hidden_act": "gelu",
        "projection_dim": 9,
        "eos_token_id": 2,  # as in the published file, where the largest id is meant
    },
    unet={
        "sample_size": 8,
        "block_out_channels": (4, 6, 10),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "transformer_layers_per_block": (1, 2, 3),
        "attention_head_dim": (2, 3, 5),
        "use_linear_projection": True,
        "norm_num_groups": 2,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 7,
        "projection_class_embeddings_input_dim": 9 + 6 * 7,
    },
    vae={
        "block_out_channels": (4, 8, 8),
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "scaling_factor": 0.13025,
        "force_upcast": True,
    },
    scheduler=EULER | {"timestep_spacing": "leading", "steps_offset": 1},
    pad_token=EOS,
    dtypes=dict.fromkeys(("text_encoder", "text_encoder_2", "unet", "vae"), torch.float16),
    shard_size="10GB",
    cases=[
        case("euler", num_inference_steps=5, seed=31, guidance_scale=5.0, negative_prompt=None, pixels=True),
        case("ddim", num_inference_steps=4, seed=32, num_images_per_prompt=2, width=24, height=40),
        case("pndm", num_inference_steps=4, seed=33, guidance_scale=1.0),
    ],
)
# As SSD-1B and SDXL-Turbo: depths that differ from layer to layer, a transformer of no layers, a middle block without
# attention; trailing timesteps, few steps and no guidance.
SSD = Model(
    text_encoder={"hidden_size": 6, "num_attention_heads": 1, "num_hidden_layers": 2, "hidden_act": "quick_gelu"},
    pipeline="StableDiffusionXLPipeline",
    text_encoder_2={
        "hidden_size": 9,
        "num_attention_heads": 3,
        "num_hidden_layers": 3,
        "hidden_act": "gelu",
        "projection_dim": 8,
    },
    unet={
        "sample_size": 8,
        "block_out_channels": (3, 6, 9),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": (1, 2, 1),
        "transformer_layers_per_block": [0, [1, 2], [2, 1]],
        "reverse_transformer_layers_per_block": [[0, 3], [2, 1, 1], 1],
        "attention_head_dim": (1, 2, 3),
        "use_linear_projection": True,
        "norm_num_groups": 3,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 8 + 6 * 4,
    },
    vae={"block_out_channels": (4, 6), "norm_num_groups": 2, "layers_per_block": 1, "scaling_factor": 0.13025},
    scheduler=EULER | {"timestep_spacing": "trailing"},
    pad_token=EOS,
    dtypes=dict.fromkeys(("text_encoder", "text_encoder_2", "unet", "vae"), torch.bfloat16),
    shard_size="10GB",
    cases=[
        case("euler", num_inference_steps=1, seed=34, guidance_scale=0.0, pixels=True),
        case("euler", num_inference_steps=4, seed=35, guidance_scale=1.0, num_images_per_prompt=2),
        case("ddim", num_inference_steps=4, seed=36, width=8, height=24),
        case("pndm", num_inference_steps=4, seed=37, guidance_scale=3.0, negative_prompt=None),
    ],
)
# As tiny-SD (BK-SDM) and latent consistency models: no middle block, one layer a block; the guidance scale is read.
TINY_SD = Model(
    text_encoder={"hidden_size": 14, "num_attention_heads": 2, "num_hidden_layers": 2, "hidden_act": "quick_gelu"},
    unet={
        "sample_size": 8,
        "block_out_channels": (4, 8, 12),
        "down_block_types": ("CrossAttnDownBlock2D",) * 3,
        "mid_block_type": None,
        "up_block_types": ("CrossAttnUpBlock2D",) * 3,
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "norm_num_groups": 4,
        "time_cond_proj_dim": 11,
    },
    vae={"block_out_channels": (4, 6, 4), "norm_num_groups": 2, "layers_per_block": 1},
    scheduler=STABLE_DIFFUSION | {"_class_name": "PNDMScheduler", "clip_sample": False},
    pad_token=EOS,
    dtypes=dict.fromkeys(("text_encoder", "unet", "vae"), torch.float16),
    shard_size="10GB",
    cases=[
        case("pndm", num_inference_steps=4, seed=38, pixels=True),
        case("ddim", num_inference_steps=4, seed=39, guidance_scale=1.5, width=24, height=40),
        case("euler", num_inference_steps=4, seed=40, guidance_scale=8.5, num_images_per_prompt=2),
        case("lcm", num_inference_steps=4, seed=41, guidance_scale=8.5, num_images_per_prompt=2, width=24, height=16),
    ],
)
# As SD 1.5 for inpainting: a mask and other latents beside its own.
INPAINT = Model(
    pipeline="StableDiffusionInpaintPipeline",
    text_encoder={"hidden_size": 10, "num_attention_heads": 1, "num_hidden_layers": 1, "hidden_act": "quick_gelu"},
    unet={
        "sample_size": 8,
        "in_channels": 9,
        "block_out_channels": (6, 9),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 3,
        "norm_num_groups": 3,
    },
    vae={"block_out_channels": (4, 4), "norm_num_groups": 2, "layers_per_block": 1},
    scheduler=STABLE_DIFFUSION | {"_class_name": "DDIMScheduler", "clip_sample": False},
    pad_token=EOS,
    dtypes=dict.fromkeys(("text_encoder", "unet", "vae"), torch.float16),
    shard_size="10GB",
    cases=[
        case("ddim", num_inference_steps=4, seed=41, pixels=True),
        case("euler", num_inference_steps=4, seed=42, num_images_per_prompt=2, width=8, height=24),
        case("pndm", num_inference_steps=4, seed=43, guidance_scale=1.0),
    ],
)
FAMILIES = {
    "sdxl": (SDXL, 12, (5, 8)),
    "ssd": (SSD, 9, (6, 5)),
    "tiny_sd": (TINY_SD, 11, (8, 8)),
    "inpaint": (INPAINT, 8, (5, 7)),
}
"""With the tokens of a prompt, and the latent cells of the UNet by itself."""


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    for i, (name, (model, max_length, latent_shape)) in enumerate(FAMILIES.items()):
        if not sys.argv[1:] or name in sys.argv[1:]:
            folder = MODELS / name
            write_model(folder, model, max_length, seed=10_000 + 1000 * i)
            print(f"{name}: {size_bytes(folder)} bytes")
            write_golden(name, folder, ["a dog", "a fox in the snow"], model.cases, latent_shape)
    print(f"diffusers {diffusers.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
