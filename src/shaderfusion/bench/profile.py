"""Where the time of one run of each network goes, by kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from shaderfusion.bench.runs import make_token_ids, run_iteration
from shaderfusion.bench.subject import Subject
from shaderfusion.bench.values import normal
from shaderfusion.errors import DeviceError
from shaderfusion.graph.program import Program
from shaderfusion.output import Table

__all__ = ["measure_rows", "tables"]

_NUM_RUNS = 5

_RUNS = {"unet": "one iteration of the UNet", "vae": "the decoder", "text_encoder": "the text encoder, one prompt"}


def measure_rows(subject: Subject) -> Iterator[dict[str, Any]]:
    """A row for each kernel of each network, the largest first. DeviceError on a device without timestamps."""
    if not subject.device.info.has_timestamps:
        raise DeviceError(
            f"device {subject.device.info.name} has no timestamps, which a profile needs; "
            "`shaderfusion bench kernels` times whole programs instead"
        )
    with subject.make_engine() as engine:
        engine.load(subject.size)
        run_iteration(engine, subject)
        engine.decode(normal("latents", subject.latents_shape), subject.size)
        engine.condition(make_token_ids(subject.model.vocab_size, *subject.model.tokens_shape), subject.size)
        for name in dict.fromkeys((*_RUNS, *subject.model.networks)):
            yield from _profile(engine.program(name, subject.size))


def _profile(program: Program) -> Iterator[dict[str, Any]]:
    program.profile_ms()  # a warm-up
    runs = [program.profile_ms() for _ in range(_NUM_RUNS)]
    medians_ms = np.median([[ms for _, ms in run] for run in runs], axis=0)
    total_ms = float(medians_ms.sum())
    by_kernel: dict[str, list[float]] = {}
    for (label, _), ms in zip(runs[0], medians_ms.tolist(), strict=True):
        by_kernel.setdefault(label.rpartition("/")[2], []).append(ms)
    for kernel, times_ms in sorted(by_kernel.items(), key=lambda item: -sum(item[1])):
        yield {
            "network": program.graph.name,
            "name": kernel,
            "dispatches": len(times_ms),
            "p50_ms": sum(times_ms),
            "share": sum(times_ms) / total_ms,
        }


def tables(rows: Sequence[dict[str, Any]]) -> list[Table]:
    """One for each network."""
    found = []
    for network in dict.fromkeys(row["network"] for row in rows):
        title = str(_RUNS.get(network, network.replace("_", " ")))
        own = [row for row in rows if row["network"] == network]
        cells = [
            (row["name"], str(row["dispatches"]), f"{row['p50_ms']:,.3f}", f"{100 * row['share']:.1f}") for row in own
        ]
        total_ms = sum(row["p50_ms"] for row in own)
        cells.append(("all", str(sum(row["dispatches"] for row in own)), f"{total_ms:,.3f}", "100.0"))
        found.append(Table(("kernel", "dispatches", "ms", "share, %"), cells, "<>>>", title[0].upper() + title[1:]))
    return found
