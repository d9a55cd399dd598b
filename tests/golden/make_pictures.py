"""Write pictures/ and pictures.npz: input pictures, and what diffusers makes of them. Needs the `golden` extra.

pictures/ has small files of several modes, and masks. pictures.npz has

* `levels_<file>`: (H, W, 3) uint8, what diffusers' VaeImageProcessor has of it at `SIZE`, and `mask_<file>`: (H, W);
* `moments_<model>`: (1, H, W, 2 C), what a model's encoder makes of photo.png at the model's own size;
* `facts`: JSON with `cases`: runs of pipelines that begin with photo.png; case k has `images_k`: (B, height, width, 3).
"""

# pyright: reportMissingImports=false, reportPrivateImportUsage=false

import json
import sys
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import load_image
from make_models import FOLDER, MODELS, size_bytes
from make_models import SCHEDULERS as USUAL_SCHEDULERS
from PIL import Image

PICTURES = FOLDER / "pictures"
SIZE = (24, 16)
"""Width and height of `levels` and masks."""
PROMPTS = ["a dog", "a fox in the snow"]
"""The negative one, and the prompt."""
SCHEDULERS = USUAL_SCHEDULERS | {
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
    "dpmpp_sde": diffusers.DPMSolverSDEScheduler,
    "heun": diffusers.HeunDiscreteScheduler,
    "lms": diffusers.LMSDiscreteScheduler,
    "unipc": diffusers.UniPCMultistepScheduler,
}
ENCODERS = ("sd1", "sd2", "odd", "thirds", "sdxl", "inpaint")


def case(model: str, scheduler: str, strength: float, *, mask: bool = False, seed: int, **options: Any) -> dict:
    """A run of img2img, or with a mask of inpainting."""
    call = {"strength": strength, "num_inference_steps": 5, "guidance_scale": 7.5, "seed": seed, **options}
    return {"model": model, "scheduler": scheduler, "mask": mask, "call": call}


CASES = [
    case("sd1", "pndm", 0.8, seed=51),
    case("sd1", "pndm", 1.0, seed=52, num_images_per_prompt=2),
    case("sd1", "ddim", 0.5, seed=53, guidance_scale=1.0, width=40, height=24),
    case("sd1", "euler", 0.6, seed=54),
    case("sd1", "euler", 1.0, seed=55),
    case("sd1", "euler_a", 0.8, seed=56),
    case("sd1", "lms", 0.8, seed=57),
    case("sd1", "dpmpp_2m", 0.8, seed=58),
    case("sd2", "ddim", 0.7, seed=59),
    case("sdxl", "euler", 0.6, seed=60, num_images_per_prompt=2),
    case("sdxl", "ddim", 0.9, seed=61, width=24, height=40),
    case("sd1", "pndm", 0.8, mask=True, seed=62),
    case("sd1", "ddim", 1.0, mask=True, seed=63, num_images_per_prompt=2),
    case("sd1", "euler_a", 0.6, mask=True, seed=64),
    case("sd1", "dpmpp_2m", 0.8, mask=True, seed=65, width=40, height=24),
    case("sdxl", "euler", 0.6, mask=True, seed=66),
    case("inpaint", "ddim", 1.0, mask=True, seed=67),
    case("inpaint", "euler_a", 0.6, mask=True, seed=68, num_images_per_prompt=2, width=8, height=24),
    case("inpaint", "pndm", 0.8, mask=True, seed=69, guidance_scale=1.0),
    case("sd1", "heun", 0.7, seed=70),
    case("sd1", "unipc", 0.7, seed=71),
    case("sd1", "heun", 0.7, mask=True, seed=72),
    case("sd1", "unipc", 0.7, mask=True, seed=73),
    case("sd1", "dpmpp_sde", 0.8, seed=74, num_images_per_prompt=2),
]


def write_pictures() -> None:
    """Gradients with a disc, of 37 x 29 pixels, and of other modes."""
    PICTURES.mkdir(exist_ok=True)
    y, x = np.mgrid[0:29, 0:37]
    disc = (x - 14) ** 2 + (y - 12) ** 2 < 60
    levels = np.stack([7 * x, 255 - 8 * y, 3 * (x + y)], axis=2)
    levels[disc] = (240, 40, 90)
    photo = Image.fromarray(levels.astype(np.uint8))
    photo.save(PICTURES / "photo.png")
    photo.convert("L").save(PICTURES / "grey.png")
    photo.quantize(12).save(PICTURES / "palette.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera lay on its side
    photo.save(PICTURES / "rotated.jpg", exif=exif, quality=90)
    alpha = np.clip(12 * (x - 8), 0, 255).astype(np.uint8)
    Image.fromarray(np.dstack([levels.astype(np.uint8), alpha])).save(PICTURES / "clear.png")
    Image.fromarray((1771 * x).astype(np.uint16)).save(PICTURES / "deep.png")
    mask = np.where((x > 10) & (y > 6), 255, 0).astype(np.uint8)
    mask[:, 30:] = 100  # nearer to black
    Image.fromarray(mask).save(PICTURES / "mask.png")


def open_pipe(name: str, *, mask: bool) -> Any:
    """diffusers' pipeline for a picture, in float32."""
    kind = diffusers.AutoPipelineForInpainting if mask else diffusers.AutoPipelineForImage2Image
    pipe = kind.from_pretrained(MODELS / name, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@torch.no_grad()
def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    write_pictures()
    width, height = SIZE
    photo, mask = load_image(str(PICTURES / "photo.png")), load_image(str(PICTURES / "mask.png"))
    arrays: dict[str, np.ndarray] = {}
    processor = VaeImageProcessor()
    for name in ("photo.png", "grey.png", "palette.png", "rotated.jpg"):
        pixels = processor.preprocess(load_image(str(PICTURES / name)), height=height, width=width)[0]
        arrays[f"levels_{name}"] = np.round(pixels.permute(1, 2, 0).numpy() * 127.5 + 127.5).astype(np.uint8)
    masks = VaeImageProcessor(do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    arrays["mask_mask.png"] = masks.preprocess(mask, height=height, width=width)[0, 0].numpy().astype(np.uint8)
    for name in ENCODERS:
        pipe = diffusers.DiffusionPipeline.from_pretrained(MODELS / name, torch_dtype=torch.float32)
        sides = np.broadcast_to(np.multiply(pipe.unet.config.sample_size, pipe.vae_scale_factor), 2).tolist()
        pixels = processor.preprocess(photo, height=sides[0], width=sides[1])
        moments = pipe.vae.encode(pixels).latent_dist.parameters
        arrays[f"moments_{name}"] = moments.permute(0, 2, 3, 1).numpy()
        print(f"{name}: moments {moments.std():.2f} of {tuple(moments.shape)}")
    for k, run in enumerate(CASES):
        pipe = open_pipe(run["model"], mask=run["mask"])
        scheduler = json.loads((MODELS / run["model"] / "scheduler" / "scheduler_config.json").read_text("utf-8"))
        call = dict(run["call"])
        options = {"skip_prk_steps": True, "noise_sampler_seed": call["seed"]}
        pipe.scheduler = SCHEDULERS[run["scheduler"]].from_config(scheduler | options)
        generator = torch.Generator("cpu").manual_seed(call.pop("seed"))
        side = pipe.unet.config.sample_size * pipe.vae_scale_factor
        call["width"], call["height"] = call.get("width", side), call.get("height", side)
        image: Image.Image = photo
        if run["mask"]:
            call["mask_image"] = mask
        else:  # whose pictures are as large as the input
            image = photo.resize((call.pop("width"), call.pop("height")), Image.Resampling.LANCZOS)
        negative, prompt = PROMPTS
        made = pipe(prompt, image=image, negative_prompt=negative, generator=generator, output_type="np", **call)
        images = np.round(made.images * 255).astype(np.uint8)
        arrays[f"images_{k}"] = images
        saturated = np.mean((images == 0) | (images == 255))
        print(f"  {k} {run['model']} {run['scheduler']} {images.shape}: deviation {images.std():.0f}, ", end="")
        print(f"{100 * saturated:.1f} % saturated")
    facts = {"size": SIZE, "prompts": PROMPTS, "cases": CASES}
    path = Path(__file__).with_name("pictures.npz")
    np.savez_compressed(path, allow_pickle=False, facts=np.array(json.dumps(facts)), **arrays)
    print(f"{path.name}: {path.stat().st_size} bytes, pictures: {size_bytes(PICTURES)} bytes")


if __name__ == "__main__":
    sys.exit(main())
