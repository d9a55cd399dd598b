"""`shaderfusion bench`: one benchmark from its options to a table, and the files that were asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shaderfusion.bench import ablation, kernels, profile, winograd
from shaderfusion.bench.charts import CHARTS, require_matplotlib
from shaderfusion.bench.measure import environment
from shaderfusion.bench.subject import SD14, Subject, default_model, open_subject
from shaderfusion.errors import DeviceError
from shaderfusion.gpu.device import open_device
from shaderfusion.output import Table, require_writable, say, show, write_whole

if TYPE_CHECKING:
    from shaderfusion.families.run_size import Memory
    from shaderfusion.tensor import DType

__all__ = ["BENCHMARKS", "Benchmark", "run_benchmark"]

Row = dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """Rows as they are measured, and what a person reads."""

    measure_rows: Callable[[Subject], Iterator[Row]]
    tables: Callable[[Sequence[Row]], list[Table]]


BENCHMARKS = {
    "ablation": Benchmark(ablation.measure_rows, ablation.tables),
    "winograd": Benchmark(winograd.measure_rows, winograd.tables),
    "kernels": Benchmark(kernels.measure_rows, kernels.tables),
    "profile": Benchmark(profile.measure_rows, profile.tables),
}


def run_benchmark(
    name: str,
    *,
    model: str | None = None,
    device: str | None = None,
    runtime: str = "auto",
    dtype: DType | None = None,
    width: int | None = None,
    height: int | None = None,
    batch: int = 1,
    tuning: str | Path = "off",
    memory: Memory = "normal",
    json_path: Path | None = None,
    markdown_path: Path | None = None,
    plot_path: Path | None = None,
) -> None:
    """Prints tables, progress on stderr. `json_path` is written after every row, the other files at the end.

    Everything that can be refused is refused before the first measurement, with InputError and the like.
    """
    files = (("--json", json_path, ".json"), ("--markdown", markdown_path, ".md"), ("--plot", plot_path, ".png"))
    for option, path, suffix in files:
        if path is not None:
            require_writable(option, path, suffix, f"{name}{suffix}")
    if plot_path is not None:
        require_matplotlib()
    opened = open_device(device, runtime=runtime)
    if model is None and (chosen := default_model(opened)) != SD14:
        say(f"{opened.info.name} is a CPU, on which {SD14} would take hours; measuring {chosen} (--model chooses)")
    subject = open_subject(
        model, device=opened, dtype=dtype, width=width, height=height, batch=batch, tuning=tuning, memory=memory
    )

    benchmark = BENCHMARKS[name]
    where = {**subject.as_dict(), **environment(opened)}
    rows: list[Row] = []
    for row in benchmark.measure_rows(subject):
        rows.append({"benchmark": name, **row, **where})
        say(f"{len(rows)}. {' '.join(filter(None, (row['name'], row.get('shape'))))}: {row['p50_ms']:,.3f} ms")
        if json_path is not None:
            write_whole("--json", json_path, json.dumps(rows, indent=1).encode())
    if not rows:
        raise DeviceError(
            f"bench {name}: nothing of {subject.name} fits on {opened.info.name}; use a smaller size or batch"
        )
    tables = benchmark.tables(rows)
    show("\n\n".join(table.text() for table in tables))
    show(", ".join(f"{key} {value}" for key, value in where.items()))
    if markdown_path is not None:
        write_whole("--markdown", markdown_path, ("\n\n".join(table.markdown() for table in tables) + "\n").encode())
    if plot_path is not None:
        write_whole("--plot", plot_path, CHARTS[name](rows))
