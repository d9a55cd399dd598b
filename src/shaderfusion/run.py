"""One call of a pipeline: its checked arguments, and the run that makes the pictures step by step."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
from PIL import Image

from shaderfusion.arguments import LARGEST_COUNT, require_guidance_scale, require_strength
from shaderfusion.denoising import DenoisingState, Step
from shaderfusion.engine import Engine
from shaderfusion.errors import InputError
from shaderfusion.families.family import BESIDE_LATENTS, Conditioning, Family, RunSize
from shaderfusion.files import shown
from shaderfusion.images import AnyPicture, Source, read_source
from shaderfusion.prompts.scheduled import ScheduledPrompts, read_negative, read_positive, read_prompts
from shaderfusion.schedulers import Schedule, make_schedule
from shaderfusion.seeds import PictureNoise, Rng, Seeds, require_noise

__all__ = ["EMPHASES", "PROMPT_SYNTAXES", "Progress", "Request", "Run", "last_steps", "make_request"]

_STRENGTH = 0.8
"""As in diffusers."""

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
    """With guidance the negative ones, then the others; a row for each prompt."""
    latents: np.ndarray | None = field(repr=False)
    """The noise to begin with, (B, H, W, C), or None for that of the seed, which then goes on with noise for steps."""
    source: Source | None = field(default=None, repr=False)
    """The picture to begin with; None begins with noise alone."""
    rng: Rng = "cpu"
    seeds: Seeds = "joint"
    adapters: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """That the prompts name, with the strength of each by component."""

    @property
    def num_steps(self) -> int:
        """Calls of the denoiser."""
        return len(self.schedule.updates)

    def changes_at(self, step: int) -> bool:
        """Whether a step, counted from 0, shows something else than the one before; after the last one nothing does."""
        return any(prompts.changes_at(step) for prompts in self.prompts if isinstance(prompts, ScheduledPrompts))


@dataclass(frozen=True)
class Progress:
    """After denoising step `step` of `num_steps`, counted from 1; the last one carries the images."""

    step: int
    num_steps: int
    seed: int
    latents: np.ndarray = field(repr=False)
    """Of this step, (B, H, W, C) f32, on the host."""
    preview: Callable[[], list[Image.Image]] = field(repr=False)
    """Decodes the latents of this step: takes as long as a final image.

    With memory="low" the decoder takes the denoiser's place on the device, whose weights are loaded again for the next
    step: that is slow.
    """
    images: list[Image.Image] | None = None


class _Kept(NamedTuple):
    """Where a mask keeps a picture, every step's latents are those of the picture, as noisy as they are then."""

    latents: np.ndarray
    noise: np.ndarray
    mask: np.ndarray
    """1 where to paint"""


class Run(Iterator[Progress]):
    """The pictures of one request, as an iterator over its denoising steps.

    Everything that changes from step to step is here: runs of one pipeline may be advanced in any order, from any
    thread. Between two steps a run holds no memory of the device. As a context manager it closes itself.
    """

    def __init__(self, engine: Engine, request: Request) -> None:
        self.request = request
        self._engine = engine
        self._state: DenoisingState | None = None
        self._made: list[Conditioning] = []
        """Of each of the request's prompts, once they are read."""
        self._kept: _Kept | None = None
        self._noise = PictureNoise(request.seed, request.size.batch, request.rng, request.seeds)
        self._next: list[Step] = []
        """The next one or two: a step stays, with its noise, until it is done."""
        self._step = 0
        self._is_closed = False

    def __next__(self) -> Progress:
        """One step; where anything is raised, the next call goes on from there."""
        request = self.request
        images = None
        with self._engine.device.turn:
            if self._is_closed:
                raise StopIteration
            if self._state is None:
                self._state = self._begin()
            if self._step < request.num_steps:  # else only the pictures are missing
                if request.changes_at(self._step):  # a state of its own: the device does not hold it
                    conditioning = self._state.conditioning | self._conditioning(self._step)
                    self._state = replace(self._state, conditioning=conditioning)
                # The next step may need the latents that are kept, or another embedding.
                ahead = 1 if self._kept or request.changes_at(self._step + 1) else 2
                indices = range(self._step, request.num_steps)[:ahead]
                self._next += map(self._make_step, indices[len(self._next) :])
                self._engine.denoise(self._state, *self._next)
                del self._next[0]
                self._step += 1
                if self._kept:
                    self._state = self._keep(self._state, self._kept)
            latents = self._state.x_t
            preview = partial(_decode, self._engine, latents, request.size)
            if self._step == request.num_steps:
                images = preview()
                self.close()
        return Progress(self._step, request.num_steps, request.seed, latents, preview, images)

    def _begin(self) -> DenoisingState:
        """The prompts' embeddings, a row for each of the denoiser's batch, and the first x_t."""
        request, size = self.request, self.request.size
        self._engine.load(size)
        self._made = self._condition()
        conditioning = self._conditioning(self._step) | self._engine.model.shared_inputs(size, request.guidance_scale)
        if request.source:
            x_t = self._begin_with(request.source, conditioning)
        else:
            x_t = (request.schedule.init_noise_sigma * self._first_noise()).astype(np.float32)
        return DenoisingState(size, conditioning, x_t, request.schedule.input_scales[0])

    def _begin_with(self, source: Source, conditioning: Conditioning) -> np.ndarray:
        """The first x_t, of a picture. Noise is drawn in diffusers' order, and only after all that may fail.

        A denoiser that reads a mask is given it beside its latents, and those of the picture without what it hides; of
        others the picture's own are kept where the mask says so.
        """
        model, size = self._engine.model, self.request.size
        reads_mask = model.input_channels > model.latent_channels
        begins_with_noise = source.mask is not None and source.strength == 1
        hidden_moments = None
        if source.mask is not None and reads_mask:
            hidden_moments = self._engine.encode(source.pixels * (1 - source.mask), size)
        latents = None
        if not (begins_with_noise and reads_mask):
            latents = self._draw_latents(self._engine.encode(source.pixels, size), size.batch)
        noise = self._first_noise()
        if source.mask is not None:
            f = model.scale_factor
            mask = source.mask[:, ::f, ::f]
            if hidden_moments is not None:
                hidden = self._draw_latents(hidden_moments, size.rows)
                cells = np.broadcast_to(mask, (*hidden.shape[:3], 1))
                conditioning[BESIDE_LATENTS] = np.concatenate([cells, hidden], axis=3)
            elif latents is not None:
                self._draw(len(source.pixels))  # diffusers encodes what is hidden here too
                self._kept = _Kept(latents, noise, mask)
        if begins_with_noise or latents is None:
            return (self.request.schedule.init_noise_sigma * noise).astype(np.float32)
        return self.request.schedule.noised(latents, noise, 0)

    def _draw_latents(self, moments: np.ndarray, num_rows: int) -> np.ndarray:
        """Of an encoder's moments, (N, H, W, 2 C), repeated to that many rows."""
        noise = self._draw(len(moments))
        moments = np.tile(moments, (len(noise) // len(moments), 1, 1, 1))
        drawn = self._engine.model.draw_latents(moments, noise)
        return np.tile(drawn, (num_rows // len(drawn), 1, 1, 1))

    def _keep(self, state: DenoisingState, kept: _Kept) -> DenoisingState:
        """The state after a step, with the picture's latents where the mask keeps them: at last without noise."""
        picture = kept.latents
        if self._step < self.request.num_steps:
            picture = self.request.schedule.noised(picture, kept.noise, self._step)
        return state.with_latents(np.where(kept.mask == 1, state.x_t, picture))

    def _first_noise(self) -> np.ndarray:
        return self._draw() if self.request.latents is None else self.request.latents

    def _conditioning(self, step: int) -> Conditioning:
        """What the denoiser is given of the prompts in a step, a row for each of its batch."""
        size, rows = self.request.size, list[Conditioning]()
        for prompts, made in zip(self.request.prompts, self._made, strict=True):
            if isinstance(prompts, ScheduledPrompts):
                made = {name: array[prompts.row_of[step]] for name, array in made.items()}
            rows.append({name: np.repeat(array, size.batch // len(array), axis=0) for name, array in made.items()})
        return {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}

    def _make_step(self, index: int) -> Step:
        schedule, update = self.request.schedule, self.request.schedule.updates[index]
        next_input_scale = (*schedule.input_scales, 1.0)[index + 1]
        noise = self._draw() if update.c_noise else None
        return Step(schedule.timesteps[index], update, self.request.guidance_scale, next_input_scale, noise)

    def _draw(self, num_rows: int | None = None) -> np.ndarray:
        """The next noise, (B, H, W, C), as diffusers draws it: the first latents, then for each step.

        `num_rows` are drawn where one generator is for all pictures.
        """
        _, H, W, C = self._engine.model.latents_shape(self.request.size)
        return self._noise.draw((C, H, W), num_rows).transpose(0, 2, 3, 1)  # torch's order, then channels last

    def _condition(self) -> list[Conditioning]:
        """What the text networks make of the request's prompts, in one turn; of ScheduledPrompts each text's."""
        prompts, model = self.request.prompts, self._engine.model
        texts = [_token_rows(each, model) for each in prompts if not isinstance(each, dict)]
        read = self._engine.condition(np.concatenate(texts), self.request.size) if texts else {}
        ends = np.cumsum([len(rows) for rows in texts])[:-1]
        parts = zip(*(np.split(array, ends) for array in read.values()), strict=True)
        widths = [encoder.hidden_size for encoder in model.text_encoders.values()]
        found: list[Conditioning] = []
        for each in prompts:
            made = each if isinstance(each, dict) else dict(zip(read, next(parts), strict=True))
            found.append(each.join(made, widths) if isinstance(each, ScheduledPrompts) else made)
        return found

    def close(self) -> None:
        """Ends the run after the current step."""
        self._is_closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _token_rows(prompts: np.ndarray | ScheduledPrompts, model: Family) -> np.ndarray:
    """Token ids, (rows, *tokens_shape), a row for each chunk."""
    return prompts.ids.reshape(-1, *model.tokens_shape) if isinstance(prompts, ScheduledPrompts) else prompts


def _decode(engine: Engine, latents: np.ndarray, size: RunSize) -> list[Image.Image]:
    pixels = engine.decode(latents, size)
    levels = np.clip(np.round(pixels * 127.5 + 127.5), 0, 255).astype(np.uint8)
    return [Image.fromarray(image) for image in levels]


def make_request(
    model: Family,
    prompt: str | Sequence[str] | None = None,
    *,
    negative_prompt: str | Sequence[str] | None = None,
    num_inference_steps: int = 50,
    guidance_scale: float = 7.5,
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
    scale = require_guidance_scale(guidance_scale)
    schedule = make_schedule(model.scheduler_config, num_inference_steps, scheduler, eta=eta)
    guided = scale > 1 and not model.reads_guidance_scale
    if image is not None:
        strength = _STRENGTH if strength is None else require_strength(strength)
        schedule = last_steps(schedule, num_inference_steps, strength)
    read = _reader(model, len(schedule.updates), prompt_syntax, emphasis)

    adapters: Mapping[str, Mapping[str, float]] = {}
    positive = _read_prompts(model, "prompt", prompt, prompt_embeds, pooled_prompt_embeds)
    if prompt_syntax == "webui" and not isinstance(positive, dict):
        positive, adapters = read_positive(positive)
    prompts = [positive if isinstance(positive, dict) else read(positive)]
    num_prompts, num_tokens = _count(prompts[0])
    if guided:
        given = [negative_prompt, negative_prompt_embeds, negative_pooled_prompt_embeds]
        if all(value is None for value in given):
            negative = model.unconditional(num_tokens) or [""]
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
        num_tokens = max(_count(each)[1] for each in prompts)
        prompts = [each.padded(num_tokens) if isinstance(each, ScheduledPrompts) else each for each in prompts]
        lengths = sorted({_count(each)[1] for each in prompts})
        if len(lengths) > 1:
            raise InputError(
                f"prompt_embeds and negative_prompt_embeds must be of the same number of tokens, not {lengths}"
            )
    size = replace(size, batch=num_prompts * num_images, guidance=guided, num_tokens=num_tokens)
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
    noise = None if latents is None else _read_latents(latents, model.latents_shape(size))
    seed = secrets.randbelow(2**32) if seed is None else seed
    require_noise(seed, size.batch, rng, seeds)
    return Request(size, schedule, scale, seed, tuple(prompts), noise, source, rng, seeds, adapters)


def last_steps(schedule: Schedule, num_inference_steps: int, strength: float) -> Schedule:
    """Those of a run that begins with a picture, int(num_inference_steps strength); InputError where that is none."""
    num_steps = int(num_inference_steps * strength)
    if num_steps < 1:
        raise InputError(
            f"strength (={strength:g}) times num_inference_steps (={num_inference_steps}) must be at least 1: one step"
        )
    return schedule.tail((num_inference_steps - num_steps) * schedule.calls_per_step)


def _reader(
    model: Family, num_steps: int, prompt_syntax: str, emphasis: str | None
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
    return lambda texts: read_prompts(tokenizers, texts, num_steps, restores_mean=restores_mean)


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


def _read_latents(latents: Any, shape: tuple[int, int, int, int]) -> np.ndarray:
    """Noise in diffusers' order of dimensions, channels last."""
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
