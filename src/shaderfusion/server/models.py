"""The models that clients may name, of which one is on the device at a time."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shaderfusion.errors import InputError, ModelError
from shaderfusion.families import open_model
from shaderfusion.families.family import Family
from shaderfusion.families.run_size import Memory, RunSize, usual_memory
from shaderfusion.files import exists, is_folder
from shaderfusion.gpu.device import Device, open_device
from shaderfusion.info import measure_runs
from shaderfusion.kernels.optimizations import Optimizations
from shaderfusion.kernels.select import Kernels
from shaderfusion.output import say
from shaderfusion.pipeline import StableDiffusionPipeline, choose_dtype
from shaderfusion.server.refusal import RefusedError
from shaderfusion.tensor import DType
from shaderfusion.tuning_file import find_tuning
from shaderfusion.weights.hub import is_hub_id

__all__ = ["Known", "Models", "find_models"]

_SUFFIX = ".safetensors"
_MOST_OPEN = 2
"""Models whose configurations and tokenizers are kept in memory."""
_MOST_ADAPTERS = 8
"""Adapters that are kept in memory."""


@dataclass(frozen=True)
class Known:
    """A model by its name: what clients see of it."""

    path: str | Path
    family: str
    width: int
    height: int
    steps: int
    guidance_scale: float


def find_models(models: Sequence[str], folder: Path | None) -> dict[str, str | Path]:
    """Names of the models that were given, and of all in a folder: its diffusers folders and .safetensors files.

    InputError where there is none, or two have one name.
    """
    found: dict[str, str | Path] = {}
    given: list[str | Path] = list(models)
    if folder is not None:
        if not is_folder(folder):
            raise InputError(f"--models-dir (={folder}) must be a folder")
        inside = sorted(folder.iterdir())
        given += [path for path in inside if path.suffix == _SUFFIX or exists(path / "model_index.json")]
    for model in given:
        name = str(model) if is_hub_id(model) else Path(model).name.removesuffix(_SUFFIX)
        if name in found and str(found[name]) != str(model):
            raise InputError(f"--model (={model}) must have another name than {found[name]}; rename one of them")
        found[name] = model
    if not found:
        raise InputError(f"--models-dir (={folder}) must hold a folder in diffusers' format, or a {_SUFFIX} file")
    return found


class Models:
    """Opens models by name, and has one of them on the device, which the worker alone changes."""

    def __init__(
        self, paths: Mapping[str, str | Path], common: Mapping[str, Any], required: Sequence[str] = ()
    ) -> None:
        """Looks into all of them; those of `required` must be models, and of others it says where they are none."""
        self._common = common
        self._lock = threading.Lock()
        self._open: dict[str, Family] = {}
        self.known: dict[str, Known] = {}
        for name, path in paths.items():
            try:
                family = open_model(path)
                family.tokenize([""])
                size = family.run_size()
            except ModelError as error:
                if str(path) in required:
                    raise
                say(f"{name} is left out: {error}")
                continue
            own = family.defaults
            self.known[name] = Known(
                path, type(family).__name__, size.width_px, size.height_px, own.command_line_steps, own.guidance_scale
            )
        if not self.known:
            raise InputError("--models-dir must hold a model that can be used")
        self.device = self._open_device()
        self.current: str | None = None
        self.planned_bytes = 0
        self._optimizations: Optimizations | None = None
        self._sizes: list[RunSize] = []
        self._pipe: StableDiffusionPipeline | None = None
        self._adapters: set[str] = set()

    @property
    def default(self) -> str:
        """The first one."""
        return next(iter(self.known))

    @property
    def used_bytes(self) -> int:
        """Of the device, by the model that is there."""
        pipe = self._pipe
        return pipe.used_bytes if pipe else 0

    @property
    def dtype(self) -> DType:
        """In which networks run, unless their configuration asks for f32."""
        return choose_dtype(self.device, self._common.get("dtype"))

    @property
    def memory(self) -> Memory:
        """How models use the device's."""
        return self._common.get("memory") or usual_memory(self.device.capabilities)

    def family(self, name: str) -> Family:
        """A known model's configurations and tokenizers; ModelError where its files have changed."""
        with self._lock:
            family = self._open.pop(name, None) or open_model(self.known[name].path)
            self._open[name] = family
            for old in list(self._open)[:-_MOST_OPEN]:
                del self._open[old]
            return family

    def device_model(
        self, name: str, optimizations: Optimizations, sizes: Sequence[RunSize]
    ) -> StableDiffusionPipeline:
        """The model on the device, in the place of the one before; says what memory it takes.

        `sizes` are those of a picture's runs, one after the other.
        """
        if self._pipe and (self.current, self._optimizations) == (name, optimizations):
            if list(sizes) != self._sizes:
                self._plan(name, optimizations, sizes)
            return self._pipe
        self.close()
        planned_bytes = self._plan(name, optimizations, sizes)
        largest = max(sizes, key=lambda size: size.pixels)
        megabytes = f"{planned_bytes / 1e6:,.0f} MB of {self.device.info.name}"
        say(f"loading {name}, which takes {megabytes} for {largest.width_px}x{largest.height_px} px")
        self._pipe = StableDiffusionPipeline.from_pretrained(
            self.family(name),
            device=self.device,
            dtype=self.dtype,
            optimizations=optimizations,
            size=sizes[0],
            tuning=self._common.get("tuning", "auto"),
            memory=self.memory,
        )
        self.current, self._optimizations = name, optimizations
        return self._pipe

    def _plan(self, name: str, optimizations: Optimizations, sizes: Sequence[RunSize]) -> int:
        """Bytes of the device that these runs take after the last one, which are then the planned ones."""
        tuning = find_tuning(self._common.get("tuning", "auto"), self.device.info, self.dtype)
        kernels = Kernels(self.dtype, self.device.capabilities, optimizations, tuning)
        self.planned_bytes = measure_runs(self.family(name), kernels, [*self._sizes[-1:], *sizes], self.memory)
        self._sizes = list(sizes)
        return self.planned_bytes

    def load_adapters(self, files: Mapping[str, Path]) -> None:
        """Reads those that the model on the device does not have yet; none of them is active by itself.

        RefusedError of one that is not for that model.
        """
        assert self._pipe
        missing = {name: path for name, path in files.items() if name not in self._adapters}
        if missing and len(self._adapters) + len(missing) > _MOST_ADAPTERS:
            self._pipe.unload_lora_weights()
            self._adapters.clear()
            missing = dict(files)
        try:
            for name, path in missing.items():
                self._pipe.load_lora_weights(path, adapter_name=name)
                self._adapters.add(name)
        except (InputError, ModelError) as error:
            raise RefusedError(400, f"prompt: {error}", "prompt") from None
        finally:
            if missing:
                self._pipe.set_adapters([])

    def close(self) -> None:
        """Frees what the model on the device takes."""
        pipe = self._pipe
        self._forget()
        if pipe:
            pipe.close()

    def reopen(self) -> None:
        """After the driver dropped the device."""
        self._forget()
        self.device = self._open_device()

    def _forget(self) -> None:
        """The model on the device, and all that follows from it."""
        self._pipe, self.current, self.planned_bytes = None, None, 0
        self._adapters.clear()
        self._sizes.clear()

    def _open_device(self) -> Device:
        return open_device(self._common.get("device"), runtime=self._common.get("runtime", "auto"))
