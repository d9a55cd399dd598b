"""Every dispatch that the models make, each distinct one timed alone, beside what the device can do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from shaderfusion.bench.measure import DOES_NOT_FIT, Measurement, isolate, measure, program_of
from shaderfusion.bench.subject import Subject
from shaderfusion.bench.work import work_of
from shaderfusion.kernels.call import KernelCall
from shaderfusion.kernels.common.concat_channels import concat_channels
from shaderfusion.kernels.common.matmul import Epilogue
from shaderfusion.output import Table, say
from shaderfusion.tensor import TensorSpec, dtype_size_bytes

__all__ = ["find_calls", "measure_rows", "tables"]

_REPEATED_MS = 1.0
"""A dispatch is repeated to take about so long, as the clock's steps and the start of a pass take microseconds."""
_MAX_REPEATS = 50

_COPY_BYTES = 512e6
_COPY_CHANNELS = 1024


def find_calls(subject: Subject) -> Iterator[tuple[str, KernelCall, int]]:
    """Distinct calls of each network with how often they occur: (network, call, count)."""
    for network, graph in subject.graphs(subject.kernels()).items():
        found: dict[Any, list[KernelCall]] = {}
        for call in graph.calls:
            shapes = tuple((binding.tensor.shape, binding.tensor.dtype, binding.access) for binding in call.bindings)
            numbers = (tuple(call.constants.items()), tuple(call.params.items()), call.workgroups)
            found.setdefault((call.source, call.entry_point, shapes, numbers), []).append(call)
        for calls in found.values():
            yield network, calls[0], len(calls)


def measure_rows(subject: Subject) -> Iterator[dict[str, Any]]:
    """Two rows of ceilings, then one for each distinct call. What does not fit on the device is left out."""
    ceilings = list(_measure_ceilings(subject))
    yield from ceilings
    flop_per_s, bytes_per_s = 1e9 * ceilings[0]["gflop_per_s"], 1e9 * ceilings[1]["gb_per_s"]
    for network, call, count in find_calls(subject):
        work = work_of(call)
        try:
            timed = _time(subject, call)
        except DOES_NOT_FIT as error:
            say(f"{call.name} {work.shape} left out: {error}")
            continue
        least_s = max(work.flop / flop_per_s, work.size_bytes / bytes_per_s)
        yield {
            "network": network,
            "name": call.name,
            "shape": work.shape,
            "count": count,
            **asdict(timed),
            **_rates(timed, work.flop, work.size_bytes),
            "share_of_ceiling": least_s / (timed.p50_ms / 1e3),
        }


def _measure_ceilings(subject: Subject) -> Iterator[dict[str, Any]]:
    """The rates of a large matrix product, and of a large copy."""
    dtype, on_cpu = subject.dtype, subject.device.info.kind == "CPU"
    rows, size = 4096, 512 if on_cpu else 4096  # enough rows for one dispatch, without splits
    a, b, out = (TensorSpec(name, (m, size), dtype) for name, m in (("a", rows), ("b", size), ("out", rows)))
    (product,) = subject.kernels().matmul(a, b, out, Epilogue())

    most_bytes = min(_COPY_BYTES, subject.device.capabilities.max_binding_bytes)
    pixels = int(most_bytes // (2 * _COPY_CHANNELS * dtype_size_bytes(dtype)))
    left, right = (TensorSpec(name, (pixels, _COPY_CHANNELS), dtype) for name in ("left", "right"))
    copy = concat_channels(left, right, TensorSpec("both", (pixels, 2 * _COPY_CHANNELS), dtype))

    for name, call in (("large product", product), ("large copy", copy)):
        work, timed = work_of(call), _time(subject, call)
        row = {"network": "ceiling", "name": name, "shape": work.shape, "count": 0, **asdict(timed)}
        yield {**row, **_rates(timed, work.flop, work.size_bytes), "share_of_ceiling": 1.0}


def _time(subject: Subject, call: KernelCall) -> Measurement:
    """Of one dispatch on normal values. It runs on the same tensors again and again: what fits stays in a cache."""
    calls = isolate([call])
    program, _ = program_of(subject.device, calls)
    once = measure(program, num_runs=3, num_warm_up=1)
    repeats = min(_MAX_REPEATS, round(_REPEATED_MS / once.p50_ms))
    if repeats <= 1:
        return measure(program, num_warm_up=1)
    del program
    repeated, _ = program_of(subject.device, calls * repeats)
    timed = measure(repeated)
    return Measurement(
        timed.p20_ms / repeats, timed.p50_ms / repeats, timed.p80_ms / repeats, timed.num_runs, timed.clock
    )


def _rates(timed: Measurement, flop: int, size_bytes: int) -> dict[str, float]:
    return {
        "flop": flop,
        "bytes": size_bytes,
        "gflop_per_s": flop / timed.p50_ms / 1e6,
        "gb_per_s": size_bytes / timed.p50_ms / 1e6,
    }


def tables(rows: Sequence[dict[str, Any]]) -> list[Table]:
    """What the device can do, and for each network its kernels, those that take most of its time first."""
    heading = ("kernel", "shape", "count", "us", "count x ms", "GFLOP/s", "GB/s", "of ceiling, %")
    titles = {
        "ceiling": "Ceilings",
        "unet": "One iteration of the UNet",
        "vae": "Decoder",
        "text_encoder": "Text encoder",
    }
    found = []
    for network in dict.fromkeys((*titles, *(row["network"] for row in rows))):
        title = titles.get(network, network.replace("_", " ").capitalize())
        own = [row for row in rows if row["network"] == network]
        own.sort(key=lambda row: -row["count"] * row["p50_ms"])
        if own:
            found.append(Table(heading, [_cells(row) for row in own], "<<>>>>>>", title))
    return found


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        row["name"],
        row["shape"],
        str(row["count"] or ""),
        f"{1e3 * row['p50_ms']:,.1f}",
        f"{row['count'] * row['p50_ms']:,.3f}" if row["count"] else "",
        _rate(row["gflop_per_s"]) if row["flop"] else "",
        _rate(row["gb_per_s"]),
        f"{100 * row['share_of_ceiling']:.0f}",
    )


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"
