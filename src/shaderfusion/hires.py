"""Larger pictures in two passes: a run's own, enlarged, are what a second run begins with.

A model composes best at the size that it was trained on; the second run adds the detail of the larger one.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

from PIL import Image

from shaderfusion.arguments import LARGEST_SCALE, require_strength
from shaderfusion.errors import InputError
from shaderfusion.families.family import Family
from shaderfusion.families.run_size import RunSize
from shaderfusion.images import AnyPicture, read_source
from shaderfusion.progress import Stage
from shaderfusion.prompts.scheduled import ScheduledPrompts
from shaderfusion.request import Prompts, Request, equal_lengths, last_steps
from shaderfusion.schedulers import make_schedule

__all__ = ["SecondPass", "passes"]


class SecondPass:
    """What follows a request: the same prompts and seed, at `scale` times its size, rounded to whole latent cells."""

    def __init__(
        self,
        model: Family,
        first: Request,
        *,
        scale: float,
        num_inference_steps: int,
        strength: float,
        mask_image: AnyPicture | None = None,
        scheduler: str | None = None,
        eta: float = 0.0,
    ) -> None:
        """`mask_image` is the first one's, if it has one. InputError for a value outside its rule."""
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 1 <= scale <= LARGEST_SCALE:
            raise InputError(f"scale (={scale!r}) must be a number from 1 to {LARGEST_SCALE}")
        f = model.scale_factor
        sides = {side: round(getattr(first.size, side) * scale / f) * f for side in ("width_px", "height_px")}
        self._strength = require_strength(strength)
        self._mask_image = mask_image
        schedule = make_schedule(model.scheduler_config, num_inference_steps, scheduler, eta=eta)
        schedule = last_steps(schedule, num_inference_steps, self._strength)
        num_steps = len(schedule.updates)
        going_on = [
            each.second_pass(num_steps) if isinstance(each, ScheduledPrompts) else each for each in first.prompts
        ]
        prompts, num_tokens = equal_lengths(model, going_on)
        size = replace(first.size, **sides, num_tokens=num_tokens)
        self._request = replace(first, size=size, schedule=schedule, prompts=tuple(prompts), latents=None, source=None)

    @property
    def num_steps(self) -> int:
        """Calls of the denoiser."""
        return self._request.num_steps

    @property
    def prompts(self) -> tuple[Prompts, ...]:
        """Of the second run, as a request's."""
        return self._request.prompts

    @property
    def size(self) -> RunSize:
        """Of the second run."""
        return self._request.size

    def request(self, images: Sequence[Image.Image]) -> Request:
        """With the first pass's pictures, enlarged by Lanczos' filter."""
        size = self._request.size
        sides = {"width_px": size.width_px, "height_px": size.height_px}
        source = read_source(images, self._mask_image, self._strength, **sides, batch=size.batch)
        return replace(self._request, source=source)


def passes(first: Request, second: SecondPass | None) -> list[tuple[Stage, Callable[[Sequence[Image.Image]], Request]]]:
    """The runs, each with what makes its request of the pictures of the one before."""
    found: list[tuple[Stage, Callable[[Sequence[Image.Image]], Request]]] = [
        (Stage(first.num_steps, work=first.size.pixels), lambda _: first)
    ]
    if second:
        found.append((Stage(second.num_steps, "hires", second.size.pixels), second.request))
    return found
