"""Fits the projection of a model's latents to small pictures, for `shaderfusion.previews.PROJECTIONS`.

    .venv/bin/python -m benchmarks.fit_previews MODEL [--steps N]

The model makes a picture of each prompt. The projection is fitted to the latents and pictures of all of them; how good
it is is the share of the variance that it explains (R^2), of pictures that it was not fitted to: for each
prompt the others are. Beside it are the projection that the package has for the model, if it has one, and that which
an engine fits to a few samples for latents that are not known.
"""

from __future__ import annotations

import argparse

import numpy as np

from shaderfusion import StableDiffusionPipeline
from shaderfusion.output import Table, show
from shaderfusion.previews import Projection, fit_projection

__all__ = ["main"]

PROMPTS = (
    "a red apple",
    "a green frog",
    "a blue fish in the sea",
    "a yellow sun",
    "a purple grape",
    "an orange cat",
    "a pink flower",
    "a brown bear",
    "a black spider",
    "a white snowman",
    "a grey elephant",
    "a house with a garden",
    "a rocket in the night",
    "a smiling face",
    "a woman with red hair",
    "a rainbow",
)


def main() -> None:
    """Prints the projection, and a table of R^2."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model")
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    latents, pixels = [], []
    with StableDiffusionPipeline.from_pretrained(args.model) as pipe:
        for seed, prompt in enumerate(PROMPTS):
            *_, last = pipe.generate(prompt, num_inference_steps=args.steps, seed=seed)
            latents.append(last.latents)
            pixels.append(np.stack([np.asarray(image) for image in last.images or []]) / 127.5 - 1)
        known, sampled = pipe.model.projection, pipe._engine._fit_projection()
    x, y = np.concatenate(latents), np.concatenate(pixels)
    fitted = fit_projection(x, y)
    others = [np.arange(len(x)) != index for index in range(len(x))]
    own = np.concatenate([fit_projection(x[rest], y[rest]).project(x[~rest]) for rest in others])
    rows = [_row("fitted to the other pictures", own, y), _row("fitted to samples", sampled.project(x), y)]
    if known:
        rows.append(_row("the package's", known.project(x), y))
    show(_source(fitted))
    show(Table(["R^2 of", "red", "green", "blue"], rows, "<>>>").text())


def _row(name: str, projected: np.ndarray, pixels: np.ndarray) -> list[str]:
    """R^2 by colour, of pixels (B, H, W, 3) and pictures (B, f H, f W, 3)."""
    B, H, W, _ = projected.shape
    f = pixels.shape[1] // H
    wanted = pixels.reshape(B, H, f, W, f, 3).mean(axis=(2, 4))
    error = np.square(np.clip(projected, -1, 1) - wanted).mean(axis=(0, 1, 2))
    return [name, *(f"{share:.3f}" for share in 1 - error / wanted.var(axis=(0, 1, 2)))]


def _source(projection: Projection) -> str:
    """As it stands in the package."""

    def row(values: np.ndarray) -> str:
        return f"({', '.join(f'{value:.4f}' for value in values)})"

    return "\n".join([*(f"{row(values)}," for values in projection.factors), f"bias={row(projection.bias)},"])


if __name__ == "__main__":
    main()
