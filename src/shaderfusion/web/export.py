"""`shaderfusion export web`: a model's graphs, weights and vocabulary, and the page that runs them, as static files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from shaderfusion.bench.ablation import ROWS
from shaderfusion.errors import InputError
from shaderfusion.families import open_model
from shaderfusion.families.family import Family
from shaderfusion.families.run_size import RunSize
from shaderfusion.families.stable_diffusion import StableDiffusion
from shaderfusion.kernels.capabilities import WEBGPU_DEFAULTS
from shaderfusion.kernels.optimizations import ALL_OPTIMIZATIONS, Optimizations
from shaderfusion.kernels.select import Kernels
from shaderfusion.web.folder import ExportFolder
from shaderfusion.web.manifest import (
    as_bytes,
    describe_model,
    describe_table,
    describe_tokenizer,
    limits,
)
from shaderfusion.web.programs import Programs, SourcedGraph, tensor_name
from shaderfusion.web.schedules import describe_scheduler, make_schedules
from shaderfusion.web.shards import Shards, Wanted
from shaderfusion.weights.footprint import batch_bytes

__all__ = ["PLAYER_FOLDER", "ExportDType", "export_web"]

ExportDType = Literal["f16", "f32", "auto"]

PLAYER_FOLDER = Path(__file__).with_name("player")
"""The page and what it imports, which go beside the manifest as they are."""


class _Target(NamedTuple):
    """A kind of adapters that has its own graphs."""

    kernels: Kernels
    needs: Mapping[str, Any]
    """What the page asks of an adapter."""


_TARGETS = {
    # SwiftShader, which Chrome falls back to, and its like. It comes first, as it may have f16 too.
    "cpu": _Target(
        Kernels("f32", replace(WEBGPU_DEFAULTS, is_cpu=True, has_subgroups=True, subgroup_sizes=(4, 4))),
        {
            "features": ["subgroups"],
            "info": {"isFallbackAdapter": True, "subgroupMinSize": 4, "subgroupMaxSize": 4},
        },
    ),
    "f16": _Target(Kernels("f16", replace(WEBGPU_DEFAULTS, has_f16=True)), {"features": ["shader-f16"]}),
    "f32": _Target(Kernels("f32", WEBGPU_DEFAULTS), {"features": []}),
}
"""By the variant's name, in the order in which the page looks for one that fits."""


class _Variant(NamedTuple):
    """The graphs for a target: the networks, and those of the ablation's rows, the first ones, by their names."""

    name: str
    target: _Target
    graphs: dict[str, SourcedGraph]
    rows: dict[str, SourcedGraph]

    @property
    def all_graphs(self) -> Iterator[SourcedGraph]:
        yield from self.graphs.values()
        yield from self.rows.values()


def export_web(
    model: str | Path,
    output: Path,
    *,
    width: int | None = None,
    height: int | None = None,
    batch: int = 1,
    dtype: ExportDType = "auto",
    ablation: bool = False,
    scheduler: str | None = None,
    vae: str | Path | None = None,
    prediction_type: str | None = None,
    revision: str | None = None,
) -> dict[str, Any]:
    """Writes the folder `output`, and returns its manifest.

    The model is named as in `families.open_model`, the scheduler, by default the model's own, as in
    `schedulers.find_scheduler`. ModelError or InputError where one of them, the size or the folder cannot be used,
    DeviceLimitError for a size beyond what every WebGPU device has: before anything is written.
    """
    opened = open_model(model, vae=vae, prediction_type=prediction_type, revision=revision)
    _require_player_knows(opened)
    size = opened.run_size(batch=batch, width=width, height=height)
    folder = ExportFolder(output)
    config = opened.scheduler_config
    steps = opened.defaults.command_line_steps
    about_scheduler, schedules = describe_scheduler(config, make_schedules(config, scheduler), steps)
    names = [name for name, target in _TARGETS.items() if dtype in ("auto", target.kernels.dtype)]
    variants = [_record(opened, size, name, ablation=ablation) for name in names]
    graphs = [graph for variant in variants for graph in variant.all_graphs]
    max_bytes = batch_bytes([weight for graph, _ in graphs for weight in graph.weights.values()])
    shards = Shards(_wanted(opened, graphs), narrow=dtype != "f32", batch_bytes=max_bytes)
    folder.require_room(shards.size_bytes)
    manifest = describe_model(opened, _name_of(model), size, about_scheduler.pop("default_steps"))
    with folder:
        for file in sorted(PLAYER_FOLDER.rglob("*")):
            if file.is_file():
                folder.write(file.relative_to(PLAYER_FOLDER).as_posix(), file.read_bytes())
        manifest["scheduler"] = {**about_scheduler, "file": folder.write("schedules.json", as_bytes(schedules))}
        manifest["tokenizers"] = dict(_write_tokenizers(folder, opened))
        manifest["variants"] = [_write_variant(folder, variant, shards, max_bytes) for variant in variants]
        manifest["shards"] = [
            folder.write(f"weights/{index:05}.safetensors", data) for index, data in enumerate(shards.files(), start=1)
        ]
        tables = {tensor_name(source, path) for graph, source in graphs for path in graph.tables}
        manifest["tables"] = {name: describe_table(shards.stored[name]) for name in sorted(tables)}
        folder.finish(manifest)
    return {**manifest, "files": folder.files}


def _name_of(model: str | Path) -> str:
    """What the page calls it: the last part of its path."""
    return Path(model).absolute().name.removesuffix(".safetensors")


def _require_player_knows(model: Family) -> None:
    """InputError for a model that the player cannot run."""
    is_known = type(model) is StableDiffusion and not model.config.is_inpainting and not model.reads_guidance_scale
    if not is_known:
        raise InputError(
            f"{model.files.path}: the player in the browser runs Stable Diffusion 1.x and 2.x alone, without "
            "inpainting or guidance that the UNet reads; choose such a model"
        )


def _record(model: Family, size: RunSize, name: str, *, ablation: bool) -> _Variant:
    """DeviceLimitError where that cannot be on every device."""
    kernels = _TARGETS[name].kernels
    model.require_fits(size, kernels.capabilities, kernels.dtype)

    recorded = model.record(kernels, size).items()
    graphs = {network: SourcedGraph(graph, model.networks[network].source) for network, graph in recorded}
    rows: dict[str, SourcedGraph] = {}
    for row, optimizations in ROWS.items() if ablation else ():
        chosen = Optimizations.parse(optimizations)
        if chosen != ALL_OPTIMIZATIONS:
            denoiser = model.networks[model.denoiser]
            graph = denoiser.record(replace(kernels, optimizations=chosen), size)
            rows[f"{model.denoiser}: {row}"] = SourcedGraph(graph, denoiser.source)
    return _Variant(name, _TARGETS[name], graphs, rows)


def _wanted(model: Family, graphs: Iterable[SourcedGraph]) -> dict[str, Wanted]:
    """All tensors that they read, by name."""
    wanted: dict[str, Wanted] = {}
    for graph, source in graphs:
        for table in graph.tables.values():
            (path,) = table.paths
            wanted[tensor_name(source, path)] = Wanted(model.sources[source], path, table.source_shape, is_table=True)
        for weight in graph.weights.values():
            for path in weight.paths:
                own = Wanted(model.sources[source], path, weight.source_shape)
                wanted.setdefault(tensor_name(source, path), own)
    return wanted


def _write_tokenizers(folder: ExportFolder, model: Family) -> Iterator[tuple[str, dict[str, Any]]]:
    """By text encoder."""
    for name, tokenizer in model.tokenizers.items():
        file_name = f"{name.replace('text_encoder', 'tokenizer')}.json"
        yield name, folder.write(file_name, as_bytes(describe_tokenizer(tokenizer)))


def _write_variant(folder: ExportFolder, variant: _Variant, shards: Shards, max_bytes: int) -> dict[str, Any]:
    """Its program, and that of the ablation's rows."""
    kernels, needs = variant.target
    programs = Programs()
    programs.add(variant.graphs)
    programs.add_preparation(shards, max_bytes)
    found = {
        "name": variant.name,
        "dtype": kernels.dtype,
        **needs,
        "limits": limits(programs, kernels.capabilities),
        "memory": programs.memory,
        "program": folder.write(f"programs/{variant.name}.json", as_bytes(programs.as_json())),
    }
    if variant.rows:
        rows = Programs(programs)
        rows.add(variant.rows, programs.externals_of("unet"))
        rows.add_preparation(shards, max_bytes)
        table = [
            {"name": name, "optimizations": optimizations, "network": _network_of(name, variant)}
            for name, optimizations in ROWS.items()
        ]
        program = folder.write(f"programs/{variant.name}-ablation.json", as_bytes({**rows.as_json(), "rows": table}))
        found["ablation"] = {"program": program, "memory": rows.memory, "limits": limits(rows, kernels.capabilities)}
    return found


def _network_of(row: str, variant: _Variant) -> str:
    own = f"unet: {row}"
    return own if own in variant.rows else "unet"
