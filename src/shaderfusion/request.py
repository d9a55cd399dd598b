"""What one call of a pipeline asks for: its arguments, checked against a model."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from shaderfusion.arguments import LARGEST_COUNT, require_guidance_scale, require_strength
from shaderfusion.errors import InputError
from shaderfusion.families.family import Conditioning, Family
from shaderfusion.families.run_size import RunSize
from shaderfusion.files import shown
from shaderfusion.images import AnyPicture, Source, read_source
from shaderfusion.prompts.combined import combine
from shaderfusion.prompts.scheduled import ScheduledPrompts, read_negative, read_positive, read_prompts
from shaderfusion.schedulers import Schedule, make_schedule
from shaderfusion.seeds import Rng, Seeds, require_noise

__all__ = [
    "EMPHASES",
    "PROMPT_SYNTAXES",
    "Prompts",
    "Request",
    "equal_lengths",
    "last_steps",
    "make_request",
    "read_latents",
]

_STRENGTH = 0.8
"""As in diffusers."""

_MOST_CHUNKS = 24
"""To which prompts are lengthened: as many as two prompts of 3 and 8 need."""

Prompts = np.ndarray | ScheduledPrompts | Conditioning
"""Rows of token ids, texts in the web UIs' syntax, or what the denoiser is given for each prompt."""

PROMPT_SYNTAXES = ("plain", "webui")
EMPHASES = {"original": True, "no_norm": False}
"""The web UIs' names, and whether the mean is restored."""


@dataclass(frozen=True, eq=False)
class Request:
    """What to make, checked: nothing in it is refused later but what only running it can show."""

    size: RunSize
    schedule: Schedule
    guidance_scale: float
    seed: int
    prompts: tuple[Prompts, ...] = field(repr=False)
    """With guidance the negative ones, then the others, or each of their parts; a row for each prompt."""
    latents: np.ndarray | None = field(repr=False)
    """The noise to begin with, (B, H, W, C), or None for that of the seed, which then goes on with noise for steps."""
    source: Source | None = field(default=None, repr=False)
    """The picture to begin with; None begins with noise alone."""
    rng: Rng = "cpu"
    seeds: Seeds = "joint"
    weights: np.ndarray | None = field(default=None, repr=False)
    """Of the parts of each prompt, (parts, prompts), where there are several or they have weights."""
    adapters: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """That the prompts name, with the strength of each by component."""

    @property
    def num_steps(self) -> int:
        """Calls of the denoiser."""
        return len(self.schedule.updates)

    @property
    def num_chunks(self) -> tuple[int, ...]:
        """Of each of its prompts in the web UIs' syntax: one of fewer would have empty ones beside it."""
        return tuple(prompts.ids.shape[1] for prompts in self.prompts if isinstance(prompts, ScheduledPrompts))

    def changes_at(self, step: int) -> bool:
        """Whether a step, counted from 0, shows something else than the one before; after the last one nothing does."""
        return any(prompts.changes_at(step) for prompts in self.prompts if isinstance(prompts, ScheduledPrompts))


def make_request(
    model: Family,
    prompt: str | Sequence[str] | None = None,
    *,
    negative_prompt: str | Sequence[str] | None = None,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    width: int | None = None,
    height: int | None = None,
    num_images_per_prompt: int = 1,
    seed: int | None = None,
    latents: Any = None,
    prompt_embeds: Any = None,
    negative_prompt_embeds: Any = None,
    pooled_prompt_embeds: Any = None,
    negative_pooled_prompt_embeds: Any = None,
    image: AnyPicture | Sequence[AnyPicture] | None = None,
    mask_image: AnyPicture | None = None,
    strength: float | None = None,
    scheduler: str | None = None,
    eta: float = 0.0,
    rng: Rng = "cpu",
    seeds: Seeds = "joint",
    prompt_syntax: str = "plain",
    clip_skip: int | None = None,
    emphasis: str | None = None,
) -> Request:
    """Checks the arguments of `StableDiffusionPipeline.generate` against a model, of which no weights are needed.

    InputError for one that is outside its rule, ModelError for a scheduler that the model lacks.
    """
    num_images = _require_count("num_images_per_prompt", num_images_per_prompt)
    size = model.run_size(width=width, height=height, clip_skip=clip_skip)
    if num_inference_steps is None:
        num_inference_steps = model.defaults.num_inference_steps
    if guidance_scale is None:
        guidance_scale = model.defaults.guidance_scale
    scale = require_guidance_scale(guidance_scale)
    schedule = make_schedule(model.scheduler_config, num_inference_steps, scheduler, eta=eta)
    num_steps = len(schedule.updates)
    guided = scale > 1 and not model.reads_guidance_scale
    if image is not None:
        strength = _STRENGTH if strength is None else require_strength(strength)
        schedule = last_steps(schedule, num_inference_steps, strength)
    read = _reader(model, len(schedule.updates), num_steps, prompt_syntax, emphasis)

    adapters: Mapping[str, Mapping[str, float]] = {}
    weights = None
    positive = _read_prompts(model, "prompt", prompt, prompt_embeds, pooled_prompt_embeds)
    if isinstance(positive, dict):
        prompts: list[Prompts] = [positive]
    elif prompt_syntax == "webui":
        positive, adapters = read_positive(positive)
        parts, weights = combine(positive)
        prompts = [read(texts) for texts in parts]
    else:
        prompts = [read(positive)]
    if weights is not None and not guided:
        reads = model.reads_guidance_scale
        rule = "model that does not read guidance_scale itself" if reads else f"guidance_scale (={scale:g}) above 1"
        raise InputError(f"prompt: AND, and a weight at the end such as :1.2, must come with a {rule}")
    num_prompts = _count(prompts[0])[0]
    if guided:
        given = [negative_prompt, negative_prompt_embeds, negative_pooled_prompt_embeds]
        if all(value is None for value in given):
            negative = model.unconditional(_count(prompts[0])[1]) or [""]
        else:
            negative = _read_prompts(model, "negative_prompt", *given)
        if prompt_syntax == "webui" and not isinstance(negative, dict):
            negative = read_negative(negative)
        prompts.insert(0, negative if isinstance(negative, dict) else read(negative))
        num_negative, _ = _count(prompts[0])
        if num_negative not in (1, num_prompts):
            raise InputError(
                f"negative_prompt (of {num_negative}) must be one, or one for each of {num_prompts} prompts"
            )
    prompts, num_tokens = equal_lengths(model, prompts)
    num_weighted = 0 if weights is None else len(weights)
    batch = num_prompts * num_images
    size = replace(size, batch=batch, guidance=guided, num_tokens=num_tokens, weighted_texts=num_weighted)
    source = None
    if image is not None and strength is not None:
        source = read_source(
            image,
            mask_image,
            strength,
            width_px=size.width_px,
            height_px=size.height_px,
            batch=size.batch,
        )
    elif mask_image is not None:
        raise InputError("mask_image must come with image, the picture that is kept where the mask is black")
    elif strength is not None:
        raise InputError(f"strength (={strength!r}) must come with image, the picture to begin with")
    noise = None if latents is None else read_latents(latents, model.latents_shape(size))
    seed = secrets.randbelow(2**32) if seed is None else seed
    require_noise(seed, size.batch, rng, seeds)
    return Request(size, schedule, scale, seed, tuple(prompts), noise, source, rng, seeds, weights, adapters)


def last_steps(schedule: Schedule, num_inference_steps: int, strength: float) -> Schedule:
    """Those of a run that begins with a picture, int(num_inference_steps strength); InputError where that is none."""
    num_steps = int(num_inference_steps * strength)
    if num_steps < 1:
        raise InputError(
            f"strength (={strength:g}) times num_inference_steps (={num_inference_steps}) must be at least 1: one step"
        )
    return schedule.tail((num_inference_steps - num_steps) * schedule.calls_per_step)


def _reader(
    model: Family, num_calls: int, num_steps: int, prompt_syntax: str, emphasis: str | None
) -> Callable[[Sequence[str]], np.ndarray | ScheduledPrompts]:
    """What reads texts of that syntax; InputError for a syntax or an emphasis that there is not."""
    if prompt_syntax not in PROMPT_SYNTAXES:
        raise InputError(f"prompt_syntax (={shown(prompt_syntax)}) must be {' or '.join(PROMPT_SYNTAXES)}")
    if emphasis is not None and emphasis not in EMPHASES:
        raise InputError(f"emphasis (={shown(emphasis)}) must be {' or '.join(EMPHASES)}")
    if prompt_syntax == "plain":
        if emphasis is not None:
            raise InputError(f"emphasis (={emphasis}) must be left out where prompt_syntax is plain, without weights")
        return model.tokenize
    restores_mean = model.restores_mean if emphasis is None else EMPHASES[emphasis]
    tokenizers = list(model.taught_tokenizers.values())
    return lambda texts: read_prompts(tokenizers, texts, num_calls, num_steps=num_steps, restores_mean=restores_mean)


def _read_prompts(
    model: Family, name: str, texts: str | Sequence[str] | None, embeds: Any, pooled_embeds: Any
) -> Sequence[str] | Conditioning:
    """A list of texts, or embeddings as they are given."""
    if (texts is None) == (embeds is None):
        raise InputError(f"{name} and {name}_embeds must not both be {'left out' if texts is None else 'given'}")
    pooled_name = name.replace("prompt", "pooled_prompt_embeds")
    shapes = model.conditioning_shapes
    if (pooled_embeds is not None) != (embeds is not None and "pooled" in shapes):
        takes = "come with" if "pooled" in shapes else "not be given: the model takes only"
        raise InputError(f"{pooled_name} must {takes} {name}_embeds")
    if embeds is None:
        texts = [texts] if isinstance(texts, str) else texts
        if not isinstance(texts, (list, tuple)) or not texts or not all(isinstance(text, str) for text in texts):
            raise InputError(f"{name} (={texts!r}) must be a text or a list of at least one text")
        return texts
    L, C = model.embedding_shape
    array = _to_array(f"{name}_embeds", embeds)
    if array.ndim != 3 or array.shape[2] != C or 0 in array.shape:
        raise InputError(f"{name}_embeds of shape {array.shape} must be (prompts, tokens, {C}), such as (1, {L}, {C})")
    if pooled_embeds is None:
        return {"embedding": array}
    pooled, shape = _to_array(pooled_name, pooled_embeds), (len(array), *shapes["pooled"])
    if pooled.shape != shape:
        raise InputError(f"{pooled_name} of shape {pooled.shape} must be {shape}, a row for each of {name}_embeds")
    return {"embedding": array, "pooled": pooled}


def _count(prompts: Prompts) -> tuple[int, int]:
    """How many there are, and of how many tokens."""
    if isinstance(prompts, dict):
        return prompts["embedding"].shape[0], prompts["embedding"].shape[1]
    if isinstance(prompts, ScheduledPrompts):
        return prompts.row_of.shape[1], prompts.num_tokens
    return prompts.shape[0], prompts.shape[-1]


def equal_lengths(model: Family, prompts: Sequence[Prompts]) -> tuple[list[Prompts], int]:
    """The prompts with as many tokens as one run needs of all, and how many: the least number that holds each of them
    some whole times, or that of the longest where this is too large.

    Embeddings that are given stay as they are, but for zeros beside others, which to attention are the same in any
    number. InputError where they then differ.
    """
    others = [each for each in prompts if not _is_zero(each)] or prompts
    common, longest = math.lcm(*(_count(each)[1] for each in others)), max(_count(each)[1] for each in others)
    given = {_count(each)[1] for each in others if isinstance(each, dict)}
    is_held = common <= max(longest, _MOST_CHUNKS * model.embedding_shape[0]) and given <= {common}
    num_tokens = common if is_held else longest
    found: list[Prompts] = []
    for each in prompts:
        if isinstance(each, ScheduledPrompts):
            found.append(each.lengthened(num_tokens))
        elif isinstance(each, dict) and _is_zero(each):
            rows, _, C = each["embedding"].shape
            found.append({**each, "embedding": np.zeros((rows, num_tokens, C), np.float32)})
        else:
            found.append(each)
    lengths = sorted({_count(each)[1] for each in found})
    if len(lengths) > 1:
        raise InputError(
            f"prompt_embeds and negative_prompt_embeds must be of the same number of tokens, not {lengths}"
        )
    return found, num_tokens


def _is_zero(prompts: Prompts) -> bool:
    return isinstance(prompts, dict) and not prompts["embedding"].any()


def read_latents(latents: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Latents in diffusers' order of dimensions, as (B, H, W, C); InputError unless they have that shape."""
    array = _to_array("latents", latents)
    B, H, W, C = shape
    if array.shape != (B, C, H, W):
        raise InputError(f"latents of shape {array.shape} must be {(B, C, H, W)}, as width, height and batch say")
    return array.transpose(0, 2, 3, 1)


def _to_array(name: str, values: Any) -> np.ndarray:
    """A finite f32 array of anything like one, a torch tensor on the CPU among them."""
    try:
        array = np.asarray(values, np.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} must be an array of numbers on the host ({error})") from None
    if not np.isfinite(array).all():
        raise InputError(f"{name} must be finite, and has NaN or infinite values")
    return array


def _require_count(name: str, value: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST_COUNT:
        raise InputError(f"{name} (={shown(value)}) must be a whole number from 1 to {LARGEST_COUNT:,}")
    return value
