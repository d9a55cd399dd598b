"""A model's networks on one device: their weights, the programs of the last few sizes, and one denoising step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import TracebackType
from typing import Self

import numpy as np

from shaderfusion.errors import DeviceError, DeviceLimitError, GpuMemoryError, NotFiniteError
from shaderfusion.families.family import Conditioning, Family, RunSize
from shaderfusion.gpu.buffers import NUMPY_DTYPES
from shaderfusion.gpu.device import Device
from shaderfusion.graph.arena import Arena
from shaderfusion.graph.graph import Graph
from shaderfusion.graph.program import Program
from shaderfusion.kernels.common.denoise_step import COEFFICIENTS
from shaderfusion.kernels.select import Kernels
from shaderfusion.schedulers import Update
from shaderfusion.tensor import DType
from shaderfusion.weights.checkpoint import TensorSource
from shaderfusion.weights.lora.merge import Patch
from shaderfusion.weights.lora.names import Targets
from shaderfusion.weights.store import WeightStore

__all__ = ["DenoisingState", "Engine", "PrecisionWarning"]

_MAX_SIZES = 2
"""Programs of so many sizes are kept for each network, so that two runs may take turns."""

_CARRIED = ("x_t", "x_saved", "history", "latents")
"""What a step leaves for the next one."""


class PrecisionWarning(UserWarning):
    """A network's values are over the range of f16, as found in a run or as its configuration says; it runs in f32."""


@dataclass(eq=False)
class DenoisingState:
    """Where a run stands between two steps, on the host: the device may serve another run meanwhile."""

    size: RunSize
    conditioning: Conditioning = field(repr=False)
    """Those of prompts have a row for each of the denoiser's batch."""
    x_t: np.ndarray = field(repr=False)
    """(B, H, W, C) f32"""
    input_scale: float
    """Of the next step's input, which is input_scale x_t."""
    carried: dict[str, np.ndarray] = field(default_factory=dict, repr=False)
    """The other tensors that the last step left; empty before the first."""

    def inputs(self, program: Program) -> dict[str, np.ndarray]:
        """Everything that the program has to hold before the next step."""
        inputs = {**self.conditioning, **self.carried, "x_t": self.x_t}
        if "latents" not in inputs or inputs["latents"].dtype != NUMPY_DTYPES[program.graph.dtype]:
            copies = self.size.rows // self.size.batch
            inputs["latents"] = np.tile(np.float32(self.input_scale) * self.x_t, (copies, 1, 1, 1))
        return inputs


class Engine:
    """A model on a device. Everything that changes from picture to picture is the caller's.

    `kernels` has the dtype that networks run in, unless their configuration asks for f32. Methods may be called from
    several threads: each takes its turn.
    """

    def __init__(self, device: Device, model: Family, kernels: Kernels) -> None:
        self.device = device
        self.model = model
        self._kernels = model.kernels(kernels)
        self._weights = WeightStore(device)
        self._arena = Arena(device)
        self._programs: dict[str, dict[Hashable, Program]] = {name: {} for name in model.networks}
        self._holders: dict[Program, DenoisingState] = {}
        self._is_open = True
        for name in sorted(model.wide_networks) if kernels.dtype == "f16" else ():
            warnings.warn(f"{name}: runs in f32, which its configuration asks for", PrecisionWarning, stacklevel=2)

    # ------------------------------------------------------------------------------------------ programs

    def load(self, size: RunSize) -> None:
        """Makes what a run of that size needs, where it is not there: weights, while pipelines compile beside."""
        with self.device.turn:
            self.require_fits(size)
            missing = {
                name: network.record(self._kernels[name], size)
                for name, network in self.model.networks.items()
                if network.size_of(size) not in self._programs[name]
            }
            for name in missing:
                for key in list(self._programs[name])[: 1 - _MAX_SIZES]:
                    self._drop(name, key)
            with ThreadPoolExecutor(1) as beside, ExitStack() as undo:
                calls = [call for graph in missing.values() for call in graph.calls]
                compiled = beside.submit(self.device.pipelines.get_all, calls)
                programs: dict[str, Program] = {}
                weights = self._weights.load({graph: self._source(name) for name, graph in missing.items()})
                for graph in missing.values():
                    undo.callback(self._weights.release, graph)
                pipelines = compiled.result()
                for (name, graph), buffers in zip(missing.items(), weights, strict=True):
                    programs[name] = Program(self.device, graph, buffers, self._arena)
                    undo.callback(programs[name].close)
                del pipelines  # the programs have them
                undo.pop_all()
            for name, program in programs.items():
                self._programs[name][self.model.networks[name].size_of(size)] = program

    def require_fits(self, size: RunSize) -> None:
        """DeviceLimitError for a size that the device surely cannot hold; DeviceError where the engine is closed."""
        self._require_open()
        self.model.require_fits(size, self.device.capabilities, self._kernels[self.model.denoiser].dtype)

    def _require_open(self) -> None:
        if not self._is_open:
            raise DeviceError("this pipeline is closed; open the model again with from_pretrained")

    def program(self, name: str, size: RunSize) -> Program:
        """The network's program for that size, made if it is not there."""
        key = self.model.networks[name].size_of(size)
        programs = self._programs[name]
        if key not in programs:
            self.load(size)
        programs[key] = programs.pop(key)  # the last one used comes last
        return programs[key]

    def _drop(self, name: str, key: Hashable) -> None:
        program = self._programs[name].pop(key)
        self._holders.pop(program, None)
        program.close()
        self._weights.release(program.graph)

    def _source(self, name: str) -> TensorSource:
        return self.model.sources[self.model.networks[name].source]

    @cached_property
    def adapter_targets(self) -> Targets:
        """What adapters may change, by the graphs of a small size."""
        side = 8 * self.model.scale_factor
        size = self.model.run_size(width=side, height=side)
        graphs: dict[str, list[Graph]] = {}
        for name, network in self.model.networks.items():
            graphs.setdefault(network.source, []).append(network.record(self._kernels[name], size))
        return Targets(graphs, self.model.sources)

    def adapt(self, patches: Mapping[str, Mapping[str, Patch]]) -> None:
        """Merges adapters into the weights, by source and path, in place of those before.

        A run that has begun goes on with the new weights, and the embedding that it has. WeightsError where a weight is
        then over the range of its dtype; all is then as it was.
        """
        with self.device.turn:
            self._require_open()
            self._holders.clear()  # what their programs keep of the prompt was made by the weights before
            self._weights.set_patches({self.model.sources[name]: own for name, own in patches.items()})

    def dtype_of(self, name: str) -> DType:
        """What a network runs in: f32 once its values went over the range of f16."""
        return self._kernels[name].dtype

    def close(self) -> None:
        """Frees all memory of the device that the model takes. Nothing can be run any more."""
        with self.device.turn:
            if not self._is_open:
                return
            self._is_open = False
            for name, programs in self._programs.items():
                for key in list(programs):
                    self._drop(name, key)
            self._arena.close()
            self._weights.close()
            self.device.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # ------------------------------------------------------------------------------------------ runs

    def condition(self, tokens: np.ndarray, size: RunSize) -> Conditioning:
        """The denoiser's inputs for each row of token ids, by the model's text networks."""

        def run(name: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
            return self.run(name, size, inputs, outputs)

        with self.device.turn:
            return self.model.condition(run, tokens)

    def decode(self, latents: np.ndarray, size: RunSize) -> np.ndarray:
        """The pictures (B, height, width, 3), in -1..1, of latents (B, H, W, C)."""
        with self.device.turn:
            rows = [self.run(self.model.decoder, size, {"latents": row[None]}, ["image"]) for row in latents]
        return np.concatenate([row["image"] for row in rows]).astype(np.float32)

    def run(
        self, name: str, size: RunSize, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Runs a network once; an input named as a table of its graph takes row numbers.

        Where values are over the range of f16 it runs again, and from then on, in f32, with a PrecisionWarning.
        NotFiniteError where they are not finite in f32 either.
        """

        def attempt() -> dict[str, np.ndarray]:
            program = self.program(name, size)
            for key, array in inputs.items():
                is_table = key in program.graph.tables
                rows = self._weights.read_rows(program.graph, self._source(name), key, array) if is_table else array
                program.write(key, rows)
            program.run()
            return program.read_all(outputs)

        with self.device.turn:
            return self._until_finite(name, attempt, outputs)

    def denoise(
        self,
        state: DenoisingState,
        timestep: float,
        update: Update,
        *,
        guidance_scale: float,
        next_input_scale: float,
        noise: np.ndarray | None = None,
        is_last: bool = False,
    ) -> None:
        """One step: the denoiser, guidance and the scheduler's update, which moves the state on.

        An update with c_noise needs `noise`, (B, H, W, C). After all but the last step the next is made ready.
        The state stays as it was where anything is raised: NotFiniteError, as in `run`, or where guidance takes the
        latents out of range.
        """
        name = self.model.denoiser
        values = {**vars(update), "guidance_scale": guidance_scale, "next_input_scale": next_input_scale}
        inputs = {
            "coefficients": np.array([values[key] for key in COEFFICIENTS]),
            "timestep": np.array([timestep]),
            **({} if noise is None else {"noise": noise}),
        }

        def attempt() -> dict[str, np.ndarray]:
            program = self.program(name, state.size)
            is_there = self._holders.pop(program, None) is state  # and not another run's, or half a step's
            for key, array in (inputs if is_there else state.inputs(program) | inputs).items():
                program.write(key, array)
            program.run(again=is_there)
            if not is_last:
                program.encode_ahead()
            return program.read_all([*_CARRIED, "model_output"])

        with self.device.turn:
            left = self._until_finite(name, attempt, ["model_output"])
            del left["model_output"]
            if not np.isfinite(left["x_t"]).all():
                raise NotFiniteError(
                    f"guidance_scale (={guidance_scale:g}) takes the latents out of the range of f32; use a smaller one"
                )
            state.x_t = left.pop("x_t")
            state.carried = left
            state.input_scale = next_input_scale
            self._holders[self.program(name, state.size)] = state  # only now is what it holds the state

    def _until_finite(
        self, name: str, attempt: Callable[[], dict[str, np.ndarray]], checked: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """What `attempt` returns, from a network in f32 if it has to be."""

        def is_finite(arrays: Mapping[str, np.ndarray]) -> bool:
            return all(np.isfinite(arrays[key]).all() for key in checked)

        arrays = attempt()
        if is_finite(arrays):
            return arrays
        kernels = self._kernels[name]
        if kernels.dtype != "f32":
            self._change_kernels(name, replace(kernels, dtype="f32"))
            try:
                arrays = attempt()
            except (DeviceLimitError, GpuMemoryError) as error:
                self._change_kernels(name, kernels)
                raise NotFiniteError(
                    f"{name}: its values are over the range of f16, and f32 does not fit ({error})"
                ) from error
            if is_finite(arrays):
                warnings.warn(
                    f"{name}: its values are over the range of f16, so it runs in f32 from now on",
                    PrecisionWarning,
                    stacklevel=2,
                )
                return arrays
        self._change_kernels(name, kernels)
        raise NotFiniteError(
            f"{name}: its values are not finite in f32 either; use a smaller guidance_scale, or download the model "
            "again, whose weights may be damaged"
        )

    def _change_kernels(self, name: str, kernels: Kernels) -> None:
        """The network's next program is made with these; it has none now."""
        for key in list(self._programs[name]):
            self._drop(name, key)
        self._kernels[name] = kernels
