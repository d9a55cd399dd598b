"""Runs one case with a model, and compares what comes out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from shaderfusion.engine import Engine
from shaderfusion.errors import InputError
from shaderfusion.families.family import Family
from shaderfusion.request import Request, make_request
from shaderfusion.run import Run
from shaderfusion.schedulers import make_schedule
from shaderfusion.verify.cases import Case

__all__ = ["Outcome", "compare", "request_of"]


@dataclass(frozen=True)
class Outcome:
    """What a case gave."""

    case: Case
    scheduler: str
    actual: tuple[float, ...]
    seconds: float

    @property
    def difference(self) -> float:
        """The largest of a value."""
        return float(np.abs(np.subtract(self.actual, self.case.expected)).max())

    @property
    def passed(self) -> bool:
        """As diffusers' own test would say."""
        return self.difference < self.case.tolerance

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        made = {"actual": self.actual, "difference": self.difference, "passed": self.passed, "seconds": self.seconds}
        return {**asdict(self.case), "scheduler": self.scheduler, **made}


def request_of(case: Case, model: Family) -> Request:
    """The case's recipe, checked against the model; InputError where its configuration cannot be the checkpoint's."""
    if not case.fits(model):
        raise InputError(
            f"case (={case.name}) is for models such as {case.checkpoint}: a {case.pipeline} of {case.size_px} px with "
            f"{case.context} channels of context and {case.prediction}, which {model.files.path} is not"
        )
    _, side, _, channels = model.latents_shape(model.run_size())
    request = make_request(
        model,
        case.prompt,
        num_inference_steps=case.steps,
        guidance_scale=case.guidance_scale,
        seed=case.seed,
        latents=case.latents(channels, side),
        scheduler=case.scheduler,
    )
    if not case.scheduler_options:
        return request
    config = replace(model.scheduler_config, **case.scheduler_options)
    return replace(request, schedule=make_schedule(config, case.steps, case.scheduler))


def compare(engine: Engine, case: Case, request: Request, draw: Callable[[int], None]) -> Outcome:
    """Makes the picture; `draw` is told each step that is done. The picture's values are not rounded to 8 bits."""
    started = time.perf_counter()
    latents = np.empty(0)
    for progress in Run(engine, request):
        latents = progress.latents
        draw(progress.step)
    pixels = engine.decode(latents, request.size)[0]
    values = case.slice_of(np.clip(pixels / 2 + 0.5, 0, 1))
    return Outcome(case, request.schedule.name, tuple(values.tolist()), time.perf_counter() - started)
