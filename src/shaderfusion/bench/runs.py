"""What is run: one iteration of the UNet, and one picture, on inputs that are the same in every run."""

from __future__ import annotations

import time
from itertools import zip_longest

import numpy as np

from shaderfusion.bench.subject import Subject
from shaderfusion.bench.values import normal
from shaderfusion.denoising import DenoisingState, Step
from shaderfusion.engine import Engine
from shaderfusion.schedulers import Update, make_schedule
from shaderfusion.schedulers.config import SchedulerConfig

__all__ = ["GUIDANCE_SCALE", "NUM_STEPS", "SCHEDULER", "TIMESTEP", "make_image", "make_token_ids", "run_iteration"]

TIMESTEP = 981.0
GUIDANCE_SCALE = 7.5
NUM_STEPS = 20

SCHEDULER = SchedulerConfig(
    beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False
)
"""Of Stable Diffusion 1.4, for DDIM."""


def run_iteration(engine: Engine, subject: Subject) -> None:
    """Runs the UNet once on normal values, with an update that leaves x_t as it is: no later run works on zeros."""
    model, size = subject.model, subject.size
    conditioning = {name: normal(name, (size.rows, *shape)) for name, shape in model.conditioning_shapes.items()}
    conditioning |= model.shared_inputs(size, GUIDANCE_SCALE)
    state = DenoisingState(size, conditioning, normal("x_t", subject.latents_shape), 1.0)
    engine.denoise(state, Step(TIMESTEP, Update(c_x=1.0), GUIDANCE_SCALE, 1.0))


def make_token_ids(vocab_size: int, *shape: int) -> np.ndarray:
    """Two prompts of random tokens, (2, ..., L), each ended by CLIP's last token, the end of text."""
    ids = np.random.default_rng(0).integers(0, vocab_size, (2, *shape))
    ids[..., -1] = vocab_size - 1
    return ids


def make_image(engine: Engine, subject: Subject) -> dict[str, float]:
    """Prompts, NUM_STEPS steps of DDIM and the picture; seconds of each part, by the wall clock."""
    copies = subject.size.rows // subject.size.batch  # one where the denoiser reads the guidance scale
    tokens = make_token_ids(subject.model.vocab_size, *subject.model.tokens_shape)[:copies]
    started = time.perf_counter()
    rows = engine.condition(tokens, subject.size)
    encoded = time.perf_counter()
    schedule = make_schedule(SCHEDULER, NUM_STEPS, "ddim")
    conditioning = {name: np.repeat(array, subject.size.batch, axis=0) for name, array in rows.items()}
    conditioning |= subject.model.shared_inputs(subject.size, GUIDANCE_SCALE)
    state = DenoisingState(subject.size, conditioning, normal("noise", subject.latents_shape), 1.0)
    steps = [Step(*at, GUIDANCE_SCALE, 1.0) for at in zip(schedule.timesteps, schedule.updates, strict=True)]
    for step, then in zip_longest(steps, steps[1:]):
        engine.denoise(state, step, then)
    denoised = time.perf_counter()
    engine.decode(state.x_t, subject.size)
    decoded = time.perf_counter()
    return {"text_encoder": encoded - started, "denoising": denoised - encoded, "decoder": decoded - denoised}
