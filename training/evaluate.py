"""Measures the exported model through diffusers: does the picture made for a caption resemble that caption's picture?

For captions drawn evenly over the data, the nearest training picture (cosine of 4x4-pooled pixels) must carry the very
caption (top 1). `--grid` draws the demonstration prompts too, one a column and one seed a row.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from dataset import pooled
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from export import DEFAULT_FOLDER
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

PROMPTS = [
    *("a red heart", "pizza", "a rocket", "a dog", "a yellow car", "a green apple"),
    *("a guitar", "a snowman", "cat face", "a rainbow", "a house", "a robot"),
]
NUM_STEPS = 20


def load(folder: Path, device: str, dtype: str) -> StableDiffusionPipeline:
    """The exported folder as a diffusers pipeline."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(pipeline: StableDiffusionPipeline, prompts: list[str], seeds: list[int], guidance: float) -> np.ndarray:
    """One picture a prompt, (B, 128, 128, 3) u8."""
    pictures = []
    for i in range(0, len(prompts), 64):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[i : i + 64]]
        images = pipeline(
            prompts[i : i + 64],
            num_inference_steps=NUM_STEPS,
            guidance_scale=guidance,
            generator=generators,
            output_type="np",
        ).images
        pictures.append((images * 255).round().astype(np.uint8))
    return np.concatenate(pictures)


def measure(pipeline: StableDiffusionPipeline, data: Path, guidance: float, count: int, seed: int) -> None:
    """Print the share of captions whose own picture is the nearest, and among the five nearest."""
    captions = json.loads((data / "captions.json").read_text())
    own = [(name, i) for i, entry in enumerate(captions) for name in entry["names"]]
    chosen = np.random.default_rng(seed).permutation(len(own))[: count or len(own)]
    prompts, picture = zip(*(own[i] for i in chosen), strict=True)
    made = generate(pipeline, list(prompts), [seed + int(i) for i in chosen], guidance)
    similarity = pooled(made) @ pooled(np.load(data / "images.npz")["images"]).T
    order = np.argsort(-similarity, axis=1)
    hits = order == np.array(picture)[:, None]
    top_1, top_5 = hits[:, 0].mean(), hits[:, :5].any(1).mean()
    print(f"guidance {guidance:g}, {len(prompts)} captions: top 1 {top_1:.1%}, top 5 {top_5:.1%}", flush=True)
    for prompt, nearest, hit in zip(prompts, order[:, 0], hits[:, 0], strict=True):
        if not hit and count:
            print(f"  {prompt} -> {captions[nearest]['names'][0]}")


def draw_grid(pipeline: StableDiffusionPipeline, path: Path, prompts: list[str], guidance: float, rows: int) -> None:
    """Save the prompts' pictures: one prompt a column, one seed a row."""
    made = generate(pipeline, prompts * rows, [seed for seed in range(rows) for _ in prompts], guidance)
    grid = made.reshape(rows, len(prompts), *made.shape[1:]).swapaxes(1, 2)
    Image.fromarray(grid.reshape(rows * made.shape[1], -1, 3)).save(path)


@torch.no_grad()
def count_work(folder: Path) -> None:
    """Print parameters and floating-point operations (a multiplication and an addition are two) at 128x128."""
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet")
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae")
    text = torch.randn(2, 32, unet.config.cross_attention_dim)
    with FlopCounterMode(display=False) as iteration:
        unet(torch.randn(2, 4, 32, 32), 1, text)
    with FlopCounterMode(display=False) as decoding:
        vae.decode(torch.randn(1, 4, 32, 32))
    for name, model, counter in (("unet, batch 2", unet, iteration), ("vae, decode", vae, decoding)):
        print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters, ", end="")
        print(f"{counter.get_total_flops() / 1e9:.2f} GFLOP")


def main() -> None:
    """Parse the command line; draw the grid, measure each guidance, or count the work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=DEFAULT_FOLDER)
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--guidance", type=float, nargs="+", default=[4.0])
    parser.add_argument("--count", type=int, default=256, help="captions to measure; 0 takes all of them, -1 none")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--grid", type=Path, help="draw the prompts into this PNG with the first guidance")
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--prompts", nargs="+", default=PROMPTS)
    parser.add_argument("--work", action="store_true", help="only count parameters and operations")
    args = parser.parse_args()
    if args.work:
        count_work(args.model)
        return
    pipeline = load(args.model, args.device, args.dtype)
    if args.grid:
        draw_grid(pipeline, args.grid, args.prompts, args.guidance[0], args.rows)
    for guidance in args.guidance if args.count >= 0 else ():
        measure(pipeline, args.data, guidance, args.count, args.seed)


if __name__ == "__main__":
    main()
