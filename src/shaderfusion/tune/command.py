"""The command: from its options to a file of choices, and a summary of what they gain."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from shaderfusion.bench.runs import NUM_STEPS
from shaderfusion.bench.subject import Subject, open_subject
from shaderfusion.errors import InputError
from shaderfusion.families.run_size import usual_memory
from shaderfusion.files import exists
from shaderfusion.gpu.device import open_device
from shaderfusion.kernels.tuning import Tuning
from shaderfusion.output import Table, progress_bar, require_writable, say, show
from shaderfusion.tune.compare import Comparison, compare
from shaderfusion.tune.search import Search
from shaderfusion.tune.survey import Case, find_cases
from shaderfusion.tuning_file import TunedOperation, default_path, read_tuning, write_tuning

if TYPE_CHECKING:
    from shaderfusion.families.run_size import Memory
    from shaderfusion.tensor import DType

__all__ = ["run_tune"]

_GPU_BUDGET_S = 40.0
"""Of the search; recording, loading and comparing come on top."""
_CPU_BUDGET_S = 120.0


def run_tune(
    model: str,
    *,
    device: str | None = None,
    runtime: str = "auto",
    dtype: DType | None = None,
    width: int | None = None,
    height: int | None = None,
    batch: int = 1,
    memory: Memory | None = None,
    budget_s: float | None = None,
    output: Path | None = None,
) -> None:
    """Searches, compares whole networks, writes the choices of those that gained and prints what and where.

    The file keeps what it has of other operations, which are compared with those that were tried. Ctrl-C ends the
    search; what was found so far is then kept where it gains, and nothing is taken out where it does not.
    KeyboardInterrupt is raised in the end. Everything that can be refused is refused before the search.
    """
    opened = open_device(device, runtime=runtime)
    memory = memory or usual_memory(opened.capabilities)  # of which the choices are names: others are not found
    subject = open_subject(model, device=opened, dtype=dtype, width=width, height=height, batch=batch, memory=memory)
    info, dtype = subject.device.info, subject.dtype
    path = _in_cache(default_path(info, dtype)) if output is None else output
    require_writable("--output", path, ".json", "tuning.json")
    cases = find_cases(subject.graphs, subject.kernels())
    if budget_s is None:
        budget_s = _CPU_BUDGET_S if info.kind == "CPU" else _GPU_BUDGET_S
    tried, was_interrupted = _search(subject, cases, budget_s)

    before = _rows_of(path, subject)
    was_tried = {repr(case.operation) for case, _ in tried}
    rows = [row for row in before if row.operation not in was_tried] + [row for _, row in tried if row]
    tuning = Tuning({row.operation: row.choice for row in rows})
    compared = list(compare(subject, tuning)) if any(row for _, row in tried) else []
    if compared:
        show(_table(compared, cases, tuning).text())
    gained = {comparison.network for comparison in compared if comparison.is_gain}
    kept = [row for case, row in tried if row and gained & set(case.layers)]
    replaced = {repr(case.operation) for case, _ in tried if gained & set(case.layers) or not was_interrupted}
    rows = [row for row in before if row.operation not in replaced] + kept
    if rows != before:
        write_tuning("--output", path, rows, info, dtype)
        show(str(path))
    if not kept:
        say("the static rules are as fast as anything that was tried: no choice was kept")
    if was_interrupted:
        raise KeyboardInterrupt


def _in_cache(path: Path) -> Path:
    """The path, in a folder that exists."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"the cache folder (={path.parent}) cannot be made: {error.strerror}; set SHADERFUSION_CACHE to another, "
            "or name a file with --output"
        ) from error
    return path


def _search(
    subject: Subject, cases: Sequence[Case], budget_s: float
) -> tuple[list[tuple[Case, TunedOperation | None]], bool]:
    """What was tried, with what was found, and whether Ctrl-C ended it."""
    runs = {name: NUM_STEPS if name == subject.model.denoiser else 1 for name in subject.model.networks}
    search = Search(subject.device, cases, runs, budget_s)
    tried: list[tuple[Case, TunedOperation | None]] = []
    was_interrupted = False
    started = time.perf_counter()
    try:
        with progress_bar(len(cases)) as draw:
            for item in search:
                tried.append(item)
                draw(len(tried))
    except KeyboardInterrupt:
        say("interrupted: comparing what was found so far; once more gives it up")
        was_interrupted = True
    finally:
        search.close()
    faster = sum(row is not None for _, row in tried)
    seconds = time.perf_counter() - started
    say(f"timed {len(tried)} of {len(cases)} shapes in {seconds:.0f} s: {faster} can be faster")
    return tried, was_interrupted


def _rows_of(path: Path, subject: Subject) -> list[TunedOperation]:
    """What the file holds already; nothing where there is none, or where it cannot be used, which is said."""
    if not exists(path):
        return []
    try:
        return read_tuning(path, subject.device.info, subject.dtype)
    except InputError as error:
        say(f"{error}; what is found now replaces it")
        return []


def _table(compared: Sequence[Comparison], cases: Sequence[Case], tuning: Tuning) -> Table:
    rows = []
    for c in compared:
        changed = sum(c.network in case.layers and repr(case.operation) in tuning.names for case in cases)
        gain = f"{100 * (1 - c.tuned_ms / c.static_ms):.1f}"
        kept = "yes" if c.is_gain else "no: not faster" if c.agree else "no: its results differ"
        rows.append((c.network, str(changed), f"{c.static_ms:,.2f}", f"{c.tuned_ms:,.2f}", gain, kept))
    heading = ("network", "shapes changed", "static rules, ms", "tuned, ms", "gain, %", "kept")
    return Table(heading, rows, "<>>>><")
