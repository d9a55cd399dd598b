"""What is run: one iteration of the UNet, and one picture, on inputs that are the same in every run."""

from __future__ import annotations

import time

import numpy as np

from shaderfusion.bench.subject import Subject
from shaderfusion.bench.values import normal
from shaderfusion.config import SchedulerConfig
from shaderfusion.engine import Engine
from shaderfusion.schedulers import Update, make_schedule

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
    text = subject.config.text_encoder
    embeddings = normal("embedding", (2 * subject.batch, text.max_position_embeddings, text.hidden_size))
    engine.start(embeddings, normal("x_t", subject.latents_shape), 1.0)
    engine.step(TIMESTEP, Update(c_x=1.0), guidance_scale=GUIDANCE_SCALE, next_input_scale=1.0)


def make_token_ids(vocab_size: int, length: int) -> np.ndarray:
    """Two prompts of random tokens, (2, L)."""
    return np.random.default_rng(0).integers(0, vocab_size, (2, length))


def make_image(engine: Engine, subject: Subject) -> dict[str, float]:
    """Two prompts, NUM_STEPS steps of DDIM and the picture; seconds of each part, by the wall clock."""
    text = subject.config.text_encoder
    token_ids = make_token_ids(text.vocab_size, text.max_position_embeddings)
    schedule = make_schedule(SCHEDULER, NUM_STEPS, "ddim")
    noise = normal("noise", subject.latents_shape)
    started = time.perf_counter()
    embeddings = engine.encode(token_ids)
    encoded = time.perf_counter()
    engine.start(np.repeat(embeddings, subject.batch, axis=0), noise, 1.0)
    for timestep, update in zip(schedule.timesteps, schedule.updates, strict=True):
        engine.step(timestep, update, guidance_scale=GUIDANCE_SCALE, next_input_scale=1.0)
    denoised = time.perf_counter()
    engine.decode()
    decoded = time.perf_counter()
    return {"text_encoder": encoded - started, "denoising": denoised - encoded, "decoder": decoded - denoised}
