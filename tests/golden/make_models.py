"""Write models/ and <model>.npz: tiny random models, and what diffusers makes of them. Needs the `golden` extra.

models/<name> is a folder in diffusers' format. <name>.npz, and emoji.npz for the embedded model, hold in float32

* `token_ids`: (2, L) of the negative prompt and the prompt, and their `embeddings`: (2, L, C); with two tokenizers
  (2, 2, L), and `pooled`: (2, P);
* `unet_outputs`: (timesteps, 2, C, H, W) for latents randn((2, C, H, W), seed 0), those embeddings and the timesteps of
  `facts`;
* `facts`: JSON with the prompts, the timesteps, and `cases`: runs of the whole pipeline; case k has
  `latents_k`: (calls of the UNet, B, C, H, W), `images_k`: (B, height, width, 3) uint8, and, where it says so,
  `pixels_k`: the same in -1..1 before rounding. Its "rounding" is how far, by relative error, rounding alone took the
  latents after each call: the run in float32 against the same run in float64.

networks/<name> are networks by themselves, and networks.npz what they make: see write_networks.

Everything is computed in float32 on the CPU, from the weights as they are stored. `make_models.py emoji` makes only
emoji.npz anew, and so on: any of the models, `networks` and `emoji`. make_families.py makes those of other kinds.
"""

# pyright: reportMissingImports=false, reportPrivateImportUsage=false

import json
import math
import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers.schedulers import scheduling_euler_ancestral_discrete, scheduling_lcm
from PIL import Image

FOLDER = Path(__file__).parent
MODELS = FOLDER / "models"
NETWORKS = FOLDER / "networks"
EMOJI = FOLDER.parents[1] / "src" / "shaderfusion" / "embedded" / "emoji"
VOCABULARY_SIZE = 714  # of tokenizer/; its last two are the begin and the end
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
SCHEDULERS = {
    "ddim": diffusers.DDIMScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "euler_a": diffusers.EulerAncestralDiscreteScheduler,
    "lcm": diffusers.LCMScheduler,
    "pndm": diffusers.PNDMScheduler,
}
UNET_SEED = 0
UNET_TIMESTEPS = (1, 381, 951)
UNET_GUIDANCE_SCALE = 3.0  # of those UNets that read it

STABLE_DIFFUSION = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
}


def case(scheduler: str, *, num_inference_steps: int, seed: int, pixels: bool = False, **options: Any) -> dict:
    """A run of the pipeline; `options` are the call's own."""
    return {"scheduler": scheduler, "pixels": pixels} | {
        "call": {"num_inference_steps": num_inference_steps, "seed": seed, "guidance_scale": 7.5} | options
    }


@dataclass(frozen=True)
class Model:
    """Configurations of the components, how they are stored, and what is run."""

    text_encoder: dict[str, Any]
    unet: dict[str, Any]
    vae: dict[str, Any]
    scheduler: dict[str, Any]
    pad_token: str
    dtypes: dict[str, torch.dtype]
    shard_size: str
    cases: list[dict]
    gains: dict[str, float] = field(default_factory=dict)
    """Of layers with outputs so small that the epsilon of the norm after them shows."""
    pipeline: str = "StableDiffusionPipeline"
    text_encoder_2: dict[str, Any] | None = None
    """That of SDXL."""


SD1 = Model(  # as SD 1.x: convolutions around the transformers, one number of heads, epsilon, quick_gelu, PNDM
    text_encoder={"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1, "hidden_act": "quick_gelu"},
    unet={
        "sample_size": 8,
        "block_out_channels": (16, 32),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "norm_num_groups": 8,
    },
    vae={"block_out_channels": (8, 8, 8), "norm_num_groups": 4, "layers_per_block": 1},
    scheduler=STABLE_DIFFUSION | {"_class_name": "PNDMScheduler"},
    pad_token=EOS,
    dtypes={"text_encoder": torch.float32, "unet": torch.float16, "vae": torch.float16},
    shard_size="10GB",
    cases=[
        case("pndm", num_inference_steps=5, seed=1, pixels=True),
        case("ddim", num_inference_steps=5, seed=2, num_images_per_prompt=2),
        case("euler", num_inference_steps=4, seed=3, guidance_scale=1.0),
        case("pndm", num_inference_steps=1, seed=4, width=24, height=40),
        case("euler_a", num_inference_steps=4, seed=22, width=24, height=16, num_images_per_prompt=2),
        case("lcm", num_inference_steps=3, seed=23, width=16, height=24, guidance_scale=1.0),
    ],
)
SD2 = Model(  # as SD 2.x: linear layers around the transformers, heads by block, v prediction, gelu, DDIM, pad "!"
    text_encoder={"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 2, "hidden_act": "gelu"},
    unet={
        "sample_size": 8,
        "block_out_channels": (12, 24),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": (1, 2),
        "attention_head_dim": (1, 3),
        "use_linear_projection": True,
        "norm_num_groups": 12,
    },
    vae={"block_out_channels": (8, 16), "norm_num_groups": 8, "layers_per_block": 1, "mid_block_add_attention": False},
    scheduler=STABLE_DIFFUSION
    | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "clip_sample": False},
    pad_token="!",
    dtypes={"text_encoder": torch.float16, "unet": torch.float16, "vae": torch.float16},
    shard_size="10GB",
    cases=[
        case("ddim", num_inference_steps=5, seed=5, pixels=True),
        case("pndm", num_inference_steps=6, seed=6, guidance_scale=0.0, num_images_per_prompt=2),
        case("euler", num_inference_steps=5, seed=7, guidance_scale=3.0, width=24, height=8),
    ],
)
# Nothing in powers of two: 3, 5 and 7 channels a group, 15 cells in the middle; no optional layer; bf16 in shards.
ODD = Model(
    text_encoder={"hidden_size": 20, "num_attention_heads": 5, "num_hidden_layers": 1, "hidden_act": "quick_gelu"},
    unet={
        "sample_size": 8,
        "block_out_channels": (12, 20, 28),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "transformer_layers_per_block": (1, 2, 1),
        "attention_head_dim": (3, 1, 7),
        "norm_num_groups": 4,
        "norm_eps": 1e-6,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "time_embedding_dim": 40,
    },
    vae={
        "block_out_channels": (8, 12),
        "norm_num_groups": 4,
        "layers_per_block": 1,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
        "scaling_factor": 0.7,
    },
    # clip_sample is left to each rule's default, which is to clip for DDIM.
    scheduler=STABLE_DIFFUSION | {"_class_name": "EulerDiscreteScheduler"},
    pad_token=EOS,
    dtypes=dict.fromkeys(("text_encoder", "unet", "vae"), torch.bfloat16),
    shard_size="200KB",
    cases=[
        case("euler", num_inference_steps=5, seed=8, width=40, height=24, pixels=True),
        case("ddim", num_inference_steps=5, seed=9, guidance_scale=2.5),
        case("pndm", num_inference_steps=4, seed=10, width=8, height=16, num_images_per_prompt=2),
    ],
    gains={
        "text_encoder.embeddings.token_embedding.weight": 0.02,
        "text_encoder.embeddings.position_embedding.weight": 0.02,
        "unet.conv_in": 0.02,
        "unet.down_blocks.1.resnets.0.conv2": 0.02,
        "unet.down_blocks.1.resnets.0.conv_shortcut": 0.02,
        "unet.down_blocks.1.attentions.0.proj_in": 0.02,
        "vae.decoder.conv_in": 0.001,
    },
)
# Channels, heads and sides that no vector of four fits: heads of 5 and 6, 5 and 2 channels; 5x7 cells, 3x4, 2x2.
RAGGED = Model(
    text_encoder={"hidden_size": 10, "num_attention_heads": 2, "num_hidden_layers": 2, "hidden_act": "gelu"},
    unet={
        "sample_size": (5, 7),
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (6, 10, 14),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": (1, 2, 1),
        "transformer_layers_per_block": (2, 1, 1),
        "attention_head_dim": (1, 2, 7),
        "norm_num_groups": 2,
        "time_embedding_dim": 22,
    },
    vae={"block_out_channels": (6, 2, 4, 10), "latent_channels": 3, "norm_num_groups": 2, "layers_per_block": 1},
    scheduler=STABLE_DIFFUSION | {"_class_name": "EulerDiscreteScheduler", "clip_sample": False},
    pad_token=EOS,
    dtypes=dict.fromkeys(("text_encoder", "unet", "vae"), torch.float16),
    shard_size="10GB",
    cases=[
        case("euler", num_inference_steps=5, seed=16, pixels=True),
        case("pndm", num_inference_steps=4, seed=17, width=72, height=24, num_images_per_prompt=2),
        case("ddim", num_inference_steps=4, seed=18, width=8, height=136, guidance_scale=1.0),
    ],
)
# Groups of 3 and 5 channels, heads of 3, 15 and 6; 5 latent channels; 9x9 cells and 5x5.
THIRDS = Model(
    text_encoder={"hidden_size": 18, "num_attention_heads": 3, "num_hidden_layers": 1, "hidden_act": "quick_gelu"},
    unet={
        "sample_size": 9,
        "in_channels": 5,
        "out_channels": 5,
        "block_out_channels": (9, 15),
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": (3, 1),
        "use_linear_projection": True,
        "norm_num_groups": 3,
    },
    vae={"block_out_channels": (3, 6, 3, 9), "latent_channels": 5, "norm_num_groups": 3, "layers_per_block": 1},
    scheduler=STABLE_DIFFUSION
    | {"_class_name": "DDIMScheduler", "prediction_type": "v_prediction", "clip_sample": False},
    pad_token="!",
    dtypes=dict.fromkeys(("text_encoder", "unet", "vae"), torch.bfloat16),
    shard_size="10GB",
    cases=[
        case("ddim", num_inference_steps=4, seed=19, pixels=True),
        case("euler", num_inference_steps=4, seed=20, width=56, height=24),
        case("pndm", num_inference_steps=4, seed=21, width=40, height=40, guidance_scale=2.0),
    ],
)
TINY = {"sd1": SD1, "sd2": SD2, "odd": ODD, "ragged": RAGGED, "thirds": THIRDS}
MAX_LENGTHS = {"sd1": 16, "sd2": 17, "odd": 11, "ragged": 10, "thirds": 13}
UNET_SIZES = {"sd1": (8, 8), "sd2": (8, 8), "odd": (8, 12), "ragged": (9, 5), "thirds": (7, 3)}
UNETS: dict[str, dict[str, Any]] = {
    "inpainting": {  # the latents of a masked image and the mask beside its own latents
        "sample_size": (7, 6),
        "in_channels": 9,
        "out_channels": 4,
        "block_out_channels": (6, 8),
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "layers_per_block": 1,
        "attention_head_dim": (3, 1),
        "norm_num_groups": 2,
        "cross_attention_dim": 10,
    },
    "pixels": {  # red, green and blue to their means and variances; one level
        "sample_size": (5, 3),
        "in_channels": 3,
        "out_channels": 6,
        "block_out_channels": (15,),
        "down_block_types": ("CrossAttnDownBlock2D",),
        "up_block_types": ("CrossAttnUpBlock2D",),
        "layers_per_block": 1,
        "attention_head_dim": 1,
        "norm_num_groups": 5,
        "cross_attention_dim": 6,
        "flip_sin_to_cos": False,
    },
}
CLIP: dict[str, Any] = {
    "vocab_size": 22,
    "hidden_size": 12,
    "intermediate_size": 14,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "max_position_embeddings": 7,
    "projection_dim": 10,
    "hidden_act": "gelu",
    "bos_token_id": 5,
    "eos_token_id": 21,
    "pad_token_id": 21,
}
EMOJI_CASES = [
    case("ddim", num_inference_steps=4, seed=11, width=64, height=64, pixels=True),
    case("pndm", num_inference_steps=4, seed=12, width=32, height=64, num_images_per_prompt=2),
    case("euler", num_inference_steps=4, seed=13, width=64, height=64),
    case("ddim", num_inference_steps=3, seed=14, width=32, height=32, guidance_scale=1.0),
    case("ddim", num_inference_steps=3, seed=15, guidance_scale=5.0),
]


@torch.no_grad()
def randomize(model: torch.nn.Module, seed: int) -> None:
    """Weights that keep the variance from layer to layer, so that every layer shows in the output."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            noise = torch.randn(parameter.shape, generator=generator)
            if isinstance(module, torch.nn.GroupNorm | torch.nn.LayerNorm):
                parameter.copy_((name == "weight") + 0.2 * noise)
            elif name == "bias":
                parameter.copy_(0.2 * noise)
            elif isinstance(module, torch.nn.Embedding):
                parameter.copy_(noise)
            else:
                parameter.copy_(noise / math.sqrt(parameter[0].numel()))


def find_parameters(network: torch.nn.Module, path: str) -> list[torch.nn.Parameter]:
    """Those below a path or at it; the outermost module's name may be left out, as some transformers do."""
    found = [parameter for name, parameter in network.named_parameters() if f".{name}".find(f".{path}") >= 0]
    if not found:
        raise ValueError(f"no parameter {path}")
    return found


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_tokenizer(folder: Path, pad_token: str, max_length: int) -> None:
    """The vocabulary of tokenizer/, in the form of published models."""
    folder.mkdir(parents=True)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(FOLDER / "tokenizer" / name, folder)
    names = {"bos_token": BOS, "eos_token": EOS, "pad_token": pad_token, "unk_token": EOS}
    config = {"model_max_length": max_length, "tokenizer_class": "CLIPTokenizer"}
    write_json(folder / "tokenizer_config.json", config | names)


def write_model(folder: Path, model: Model, max_length: int, seed: int) -> None:
    """A random model in diffusers' format."""
    shutil.rmtree(folder, ignore_errors=True)
    write_tokenizer(folder / "tokenizer", model.pad_token, max_length)
    write_json(folder / "scheduler" / "scheduler_config.json", model.scheduler)
    text_encoders: dict[str, Any] = {"text_encoder": transformers.CLIPTextModel(clip_config(model, max_length))}
    if model.text_encoder_2:
        write_tokenizer(folder / "tokenizer_2", "!", max_length)
        second = clip_config(replace(model, text_encoder=model.text_encoder_2, pad_token="!"), max_length)
        text_encoders["text_encoder_2"] = transformers.CLIPTextModelWithProjection(second)
    C = sum(network.config.hidden_size for network in text_encoders.values())
    num_levels = len(model.vae["block_out_channels"])
    vae: dict[str, Any] = model.vae | {
        "sample_size": np.max(model.unet["sample_size"]).item() * 2 ** (num_levels - 1),
        "down_block_types": ("DownEncoderBlock2D",) * num_levels,
        "up_block_types": ("UpDecoderBlock2D",) * num_levels,
    }
    networks: dict[str, Any] = {
        "text_encoder": text_encoders.pop("text_encoder"),
        "unet": diffusers.UNet2DConditionModel(cross_attention_dim=C, **model.unet),
        "vae": diffusers.AutoencoderKL(**vae),
        **text_encoders,
    }
    for i, (name, network) in enumerate(networks.items()):
        randomize(network, seed + i)
        for path, gain in model.gains.items():
            if path.startswith(f"{name}."):
                for parameter in find_parameters(network, path.removeprefix(f"{name}.")):
                    parameter.data *= gain
        if name == "vae":
            network.decoder.conv_out.weight.data *= 0.7  # a deviation of about 50 of 255
        network.to(model.dtypes[name]).save_pretrained(folder / name, max_shard_size=model.shard_size)
    library = {True: "transformers", False: "diffusers"}
    components = {
        name: [library[name.startswith("text")], type(network).__name__] for name, network in networks.items()
    }
    index = {
        "_class_name": model.pipeline,
        "_diffusers_version": diffusers.__version__,
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", model.scheduler["_class_name"]],
        "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    if model.text_encoder_2:
        index |= {"force_zeros_for_empty_prompt": True, "tokenizer_2": ["transformers", "CLIPTokenizer"]}
    else:
        index |= {"requires_safety_checker": False, "safety_checker": [None, None]}
    write_json(folder / "model_index.json", index | components)


def clip_config(model: Model, max_length: int) -> transformers.CLIPTextConfig:
    """Of the text encoder, with the ids of the tokenizer unless it says others."""
    ids = {"bos_token_id": VOCABULARY_SIZE - 2, "eos_token_id": VOCABULARY_SIZE - 1}
    ids |= {"pad_token_id": 0 if model.pad_token == "!" else VOCABULARY_SIZE - 1}
    sizes = {"vocab_size": VOCABULARY_SIZE, "max_position_embeddings": max_length}
    sizes |= {"intermediate_size": 4 * model.text_encoder["hidden_size"]}
    return transformers.CLIPTextConfig(**sizes, **(ids | model.text_encoder))


def draw_in_float32(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype, **_: Any) -> torch.Tensor:
    """In place of diffusers' randn_tensor, so that runs in float64 have the noise of those in float32."""
    return torch.randn(shape, generator=generator).to(dtype)


def run_case(
    pipe: Any, scheduler_config: dict, prompts: list[str], run: dict
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Latents after each step, pixels in -1..1 and the images in 8 bits."""
    # As in the models' own files; without it PNDM would begin with Runge-Kutta steps.
    pipe.scheduler = SCHEDULERS[run["scheduler"]].from_config(scheduler_config | {"skip_prk_steps": True})
    steps: list[np.ndarray] = []

    def keep(_pipe: Any, _step: int, _timestep: Any, kwargs: dict) -> dict:
        steps.append(kwargs["latents"].numpy().copy())
        return kwargs

    negative, prompt = prompts
    options = {"negative_prompt": negative} | run["call"]
    if isinstance(pipe, diffusers.StableDiffusionInpaintPipeline):
        options |= whole_picture(pipe, options)
    generator = torch.Generator("cpu").manual_seed(options.pop("seed"))
    latents = pipe(
        prompt,
        generator=generator,
        callback_on_step_end=keep,
        output_type="latent",
        **options,
    ).images
    pixels = pipe.vae.decode(latents / pipe.vae.config.scaling_factor, return_dict=False)[0]
    images = pipe.image_processor.postprocess(pixels, output_type="pil")
    return steps, pixels.permute(0, 2, 3, 1).numpy(), np.stack([np.asarray(image) for image in images])


def whole_picture(pipe: Any, options: dict[str, Any]) -> dict[str, Any]:
    """What has an inpainting pipeline paint all of a picture: the latents of what was there before are zeros."""
    f = pipe.vae_scale_factor
    height, width = (options.get(side) or f * pipe.unet.config.sample_size for side in ("height", "width"))
    latents = torch.zeros((1, pipe.vae.config.latent_channels, height // f, width // f), dtype=pipe.unet.dtype)
    mask = Image.new("L", (width, height), 255)
    return {"image": mask.convert("RGB"), "mask_image": mask, "masked_image_latents": latents, "strength": 1.0}


def rounding_errors(pipe: Any, scheduler_config: dict, prompts: list[str], run: dict, steps: list) -> list[float]:
    """By step, the relative error of a float32 run's latents; `pipe` is in float64."""
    exact, _, _ = run_case(pipe, scheduler_config, prompts, run)
    return [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(steps, exact, strict=True)]


def encode(pipe: Any, prompts: list[str]) -> dict[str, np.ndarray]:
    """Token ids and what the text encoders make of them."""
    tokenizers = [pipe.tokenizer, pipe.tokenizer_2] if hasattr(pipe, "tokenizer_2") else [pipe.tokenizer]
    ids = [each(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids for each in tokenizers]
    if len(ids) == 1:
        return {"token_ids": ids[0].numpy().astype(np.int32), "embeddings": pipe.text_encoder(ids[0])[0].numpy()}
    embeddings, _, pooled, _ = pipe.encode_prompt(prompts, do_classifier_free_guidance=False)
    stacked = torch.stack(ids, dim=1).numpy().astype(np.int32)
    return {"token_ids": stacked, "embeddings": embeddings.numpy(), "pooled": pooled.numpy()}


def unet_inputs(pipe: Any, arrays: dict[str, np.ndarray], latent_shape: tuple[int, int]) -> dict[str, Any]:
    """What the UNet reads beside latents and timestep."""
    inputs: dict[str, Any] = {"encoder_hidden_states": torch.from_numpy(arrays["embeddings"])}
    if "pooled" in arrays:
        sides = [pipe.vae_scale_factor * side for side in latent_shape]
        time_ids = torch.tensor([[*sides, 0, 0, *sides]] * 2, dtype=torch.float32)
        inputs["added_cond_kwargs"] = {"text_embeds": torch.from_numpy(arrays["pooled"]), "time_ids": time_ids}
    if pipe.unet.config.time_cond_proj_dim is not None:
        w = torch.tensor([UNET_GUIDANCE_SCALE - 1] * 2)
        inputs["timestep_cond"] = pipe.get_guidance_scale_embedding(w, pipe.unet.config.time_cond_proj_dim)
    return inputs


@torch.no_grad()
def write_golden(name: str, folder: Path, prompts: list[str], cases: list[dict], latent_shape: tuple[int, int]) -> None:
    """What diffusers computes with a model; `prompts` are the negative one and the prompt."""
    pipe, exact_pipe = (
        diffusers.DiffusionPipeline.from_pretrained(folder, dtype=dtype) for dtype in (torch.float32, torch.float64)
    )
    for each in (pipe, exact_pipe):
        each.set_progress_bar_config(disable=True)
    for module in (sys.modules[type(pipe).__module__], scheduling_euler_ancestral_discrete, scheduling_lcm):
        vars(module)["randn_tensor"] = draw_in_float32
    arrays = encode(pipe, prompts)
    noise_shape = (2, pipe.unet.config.out_channels, *latent_shape)
    latents = torch.randn(noise_shape, generator=torch.Generator("cpu").manual_seed(UNET_SEED))
    if pipe.unet.config.in_channels > latents.shape[1]:  # the mask, and the latents of what is behind it
        latents = torch.cat([latents, torch.ones_like(latents[:, :1]), torch.zeros_like(latents)], dim=1)
    inputs = unet_inputs(pipe, arrays, latent_shape)
    outputs = [pipe.unet(latents, t, **inputs).sample.numpy() for t in UNET_TIMESTEPS]
    arrays["unet_outputs"] = np.stack(outputs)
    scheduler_config = json.loads((folder / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    print(f"{name}: embeddings {arrays['embeddings'].std():.2f}, unet {arrays['unet_outputs'].std():.2f}")
    for k, run in enumerate(cases):
        steps, pixels, images = run_case(pipe, scheduler_config, prompts, run)
        arrays |= {f"latents_{k}": np.stack(steps), f"images_{k}": images}
        run["rounding"] = rounding_errors(exact_pipe, scheduler_config, prompts, run, steps)
        if run["pixels"]:
            arrays[f"pixels_{k}"] = pixels
        saturated = np.mean((images == 0) | (images == 255))
        print(f"  {k} {run['scheduler']} {images.shape}: latents {steps[-1].std():.2f}, ", end="")
        print(f"rounding {max(run['rounding']):.0e}, ", end="")
        print(f"image deviation {images.std(axis=(1, 2)).mean():.0f}, {100 * saturated:.1f} % saturated")
    facts = {"prompts": prompts, "unet_timesteps": UNET_TIMESTEPS, "unet_seed": UNET_SEED, "cases": cases}
    facts |= {"unet_guidance_scale": UNET_GUIDANCE_SCALE}
    path = FOLDER / f"{name}.npz"
    np.savez_compressed(path, allow_pickle=False, facts=np.array(json.dumps(facts)), **arrays)
    print(f"  {path.name}: {path.stat().st_size} bytes")


@torch.no_grad()
def write_networks() -> None:
    """Networks that no whole model has, each in float16 in networks/<name>, and in networks.npz what they make:

    * `<unet>_latents`: (B, C, H, W), `<unet>_embeddings`: (B, L, C), `<unet>_output` of timestep 381;
    * `clip_ids`: (2, L), and of each row `clip_states`: (layers + 1, 2, L, C), `clip_last`: the last of them after the
      final norm, `clip_pooled`: (2, C) and `clip_projected`: (2, P).
    """
    generator = torch.Generator().manual_seed(UNET_SEED)
    arrays: dict[str, np.ndarray] = {}
    for i, (name, options) in enumerate(UNETS.items()):
        unet = diffusers.UNet2DConditionModel(**options)
        randomize(unet, 100 + i)
        unet.half().save_pretrained(NETWORKS / name)
        latents = torch.randn((2, options["in_channels"], *options["sample_size"]), generator=generator)
        embeddings = torch.randn((2, 3, options["cross_attention_dim"]), generator=generator)
        output = unet.float()(latents, 381, embeddings).sample
        arrays |= {f"{name}_latents": latents.numpy(), f"{name}_embeddings": embeddings.numpy()}
        arrays[f"{name}_output"] = output.numpy()
    clip = transformers.CLIPTextModelWithProjection(transformers.CLIPTextConfig(**CLIP))
    randomize(clip, 200)
    clip.half().save_pretrained(NETWORKS / "clip")
    ids = torch.tensor([[5, 7, 20, 21, 21, 21, 21], [5, 1, 2, 3, 4, 0, 21]])  # ends in the middle, and at last
    made = clip.float().eval()(ids, output_hidden_states=True)
    arrays |= {"clip_ids": ids.numpy(), "clip_states": torch.stack(made.hidden_states).numpy()}
    arrays |= {"clip_last": made.last_hidden_state.numpy(), "clip_projected": made.text_embeds.numpy()}
    arrays["clip_pooled"] = made.last_hidden_state[
        torch.arange(2), (ids == CLIP["eos_token_id"]).int().argmax(1)
    ].numpy()
    np.savez_compressed(FOLDER / "networks.npz", allow_pickle=False, **arrays)
    print(f"networks: {size_bytes(NETWORKS)} bytes")


def size_bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    wanted = sys.argv[1:] or [*TINY, "networks", "emoji"]
    for i, (name, model) in enumerate(TINY.items()):
        if name in wanted:
            folder = MODELS / name
            write_model(folder, model, MAX_LENGTHS[name], seed=1000 * i)
            print(f"{name}: {size_bytes(folder)} bytes")
            write_golden(name, folder, ["a dog", "a fox in the snow"], model.cases, UNET_SIZES[name])
    if "networks" in wanted:
        write_networks()
    if "emoji" in wanted:
        write_golden("emoji", EMOJI, ["blue", "a red heart"], EMOJI_CASES, (16, 16))
    print(f"diffusers {diffusers.__version__}, transformers {transformers.__version__}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
