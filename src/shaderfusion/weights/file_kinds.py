"""What a safetensors file is, by the names of its tensors: a whole model in LDM's layout, or what else."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from shaderfusion.errors import ModelError
from shaderfusion.files import shown

__all__ = ["require_whole_model", "unknown_names"]

_OTHER_MODEL = "choose a model of Stable Diffusion 1.x, 2.x or XL"

_OTHER_KINDS = (
    (
        r"(^|[._])(lora|lycoris)[._]|\.(hada|lokr|oft)_",
        "is a LoRA, not a model; give the model that it changes, and this file as a LoRA",
    ),
    (r"^(control_model|controlnet_\w+)\.|^input_hint_block\.", f"is a ControlNet, not a model; {_OTHER_MODEL}"),
    (r"^(image_proj|ip_adapter)\.", f"is an IP-Adapter, not a model; {_OTHER_MODEL}"),
    (r"^(emb_params|clip_[lg])$", "is an embedding of textual inversion, not a model; give a model beside it"),
    (r"motion_modules\.|\.time_stack\.", f"is of a video model; {_OTHER_MODEL}"),
    (r"(^|\.)joint_blocks\.", f"is of Stable Diffusion 3; {_OTHER_MODEL}"),
    (r"(^|\.)double_blocks\.|(^|\.)single_transformer_blocks\.", f"is of Flux, or a model like it; {_OTHER_MODEL}"),
    (r"(^|\.)(cap_embedder|cross_attn|patchify_proj|adaln_single)\.", f"is of a diffusion transformer; {_OTHER_MODEL}"),
    (r"^(clip_txt_mapper\.|effnet_mapper\.)", f"is of Stable Cascade; {_OTHER_MODEL}"),
    (r"^(embedder\.|noise_augmentor\.)", f"is of Stable unCLIP; {_OTHER_MODEL}"),
    (r"^depth_model\.", f"is of Stable Diffusion 2's depth to image; {_OTHER_MODEL}"),
    (r"^model\.diffusion_model\.label_emb\.weight$", f"is an upscaler; {_OTHER_MODEL}"),
    (r"^(edm_mean|edm_std|edm_vpred\.sigma_max)$", f"is trained with the noise levels of EDM; {_OTHER_MODEL}"),
    (r"(^|\.)(scaled_fp8|scale_weight|weight_scale)$", "has weights with scales of their own; take the f16 file"),
)
"""By what a name of theirs holds. Names of whole models hold none of it."""

_WITHOUT_A_UNET = (
    (r"^(first_stage_model\.)?decoder\.(conv_in|layers)\.", "is a VAE alone; give it as vae, beside a model"),
    (
        r"^down_blocks\.",
        "is a UNet alone in diffusers' layout; put it into the folder of a model, as "
        "unet/diffusion_pytorch_model.safetensors",
    ),
    (r"^input_blocks\.", "is a UNet alone, without a text encoder; take the file of the whole model"),
    (
        r"^(text_model|transformer\.resblocks|cond_stage_model|conditioner)\.",
        "is a text encoder alone; take the file of the whole model",
    ),
)

_RESNET = r"(in_layers\.[02]|emb_layers\.1|out_layers\.[03]|skip_connection|op|conv)"
_TRANSFORMER_LAYER = r"transformer_blocks\.\d+\.(norm[123]|attn[12]\.to_([qkv]|out\.0)|ff\.net\.(0\.proj|2))"
_TRANSFORMER = rf"(norm|proj_in|proj_out|{_TRANSFORMER_LAYER})"
_UNET = (
    rf"model\.diffusion_model\.(time_embed\.[02]|label_emb\.0\.[02]|time_embedding\.cond_proj|out\.[02]"
    rf"|input_blocks\.0\.0|((input|output)_blocks\.\d+|middle_block)\.\d+\.({_RESNET}|{_TRANSFORMER})"
    rf"|up_blocks\.0\.attentions\.\d+\.{_TRANSFORMER})\.(weight|bias)"
)
_VAE_RESNET = r"(norm[12]|conv[12]|nin_shortcut)"
_VAE = (
    rf"first_stage_model\.((post_)?quant_conv|(en|de)coder\.(conv_in|conv_out|norm_out|mid\.block_[12]\.{_VAE_RESNET}"
    rf"|mid\.attn_1\.(norm|[qkv]|proj_out)|(up|down)\.\d+\.(block\.\d+\.{_VAE_RESNET}|(up|down)sample\.conv)))\.(weight|bias)"
)
_CLIP = (
    r"(cond_stage_model|conditioner\.embedders\.0)\.transformer\.(text_model\.)?(embeddings\.(token|position)_embedding"
    r"|final_layer_norm|encoder\.layers\.\d+\.(layer_norm[12]|mlp\.fc[12]|self_attn\.([qkv]|out)_proj))\.(weight|bias)"
)
_OPEN_CLIP = (
    r"(cond_stage_model|conditioner\.embedders\.[01])\.model\.(token_embedding\.weight|positional_embedding"
    r"|ln_final\.(weight|bias)|text_projection(\.weight)?|transformer\.resblocks\.\d+\.(attn\.in_proj_(weight|bias)"
    r"|(ln_[12]|mlp\.c_fc|mlp\.c_proj|attn\.out_proj)\.(weight|bias)))"
)
_KNOWN = re.compile("|".join((_UNET, _VAE, _CLIP, _OPEN_CLIP)))

_NEEDLESS = re.compile(
    r"model_ema\..*|first_stage_model\.(loss|model_ema)\..*"  # averages, and what trained the VAE
    r"|.*\.(position_ids|logit_scale|attn_mask)|(cond_stage_model|conditioner\.embedders\.0)\.transformer\.text_projection.*"
    r"|(|sqrt_|sqrt_one_minus_|log_one_minus_|sqrt_recip_|sqrt_recipm1_)alphas_cumprod|alphas_cumprod_prev|betas|logvar"
    r"|posterior_\w+|lvlb_weights|denoiser\.sigmas|global_step|v_pred|ztsnr"
)
"""What files of whole models hold besides."""


def require_whole_model(path: Path, names: Iterable[str]) -> None:
    """ModelError that says what the file is, unless it has the UNet of a model in LDM's layout."""
    names = list(names)
    for pattern, what in _OTHER_KINDS:
        if any(map(re.compile(pattern).search, names)):
            raise ModelError(f"{path}: {what}")
    if any(name.startswith("model.diffusion_model.input_blocks.") for name in names):
        return
    for pattern, what in _WITHOUT_A_UNET:
        if any(map(re.compile(pattern).search, names)):
            raise ModelError(f"{path}: {what}")
    raise ModelError(
        f"{path}: holds no UNet of Stable Diffusion 1.x, 2.x or XL in the layout of their original releases (its "
        f"tensors: {shown(', '.join(sorted(names)[:3]))}); {_OTHER_MODEL}"
    )


def unknown_names(names: Iterable[str]) -> list[str]:
    """Those that no part of a whole model has, in order."""
    return sorted(name for name in names if not (_KNOWN.fullmatch(name) or _NEEDLESS.fullmatch(name)))
