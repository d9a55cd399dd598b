"""Write combined.npz: pictures of prompts that AND combines, by diffusers' networks. Needs the `golden` extra.

CASES says by hand what the parts of each prompt are: the text of each step, and a weight. Guidance is summed here, as
uncond + guidance_scale sum_k weight_k (text_k - uncond) (Liu et al. 2022, arXiv 2206.01714), part by part. combined.npz
has for case k `images_k`, (B, height, width, 3) uint8, and `facts`: JSON with the cases.
"""

# pyright: reportMissingImports=false, reportPrivateImportUsage=false

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

FOLDER = Path(__file__).parent
SCHEDULERS = {"ddim": diffusers.DDIMScheduler, "euler": diffusers.EulerDiscreteScheduler}
STEPS = 3
GUIDANCE_SCALE = 5.0
NEGATIVE = "the snow"

# Model, scheduler, seed, pictures of each prompt, and the prompts with their parts.
CASES: list[tuple[str, str, int, int, dict[str, list[tuple[list[str], float]]]]] = [
    ("sd1", "ddim", 81, 1, {"a dog AND a fox :0.4": [(["a dog"] * 3, 1), (["a fox"] * 3, 0.4)]}),
    (
        "sd1",
        "euler",
        82,
        2,
        {
            "a dog:.5 AND a [fox:river:1]: 0.75 AND snow :-0.3": [
                (["a dog"] * 3, 0.5),
                (["a fox", "a fox", "a river"], 0.75),
                (["snow"] * 3, -0.3),
            ],
            "a river :1.25": [(["a river"] * 3, 1.25)],
        },
    ),
    (
        "sdxl",
        "euler",
        83,
        1,
        {
            "a fox AND a river :0.5": [(["a fox"] * 3, 1), (["a river"] * 3, 0.5)],
            "the snow AND a dog": [(["the snow"] * 3, 1), (["a dog"] * 3, 1)],
        },
    ),
]


def encode(pipe: Any, text: str, width: int, height: int) -> dict[str, Any]:
    """The UNet's arguments for one text."""
    if hasattr(pipe, "text_encoder_2"):
        embedding, _, pooled, _ = pipe.encode_prompt(text, device="cpu", do_classifier_free_guidance=False)
        ids = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
        return {"encoder_hidden_states": embedding, "added_cond_kwargs": {"text_embeds": pooled, "time_ids": ids}}
    embedding, _ = pipe.encode_prompt(text, "cpu", 1, False)
    return {"encoder_hidden_states": embedding}


def denoise(pipe: Any, latents: torch.Tensor, parts: list[tuple[list[str], float]]) -> torch.Tensor:
    """One picture's latents (1, C, H, W), of noise."""
    pipe.scheduler.set_timesteps(STEPS)
    x_t = latents * pipe.scheduler.init_noise_sigma
    height, width = (side * pipe.vae_scale_factor for side in latents.shape[2:])
    for step, t in enumerate(pipe.scheduler.timesteps):
        model_input = pipe.scheduler.scale_model_input(x_t, t)
        uncond = pipe.unet(model_input, t, **encode(pipe, NEGATIVE, width, height)).sample
        combined = uncond.clone()
        for texts, weight in parts:
            text = pipe.unet(model_input, t, **encode(pipe, texts[step], width, height)).sample
            combined += GUIDANCE_SCALE * weight * (text - uncond)
        x_t = pipe.scheduler.step(combined, t, x_t).prev_sample
    return x_t


@torch.no_grad()
def main() -> None:
    arrays: dict[str, np.ndarray] = {}
    for k, (model, scheduler, seed, num_images, prompts) in enumerate(CASES):
        pipe = diffusers.DiffusionPipeline.from_pretrained(FOLDER / "models" / model, torch_dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = SCHEDULERS[scheduler].from_config(pipe.scheduler.config)
        side = pipe.unet.config.sample_size
        shape = (num_images * len(prompts), pipe.vae.config.latent_channels, side, side)
        noise = torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed))
        parts = [each for each in prompts.values() for _ in range(num_images)]
        latents = [denoise(pipe, noise[i : i + 1], each) for i, each in enumerate(parts)]
        decoded = pipe.vae.decode(torch.cat(latents) / pipe.vae.config.scaling_factor).sample
        images = pipe.image_processor.postprocess(decoded, output_type="np")
        arrays[f"images_{k}"] = np.round(images * 255).astype(np.uint8)
        print(f"{model}: {images.shape}, deviation {255 * images.std():.0f}")
    cases = [
        {"model": model, "scheduler": scheduler, "seed": seed, "num_images": num_images, "prompts": list(prompts)}
        for model, scheduler, seed, num_images, prompts in CASES
    ]
    facts = {"cases": cases, "steps": STEPS, "guidance_scale": GUIDANCE_SCALE, "negative": NEGATIVE}
    np.savez_compressed(FOLDER / "combined.npz", allow_pickle=False, facts=np.array(json.dumps(facts)), **arrays)


if __name__ == "__main__":
    main()
