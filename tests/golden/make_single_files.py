"""Write single_files.json.gz: checkpoints in the layout of the original releases, and what diffusers makes of them.

Needs the `golden` extra. The files' names and shapes are built here as the original code builds its modules (CompVis
latent-diffusion's openaimodel.py and model.py, OpenCLIP's transformer.py), and converted by diffusers' own loader of
single files, which must give exactly the tensors of diffusers' networks. For each model:

* `file`: the shape of each tensor of the file, by name;
* `components`: for each of diffusers' components its configuration, and the shape of each tensor by diffusers' path;
* `digests`, of little models alone, by component and path: of the converted tensor where the file holds `stored_bytes`.

and single_files.npz: for each little model a picture (16, 16, 3) uint8 by diffusers' whole pipeline, of networks with
what `weight` makes, and the vocabulary of CLIP as clip_vocabulary.json has its ids.
"""

# pyright: reportMissingImports=false, reportPrivateImportUsage=false

import gzip
import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers.loaders import single_file_utils
from make_clip_vocabulary import EOS, read_tokenizer
from single_file_weights import stored_bytes, weight

FILE = Path(__file__).with_name("single_files.json.gz")
PICTURES = Path(__file__).with_name("single_files.npz")
CALL = {
    "prompt": "a red fox, watercolor!",
    "negative_prompt": "blurry",
    "num_inference_steps": 4,
    "guidance_scale": 5.0,
    "height": 16,
    "width": 16,
}
SEED = 3
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
Shapes = Iterator[tuple[str, tuple[int, ...]]]
VOCAB_SIZE, LENGTH, GROUPS = 49408, 77, 32


# ---- the original modules


def layer(name: str, *shape: int, bias: bool = True) -> Shapes:
    """A linear layer or convolution."""
    yield f"{name}.weight", shape
    if bias:
        yield f"{name}.bias", shape[:1]


def norm(name: str, channels: int) -> Shapes:
    yield from layer(name, channels)


def res_block(name: str, channels: int, out: int, time: int) -> Shapes:
    yield from norm(f"{name}.in_layers.0", channels)
    yield from layer(f"{name}.in_layers.2", out, channels, 3, 3)
    yield from layer(f"{name}.emb_layers.1", out, time)
    yield from norm(f"{name}.out_layers.0", out)
    yield from layer(f"{name}.out_layers.3", out, out, 3, 3)
    if channels != out:
        yield from layer(f"{name}.skip_connection", out, channels, 1, 1)


def spatial_transformer(name: str, channels: int, depth: int, context: int, linear: bool) -> Shapes:
    yield from norm(f"{name}.norm", channels)
    kernel = () if linear else (1, 1)
    for end in ("proj_in", "proj_out"):
        yield from layer(f"{name}.{end}", channels, channels, *kernel)
    for index in range(depth):
        block = f"{name}.transformer_blocks.{index}"
        for attention, width in (("attn1", channels), ("attn2", context)):
            yield from layer(f"{block}.{attention}.to_q", channels, channels, bias=False)
            yield from layer(f"{block}.{attention}.to_k", channels, width, bias=False)
            yield from layer(f"{block}.{attention}.to_v", channels, width, bias=False)
            yield from layer(f"{block}.{attention}.to_out.0", channels, channels)
        yield from layer(f"{block}.ff.net.0.proj", 8 * channels, channels)
        yield from layer(f"{block}.ff.net.2", channels, 4 * channels)
        for number in (1, 2, 3):
            yield from norm(f"{block}.norm{number}", channels)


def unet(
    *,
    channels: int,
    mults: tuple[int, ...],
    num_res_blocks: int,
    depths: list[list[int]],
    depths_out: list[list[int]],
    middle: int | None,
    context: int,
    linear: bool = False,
    adm: int = 0,
    in_channels: int = 4,
) -> Shapes:
    """Depths of transformers by level, 0 for none; `middle` -1 for one residual block alone, None for none."""
    time = 4 * channels
    yield from layer("time_embed.0", time, channels)
    yield from layer("time_embed.2", time, time)
    if adm:
        yield from layer("label_emb.0.0", time, adm)
        yield from layer("label_emb.0.2", time, time)
    yield from layer("input_blocks.0.0", channels, in_channels, 3, 3)
    ch, skips, number = channels, [channels], 0
    for level, mult in enumerate(mults):
        for index in range(num_res_blocks):
            number += 1
            yield from res_block(f"input_blocks.{number}.0", ch, mult * channels, time)
            ch = mult * channels
            if depths[level][index]:
                yield from spatial_transformer(f"input_blocks.{number}.1", ch, depths[level][index], context, linear)
            skips.append(ch)
        if level != len(mults) - 1:
            number += 1
            yield from layer(f"input_blocks.{number}.0.op", ch, ch, 3, 3)
            skips.append(ch)
    if middle is not None:
        yield from res_block("middle_block.0", ch, ch, time)
        if middle > 0:
            yield from spatial_transformer("middle_block.1", ch, middle, context, linear)
            yield from res_block("middle_block.2", ch, ch, time)
    number = -1
    for level in reversed(range(len(mults))):
        for index in range(num_res_blocks + 1):
            number += 1
            out, place = mults[level] * channels, 1
            yield from res_block(f"output_blocks.{number}.0", ch + skips.pop(), out, time)
            ch, depth = out, depths_out[len(mults) - 1 - level][index]
            if depth:
                yield from spatial_transformer(f"output_blocks.{number}.1", ch, depth, context, linear)
                place = 2
            if level and index == num_res_blocks:
                yield from layer(f"output_blocks.{number}.{place}.conv", ch, ch, 3, 3)
    yield from norm("out.0", ch)
    yield from layer("out.2", 4, channels, 3, 3)


def vae_block(name: str, channels: int, out: int) -> Shapes:
    yield from norm(f"{name}.norm1", channels)
    yield from layer(f"{name}.conv1", out, channels, 3, 3)
    yield from norm(f"{name}.norm2", out)
    yield from layer(f"{name}.conv2", out, out, 3, 3)
    if channels != out:
        yield from layer(f"{name}.nin_shortcut", out, channels, 1, 1)


def vae_mid(name: str, channels: int) -> Shapes:
    yield from vae_block(f"{name}.block_1", channels, channels)
    yield from norm(f"{name}.attn_1.norm", channels)
    for projection in ("q", "k", "v", "proj_out"):
        yield from layer(f"{name}.attn_1.{projection}", channels, channels, 1, 1)
    yield from vae_block(f"{name}.block_2", channels, channels)


def vae(*, widths: tuple[int, ...], num_res_blocks: int, z: int = 4) -> Shapes:
    yield from layer("encoder.conv_in", widths[0], 3, 3, 3)
    ch = widths[0]
    for level, width in enumerate(widths):
        for index in range(num_res_blocks):
            yield from vae_block(f"encoder.down.{level}.block.{index}", ch, width)
            ch = width
        if level != len(widths) - 1:
            yield from layer(f"encoder.down.{level}.downsample.conv", ch, ch, 3, 3)
    yield from vae_mid("encoder.mid", ch)
    yield from norm("encoder.norm_out", ch)
    yield from layer("encoder.conv_out", 2 * z, ch, 3, 3)
    yield from layer("quant_conv", 2 * z, 2 * z, 1, 1)
    yield from layer("post_quant_conv", z, z, 1, 1)
    yield from layer("decoder.conv_in", ch, z, 3, 3)
    yield from vae_mid("decoder.mid", ch)
    for level in reversed(range(len(widths))):
        for index in range(num_res_blocks + 1):
            yield from vae_block(f"decoder.up.{level}.block.{index}", ch, widths[level])
            ch = widths[level]
        if level:
            yield from layer(f"decoder.up.{level}.upsample.conv", ch, ch, 3, 3)
    yield from norm("decoder.norm_out", ch)
    yield from layer("decoder.conv_out", 3, ch, 3, 3)


def clip(*, width: int, layers: int, vocab_size: int = VOCAB_SIZE) -> Shapes:
    yield "text_model.embeddings.position_ids", (1, LENGTH)
    yield "text_model.embeddings.token_embedding.weight", (vocab_size, width)
    yield "text_model.embeddings.position_embedding.weight", (LENGTH, width)
    for index in range(layers):
        block = f"text_model.encoder.layers.{index}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from layer(f"{block}.self_attn.{projection}", width, width)
        yield from norm(f"{block}.layer_norm1", width)
        yield from norm(f"{block}.layer_norm2", width)
        yield from layer(f"{block}.mlp.fc1", 4 * width, width)
        yield from layer(f"{block}.mlp.fc2", width, 4 * width)
    yield from norm("text_model.final_layer_norm", width)


def open_clip(*, width: int, layers: int, vocab_size: int = VOCAB_SIZE) -> Shapes:
    yield "positional_embedding", (LENGTH, width)
    yield "text_projection", (width, width)
    yield "logit_scale", ()
    yield "token_embedding.weight", (vocab_size, width)
    for index in range(layers):
        block = f"transformer.resblocks.{index}"
        yield from norm(f"{block}.ln_1", width)
        yield f"{block}.attn.in_proj_weight", (3 * width, width)
        yield f"{block}.attn.in_proj_bias", (3 * width,)
        yield from layer(f"{block}.attn.out_proj", width, width)
        yield from norm(f"{block}.ln_2", width)
        yield from layer(f"{block}.mlp.c_fc", 4 * width, width)
        yield from layer(f"{block}.mlp.c_proj", width, 4 * width)
    yield from norm("ln_final", width)


# ---- the models

VAE_WIDTHS, LITTLE_VAE = (128, 256, 512, 512), (32, 64)
DOWN, CROSS_DOWN, UP, CROSS_UP = "DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"


def unet_config(original: dict[str, Any], **options: Any) -> dict[str, Any]:
    """diffusers' configuration of an original UNet."""
    depths, depths_out, middle = original["depths"], original["depths_out"], original["middle"]
    uniform = [level[0] or 1 for level in depths]
    if not depths[-1][0] and middle:
        uniform[-1] = middle
    mids = {None: None, -1: "UNetMidBlock2D"}
    config: dict[str, Any] = {
        "in_channels": original.get("in_channels", 4),
        "block_out_channels": [mult * original["channels"] for mult in original["mults"]],
        "layers_per_block": original["num_res_blocks"],
        "down_block_types": [CROSS_DOWN if level[0] else DOWN for level in depths],
        "mid_block_type": mids.get(middle, "UNetMidBlock2DCrossAttn"),
        "up_block_types": [CROSS_UP if level[0] else UP for level in depths_out],
        "cross_attention_dim": original["context"],
        "use_linear_projection": original.get("linear", False),
        "norm_num_groups": GROUPS,
        "transformer_layers_per_block": uniform,
    }
    if depths_out != [[uniform[i] if level[0] else 0] * (len(level) + 1) for i, level in enumerate(depths)][::-1]:
        config["transformer_layers_per_block"] = [level if level[0] else 1 for level in depths]
        config["reverse_transformer_layers_per_block"] = [level if level[0] else 1 for level in depths_out]
    if original.get("adm"):
        config |= {"addition_embed_type": "text_time", "addition_time_embed_dim": 256}
        config["projection_class_embeddings_input_dim"] = original["adm"]
    return config | options


SD1_UNET: dict[str, Any] = {
    "channels": 320,
    "mults": (1, 2, 4, 4),
    "num_res_blocks": 2,
    "depths": [[1, 1], [1, 1], [1, 1], [0, 0]],
    "depths_out": [[0, 0, 0], [1, 1, 1], [1, 1, 1], [1, 1, 1]],
    "middle": 1,
    "context": 768,
}
SDXL_UNET: dict[str, Any] = {
    "channels": 320,
    "mults": (1, 2, 4),
    "num_res_blocks": 2,
    "depths": [[0, 0], [2, 2], [10, 10]],
    "depths_out": [[10, 10, 10], [2, 2, 2], [0, 0, 0]],
    "middle": 10,
    "context": 2048,
    "linear": True,
    "adm": 2816,
}
TINY_SD_UNET: dict[str, Any] = {
    "channels": 320,
    "mults": (1, 2, 4),
    "num_res_blocks": 1,
    "depths": [[1], [1], [1]],
    "depths_out": [[1, 1], [1, 1], [1, 1]],
    "middle": None,
    "context": 768,
}
UNETS = {
    "sd15": SD1_UNET,
    "inpainting": SD1_UNET | {"in_channels": 9},
    "tiny_sd": TINY_SD_UNET,
    "sd21": SD1_UNET | {"context": 1024, "linear": True},
    "sdxl": SDXL_UNET,
    "ssd_1b": SDXL_UNET
    | {"depths": [[0, 0], [2, 2], [4, 4]], "depths_out": [[4, 4, 10], [2, 1, 1], [0, 0, 0]], "middle": -1},
    "vega": SDXL_UNET
    | {"depths": [[0, 0], [1, 1], [2, 2]], "depths_out": [[2, 2, 2], [1, 1, 1], [0, 0, 0]], "middle": -1},
    "little_sd1": SD1_UNET
    | {"channels": 32, "mults": (1, 2), "num_res_blocks": 1, "depths": [[1], [0]], "context": 64}
    | {"depths_out": [[0, 0], [1, 1]]},
    "little_sd2": SD1_UNET
    | {"channels": 64, "mults": (1, 2), "num_res_blocks": 1, "depths": [[1], [1]], "context": 64, "linear": True}
    | {"depths_out": [[1, 1], [1, 1]]},
    "little_sdxl": SDXL_UNET
    | {"channels": 64, "mults": (1, 2), "num_res_blocks": 1, "depths": [[0], [2]], "context": 192}
    | {"depths_out": [[2, 2], [0, 0]], "middle": 2, "adm": 128 + 6 * 256},
}
LITTLE = {"width": 64, "layers": 2, "vocab_size": 99}
LITTLE_SECOND = {"width": 128, "layers": 2, "vocab_size": 99}


def text_encoders(name: str) -> dict[str, tuple[str, str, dict[str, int]]]:
    """By component: whose it is, the prefix in the file, and its sizes."""
    little = name.startswith("little")
    if "adm" in UNETS[name]:
        first, second = ({"width": 768, "layers": 12}, {"width": 1280, "layers": 32})
        first, second = (LITTLE, LITTLE_SECOND) if little else (first, second)
        return {
            "text_encoder": ("clip", "conditioner.embedders.0.transformer.", first),
            "text_encoder_2": ("open_clip", "conditioner.embedders.1.model.", second),
        }
    if UNETS[name].get("linear"):
        sizes = LITTLE | {"layers": 24} if little else {"width": 1024, "layers": 24}
        return {"text_encoder": ("open_clip", "cond_stage_model.model.", sizes)}
    sizes = LITTLE if little else {"width": 768, "layers": 12}
    return {"text_encoder": ("clip", "cond_stage_model.transformer.", sizes)}


def text_config(kind: str, sizes: dict[str, int], layers: int) -> dict[str, Any]:
    width = sizes["width"]
    return {
        "vocab_size": sizes.get("vocab_size", VOCAB_SIZE),
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "hidden_act": "gelu" if kind == "open_clip" else "quick_gelu",
        "projection_dim": width,
        "eos_token_id": 49407,
    }


def file_shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Of all tensors of the file."""
    little = name.startswith("little")
    widths = LITTLE_VAE if little else VAE_WIDTHS
    file = {f"model.diffusion_model.{key}": shape for key, shape in unet(**UNETS[name])}
    file |= {f"first_stage_model.{key}": shape for key, shape in vae(widths=widths, num_res_blocks=2 - little)}
    for kind, prefix, sizes in text_encoders(name).values():
        file |= {prefix + key: shape for key, shape in {"clip": clip, "open_clip": open_clip}[kind](**sizes)}
    return file


def configurations(name: str) -> dict[str, dict[str, Any]]:
    """diffusers', by component."""
    original, little = UNETS[name], name.startswith("little")
    is_sdxl, is_sd1 = "adm" in original, not original.get("linear")
    widths = LITTLE_VAE if little else VAE_WIDTHS
    heads = 8 if is_sd1 else [mult * original["channels"] // 64 for mult in original["mults"]]
    vae_config = {
        "block_out_channels": widths,
        "layers_per_block": 2 - little,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "norm_num_groups": GROUPS,
        "scaling_factor": 0.13025 if is_sdxl else 0.18215,
        "force_upcast": is_sdxl,
    }
    configs = {"unet": unet_config(original, attention_head_dim=heads), "vae": vae_config}
    for component, (kind, _, sizes) in text_encoders(name).items():
        layers = 23 if kind == "open_clip" and not is_sdxl else sizes["layers"]
        configs[component] = text_config(kind, sizes, layers)
    return configs


def convert(
    name: str, configs: dict[str, dict[str, Any]], tensors: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.nn.Module], dict[str, dict[str, torch.Tensor]]]:
    """diffusers' networks, and their tensors by transformers' older paths, converted from the file's."""
    models = {
        "unet": diffusers.UNet2DConditionModel,
        "vae": diffusers.AutoencoderKL,
        "text_encoder": lambda **config: transformers.CLIPTextModel(transformers.CLIPTextConfig(**config)),
        "text_encoder_2": lambda **config: transformers.CLIPTextModelWithProjection(
            transformers.CLIPTextConfig(**config)
        ),
    }
    with torch.device("meta"):
        networks = {component: models[component](**config) for component, config in configs.items()}
    converted = {
        "unet": single_file_utils.convert_ldm_unet_checkpoint(dict(tensors), dict(networks["unet"].config)),
        "vae": single_file_utils.convert_ldm_vae_checkpoint(dict(tensors), networks["vae"].config),
    }
    for component, (kind, prefix, _) in text_encoders(name).items():
        own = {key: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        if kind == "clip":
            converted[component] = single_file_utils.convert_ldm_clip_checkpoint(own)
        else:
            converted[component] = single_file_utils.convert_open_clip_checkpoint(networks[component], own, prefix)
    for component, network in networks.items():
        expected = {outer_path(component, key): tuple(value.shape) for key, value in network.state_dict().items()}
        found = {key: value for key, value in converted[component].items() if key in expected}
        buffers = {"text_model.embeddings.position_ids", "text_projection.weight"}
        assert set(converted[component]) - set(found) <= buffers, (name, component)
        assert {key: tuple(value.shape) for key, value in found.items()} == expected, (name, component)
        converted[component] = found
    return networks, converted


def outer_path(component: str, path: str) -> str:
    """A tensor's path with the outer module of text encoders, which releases of transformers name or not."""
    return f"text_model.{path}" if component.startswith("text") and not path.startswith("text_") else path


def write(name: str) -> dict[str, Any]:
    """One model's golden values."""
    file, configs, little = file_shapes(name), configurations(name), name.startswith("little")
    if little:
        stored = {key: stored_bytes(key, 2 * math.prod(shape)) for key, shape in file.items()}
        tensors = {
            key: torch.frombuffer(bytearray(stored[key]), dtype=torch.int16).view(torch.float16).reshape(shape)
            for key, shape in file.items()
        }
    else:
        tensors = {key: torch.empty(shape, dtype=torch.float16, device="meta") for key, shape in file.items()}
    _, converted = convert(name, configs, tensors)
    golden: dict[str, Any] = {"file": file, "components": {}}
    for component, own in converted.items():
        shapes = {path: tuple(value.shape) for path, value in own.items()}
        golden["components"][component] = {"config": configs[component], "tensors": shapes}
    if little:
        golden["digests"] = {
            component: {
                path: hashlib.sha256(value.contiguous().view(torch.int16).numpy().tobytes()).hexdigest()[:16]
                for path, value in own.items()
            }
            for component, own in converted.items()
        }
    return golden


def picture(name: str) -> np.ndarray:
    """A little model's, with CLIP's whole vocabulary: (16, 16, 3) uint8."""
    file, configs = file_shapes(name), configurations(name)
    for component, (kind, prefix, sizes) in text_encoders(name).items():
        inner = "text_model.embeddings.token_embedding" if kind == "clip" else "token_embedding"
        file[f"{prefix}{inner}.weight"] = (VOCAB_SIZE, sizes["width"])
        configs[component]["vocab_size"] = VOCAB_SIZE
    tensors = {key: torch.from_numpy(weight(key, shape)) for key, shape in file.items()}
    networks, converted = convert(name, configs, tensors)
    for component, network in networks.items():
        network.to_empty(device="cpu")
        paths = {outer_path(component, path): path for path in network.state_dict()}
        network.load_state_dict({paths[path]: value.float() for path, value in converted[component].items()})
        for module in network.modules():
            if hasattr(module, "position_ids"):
                module.position_ids = torch.arange(LENGTH)[None]
        network.eval()
    parts: dict[str, Any] = {**networks}
    if "text_encoder_2" in networks:
        parts |= {"tokenizer": read_tokenizer(EOS), "tokenizer_2": read_tokenizer("!")}
        scheduler = diffusers.EulerDiscreteScheduler(**NOISE, timestep_spacing="leading")
        pipeline = diffusers.StableDiffusionXLPipeline(**parts, scheduler=scheduler, add_watermarker=False)
    else:
        is_sd1 = name == "little_sd1"
        options = {**NOISE, "set_alpha_to_one": False}
        scheduler = (
            diffusers.PNDMScheduler(**options, skip_prk_steps=True)
            if is_sd1
            else diffusers.DDIMScheduler(**options, clip_sample=False, prediction_type="v_prediction")
        )
        nothing = dict.fromkeys(("safety_checker", "feature_extractor"))
        parts["tokenizer"] = read_tokenizer(EOS if is_sd1 else "!")
        pipeline = diffusers.StableDiffusionPipeline(
            **parts, **nothing, scheduler=scheduler, requires_safety_checker=False
        )
    pipeline.set_progress_bar_config(disable=True)
    with torch.inference_mode():
        generator = torch.Generator().manual_seed(SEED)
        images = pipeline(**CALL, generator=generator, output_type="np").images
    return np.round(images[0] * 255).astype(np.uint8)


def main() -> None:
    golden = {name: write(name) for name in UNETS}
    FILE.write_bytes(gzip.compress(json.dumps(golden, separators=(",", ":")).encode(), mtime=0))
    pictures = {name: picture(name) for name in UNETS if name.startswith("little")}
    arrays: dict[str, Any] = {**pictures, "call": json.dumps(CALL | {"seed": SEED})}
    np.savez_compressed(PICTURES, **arrays)
    for name, pixels in pictures.items():
        print(name, "mean", pixels.mean().round(), "deviation", pixels.std().round())
    print(f"diffusers {diffusers.__version__}: {len(golden)} models, {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
