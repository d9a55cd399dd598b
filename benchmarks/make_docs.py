"""Tables and charts of docs/benchmarks.md from the rows in results/: `.venv/bin/python -m benchmarks.make_docs`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shaderfusion.bench.charts import CHARTS
from shaderfusion.bench.command import BENCHMARKS
from shaderfusion.output import Table

__all__ = ["IMAGES", "PAGE", "RESULTS", "find_charts", "main", "make_page"]

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
IMAGES = ROOT / "docs" / "images"

MAX_TABLE_ROWS = 30

Rows = list[dict[str, Any]]

MARKER = "<!-- From here on made by benchmarks.make_docs; edit what is above. -->"

WORKLOADS = ("unet", "unet, 8 pictures", "unet, 1024x1024", "vae", "vae, 1024x1024", "text_encoder", "text_encoder_2")
"""Networks beside diffusers', in the order of the page."""

TITLES = {
    "ablation": "The five optimizations",
    "winograd": "Winograd's tile size",
    "profile": "Where the time goes",
    "kernels": "Kernels",
    "vs_diffusers": "Beside diffusers",
    "vs_diffusers_sd21": "Beside diffusers: SD 2.1",
    "vs_diffusers_sdxl": "Beside diffusers: SDXL",
    "startup": "From the command to the picture",
    "checkpoints": "A checkpoint of one's own",
}


def main() -> None:
    """Writes the page and the charts."""
    PAGE.write_text(make_page(), encoding="utf-8")
    for folder, name in find_charts():
        chart_path(folder, name).write_bytes(CHARTS[name](load(folder, name)))
    print(PAGE)


def make_page() -> str:
    """The page's text."""
    folders = sorted(path for path in RESULTS.iterdir() if path.is_dir())
    sections = [section for folder in folders for section in _make_device(folder)]
    written, marker, _ = PAGE.read_text(encoding="utf-8").partition(MARKER)
    return "\n".join([written + marker, "", *sections])


def find_charts() -> list[tuple[Path, str]]:
    """Devices' folders and the benchmarks that have a chart."""
    return [(path.parent, path.stem) for path in sorted(RESULTS.glob("*/*.json")) if path.stem in CHARTS]


def chart_path(folder: Path, name: str) -> Path:
    """Of a device's chart."""
    return IMAGES / f"bench-{folder.name}-{name}.png"


def load(folder: Path, name: str) -> Rows:
    """A benchmark's rows; empty where a device has none."""
    path = folder / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []


def _make_device(folder: Path) -> Iterator[str]:
    found = {name: rows for name in TITLES if (rows := load(folder, name))}
    if found:
        row = next(iter(found.values()))[0]
        yield f"## {row['device']}{', Dawn' if row.get('runtime') == 'dawn' else ''}\n"
    for name, rows in found.items():
        yield f"### {TITLES[name]}\n"
        yield f"{_describe(name, rows[0])}\n"
        if name in CHARTS:
            yield f"![{TITLES[name]}](images/{chart_path(folder, name).name})\n"
        tables = TABLES[name](rows) if name in TABLES else BENCHMARKS[name].tables(rows)
        for table in tables:
            yield f"{_shorten(table).markdown()}\n"
            if len(table.rows) > MAX_TABLE_ROWS:
                rest = len(table.rows) - MAX_TABLE_ROWS
                yield f"The other {rest} are in `{(folder / name).relative_to(ROOT)}.json`.\n"


def _describe(name: str, row: dict[str, Any]) -> str:
    """How a benchmark's rows were made."""
    if name == "startup":  # its table names the commits
        return f"`.venv/bin/python -m benchmarks.startup --model {row['model']}`; {row['driver']}, {row['date']}."
    command = f"`shaderfusion bench {name} --model {row.get('model')}`"
    if name == "checkpoints":
        command = "`.venv/bin/python -m benchmarks.checkpoints`, with each `--model`"
    elif name.startswith("vs_diffusers"):
        model = row.get("model", "sd14")
        size = "512x512 where no size is named" if model == "sd14" else "its own size"
        command = f"`.venv/bin/python -m benchmarks.vs_diffusers --model {model}`, `{model}` at {size}"
    else:
        command += f" at {row['width']}x{row['height']}, batch {row['batch']}, in {row['dtype']}"
    return f"{command}; {row['driver']}, {row['backend']}, commit {row['commit']}, {row['date']}."


def _shorten(table: Table) -> Table:
    return replace(table, rows=table.rows[:MAX_TABLE_ROWS])


def vs_diffusers_tables(rows: Sequence[dict[str, Any]]) -> list[Table]:
    """Networks, then pictures, a row for each engine."""
    networks, pictures = [], []
    for row in rows:
        if "error" in row:
            networks.append((row["engine"], row["network"], row["error"], "", ""))
        elif row["network"] == "picture":
            seconds = row.get("seconds", {})
            parts = (f"{seconds[part]:.3f}" if seconds else "" for part in ("text_encoder", "denoising", "decoder"))
            in_all = f"{sum(seconds.values()):.3f}" if seconds else ""
            peak = f"{row['peak_bytes'] / 1e6:,.0f}" if "peak_bytes" in row else ""
            pictures.append((row["engine"], *parts, in_all, peak))
        else:
            spread = f"{row['p20_ms']:.2f} to {row['p80_ms']:.2f}"
            times = (f"{row['p50_ms']:.2f}", spread)
            networks.append((row["engine"], row["network"], *times, f"{row['relative_error']:.1e}"))
    networks.sort(key=lambda cells: WORKLOADS.index(cells[1]))
    heading = ("engine", "network", "median, ms", "p20 to p80", "error against f32")
    parts = ("engine", "text encoder, s", "denoising, s", "decoder, s", "in all, s", "peak memory, MB")
    found = [Table(heading, networks, "<<>>>", "One run of each network, by the GPU's clock")]
    return (
        [*found, Table(parts, pictures, "<>>>>>", "One picture of 20 steps, by the wall clock")] if pictures else found
    )


def startup_tables(rows: Sequence[dict[str, Any]]) -> list[Table]:
    """Each commit's seconds, the least of its runs first."""
    cells = [
        (row["commit"], row["name"], f"{min(row['seconds']):.2f}", ", ".join(f"{s:.2f}" for s in row["seconds"]))
        for row in rows
    ]
    return [Table(("commit", "what", "least, s", "runs, s"), cells, "<<><", "A process each, files in the page cache")]


def checkpoints_tables(rows: Sequence[dict[str, Any]]) -> list[Table]:
    """Seconds and memory of each model's file."""
    cells = [
        (row["model"], row["name"], *(f"{row[unit]:,.{digits}f}" if unit in row else "" for unit, digits in UNITS))
        for row in rows
    ]
    return [Table(("model", "what", "s", "MB"), cells, "<<>>", "One .safetensors file with random weights in f16")]


UNITS = (("seconds", 2), ("mb", 0))

TABLES = {
    "vs_diffusers": vs_diffusers_tables,
    "vs_diffusers_sd21": vs_diffusers_tables,
    "vs_diffusers_sdxl": vs_diffusers_tables,
    "startup": startup_tables,
    "checkpoints": checkpoints_tables,
}


if __name__ == "__main__":
    main()
