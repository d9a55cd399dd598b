"""The runs of a model's networks on one device: text to conditioning, one denoising step, latents to pictures."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from shaderfusion.denoising import DenoisingState, Step
from shaderfusion.errors import DeviceLimitError, GpuMemoryError, NotFiniteError
from shaderfusion.families.family import CARRIED, UPDATE, Conditioning, Family, read_after
from shaderfusion.families.run_size import Memory, RunSize
from shaderfusion.gpu.buffers import NUMPY_DTYPES
from shaderfusion.gpu.device import Device
from shaderfusion.graph.graph import Graph
from shaderfusion.graph.program import Program
from shaderfusion.kernels.select import Kernels
from shaderfusion.networks import Networks
from shaderfusion.previews import SAMPLE_CELLS, Projection, fit_projection, sample_latents
from shaderfusion.weights.lora.merge import Patch
from shaderfusion.weights.lora.names import Targets

__all__ = ["Engine", "PrecisionWarning"]

_F16_EXPONENT = 0x7C00

_MAX_PROMPTS = 32
"""In low memory what the text networks made of so many prompts is kept on the host."""


class PrecisionWarning(UserWarning):
    """A network's values are over the range of f16, as found in a run or as its configuration says; it runs in f32."""


class _Held(NamedTuple):
    """What a denoiser's program has on the device."""

    state: DenoisingState
    under_way: Step | None
    """The next step, where it is submitted already: then the state on the device is the one after it."""


class Engine(Networks):
    """A model on a device. Everything that changes from picture to picture is the caller's.

    Methods may be called from several threads: each takes its turn. In low memory the denoiser reads a row of its batch
    at a time, as the decoder does anyway.
    """

    def __init__(self, device: Device, model: Family, kernels: Kernels, memory: Memory | None = None) -> None:
        super().__init__(device, model, kernels, memory)
        self._prompts: dict[tuple[int, bytes], Conditioning] = {}
        """In low memory what the text networks made of the last rows of token ids, by clip_skip and row."""
        self._held: WeakKeyDictionary[Program, _Held] = WeakKeyDictionary()
        """By program, as long as it is there."""
        self._projection: Projection | None = None
        for name in sorted(model.wide_networks) if kernels.dtype == "f16" else ():
            warnings.warn(f"{name}: runs in f32, which its configuration asks for", PrecisionWarning, stacklevel=2)

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

    def condition(self, tokens: np.ndarray, size: RunSize) -> Conditioning:
        """The denoiser's inputs for each row of token ids, by the model's text networks."""

        def run(name: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> dict[str, np.ndarray]:
            return self.run(name, size, inputs, outputs)

        with self.device.turn:
            if self.memory != "low":
                return self.model.condition(run, tokens)
            keys = [(size.clip_skip, row.tobytes()) for row in tokens]
            rows = dict(zip(keys, tokens, strict=True))
            missing = [key for key in rows if key not in self._prompts]
            made = self.model.condition(run, np.stack([rows[key] for key in missing])) if missing else {}
            known = {key: self._prompts.pop(key) for key in rows if key in self._prompts}
            known |= {key: {name: made[name][row] for name in made} for row, key in enumerate(missing)}
            self._prompts |= known  # the last ones come last
            for key in list(self._prompts)[:-_MAX_PROMPTS]:
                del self._prompts[key]
            return {name: np.stack([known[key][name] for key in keys]) for name in known[keys[0]]}

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
        latents, key = sample_latents(self.model.latent_channels), self._key(decoder, size)
        with self.device.turn:
            is_new = key not in self._programs[decoder]
            fitted = fit_projection(latents, self.decode(latents, size))
            if is_new:
                self._drop(decoder, key)
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


def _is_finite(array: np.ndarray) -> bool:
    """Whether all values are; of f16, which NumPy is slow with, by their exponents."""
    if array.dtype == np.float16:
        return bool(((array.view(np.uint16) & _F16_EXPONENT) != _F16_EXPONENT).all())
    return bool(np.isfinite(array).all())
