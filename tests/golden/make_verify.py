"""Write verify.json: what diffusers makes of the tiny models in models/, by recipes as those that diffusers publishes.

Each row has the fields of `shaderfusion.verify.cases.Case`. The models are computed in float32 on the CPU. Needs the
`golden` extra.
"""

# pyright: reportMissingImports=false, reportPrivateImportUsage=false

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch

FOLDER = Path(__file__).parent
SCHEDULERS = {
    "ddim": diffusers.DDIMScheduler,
    "dpmpp_2m": diffusers.DPMSolverMultistepScheduler,
    "euler": diffusers.EulerDiscreteScheduler,
    "euler_a": diffusers.EulerAncestralDiscreteScheduler,
    "lcm": diffusers.LCMScheduler,
    "lms": diffusers.LMSDiscreteScheduler,
    "pndm": diffusers.PNDMScheduler,
}


def case(model: str, name: str, **options: Any) -> dict[str, Any]:
    """A row without its values; `model` is the folder, and `options` are those of Case that are not its defaults."""
    row = {"checkpoint": model, "name": f"{model}-{name}", "prompt": "a fox in the snow", "steps": 3, "seed": 0}
    return row | {"guidance_scale": 7.5, "noise": "numpy", "corner": (-3, -3), "scheduler_options": {}} | options


CASES = [
    case("sd1", "pndm", scheduler="pndm"),
    case("sd1", "ddim", scheduler="ddim", corner=(13, 5)),
    case("sd1", "lms", scheduler="lms", scheduler_options={"timestep_spacing": "linspace"}),
    case("sd1", "dpmpp_2m", scheduler="dpmpp_2m", scheduler_options={"final_sigmas_type": "sigma_min"}),
    case("sd1", "lcm", scheduler="lcm"),  # new noise at each step but the last
    case("sd1", "torch", noise="torch", seed=3, guidance_scale=9.0),
    case("sd2", "v", noise="torch", corner=(5, 6), steps=4),
    case("sd2", "v-euler", scheduler="euler", scheduler_options={"timestep_spacing": "trailing"}),
    case("sd2", "v-euler_a", scheduler="euler_a", noise="torch", guidance_scale=0.0, steps=2),
]


@torch.no_grad()
def run(row: dict[str, Any]) -> dict[str, Any]:
    """The row with its values, and with what of the model tells it apart."""
    folder = FOLDER / "models" / row["checkpoint"]
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    own = json.loads((folder / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    kind = SCHEDULERS[row["scheduler"]] if "scheduler" in row else type(pipe.scheduler)
    pipe.scheduler = kind.from_config(own, **row["scheduler_options"])
    side = pipe.unet.config.sample_size
    latents = None
    if row["noise"] == "numpy":
        values = np.random.RandomState(row["seed"]).standard_normal((1, pipe.unet.config.in_channels, side, side))
        latents = torch.from_numpy(values).to(torch.float32)
    image = pipe(
        row["prompt"],
        latents=latents,
        generator=torch.Generator("cpu").manual_seed(row["seed"]),
        num_inference_steps=row["steps"],
        guidance_scale=row["guidance_scale"],
        output_type="np",
    ).images[0]
    (y, x), size = row["corner"], image.shape[0]
    y, x = y % size, x % size
    facts = {
        "pipeline": "StableDiffusionPipeline",
        "context": pipe.unet.config.cross_attention_dim,
        "prediction": pipe.scheduler.config.prediction_type,
        "size_px": size,
        "source": "tests/golden/make_verify.py",
        "expected": [round(float(value), 6) for value in image[y : y + 3, x : x + 3, -1].reshape(-1)],
        "tolerance": 1e-4,
    }
    return row | facts


def main() -> None:
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    rows = [run(row) for row in CASES]
    text = ",\n".join(json.dumps(row) for row in rows)
    (FOLDER / "verify.json").write_text(f"[\n{text}\n]\n", encoding="utf-8")
    for row in rows:
        print(row["name"], row["expected"])


if __name__ == "__main__":
    main()
