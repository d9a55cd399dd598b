"""Write single_files.json.gz: checkpoints in the layout of the original releases, and what diffusers makes of them.

Needs the `golden` extra. The files' names and shapes are those of ldm_modules.py, converted by diffusers' own loader of
single files, which must give exactly the tensors of diffusers' networks. For each model:

* `file`: the shape of each tensor of the file, by name;
* `components`: for each of diffusers' components its configuration, and the shape of each tensor by diffusers' path;
* `digests`, of little models alone, by component and path: of the converted tensor where the file holds `stored_bytes`.

and single_files.npz: what diffusers computes with the little models, of weights that `weight` makes and with CLIP's
whole vocabulary, opened by `from_single_file` with the configurations in a folder. For each model, of the prompts of
CALL,

* `<model>_token_ids`: (2, 77), with two tokenizers (2, 2, 77); `<model>_embeddings`: (2, 7, C), of every 11th token;
  `<model>_pooled`: (2, P) for SDXL;
* `<model>_unet`: (timesteps, 2, C, H, W), as `unet_outputs` of make_models.py;

and for each of CASES `<case>_image`, a picture (height, width, 3) uint8 by the whole pipeline. `facts` is JSON: the
cases with all that ours needs for the same picture, and timesteps, seed and guidance scale of the UNet's outputs.
"""

# pyright: reportMissingImports=false, reportPrivateImportUsage=false

import gzip
import hashlib
import json
import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers.loaders import single_file_utils
from diffusers.utils import load_image
from ldm_modules import VOCAB_SIZE, clip, open_clip, taesd, unet, vae
from make_clip_vocabulary import EOS, read_tokenizer
from make_models import UNET_GUIDANCE_SCALE, UNET_SEED, UNET_TIMESTEPS, encode, unet_inputs
from safetensors.torch import save_file
from single_file_weights import stored_bytes, weight

FILE = Path(__file__).with_name("single_files.json.gz")
COMPUTED = Path(__file__).with_name("single_files.npz")
PICTURES = Path(__file__).with_name("pictures")
CALL = {
    "prompt": "a red fox, watercolor!",
    "negative_prompt": "blurry",
    "num_inference_steps": 4,
    "guidance_scale": 5.0,
    "height": 16,
    "width": 16,
}
SEED = 3
EVERY_NTH_TOKEN = 11  # of embeddings is kept
LATENT_SHAPE = (6, 5)  # cells of the UNet by itself
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
GROUPS = 32


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
    if original.get("scales"):
        config["time_cond_proj_dim"] = original["scales"]
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
LITTLE_SD1, LITTLE_SD2, LITTLE_SDXL = (UNETS[f"little_{name}"] for name in ("sd1", "sd2", "sdxl"))
UNETS |= {
    "little_lcm": LITTLE_SD1 | {"scales": 11},
    "little_inpainting": LITTLE_SD1 | {"in_channels": 9},
    "little_tiny_sd": LITTLE_SD1 | {"depths": [[1], [1]], "depths_out": [[1, 1], [1, 1]], "middle": None},
    "little_sd2_inpainting": LITTLE_SD2 | {"in_channels": 9},
    "little_sd_turbo": LITTLE_SD2,
    "little_sdxl_inpainting": LITTLE_SDXL | {"in_channels": 9},
    "little_vega": LITTLE_SDXL | {"middle": -1},
    "little_ssd_1b": LITTLE_SDXL
    | {"num_res_blocks": 2, "depths": [[0, 0], [2, 1]], "depths_out": [[1, 2, 3], [0, 0, 0]], "middle": -1},
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
        prefix = "conditioner.embedders.0.model." if "turbo" in name else "cond_stage_model.model."
        return {"text_encoder": ("open_clip", prefix, sizes)}
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
) -> dict[str, dict[str, torch.Tensor]]:
    """diffusers' tensors by component and transformers' older paths, converted from the file's."""
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
    if "scales" in UNETS[name]:  # which the converter leaves out
        path = "time_embedding.cond_proj.weight"
        converted["unet"][path] = tensors[f"model.diffusion_model.{path}"]
    for component, (kind, prefix, _) in text_encoders(name).items():
        own = {key: tensor for key, tensor in tensors.items() if key.startswith(prefix)}
        if kind == "clip":
            converted[component] = single_file_utils.convert_ldm_clip_checkpoint(own)
        else:
            converted[component] = single_file_utils.convert_open_clip_checkpoint(networks[component], own, prefix)
    for component, network in networks.items():
        expected = {outer_path(component, key): tuple(value.shape) for key, value in network.state_dict().items()}
        found = {key: value for key, value in converted[component].items() if key in expected}
        # Buffers, and the last layer of SD 2.x, which the converter knows by the prefix of older files alone.
        unread = ("text_model.embeddings.position_ids", "text_projection.weight", "text_model.encoder.layers.23.")
        others = set(converted[component]) - set(found)
        assert all(path.startswith(unread) for path in others), (name, component, others)
        assert {key: tuple(value.shape) for key, value in found.items()} == expected, (name, component)
        converted[component] = found
    return converted


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
    converted = convert(name, configs, tensors)
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


@dataclass(frozen=True)
class Case:
    """A whole run of a little model, in diffusers and here."""

    model: str
    pipeline: Any
    scheduler: Any
    call: dict[str, Any] = field(default_factory=dict)
    """Beside CALL."""
    options: dict[str, Any] = field(default_factory=dict)
    """What ours is told of the file beside its path."""
    vae: str | None = None
    """The file of a TAESD in the place of the model's own."""

    @property
    def is_inpainting(self) -> bool:
        """From photo.png, where mask.png is white."""
        return UNETS[self.model].get("in_channels") == 9


SD, SDXL = diffusers.StableDiffusionPipeline, diffusers.StableDiffusionXLPipeline
SD_INPAINT, SDXL_INPAINT = diffusers.StableDiffusionInpaintPipeline, diffusers.StableDiffusionXLInpaintPipeline
PNDM = diffusers.PNDMScheduler(**NOISE, set_alpha_to_one=False, skip_prk_steps=True)
DDIM = diffusers.DDIMScheduler(**NOISE, set_alpha_to_one=False, clip_sample=False)
EULER = diffusers.EulerDiscreteScheduler(**NOISE, timestep_spacing="leading")
TRAILING = NOISE | {"timestep_spacing": "trailing"}
V_PREDICTION = {"prediction_type": "v_prediction"}
TURBO: dict[str, Any] = {"guidance_scale": 0.0, "num_inference_steps": 2}
LCM_CALL: dict[str, Any] = {"guidance_scale": 8.5, "negative_prompt": None}
LCM_NOISE = {key: value for key, value in NOISE.items() if key != "steps_offset"}
LCM = diffusers.LCMScheduler(**LCM_NOISE, clip_sample=False)
WHOLE = {"strength": 1.0}
CASES = {
    "sd1": Case("little_sd1", SD, PNDM),
    "sd1_taesd": Case("little_sd1", SD, PNDM, {"width": 32, "height": 32}, vae="little_taesd"),
    "sd2": Case("little_sd2", SD, diffusers.DDIMScheduler.from_config(DDIM.config, **V_PREDICTION), {}, V_PREDICTION),
    "sdxl": Case("little_sdxl", SDXL, EULER),
    "lcm": Case("little_lcm", diffusers.LatentConsistencyModelPipeline, LCM, LCM_CALL),
    "tiny_sd": Case("little_tiny_sd", SD, PNDM),
    "vega": Case("little_vega", SDXL, EULER),
    "ssd_1b": Case("little_ssd_1b", SDXL, EULER),
    "sd_turbo": Case(
        "little_sd_turbo", SD, diffusers.EulerDiscreteScheduler(**TRAILING), TURBO, {"scheduler": "euler_trailing"}
    ),
    "sdxl_turbo": Case(
        "little_sdxl",
        SDXL,
        diffusers.EulerAncestralDiscreteScheduler(**TRAILING),
        TURBO,
        {"scheduler": "euler_a_trailing"},
    ),
    "inpainting": Case("little_inpainting", SD_INPAINT, PNDM, WHOLE),
    "sd2_inpainting": Case("little_sd2_inpainting", SD_INPAINT, DDIM, WHOLE),
    "sdxl_inpainting": Case("little_sdxl_inpainting", SDXL_INPAINT, EULER, WHOLE),
}
TAESD: dict[str, Any] = {"width": 16, "num_blocks": (2, 1, 1)}


def open_pipeline(case: Case, folder: Path) -> Any:
    """diffusers', of the file and the folder with configurations that are written for it."""
    file, configs = file_shapes(case.model), configurations(case.model)
    for component, (kind, prefix, sizes) in text_encoders(case.model).items():
        inner = "text_model.embeddings.token_embedding" if kind == "clip" else "token_embedding"
        file[f"{prefix}{inner}.weight"] = (VOCAB_SIZE, sizes["width"])
        configs[component]["vocab_size"] = VOCAB_SIZE
    configs["unet"]["sample_size"] = 64  # pipelines for inpainting ask for it
    tensors = {key: torch.from_numpy(weight(key, shape).copy()) for key, shape in file.items()}
    save_file(tensors, folder / "model.safetensors")
    index: dict[str, Any] = {"_class_name": case.pipeline.__name__, "scheduler": ["diffusers", "SchedulerMixin"]}
    for component, config in configs.items():
        if component.startswith("text_encoder"):
            transformers.CLIPTextConfig(**config).save_pretrained(folder / component)
            has_projection = component.endswith("_2")
            index[component] = ["transformers", f"CLIPTextModel{'WithProjection' if has_projection else ''}"]
            tokenizer = component.replace("text_encoder", "tokenizer")
            is_open_clip = text_encoders(case.model)[component][0] == "open_clip"
            read_tokenizer("!" if is_open_clip else EOS).save_pretrained(folder / tokenizer)
            index[tokenizer] = ["transformers", "CLIPTokenizer"]
        else:
            kind = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}[component]
            kind(**config).save_config(folder / component)
            index[component] = ["diffusers", kind.__name__]
    (folder / "model_index.json").write_text(json.dumps(index))
    parts: dict[str, Any] = {"scheduler": case.scheduler}
    if "text_encoder_2" not in configs:
        parts |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    elif not case.is_inpainting:
        parts["add_watermarker"] = False
    if "scales" in UNETS[case.model]:  # whose tensor from_single_file leaves out
        parts["unet"] = diffusers.UNet2DConditionModel(**configs["unet"]).eval()
        converted = convert(case.model, configs, tensors)["unet"]
        parts["unet"].load_state_dict({path: value.float() for path, value in converted.items()})
    if case.vae:
        parts["vae"] = open_taesd()
    pipeline = case.pipeline.from_single_file(
        str(folder / "model.safetensors"), config=str(folder), local_files_only=True, torch_dtype=torch.float32, **parts
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def open_taesd() -> diffusers.AutoencoderTiny:
    """With the decoder of its file, whose first layer, the clamp, diffusers does not count."""
    blocks = TAESD["num_blocks"]
    widths = (TAESD["width"],) * len(blocks)
    sides: dict[str, Any] = {"decoder_block_out_channels": widths, "num_decoder_blocks": blocks}
    network = diffusers.AutoencoderTiny(**sides, encoder_block_out_channels=widths, num_encoder_blocks=blocks)
    state = {}
    for key, shape in taesd(**TAESD):
        number, rest = key.split(".", 1)
        state[f"layers.{int(number) - 1}.{rest}"] = torch.from_numpy(weight(key, shape)).float()
    network.decoder.load_state_dict(state)
    return network.eval()


def compute(pipeline: Any, name: str) -> dict[str, np.ndarray]:
    """Token ids, embeddings and the UNet's outputs."""
    arrays = encode(pipeline, [CALL["negative_prompt"], CALL["prompt"]])
    latents = torch.randn((2, 4, *LATENT_SHAPE), generator=torch.Generator().manual_seed(UNET_SEED))
    if pipeline.unet.config.in_channels == 9:  # the mask, and the latents of what is behind it
        latents = torch.cat([latents, torch.ones_like(latents[:, :1]), torch.zeros_like(latents)], dim=1)
    inputs = unet_inputs(pipeline, arrays, LATENT_SHAPE)
    arrays["unet"] = np.stack([pipeline.unet(latents, t, **inputs).sample.numpy() for t in UNET_TIMESTEPS])
    arrays["embeddings"] = arrays["embeddings"][:, ::EVERY_NTH_TOKEN]
    print(f"{name}: embeddings {arrays['embeddings'].std():.2f}, unet {arrays['unet'].std():.2f}")
    return {f"{name}_{key}": array for key, array in arrays.items()}


def picture(case: Case, pipeline: Any) -> np.ndarray:
    """The whole run's: (height, width, 3) uint8."""
    call = {key: value for key, value in (CALL | case.call).items() if value is not None}
    if case.is_inpainting:
        call |= {"image": load_image(str(PICTURES / "photo.png")), "mask_image": load_image(str(PICTURES / "mask.png"))}
    images = pipeline(**call, generator=torch.Generator().manual_seed(SEED), output_type="np").images
    return np.round(images[0] * 255).astype(np.uint8)


@torch.inference_mode()
def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    golden = {name: write(name) for name in UNETS} | {"little_taesd": {"file": dict(taesd(**TAESD))}}
    FILE.write_bytes(gzip.compress(json.dumps(golden, separators=(",", ":")).encode(), mtime=0))
    arrays: dict[str, Any] = {}
    cases: dict[str, Any] = {}
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            pipeline = open_pipeline(case, Path(folder))
            if f"{case.model}_unet" not in arrays:
                arrays |= compute(pipeline, case.model)
            pixels = arrays[f"{name}_image"] = picture(case, pipeline)
        saturated = np.mean((pixels == 0) | (pixels == 255))
        print(f"  {name}: deviation {pixels.std():.0f}, {100 * saturated:.1f} % saturated")
        given = {"model": case.model, "call": CALL | case.call | {"seed": SEED}, "options": case.options}
        cases[name] = given | {"vae": case.vae, "is_inpainting": case.is_inpainting}
    facts: dict[str, Any] = {"cases": cases, "every_nth_token": EVERY_NTH_TOKEN, "unet_seed": UNET_SEED}
    facts |= {"unet_timesteps": UNET_TIMESTEPS, "unet_guidance_scale": UNET_GUIDANCE_SCALE}
    np.savez_compressed(COMPUTED, allow_pickle=False, facts=np.array(json.dumps(facts)), **arrays)
    print(f"diffusers {diffusers.__version__}, transformers {transformers.__version__}: {len(golden)} models, ", end="")
    print(f"{FILE.stat().st_size} and {COMPUTED.stat().st_size} bytes")


if __name__ == "__main__":
    main()
