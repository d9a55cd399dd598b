"""Whether every step of many pictures is finite in a GPU's f16.

    .venv/bin/python -m benchmarks.finite_seeds [--runtime NAME]

1,000 seeds of the embedded model, and 50 of SD 1.4's architecture with random weights, 20 steps each.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from pathlib import Path

import numpy as np

from benchmarks.startup import save_file_of
from shaderfusion.pipeline import StableDiffusionPipeline

__all__ = ["main"]

PROMPTS = ("red heart", "pizza", "rocket", "dog", "yellow car", "snowman", "rainbow", "robot")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtime", default="auto", help="auto, wgpu or dawn")
    runtime = parser.parse_args().runtime
    warnings.simplefilter("error")  # a network that is not finite in f16 warns before it runs in f32
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "sd14.safetensors"
        save_file_of("sd14", path)
        for model, num_seeds, batch in (("emoji", 1000, 8), (path, 50, 2)):
            with StableDiffusionPipeline.from_pretrained(model, runtime=runtime, tuning="off") as pipe:
                for seed in range(0, num_seeds, batch):
                    prompt = PROMPTS[seed // batch % len(PROMPTS)]
                    for progress in pipe.generate(
                        prompt, num_images_per_prompt=batch, seed=seed, seeds="each", num_inference_steps=20
                    ):
                        assert np.isfinite(progress.latents).all(), f"{model}: seed {seed}, step {progress.step}"
                info = pipe.device.info
                print(f"{Path(model).stem}: {num_seeds} seeds finite in {pipe.dtype}, {info.name}, {info.runtime}")


if __name__ == "__main__":
    main()
