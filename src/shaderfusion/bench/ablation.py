"""The paper's five optimizations, one after the other: an iteration of the UNet, its memory, and a whole picture."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from shaderfusion.bench.measure import DOES_NOT_FIT, measure, relative_error
from shaderfusion.bench.runs import NUM_STEPS, make_image, run_iteration
from shaderfusion.bench.subject import Subject
from shaderfusion.kernels.optimizations import Optimizations
from shaderfusion.output import Table, say

__all__ = ["ROWS", "measure_rows", "tables"]

ROWS: dict[str, str] = {
    "baseline": "none",
    "+ group norm, GELU": "gn,geglu",
    "+ partially fused softmax": "gn,geglu,pfs",
    "+ FlashAttention": "gn,geglu,pfs,flash",
    "+ Winograd": "gn,geglu,pfs,flash,winograd",
}
"""The paper's table: what is on in each row."""


def measure_rows(subject: Subject) -> Iterator[dict[str, Any]]:
    """One row each of ROWS; one that does not fit on the device is left out with a sentence on stderr."""
    baseline: np.ndarray | None = None
    for name, optimizations in ROWS.items():
        try:
            row, output = _measure_row(subject, Optimizations.parse(optimizations))
        except DOES_NOT_FIT as error:
            say(f"{name} left out: {error}")
            continue
        if name == "baseline":
            baseline = output
        difference = None if baseline is None else relative_error(output, baseline)
        yield {"name": name, "optimizations": optimizations, **row, "relative_difference": difference}


def _measure_row(subject: Subject, optimizations: Optimizations) -> tuple[dict[str, Any], np.ndarray]:
    """The row, and the UNet's output (B, H, W, C)."""
    graphs = subject.graphs(subject.kernels(optimizations))
    subject.device.pipelines.clear()  # so that every row compiles its own
    started = time.perf_counter()
    pipelines = subject.device.pipelines.get_all(call for graph in graphs.values() for call in graph.calls)
    compile_s = time.perf_counter() - started
    with subject.make_engine(optimizations) as engine:
        engine.load(subject.size)
        del pipelines  # the programs have them
        first, seconds = make_image(engine, subject), make_image(engine, subject)
        run_iteration(engine, subject)
        unet = engine.program("unet", subject.size)
        row = {
            **asdict(measure(unet)),
            "dispatches": len(unet.graph.calls),
            "tensors_bytes": unet.plan.total_bytes,
            "weights_bytes": unet.graph.weights_bytes,
            "seconds": seconds,
            "num_steps": NUM_STEPS,
            "total_s": sum(seconds.values()),
            # Some drivers, llvmpipe's among them, compile a pipeline when it first runs.
            "compile_s": compile_s + max(0.0, sum(first.values()) - sum(seconds.values())),
        }
        return row, unet.read("model_output").astype(np.float32)


def tables(rows: Sequence[dict[str, Any]]) -> list[Table]:
    """The UNet's iteration, and the picture."""
    iteration, image = [], []
    for row in rows:
        megabytes = (f"{row[key] / 1e6:,.1f}" for key in ("tensors_bytes", "weights_bytes"))
        difference = "" if row["relative_difference"] is None else f"{row['relative_difference']:.1e}"
        spread = f"{row['p20_ms']:,.2f} to {row['p80_ms']:,.2f}"
        times = (f"{row['p50_ms']:,.2f}", spread)
        iteration.append((row["name"], *times, str(row["dispatches"]), *megabytes, difference))
        parts = (f"{row['seconds'][part]:,.3f}" for part in ("text_encoder", "denoising", "decoder"))
        image.append((row["name"], *parts, f"{row['total_s']:,.3f}", f"{row['compile_s']:,.2f}"))
    clock = "the GPU's clock" if rows and rows[0]["clock"] == "GPU" else "the wall clock"
    heading = ("", "median, ms", "p20 to p80", "dispatches", "tensors, MB", "weights, MB", "difference")
    parts = ("", "text encoder, s", "denoising, s", "decoder, s", "in all, s", "compilation, s")
    return [
        Table(heading, iteration, "<>>>>>>", f"One iteration of the UNet, by {clock}"),
        Table(parts, image, "<>>>>>", f"One picture of {NUM_STEPS} steps, by the wall clock"),
    ]
