"""Write callbacks.npz: what diffusers makes where a callback_on_step_end changes latents. Needs the `golden` extra.

`facts` is JSON with `cases`. In case k a callback gives `change`d latents after some calls of the denoiser, and sets
_interrupt after call `interrupted_at`. It has

* `latents_k`: (calls, B, C, H, W), what the callback was given, and `timesteps_k`: (calls);
* `estimates_k`: (calls, B, C, H, W), where the scheduler says what it takes x_0 for;
* `images_k`: (B, height, width, 3).
"""

# pyright: reportMissingImports=false, reportPrivateImportUsage=false

import functools
import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
import transformers
from make_models import MODELS
from make_models import SCHEDULERS as USUAL_SCHEDULERS

PROMPTS = ["a dog", "a fox in the snow"]
"""The negative one, and the prompt."""
SCHEDULERS = USUAL_SCHEDULERS | {"dpmpp_2m": diffusers.DPMSolverMultistepScheduler}


def case(model: str, scheduler: str, *, seed: int, interrupted_at: int | None = None, **options: Any) -> dict:
    """Of a few steps."""
    call = {"num_inference_steps": 4, "guidance_scale": 5.0, "seed": seed, **options}
    return {"model": model, "scheduler": scheduler, "interrupted_at": interrupted_at, "call": call}


CASES = [
    case("sd1", "ddim", seed=81, num_images_per_prompt=2),
    case("sd1", "euler", seed=82, guidance_scale=1.0),
    case("sd1", "euler_a", seed=83),
    case("sd1", "pndm", seed=84),
    case("sd2", "ddim", seed=85),
    case("sdxl", "dpmpp_2m", seed=86),
    case("sdxl", "euler", seed=87, interrupted_at=1),
]


def change(step: int, latents: Any) -> Any:
    """After the second call they are mirrored and fainter; after the fourth, mostly the last one, a row is 0."""
    if step == 1:
        return 0.8 * latents[..., ::-1]
    if step == 3:
        latents = latents.copy()
        latents[:, :, 0] = 0
    return latents


@torch.no_grad()
def main() -> None:
    transformers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    arrays: dict[str, np.ndarray] = {}
    for k, run in enumerate(CASES):
        pipe = diffusers.DiffusionPipeline.from_pretrained(MODELS / run["model"], torch_dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        config = json.loads((MODELS / run["model"] / "scheduler" / "scheduler_config.json").read_text("utf-8"))
        pipe.scheduler = SCHEDULERS[run["scheduler"]].from_config(config | {"skip_prk_steps": True})
        given: list[np.ndarray] = []
        timesteps: list[float] = []
        estimates: list[np.ndarray] = []
        step = pipe.scheduler.step

        @functools.wraps(step)  # the pipeline looks which arguments it takes
        def watched_step(*args: Any, return_dict: bool = True, step: Any = step, into: Any = estimates, **kwargs: Any):
            made = step(*args, **kwargs)
            if getattr(made, "pred_original_sample", None) is not None:
                into.append(made.pred_original_sample.numpy())
            return (made.prev_sample,)

        def callback(
            pipe: Any, step: int, timestep: Any, tensors: dict, run: Any = run, into: Any = (given, timesteps)
        ):
            into[0].append(tensors["latents"].numpy().copy())
            into[1].append(float(timestep))
            pipe._interrupt = step == run["interrupted_at"]
            return {"latents": torch.from_numpy(change(step, into[0][-1]).copy())}

        pipe.scheduler.step = watched_step
        call = dict(run["call"])
        generator = torch.Generator("cpu").manual_seed(call.pop("seed"))
        negative, prompt = PROMPTS
        options = {"negative_prompt": negative, "generator": generator, "output_type": "np", **call}
        made = pipe(prompt, callback_on_step_end=callback, **options)
        arrays |= {f"latents_{k}": np.stack(given), f"timesteps_{k}": np.array(timesteps)}
        arrays[f"images_{k}"] = np.round(made.images * 255).astype(np.uint8)
        if estimates:
            arrays[f"estimates_{k}"] = np.stack(estimates)
        print(f"{k} {run['model']} {run['scheduler']}: {len(given)} calls, {len(estimates)} estimates, ", end="")
        print(f"image deviation {arrays[f'images_{k}'].std():.0f}")
    path = Path(__file__).with_name("callbacks.npz")
    facts = json.dumps({"prompts": PROMPTS, "cases": CASES})
    np.savez_compressed(path, allow_pickle=False, facts=np.array(facts), **arrays)
    print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
