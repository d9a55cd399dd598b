"""The paper's ablation as a job: each optimization's iteration of the UNet, timed, and a chart of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from html import escape

from shaderfusion.bench.ablation import ROWS
from shaderfusion.bench.measure import DOES_NOT_FIT, time_once_ms
from shaderfusion.bench.runs import run_iteration
from shaderfusion.bench.subject import open_subject
from shaderfusion.errors import DeviceError
from shaderfusion.kernels.optimizations import Optimizations
from shaderfusion.output import say
from shaderfusion.server.models import Models
from shaderfusion.server.queue import Job

__all__ = ["chart", "run_ablation"]

_BAR_PX, _ROW_PX, _NAMES_PX, _WIDTH_PX = 18, 30, 190, 640


def run_ablation(models: Models, model: str, steps: int, job: Job) -> dict[str, str]:
    """Tells a `row` for each line of the paper's table, the median of that many iterations; a chart of them."""
    models.close()
    subject = open_subject(str(models.known[model].path), device=models.device, dtype=models.dtype)
    found: dict[str, float] = {}
    for name, optimizations in ROWS.items():
        job.go_on()
        try:
            with subject.make_engine(Optimizations.parse(optimizations)) as engine:
                engine.load(subject.size)
                run_iteration(engine, subject)
                program = engine.program(subject.model.denoiser, subject.size)
                times_ms: list[float] = []
                for _ in range(steps):
                    job.go_on()
                    times_ms.append(time_once_ms(program))
        except DOES_NOT_FIT as error:
            say(f"{name} left out: {error}")
            continue
        found[name] = statistics.median(times_ms)
        job.tell("row", name=name, ms=found[name], against_none_percent=_percent(found, name))
    if not found:
        raise DeviceError(f"nothing of {model} fits on {subject.device.info.name}; choose a smaller model")
    return {"svg": chart(found, f"{model}, {subject.dtype}, {subject.device.info.name}")}


def _percent(found: Mapping[str, float], name: str) -> float | None:
    """What a row takes more (or, below 0, less) than the first; None where that did not fit."""
    first = next(iter(ROWS))
    return 100 * (found[name] / found[first] - 1) if first in found else None


def chart(rows: Mapping[str, float], caption: str) -> str:
    """Bars of milliseconds an iteration, as SVG in the colours of the page around it."""
    most = max(rows.values())
    room = _WIDTH_PX - _NAMES_PX - 90
    height = _ROW_PX * (len(rows) + 1)
    parts: Sequence[str] = [
        f'<text x="{_NAMES_PX - 8}" y="{y + 14}" text-anchor="end">{escape(name)}</text>'
        f'<rect x="{_NAMES_PX}" y="{y}" width="{room * ms / most:.1f}" height="{_BAR_PX}" rx="2" fill="#4c78a8"/>'
        f'<text x="{_NAMES_PX + room * ms / most + 6:.1f}" y="{y + 14}">{ms:,.2f} ms</text>'
        for y, (name, ms) in zip(range(4, height, _ROW_PX), rows.items(), strict=False)
    ]
    foot = f'<text x="0" y="{height - 8}" opacity="0.7">An iteration of the UNet: {escape(caption)}</text>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH_PX} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="13" fill="currentColor">{"".join(parts)}{foot}</svg>'
    )
