"""Memory low and normal: the same pictures, and on the device no more than `info` says, whatever happens meanwhile."""

import contextlib
from collections.abc import Callable, Iterator
from itertools import zip_longest
from typing import Any

import numpy as np
import pytest
from golden.models import FOLDER, Run, golden, model_folder

from shaderfusion.errors import DeviceError, GpuMemoryError, InputError
from shaderfusion.families import open_model
from shaderfusion.families.family import UPDATE
from shaderfusion.families.run_size import MEMORIES, Memory
from shaderfusion.gpu.device import Device
from shaderfusion.graph.program import Program
from shaderfusion.info import MemoryInfo, measure_memory, measure_runs
from shaderfusion.kernels.capabilities import WEBGPU_DEFAULTS
from shaderfusion.kernels.select import Kernels
from shaderfusion.pipeline import StableDiffusionPipeline
from shaderfusion.tensor import DType
from shaderfusion.weights.prepare import WeightLoader

OPTIONS: dict[str, Any] = {"num_inference_steps": 2, "width": 16, "height": 8}
CALLS: list[dict[str, Any]] = [
    {"prompt": "a fox", "seed": 1},
    {"prompt": "a cat", "seed": 3, "width": 8, "num_images_per_prompt": 2},
    {"prompt": "a bird", "seed": 4, "height": 24, "guidance_scale": 1.0},
    {"prompt": ["a fox", "a dog"], "seed": 2, "negative_prompt": ["rain", "snow"]},
]
UNIFORM = 0x40
"""WebGPU's flag of buffers for parameters."""
MODELS = ("sd1", "odd", "thirds", "sdxl", "inpaint", "emoji")
"""Odd sizes, padding, two text encoders, and channels beside the latents among them."""
ROUNDING = {"emoji": 2e-3}
"""Of latents, relative to the largest: there kernels of one row differ from those of two. In the others none does."""


class Meter:
    """Bytes of all buffers that a device holds, but for the parameters of calls."""

    def __init__(self, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
        self.live_bytes = self.peak_bytes = self.uniform_bytes = 0
        create = device.handle.create_buffer

        def measured(**options: Any) -> Any:
            buffer = create(**options)
            if buffer.usage & UNIFORM:
                self.uniform_bytes = max(self.uniform_bytes, buffer.size)
            else:
                self._add(buffer)
            return buffer

        monkeypatch.setattr(device.handle, "create_buffer", measured)

    def _add(self, buffer: Any) -> None:
        self.live_bytes += buffer.size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        destroy = buffer.destroy

        def freed() -> None:
            self.live_bytes -= buffer.size
            buffer.destroy = destroy
            destroy()

        buffer.destroy = freed


@pytest.fixture(scope="module", autouse=True)
def compiled(device: Device) -> Iterator[None]:
    """Pipelines are compiled once for all tests here."""
    cache = device.pipelines
    kept, cache._pipelines = cache._pipelines, dict(cache._pipelines)  # type: ignore[assignment]
    yield
    cache._pipelines = kept


def open_pipeline(
    device: Device, memory: Memory, name: str = "sd2", scheduler: str | None = None, dtype: DType = "f32"
) -> StableDiffusionPipeline:
    """A pipeline of its own."""
    kernels = Kernels(dtype, device.capabilities)
    return StableDiffusionPipeline(device, open_model(model_folder(name)), kernels, scheduler, memory)


@pytest.fixture
def pipe(device: Device) -> Iterator[StableDiffusionPipeline]:
    """A tiny model in low memory, whose scheduler, PNDM, has a history."""
    with open_pipeline(device, "low", scheduler="pndm") as opened:
        yield opened


@pytest.fixture(scope="module")
def normal(device: Device) -> list[list[bytes]]:
    """The images of each of CALLS in normal memory."""
    with open_pipeline(device, "normal", scheduler="pndm") as pipe:
        return [images_of(pipe, call) for call in CALLS]


def images_of(pipe: StableDiffusionPipeline, call: dict[str, Any]) -> list[bytes]:
    """The images' bytes, of one of CALLS."""
    return [image.tobytes() for image in pipe(**{**OPTIONS, **call}).images]


def resident(pipe: StableDiffusionPipeline) -> set[str]:
    """Networks of which a program is on the device."""
    return {name for name, programs in pipe._engine._programs.items() if programs}


@pytest.mark.parametrize(("name", "run"), [(name, run) for name in MODELS for run in golden(name).runs[:1]], ids=str)
def test_pictures_are_those_of_normal_memory(device: Device, name: str, run: Run) -> None:
    _, height, width, _ = run.images.shape
    latents: dict[Memory, np.ndarray] = {}
    images: dict[Memory, np.ndarray] = {}
    for memory in MEMORIES:
        with open_pipeline(device, memory, name, run.scheduler) as pipe:
            options = {"width": width, "height": height, "seed": 1, "num_inference_steps": 2}
            *_, last = pipe.generate(**run.call | options)
        latents[memory] = last.latents
        images[memory] = np.stack([np.asarray(image).astype(int) for image in last.images or []])
    difference = np.abs(latents["low"] - latents["normal"]).max()
    assert difference <= ROUNDING.get(name, 0) * np.abs(latents["normal"]).max()
    assert np.abs(images["low"] - images["normal"]).max() <= (name in ROUNDING)


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize(("name", "batch"), [("odd", 2), ("sd1", 1)])
def test_info_says_what_is_allocated(
    device: Device, name: str, batch: int, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_pipeline(device, memory, name) as pipe:
        meter = Meter(device, monkeypatch)
        size = pipe.model.run_size(batch=batch, width=64, height=32)
        said = measure_memory(pipe.model, Kernels("f32", device.capabilities), size, memory)
        options: dict[str, Any] = {"width": 64, "height": 32, "num_images_per_prompt": batch, "num_inference_steps": 2}
        *_, last = pipe.generate("a fox", seed=1, **options)
        assert meter.peak_bytes == said.peak_bytes == max(said.loading_bytes, said.running_bytes)
        assert meter.live_bytes == held_bytes(said)
        meter.peak_bytes = 0  # without loading, where all is there
        next(pipe.generate("a fox", seed=1, **options))
        if memory == "normal":
            assert meter.peak_bytes <= said.running_bytes < said.loading_bytes
        last.preview()
    assert meter.live_bytes == 0
    assert meter.uniform_bytes < 100_000


@pytest.mark.parametrize("memory", MEMORIES)
def test_runs_of_several_sizes_one_after_the_other(
    device: Device, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, in high memory filters that one size wants transformed and another does not are there twice."""
    monkeypatch.setattr("shaderfusion.kernels.select._MAX_LOADED_FILTERS_BYTES", 0)
    for constant in ("_BATCH_BYTES", "_SMALL_BYTES"):  # less to load by, so that what is there decides
        monkeypatch.setattr(f"shaderfusion.weights.footprint.{constant}", 256)
    kernels = Kernels("f32", WEBGPU_DEFAULTS)
    with StableDiffusionPipeline(device, open_model(model_folder("sd1")), kernels, memory=memory) as pipe:
        meter = Meter(device, monkeypatch)
        sizes = [pipe.model.run_size(width=side, height=side) for side in (64, 32, 64, 16)]
        for size in sizes:
            sides: dict[str, Any] = {"width": size.width_px, "height": size.height_px}
            next(pipe.generate("a fox", seed=1, num_inference_steps=1, **sides))
        planned = measure_runs(pipe.model, kernels, sizes, memory)
        assert planned / 1.01 < meter.peak_bytes <= planned  # which counts all weights of two sizes as loaded at once
        if memory == "high":
            alone = max(measure_memory(pipe.model, kernels, size, memory).peak_bytes for size in sizes)
            assert meter.peak_bytes > alone
        unet = [pipe._engine._record("unet", size).weights.values() for size in sizes]
        layouts = [[weight.layout for weight in own] for own in unet]
        assert (layouts[0] == layouts[1]) == (memory != "high")


def test_decoder_in_bands(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shaderfusion.families.family._MAX_WHOLE_BYTES", 5_000)
    images: list[np.ndarray] = []
    for memory in MEMORIES:
        with open_pipeline(device, memory, "odd") as pipe:
            meter = Meter(device, monkeypatch)
            size = pipe.model.run_size(width=32, height=24)
            said = measure_memory(pipe.model, Kernels("f32", device.capabilities), size, memory)
            (image,) = pipe("a fox", seed=1, width=32, height=24, num_inference_steps=1).images
            assert meter.peak_bytes == said.peak_bytes
            images.append(np.asarray(image).astype(int))
            if memory == "low":
                graph = pipe._engine.program("vae", size).graph
                assert any(call.entry_point == "merge_statistics" for call in graph.calls)
    assert np.abs(images[0] - images[1]).max() <= 1


def held_bytes(info: MemoryInfo) -> int:
    """What the last turn has after a run."""
    last = info.turns[-1]
    return last.running_bytes - last.read_back_bytes


def test_networks_take_turns(pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[str]] = []
    run = Program.run

    def record(self: Program, **options: Any) -> None:
        if not seen or seen[-1] != resident(pipe):
            seen.append(resident(pipe))
        run(self, **options)

    monkeypatch.setattr(Program, "run", record)
    pipe.load(pipe.model.run_size(width=16, height=8))
    assert resident(pipe) == set()
    first = images_of(pipe, CALLS[0])
    turns = [{"text_encoder"}, {"unet", UPDATE}, {"vae"}]
    assert seen == turns
    seen.clear()
    assert images_of(pipe, CALLS[0]) == first
    assert seen == turns[1:]  # what the prompts mean is known
    seen.clear()
    for progress in pipe.generate(**{**OPTIONS, **CALLS[0]}):
        if progress.step == 1:
            progress.preview()
    assert seen == [*turns[1:], *turns[1:]]


def test_only_the_last_prompts_are_kept(pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shaderfusion.engine._MAX_PROMPTS", 2)
    size = pipe.model.run_size()
    texts = ["a fox", "a dog", "a cat", "a fox"]
    tokens = pipe.model.tokenize(texts)
    together = pipe._engine.condition(tokens, size)["embedding"]
    assert len(pipe._engine._prompts) == 2
    apart = [pipe._engine.condition(row[None], size)["embedding"] for row in tokens]
    np.testing.assert_array_equal(together, np.concatenate(apart))


def test_runs_in_turn(pipe: StableDiffusionPipeline, normal: list[list[bytes]]) -> None:
    """Of several sizes, with and without guidance, of several pictures and prompts, with previews between."""
    found: list[list[bytes]] = [[] for _ in CALLS]
    runs = [pipe.generate(**{**OPTIONS, **call}) for call in CALLS]
    for steps in zip_longest(*runs):
        for index, progress in enumerate(steps):
            if index == 0:
                progress.preview()
            found[index] = [image.tobytes() for image in progress.images or []]
    assert found == normal


def test_a_run_goes_on_after_a_failure(
    pipe: StableDiffusionPipeline, normal: list[list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of each network in turn, while its weights load and while it runs."""
    loads: list[set[str]] = []
    load = WeightLoader.load

    def fail_every_other(self: WeightLoader, *args: Any) -> Any:
        loads.append(resident(pipe))
        return raise_out_of_memory() if len(loads) % 2 else load(self, *args)

    monkeypatch.setattr(WeightLoader, "load", fail_every_other)
    run = pipe.generate(**{**OPTIONS, **CALLS[3]})
    images: list[bytes] = []
    while not images:
        with monkeypatch.context() as patch:
            patch.setattr(Program, "run", raise_out_of_memory)
            with pytest.raises(GpuMemoryError):
                next(run)
        with contextlib.suppress(GpuMemoryError):
            images = [image.tobytes() for image in next(run).images or []]
    assert images == normal[3]
    assert loads == [set()] * 6


def raise_out_of_memory(*_: Any, **__: Any) -> None:
    """As a device would."""
    raise GpuMemoryError("the device is out of memory")


def test_adapters(device: Device) -> None:
    """Prompts are read anew by the weights that an adapter changed, and all networks are loaded with it."""
    found: list[list[list[bytes]]] = []
    for memory in MEMORIES:
        with open_pipeline(device, memory, "sd1") as pipe:
            plain = images_of(pipe, CALLS[0])
            pipe.load_lora_weights(FOLDER / "lora" / "kohya.safetensors")
            adapted = images_of(pipe, CALLS[0])
            pipe.unload_lora_weights()
            assert images_of(pipe, CALLS[0]) == plain != adapted
        found.append([plain, adapted])
    assert found[0] == found[1]


def test_f16(device: Device) -> None:
    if not device.info.has_f16:
        pytest.skip("the device has no f16")
    found: list[list[bytes]] = []
    for memory in MEMORIES:
        with open_pipeline(device, memory, dtype="f16") as pipe:
            found.append(images_of(pipe, CALLS[0]))
    assert found[0] == found[1]


def test_closed(pipe: StableDiffusionPipeline, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = Meter(device, monkeypatch)
    run = pipe.generate(**{**OPTIONS, **CALLS[0]})
    next(run)
    pipe.close()
    assert meter.live_bytes == 0
    uses: list[Callable[[], object]] = [lambda: next(run), lambda: images_of(pipe, CALLS[0])]
    for use in uses:
        with pytest.raises(DeviceError, match="closed"):
            use()


def test_refused(device: Device) -> None:
    with pytest.raises(InputError, match=r"memory \(='small'\) must be normal, low or high"):
        StableDiffusionPipeline.from_pretrained("emoji", device=device, memory="small")  # type: ignore[arg-type]
