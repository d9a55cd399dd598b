"""A model's networks on one device: their weights, the programs of the last few sizes, and one denoising step."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from shaderfusion.denoising import DenoisingState, Step
from shaderfusion.errors import DeviceError, DeviceLimitError, GpuMemoryError, NotFiniteError
from shaderfusion.families.family import CARRIED, UPDATE, Conditioning, Family, read_after
from shaderfusion.families.run_size import Memory, RunSize, usual_memory
from shaderfusion.gpu.buffers import NUMPY_DTYPES
from shaderfusion.gpu.device import Device
from shaderfusion.gpu.pipelines import Pipeline
from shaderfusion.graph.arena import Arena
from shaderfusion.graph.graph import Graph
from shaderfusion.graph.program import Program
from shaderfusion.kernels.select import Kernels
from shaderfusion.previews import SAMPLE_CELLS, Projection, fit_projection, sample_latents
from shaderfusion.tensor import DType
from shaderfusion.weights.checkpoint import TensorSource
from shaderfusion.weights.lora.merge import Patch
from shaderfusion.weights.lora.names import Targets
from shaderfusion.weights.store import WeightStore

__all__ = ["Engine", "PrecisionWarning"]

_F16_EXPONENT = 0x7C00

_MAX_SIZES = 2
"""Programs of so many sizes are kept for each network, so that two runs may take turns; in low memory pipelines."""

_MAX_PROMPTS = 32
"""In low memory what the text networks made of so many prompts is kept on the host."""


class PrecisionWarning(UserWarning):
    """A network's values are over the range of f16, as found in a run or as its configuration says; it runs in f32."""


class _Held(NamedTuple):
    """What a denoiser's program has on the device."""

    state: DenoisingState
    under_way: Step | None
    """The next step, where it is submitted already: then the state on the device is the one after it."""


class Engine:
    """A model on a device. Everything that changes from picture to picture is the caller's.

    `kernels` has the dtype that networks run in, unless their configuration asks for f32. Methods may be called from
    several threads: each takes its turn.

    In low memory networks take turns on the device: that which runs has its weights and one program there, and all
    others have nothing but pipelines. The denoiser reads a row of its batch at a time, as the decoder does anyway.
    """

    def __init__(self, device: Device, model: Family, kernels: Kernels, memory: Memory | None = None) -> None:
        self.device = device
        self.model = model
        self.memory: Memory = usual_memory(device.capabilities) if memory is None else memory
        self._usual_networks = model.networks_in(self.memory)
        self._networks = {**self._usual_networks, **model.optional_networks}
        self._kernels = model.kernels_in(self.memory, kernels)
        self._weights = WeightStore(device)
        self._arena = Arena(device)
        self._programs: dict[str, dict[Hashable, Program]] = {name: {} for name in self._networks}
        self._pipelines: dict[RunSize, list[Pipeline]] = {}
        """In low memory those of all networks, of the last sizes: programs come and go."""
        self._prompts: dict[tuple[int, bytes], Conditioning] = {}
        """In low memory what the text networks made of the last rows of token ids, by clip_skip and row."""
        self._held: dict[Program, _Held] = {}
        self._projection: Projection | None = None
        self._is_open = True
        for name in sorted(model.wide_networks) if kernels.dtype == "f16" else ():
            warnings.warn(f"{name}: runs in f32, which its configuration asks for", PrecisionWarning, stacklevel=2)

    # ------------------------------------------------------------------------------------------ programs

    def load(self, size: RunSize) -> None:
        """Makes what all runs of that size need, where it is not there: weights, while pipelines compile beside.

        In low memory pipelines alone: weights, which are looked for but not read, are loaded when their network runs.
        """
        with self.device.turn:
            self.require_fits(size)
            if self.memory != "low":
                self._load(self._usual_networks, size)
            elif size not in self._pipelines:
                graphs = {self._record(name, size): self._source(name) for name in self._usual_networks}
                self._weights.check(graphs)
                for old in list(self._pipelines)[: 1 - _MAX_SIZES]:
                    del self._pipelines[old]
                self._pipelines[size] = self.device.pipelines.get_all(call for graph in graphs for call in graph.calls)

    def _load(self, names: Iterable[str], size: RunSize) -> None:
        """Programs of these networks, where they are not there."""
        absent = [name for name in names if self._key(name, size) not in self._programs[name]]
        missing = {name: self._record(name, size) for name in absent}
        sources = {graph: self._source(name) for name, graph in missing.items()}
        with ThreadPoolExecutor(1) as beside, ExitStack() as undo:
            compiled = beside.submit(self.device.pipelines.get_all, [call for graph in sources for call in graph.calls])
            self._weights.claim(sources)  # of those of other sizes, what they share stays
            for graph in sources:
                undo.callback(self._weights.release, graph)
            self._make_room(missing)
            programs: dict[str, Program] = {}
            weights = self._weights.load(sources)
            pipelines = compiled.result()
            for (name, graph), buffers in zip(missing.items(), weights, strict=True):
                programs[name] = Program(self.device, graph, buffers, self._arena)
                undo.callback(programs[name].close)
            del pipelines  # the programs have them
            undo.pop_all()
        for name, program in programs.items():
            self._programs[name][self._key(name, size)] = program

    def _make_room(self, missing: Iterable[str]) -> None:
        """Frees programs of older sizes of these networks, and in low memory all that they do not run together with."""
        together = {other for name in missing for other in self._together(name)}
        for name, programs in self._programs.items():
            kept = int(name in together) if self.memory == "low" else _MAX_SIZES
            for key in list(programs)[: max(0, len(programs) + (name in missing) - kept)]:
                self._drop(name, key)
        if self.memory == "low":
            self._arena.trim()
            self.device.wait()  # a buffer is freed when the device is done with it

    def _together(self, name: str) -> tuple[str, ...]:
        """The networks that are on the device whenever this one is."""
        return next((names for names in self.model.turns(self.memory) if name in names), (name,))

    def require_fits(self, size: RunSize) -> None:
        """DeviceLimitError for a size that the device surely cannot hold; DeviceError where the engine is closed."""
        self._require_open()
        dtype = self._kernels[self.model.denoiser].dtype
        self.model.require_fits(size, self.device.capabilities, dtype, self.memory)

    def _require_open(self) -> None:
        if not self._is_open:
            raise DeviceError("this pipeline is closed; open the model again with from_pretrained")

    def program(self, name: str, size: RunSize) -> Program:
        """The network's program for that size, made if it is not there."""
        key, programs = self._key(name, size), self._programs[name]
        if key not in programs:
            self.require_fits(size)
            self._load(self._together(name), size)
        programs[key] = programs.pop(key)  # the last one used comes last
        return programs[key]

    def _key(self, name: str, size: RunSize) -> Hashable:
        return self._networks[name].size_of(size)

    def _record(self, name: str, size: RunSize) -> Graph:
        return self._networks[name].record(self._kernels[name], size)

    def _drop(self, name: str, key: Hashable) -> None:
        program = self._programs[name].pop(key)
        self._held.pop(program, None)
        program.close()
        self._weights.release(program.graph)

    def _source(self, name: str) -> TensorSource:
        return self.model.sources[self._networks[name].source]

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
            self._held.clear()  # what their programs keep of the prompt was made by the weights before
            self._prompts.clear()
            self._weights.set_patches({self.model.sources[name]: own for name, own in patches.items()})

    @property
    def used_bytes(self) -> int:
        """Of the device's memory: weights, intermediate tensors, inputs and outputs of the programs that are there."""
        programs = [program for own in self._programs.values() for program in list(own.values())]
        externals = sum(tensor.size_bytes for program in programs for tensor in program.graph.externals)
        return self._weights.size_bytes + self._arena.size_bytes + externals

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
            self._pipelines.clear()
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
            if self.memory != "low":
                return self.model.condition(run, tokens)
            rows = {(size.clip_skip, row.tobytes()): row for row in tokens}
            missing = [key for key in rows if key not in self._prompts]
            made = self.model.condition(run, np.stack([rows[key] for key in missing])) if missing else {}
            known = {key: self._prompts.pop(key) for key in rows if key in self._prompts}
            known |= {key: {name: made[name][row] for name in made} for row, key in enumerate(missing)}
            self._prompts |= known  # the last ones come last
            for key in list(self._prompts)[:-_MAX_PROMPTS]:
                del self._prompts[key]
            found = [known[size.clip_skip, row.tobytes()] for row in tokens]
            return {name: np.stack([row[name] for row in found]) for name in found[0]}

    def encode(self, images: np.ndarray, size: RunSize) -> np.ndarray:
        """The moments (B, H, W, 2 C) of pictures (B, height, width, 3), in -1..1, for the family's `draw_latents`."""
        with self.device.turn:
            rows = [self.run(self.model.encoder, size, {"image": row[None]}, ["moments"]) for row in images]
        return np.concatenate([row["moments"] for row in rows], dtype=np.float32)

    def decode(self, latents: np.ndarray, size: RunSize, *, quickly: bool = False) -> np.ndarray:
        """The pictures (B, height, width, 3), in -1..1, of latents (B, H, W, C); by the quick decoder if asked to."""
        name = self.quick_decoder if quickly and self.quick_decoder else self.model.decoder
        with self.device.turn:
            rows = [self.run(name, size, {"latents": row[None]}, ["image"]) for row in latents]
        return np.concatenate([row["image"] for row in rows], dtype=np.float32)

    @property
    def quick_decoder(self) -> str | None:
        """The family's, unless it would take the denoiser's place in memory."""
        return None if self.memory == "low" else self.model.quick_decoder

    def projection(self) -> Projection:
        """From latents to small pictures: the family's, or one fitted to what the decoder makes of a few samples."""
        if self._projection is None:
            self._projection = self.model.projection or self._fit_projection()
        return self._projection

    def _fit_projection(self) -> Projection:
        side, decoder = SAMPLE_CELLS * self.model.scale_factor, self.model.decoder
        size = self.model.run_size(width=side, height=side)
        latents = sample_latents(self.model.latent_channels)
        with self.device.turn:
            is_new = self._key(decoder, size) not in self._programs[decoder]
            fitted = fit_projection(latents, self.decode(latents, size))
            if is_new:
                self._drop(decoder, self._key(decoder, size))
        return fitted

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

    def denoise(self, state: DenoisingState, step: Step, then: Step | None = None) -> np.ndarray:
        """One step: the denoiser, guidance and the scheduler's update, which moves the state on.

        Returns what the denoiser said, (rows, H, W, C) in its dtype. `then` is the step that will follow. It is
        submitted before this one is waited for, if the last one was of the same run, so that the device goes on
        meanwhile. The state stays as it was where anything is raised: NotFiniteError, as in `run`, or where guidance
        takes the latents out of range.
        """
        name = self.model.denoiser
        under_way: Step | None = None

        def attempt() -> dict[str, np.ndarray]:
            nonlocal under_way
            if self.memory == "low":
                return self._step_by_rows(state, step.inputs)
            program = self.program(name, state.size)
            held = self._pop_held(program, state, step)
            if held is None:
                program.write_all(state.inputs(NUMPY_DTYPES[program.graph.dtype]) | step.inputs)
                program.run()
            elif held.under_way is None:
                program.write_all(step.inputs)
                program.run(again=True)
            finish = program.start_reading(read_after(program.graph))
            under_way = then if held else None
            if under_way:
                program.write_all(under_way.inputs)
                program.run(again=True)
            return finish()

        with self.device.turn:
            left = self._until_finite(name, attempt, ["model_output"])
            model_output = left.pop("model_output")
            if not _is_finite(left["x_t"]):
                raise NotFiniteError(
                    f"guidance_scale (={step.guidance_scale:g}) takes the latents out of the range of f32; use a "
                    "smaller one"
                )
            state.x_t = left.pop("x_t")
            state.carried = left
            state.input_scale = step.next_input_scale
            self._held[self.program(name, state.size)] = _Held(state, under_way)  # only now does it hold the state
        return model_output

    def _pop_held(self, program: Program, state: DenoisingState, step: Step | None = None) -> _Held | None:
        """What the program holds, if that is the state, with no other step than this under way.

        Until the step is done it holds half of it.
        """
        held = self._held.pop(program, None)
        return held if held and held.state is state and held.under_way in (None, step) else None

    def _step_by_rows(self, state: DenoisingState, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """What a step leaves, and model_output: the denoiser's rows one by one, then UPDATE for all of them.

        What is made once for a prompt is made in every step where there are several rows, each of its own prompt: to
        keep it for all would take more memory than time is won.
        """
        denoiser = self.program(self.model.denoiser, state.size)
        update = self.program(UPDATE, state.size)
        is_there = self._pop_held(denoiser, state) is not None and state.size.rows == 1
        given = {**state.inputs(NUMPY_DTYPES[denoiser.graph.dtype]), **inputs}
        outputs: list[np.ndarray] = []
        for row in range(state.size.rows):
            for key in denoiser.graph.inputs:
                is_shared = len(given[key]) == 1
                denoiser.write(key, given[key] if is_shared else given[key][row : row + 1])
            denoiser.run(again=is_there)
            outputs.append(denoiser.read("model_output"))
        given["model_output"] = np.concatenate(outputs)
        for key in update.graph.inputs:
            if key in given:  # all but what no update has left yet, or needs
                update.write(key, given[key])
        update.run()
        return {"model_output": given["model_output"], **update.read_all(CARRIED)}

    def _until_finite(
        self, name: str, attempt: Callable[[], dict[str, np.ndarray]], checked: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """What `attempt` returns, from a network in f32 if it has to be."""

        def is_finite(arrays: Mapping[str, np.ndarray]) -> bool:
            return all(_is_finite(arrays[key]) for key in checked)

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
        for changed in (name, UPDATE) if name == self.model.denoiser and UPDATE in self._networks else (name,):
            for key in list(self._programs[changed]):
                self._drop(changed, key)
            self._kernels[changed] = kernels
        self._pipelines.clear()


def _is_finite(array: np.ndarray) -> bool:
    """Whether all values are; of f16, which NumPy is slow with, by their exponents."""
    if array.dtype == np.float16:
        return bool(((array.view(np.uint16) & _F16_EXPONENT) != _F16_EXPONENT).all())
    return bool(np.isfinite(array).all())
