"""Write single_files.json.gz: checkpoints in the layout of the original releases, and what diffusers makes of them.

Needs the `golden` extra. The files' names and shapes are built here as the original code builds its modules (CompVis
latent-diffusion's openaimodel.py and model.py, OpenCLIP's transformer.py), and converted by diffusers' own loader of
single files, which must give exactly the tensors of diffusers' networks. For each model:

* `file`: the shape of each tensor of the file, by name;
* `components`: for each of diffusers' components its configuration, and the shape of each tensor by diffusers' path;
* `digests`, of little models alone, by component and path: of the converted tensor where the file holds `data`.
"""

# pyright: reportMissingImports=false, reportPrivateImportUsage=false

import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.loaders import single_file_utils

FILE = Path(__file__).with_name("single_files.json.gz")
Shapes = Iterator[tuple[str, tuple[int, ...]]]
VOCAB_SIZE, LENGTH, GROUPS = 49408, 77, 32


def data(name: str, size_bytes: int) -> bytes:
    """What a tiny file's tensor of that name holds: bits of f16, any of them."""
    return hashlib.shake_256(name.encode()).digest(size_bytes)


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

VAE_WIDTHS, TINY_VAE = (128, 256, 512, 512), (32, 64)
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
LITTLE_SECOND = {"width": 128, "layers": 1, "vocab_size": 99}


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


def write(name: str) -> dict[str, Any]:
    """One model's golden values."""
    original, little = UNETS[name], name.startswith("little")
    is_sdxl, is_sd1 = "adm" in original, not original.get("linear")
    widths = TINY_VAE if little else VAE_WIDTHS
    file = {f"model.diffusion_model.{key}": shape for key, shape in unet(**original)}
    file |= {f"first_stage_model.{key}": shape for key, shape in vae(widths=widths, num_res_blocks=2 - little)}
    encoders = text_encoders(name)
    for kind, prefix, sizes in encoders.values():
        file |= {prefix + key: shape for key, shape in {"clip": clip, "open_clip": open_clip}[kind](**sizes)}
    if little:
        tensors = {
            key: torch.frombuffer(bytearray(data(key, 2 * max(1, torch.Size(shape).numel()))), dtype=torch.int16)
            .view(torch.float16)
            .reshape(shape)
            for key, shape in file.items()
        }
    else:
        tensors = {key: torch.empty(shape, dtype=torch.float16, device="meta") for key, shape in file.items()}

    heads = 8 if is_sd1 else [mult * original["channels"] // 64 for mult in original["mults"]]
    configs: dict[str, dict[str, Any]] = {
        "unet": unet_config(original, attention_head_dim=heads),
        "vae": {
            "block_out_channels": widths,
            "layers_per_block": 2 - little,
            "down_block_types": ["DownEncoderBlock2D"] * len(widths),
            "up_block_types": ["UpDecoderBlock2D"] * len(widths),
            "norm_num_groups": GROUPS,
            "scaling_factor": 0.13025 if is_sdxl else 0.18215,
            "force_upcast": is_sdxl,
        },
    }
    networks: dict[str, Any] = {}
    converted: dict[str, dict[str, torch.Tensor]] = {}
    with torch.device("meta"):
        networks["unet"] = diffusers.UNet2DConditionModel(**configs["unet"])
        networks["vae"] = diffusers.AutoencoderKL(**configs["vae"])
        for component, (kind, _, sizes) in encoders.items():
            layers = 23 if kind == "open_clip" and not is_sdxl else sizes["layers"]
            configs[component] = text_config(kind, sizes, layers)
            is_projected = component == "text_encoder_2"
            model = transformers.CLIPTextModelWithProjection if is_projected else transformers.CLIPTextModel
            networks[component] = model(transformers.CLIPTextConfig(**configs[component]))
    converted["unet"] = single_file_utils.convert_ldm_unet_checkpoint(dict(tensors), dict(networks["unet"].config))
    converted["vae"] = single_file_utils.convert_ldm_vae_checkpoint(dict(tensors), networks["vae"].config)
    for component, (kind, prefix, _) in encoders.items():
        own = {key: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        if kind == "clip":
            converted[component] = single_file_utils.convert_ldm_clip_checkpoint(own)
        else:
            converted[component] = single_file_utils.convert_open_clip_checkpoint(networks[component], own, prefix)
    golden: dict[str, Any] = {"file": file, "components": {}}
    digests: dict[str, Any] = {}
    for component, network in networks.items():
        expected = {key: tuple(value.shape) for key, value in network.state_dict().items()}
        if component.startswith("text_encoder"):  # whose outer module is named or not, by release of transformers
            expected = {key if key.startswith("text_") else f"text_model.{key}": s for key, s in expected.items()}
        found = {key: value for key, value in converted[component].items() if key in expected}
        buffers = {"text_model.embeddings.position_ids", "text_projection.weight"}
        assert set(converted[component]) - set(found) <= buffers, (name, component)
        assert {key: tuple(value.shape) for key, value in found.items()} == expected, (name, component)
        golden["components"][component] = {"config": configs[component], "tensors": expected}
        digests[component] = {
            key: hashlib.sha256(value.contiguous().view(torch.int16).numpy().tobytes()).hexdigest()[:16]
            for key, value in found.items()
            if little
        }
    return golden | ({"digests": digests} if little else {})


def main() -> None:
    golden = {name: write(name) for name in UNETS}
    FILE.write_bytes(gzip.compress(json.dumps(golden, separators=(",", ":")).encode(), mtime=0))
    print(f"diffusers {diffusers.__version__}: {len(golden)} models, {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
