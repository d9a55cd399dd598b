"""What a model is and costs, from its configurations and its files' headers: runs nothing and touches no GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shaderfusion.config import ClipTextConfig, TinyVaeConfig, UNetConfig, VaeConfig
from shaderfusion.config_rules import Config
from shaderfusion.errors import DeviceLimitError, ModelError
from shaderfusion.families import open_model
from shaderfusion.families.family import Family, read_after
from shaderfusion.families.run_size import MEMORIES, Memory, RunSize
from shaderfusion.graph.graph import Graph
from shaderfusion.graph.memory_plan import largest_of_each, plan_memory
from shaderfusion.kernels.capabilities import DESKTOP_GPU, Capabilities
from shaderfusion.kernels.optimizations import Optimizations
from shaderfusion.kernels.select import Kernels
from shaderfusion.output import Table
from shaderfusion.tensor import DType
from shaderfusion.weights.checkpoint import TensorSource
from shaderfusion.weights.footprint import loading_bytes

__all__ = ["ComponentInfo", "MemoryInfo", "ModelInfo", "TurnInfo", "describe", "measure_memory", "measure_runs"]


@dataclass(frozen=True)
class ComponentInfo:
    """One network: its parameters, and what one run of it takes."""

    name: str
    parameters: int
    dtype: DType
    """In which it runs."""
    weights_bytes: int
    tensors_bytes: int
    """Planned memory of the intermediate tensors."""
    dispatches: int
    """Of one run; a run of the UNet is one denoising step."""
    stored_bytes: Mapping[str, int] | None
    """What its files hold of it, by dtype; None where they are not there."""

    def row(self) -> tuple[str, ...]:
        """Cells of a table."""
        stored = "not there"
        if self.stored_bytes is not None:
            stored = " + ".join(f"{dtype} {_mb(size)} MB" for dtype, size in self.stored_bytes.items())
        sizes = (_mb(self.weights_bytes), _mb(self.tensors_bytes))
        return (self.name, f"{self.parameters:,}", stored, self.dtype, *sizes, f"{self.dispatches:,}")


@dataclass(frozen=True)
class TurnInfo:
    """Networks that are on the device at the same time, and all buffers that they have there.

    A few kilobytes are not counted: the parameters of calls, and what an implementation of WebGPU needs for itself.
    """

    networks: tuple[str, ...]
    weights_bytes: int
    staging_bytes: int
    """Only while weights are loaded; two thirds of it are on the host where the device has memory of its own."""
    tensors_bytes: int
    """Intermediate tensors, whose buffers the networks share."""
    inputs_and_outputs_bytes: int
    """And what is kept from step to step."""
    read_back_bytes: int
    """Only while the outputs of a run are read, the largest."""

    @property
    def loading_bytes(self) -> int:
        """While weights are loaded."""
        return self.weights_bytes + self.staging_bytes

    @property
    def running_bytes(self) -> int:
        """While outputs are read."""
        return self.weights_bytes + self.tensors_bytes + self.inputs_and_outputs_bytes + self.read_back_bytes


@dataclass(frozen=True)
class MemoryInfo:
    """What a run takes of the device's memory, loading included, with that `memory`."""

    memory: Memory
    turns: tuple[TurnInfo, ...]
    """One after the other."""

    @property
    def loading_bytes(self) -> int:
        """The most while weights are loaded."""
        return max(turn.loading_bytes for turn in self.turns)

    @property
    def running_bytes(self) -> int:
        """The most while networks run."""
        return max(turn.running_bytes for turn in self.turns)

    @property
    def peak_bytes(self) -> int:
        """The most of all."""
        return max(self.loading_bytes, self.running_bytes)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        sums = {"loading_bytes": self.loading_bytes, "running_bytes": self.running_bytes, "peak_bytes": self.peak_bytes}
        return {**asdict(self), **sums}


@dataclass(frozen=True)
class ModelInfo:
    """A model at one image size, with guidance."""

    model: str
    found: Mapping[str, str]
    """What it was recognized as."""
    dtype: DType
    width: int
    height: int
    batch: int
    components: tuple[ComponentInfo, ...]
    """In the first way to use it that fits."""
    memory: tuple[MemoryInfo, ...]
    """Of each way to use it that fits."""
    does_not_fit: Mapping[Memory, str]
    """Why not, of the others."""

    @property
    def weights_bytes(self) -> int:
        """Of all components."""
        return sum(component.weights_bytes for component in self.components)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        memory = [info.as_dict() for info in self.memory]
        return {**asdict(self), "memory": memory, "weights_bytes": self.weights_bytes}

    def text(self) -> str:
        """For a terminal."""
        lines = [f"{self.model}: {self.batch} of {self.width}x{self.height} px with guidance, in {self.dtype}"]
        lines += [f"{name}: {fact}" for name, fact in self.found.items()]
        heading = ("component", "parameters", "in files", "runs in", "weights MB", "tensors MB", "dispatches")
        lines += ["", Table(heading, [component.row() for component in self.components], "<><<>>>").text()]
        rows = [
            (info.memory, " + ".join(turn.networks), *map(_mb, (turn.loading_bytes, turn.running_bytes)))
            for info in self.memory
            for turn in info.turns
        ]
        heading = ("memory", "on the device together", "loading MB", "running MB")
        lines += ["", Table(heading, rows, "<<>>").text(), ""]
        lines += [f"memory {info.memory} takes {_mb(info.peak_bytes)} MB of the device" for info in self.memory]
        lines += [f"memory {memory} does not fit: {reason}" for memory, reason in self.does_not_fit.items()]
        return "\n".join(lines)


def describe(
    model: str | Path,
    *,
    vae: str | Path | None = None,
    prediction_type: str | None = None,
    revision: str | None = None,
    width: int | None = None,
    height: int | None = None,
    batch: int = 1,
    dtype: DType | None = None,
    optimizations: Optimizations | None = None,
    capabilities: Capabilities = DESKTOP_GPU,
    memory: Memory | None = None,
) -> ModelInfo:
    """A model, and its costs on such a device for `batch` images of that size in pixels.

    The model is named as in `families.open_model`. f16 on a GPU, all optimizations, and all ways to use memory, by
    default. ModelError where it cannot be used, DeviceLimitError where no way fits; weights that are not there are
    said, and not asked for.
    """
    opened = open_model(model, vae=vae, prediction_type=prediction_type, revision=revision)
    size = opened.run_size(batch=batch, width=width, height=height)
    kernels = Kernels(dtype or "f16", capabilities, optimizations or Optimizations())
    graphs: dict[Memory, dict[str, Graph]] = {}
    errors: dict[Memory, DeviceLimitError] = {}
    for way in MEMORIES if memory is None else (memory,):
        try:
            opened.require_fits(size, kernels.capabilities, kernels.dtype, way)
            graphs[way] = opened.record(kernels, size, way)
        except DeviceLimitError as error:
            errors[way] = error
    if not graphs:
        raise next(reversed(errors.values()))
    components = tuple(
        ComponentInfo(
            name=name,
            parameters=graph.num_parameters,
            dtype=graph.dtype,
            weights_bytes=graph.weights_bytes,
            tensors_bytes=plan_memory(graph.calls).total_bytes,
            dispatches=len(graph.calls),
            stored_bytes=_stored_bytes(opened, name, graph),
        )
        for name, graph in next(iter(graphs.values())).items()
        if name in opened.networks
    )
    measured = tuple(_measure(opened, way, recorded) for way, recorded in graphs.items())
    sides = (size.width_px, size.height_px)
    reasons: dict[Memory, str] = {way: str(error) for way, error in errors.items()}
    return ModelInfo(str(model), _found(opened), kernels.dtype, *sides, batch, components, measured, reasons)


def measure_memory(model: Family, kernels: Kernels, size: RunSize, memory: Memory) -> MemoryInfo:
    """What an engine allocates for a run of that size, from its graphs."""
    return _measure(model, memory, model.record(kernels, size, memory))


def measure_runs(model: Family, kernels: Kernels, sizes: Sequence[RunSize], memory: Memory) -> int:
    """The most bytes that an engine allocates for runs of these sizes, one after the other.

    What the size before needs stays beside each, but in low memory; the same filters may be in two layouts then.
    """
    if memory == "low":
        return max(measure_memory(model, kernels, size, memory).peak_bytes for size in sizes)
    before: dict[tuple[str, Hashable], Graph] = {}
    peak_bytes = kept_bytes = 0
    for size in sizes:
        recorded = model.record(kernels, size, memory)
        own = {(name, model.networks[name].size_of(size)): graph for name, graph in recorded.items()}
        turn = _measure_turn(tuple(recorded), list((before | own).values()))
        peak_bytes = max(peak_bytes, turn.loading_bytes + kept_bytes, turn.running_bytes)
        kept_bytes = turn.tensors_bytes + turn.inputs_and_outputs_bytes
        before = own
    return peak_bytes


def _measure(model: Family, memory: Memory, graphs: Mapping[str, Graph]) -> MemoryInfo:
    turns = (_measure_turn(names, [graphs[name] for name in names]) for names in model.turns(memory))
    return MemoryInfo(memory, tuple(turns))


def _measure_turn(networks: tuple[str, ...], graphs: Sequence[Graph]) -> TurnInfo:
    """Of these networks, which may have graphs of several sizes: what has one form is there once."""
    weights = {(graph.name, weight.form): weight for graph in graphs for weight in graph.weights.values()}.values()
    plans = ([(size, "") for size in plan_memory(graph.calls).buffer_sizes_bytes] for graph in graphs)
    read = ([(graph.inputs | graph.outputs)[name] for name in read_after(graph)] for graph in graphs)
    return TurnInfo(
        networks=networks,
        weights_bytes=sum(weight.tensor.size_bytes for weight in weights),
        staging_bytes=loading_bytes(weights),
        tensors_bytes=sum(size for size, _ in largest_of_each(plans)),
        inputs_and_outputs_bytes=sum(tensor.size_bytes for graph in graphs for tensor in graph.externals),
        read_back_bytes=max(sum(tensor.size_bytes for tensor in tensors) for tensors in read),
    )


def _stored_bytes(model: Family, name: str, graph: Graph) -> dict[str, int] | None:
    """Bytes of the network's tensors in its files, by dtype; None where a file or a tensor is missing."""
    found: Counter[str] = Counter()
    try:
        source: TensorSource = model.files.tensors(model.networks[name].source)
        for weight in (*graph.weights.values(), *graph.tables.values()):
            for path in weight.paths:
                stored = source.read(path, weight.source_shape)
                found[stored.dtype] += stored.data.size
    except ModelError:
        return None
    return dict(found)


def _found(model: Family) -> dict[str, str]:
    found = {"pipeline": str(model.files.options.get("_class_name"))}
    found |= {name: _summary(config) for name, config in model.configs.items()}
    in_python = model.defaults.num_inference_steps
    steps = model.defaults.command_line_steps
    here = f"{steps} steps" if steps == in_python else f"{steps} steps (in Python {in_python})"
    found["defaults"] = f"{here}, guidance scale {model.defaults.guidance_scale:g}"
    try:
        scheduler = model.scheduler_config
    except ModelError as error:  # the costs are known nevertheless
        return {**found, "scheduler": str(error)}
    found["scheduler"] = f"{scheduler.class_name}, {scheduler.num_train_timesteps} timesteps"
    return {**found, "prediction": scheduler.prediction_type}


def _summary(config: Config) -> str:
    match config:
        case ClipTextConfig():
            layers = f"{config.num_hidden_layers} layers of {config.hidden_size} channels"
            return f"CLIP, {layers}, {config.max_position_embeddings} tokens"
        case UNetConfig():
            widths = ", ".join(map(str, config.block_out_channels))
            return f"UNet of {widths} channels, which reads embeddings of {config.cross_attention_dim}"
        case VaeConfig():
            widths = ", ".join(map(str, config.block_out_channels))
            factor = config.scale_factor
            return f"autoencoder of {widths} channels, {factor}x{factor} px to {config.latent_channels} values"
        case TinyVaeConfig():
            return "tiny autoencoder (TAESD)"
        case _:
            return type(config).__name__


def _mb(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f}"
