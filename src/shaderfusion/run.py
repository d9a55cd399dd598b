"""The run that makes the pictures of a request, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np
from PIL import Image

from shaderfusion.denoising import DenoisingState, Step
from shaderfusion.engine import Engine
from shaderfusion.families.family import BESIDE_LATENTS, TEXT_WEIGHTS, Conditioning, Family
from shaderfusion.images import Source, to_pictures
from shaderfusion.progress import DENOISE
from shaderfusion.prompts.scheduled import ScheduledPrompts
from shaderfusion.request import Request
from shaderfusion.seeds import PictureNoise

__all__ = ["Change", "Progress", "Run"]

Change = Callable[[int, np.ndarray], np.ndarray | None]
"""After each step, with its number from 0 and the latents (B, H, W, C) f32: others for the next step, or None."""


@dataclass(frozen=True)
class Progress:
    """After denoising step `step` of `num_steps`, counted from 1; the last one carries the images."""

    step: int
    num_steps: int
    seed: int
    latents: np.ndarray = field(repr=False)
    """Of this step, (B, H, W, C) f32, on the host."""
    estimate: Callable[[], np.ndarray] = field(repr=False)
    """Latents (B, H, W, C) f32 without noise, as this step's model output has them; after the last step the latents."""
    preview: Callable[[], list[Image.Image]] = field(repr=False)
    """Decodes the estimate: takes as long as a final image.

    With memory="low" the decoder takes the denoiser's place on the device, whose weights are loaded again for the next
    step: that is slow.
    """
    latent_preview: Callable[[], list[Image.Image]] = field(repr=False)
    """Pictures of the estimate with a pixel for each latent cell, made on the host (`previews.Projection`).

    Of latents that are not known, a few samples are decoded once for it.
    """
    quick_preview: Callable[[], list[Image.Image]] = field(repr=False)
    """As large as the pictures: the estimate decoded by TAESD, where it is the model's vae or the preview_vae that the
    model was opened with, else those of `latent_preview`, enlarged; in low memory always these."""
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
        self.watch: Callable[[str], None] = lambda part: None
        """Told each part that begins: "text", "encode" of a picture, "denoise", "decode"."""
        self.change: Change | None = None
        """It and `watch` are called while the run has its turn: others wait."""
        self._engine = engine
        self._state: DenoisingState | None = None
        self._made: list[Conditioning] = []
        """Of each of the request's prompts, once they are read."""
        self._kept: _Kept | None = None
        self._noise = PictureNoise(request.seed, request.size.batch, request.rng, request.seeds)
        self._next: list[Step] = []
        """The next one or two: a step stays, with its noise, until it is done."""
        self._step = 0
        self._num_steps = request.num_steps
        self._last: tuple[Step, np.ndarray, np.ndarray, np.ndarray | None] | None = None
        """The last step that was done: x_t before it, what the denoiser said, and weights of several texts."""
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
            if self._step < self._num_steps:  # else only the pictures are missing
                if self._last is None:
                    self.watch(DENOISE)
                if request.changes_at(self._step):  # a state of its own: the device does not hold it
                    conditioning = self._state.conditioning | self._conditioning(self._step)
                    self._state = replace(self._state, conditioning=conditioning)
                # The next step may need the latents that are kept or returned, or another embedding.
                ahead = 1 if self._kept or self.change or request.changes_at(self._step + 1) else 2
                indices = range(self._step, request.num_steps)[:ahead]
                self._next += map(self._make_step, indices[len(self._next) :])
                x_t = self._state.x_t
                model_output = self._engine.denoise(self._state, *self._next)
                self._last = (self._next.pop(0), x_t, model_output, self._state.conditioning.get(TEXT_WEIGHTS))
                self._step += 1
                if self._kept:
                    self._state = self._keep(self._state, self._kept)
                if self.change:
                    changed = self.change(self._step - 1, self._state.x_t)
                    self._state = self._state if changed is None else self._state.with_latents(changed)
            latents = self._state.x_t
            estimate = self._make_estimate(latents)
            if self._step == self._num_steps:
                self.watch("decode")
                images = self._decode(latents)
                self.close()
        return Progress(
            self._step,
            request.num_steps,
            request.seed,
            latents,
            estimate,
            lambda: self._decode(estimate()),
            lambda: self._project(estimate()),
            lambda: self._preview_quickly(estimate()),
            images,
        )

    def _begin(self) -> DenoisingState:
        """The prompts' embeddings, a row for each of the denoiser's batch, and the first x_t."""
        request, size = self.request, self.request.size
        self._engine.load(size)
        self.watch("text")
        self._made = self._condition()
        conditioning = self._conditioning(self._step) | self._engine.model.shared_inputs(size, request.guidance_scale)
        if request.weights is not None:
            conditioning[TEXT_WEIGHTS] = np.repeat(request.weights, size.batch // request.weights.shape[1], axis=1)
        if request.source:
            self.watch("encode")
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

    def _make_estimate(self, latents: np.ndarray) -> Callable[[], np.ndarray]:
        """`Progress.estimate` of the last step, which left these latents."""
        call, schedule, kept = self._step - 1, self.request.schedule, self._kept
        if self._last is None or self._step == self._num_steps:
            return lambda: latents
        step, x_t, model_output, text_weights = self._last

        def estimate() -> np.ndarray:
            m = step.guided(model_output, len(x_t), text_weights)
            x_0 = schedule.predicted(x_t, m, call, self._engine.model.scheduler_config.prediction_type)
            return x_0 if kept is None else np.where(kept.mask == 1, x_0, kept.latents)

        return estimate

    def _project(self, latents: np.ndarray) -> list[Image.Image]:
        return self._engine.projection().pictures(latents)

    def _preview_quickly(self, latents: np.ndarray) -> list[Image.Image]:
        size = self.request.size
        if self._engine.quick_decoder:
            return to_pictures(self._engine.decode(latents, size, quickly=True))
        sides = (size.width_px, size.height_px)
        return [picture.resize(sides, Image.Resampling.BILINEAR) for picture in self._project(latents)]

    def _decode(self, latents: np.ndarray) -> list[Image.Image]:
        return to_pictures(self._engine.decode(latents, self.request.size))

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
        noise = self._draw(call=index) if update.c_noise else None
        return Step(schedule.timesteps[index], update, self.request.guidance_scale, next_input_scale, noise)

    def _draw(self, num_rows: int | None = None, call: int | None = None) -> np.ndarray:
        """The next noise, (B, H, W, C), as diffusers draws it: the first latents, then for each call of the model.

        `num_rows` are drawn where one generator is for all pictures.
        """
        _, H, W, C = self._engine.model.latents_shape(self.request.size)
        shape, times = (C, H, W), self.request.schedule.path_times  # torch's order, then channels last
        if call is None or times is None:
            return self._noise.draw(shape, num_rows).transpose(0, 2, 3, 1)
        return self._noise.draw_along(times, call, shape).transpose(0, 2, 3, 1)

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

    def finish(self) -> None:
        """Makes the current step the last one, whose latents are decoded as they are, noise included."""
        self._num_steps = self._step

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
