"""Runs that share a pipeline or a device: in turn, from threads, closed, kept, and out of f16's range."""

import gc
import json
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.models import FAMILIES, golden, load, model_folder
from PIL import Image
from safetensors.numpy import load_file, save_file

from shaderfusion.denoising import DenoisingState, Step
from shaderfusion.engine import PrecisionWarning
from shaderfusion.errors import DeviceError, GpuMemoryError, InputError, NotFiniteError
from shaderfusion.families.run_size import Memory
from shaderfusion.families.stable_diffusion import StableDiffusion
from shaderfusion.gpu.device import Device
from shaderfusion.gpu.turn import Turn
from shaderfusion.graph.program import Program
from shaderfusion.kernels.select import Kernels
from shaderfusion.pipeline import StableDiffusionPipeline
from shaderfusion.random import NormalGenerator
from shaderfusion.run import Run
from shaderfusion.schedulers import Update, make_schedule
from shaderfusion.seeds import PictureNoise, Rng

OPTIONS: dict[str, Any] = {"num_inference_steps": 4, "width": 16, "height": 8}
CALLS: list[dict[str, Any]] = [
    {"prompt": "a fox", "seed": 1},
    {"prompt": "a dog", "seed": 2, "guidance_scale": 3.0},
    {"prompt": "a cat", "seed": 3, "width": 8, "num_images_per_prompt": 2},
    {"prompt": "a bird", "seed": 4, "height": 24, "guidance_scale": 1.0},
]


def open_pipeline(
    device: Device, folder: Path, dtype: Any = "f32", scheduler: str | None = None, memory: Memory = "normal"
) -> Any:
    """A pipeline of its own."""
    kernels = Kernels(dtype, device.capabilities)
    return StableDiffusionPipeline(device, StableDiffusion.from_folder(folder), kernels, scheduler, memory)


@pytest.fixture
def pipe(device: Device) -> Iterator[StableDiffusionPipeline]:
    """A tiny model whose scheduler, PNDM, has a history."""
    with open_pipeline(device, model_folder("sd2"), scheduler="pndm") as opened:
        yield opened


def start(pipe: StableDiffusionPipeline, call: dict[str, Any]) -> Run:
    """A run of one of CALLS."""
    return pipe.generate(**{**OPTIONS, **call})


def finish(run: Run) -> list[bytes]:
    """The images' bytes."""
    *_, last = run
    return [image.tobytes() for image in last.images or []]


@pytest.fixture
def alone(pipe: StableDiffusionPipeline) -> list[list[bytes]]:
    """The images of each of CALLS by itself."""
    return [finish(start(pipe, call)) for call in CALLS]


def test_runs_in_turn_are_as_alone(pipe: StableDiffusionPipeline, alone: list[list[bytes]]) -> None:
    runs = [start(pipe, call) for call in CALLS]
    found: list[list[bytes]] = [[] for _ in runs]
    for steps in zip(*runs, strict=True):
        for index, progress in enumerate(steps):
            progress.preview()
            found[index] = [image.tobytes() for image in progress.images or []]
    assert found == alone


def test_a_finished_run_keeps_its_picture(pipe: StableDiffusionPipeline, alone: list[list[bytes]]) -> None:
    kept = [list(start(pipe, call)) for call in CALLS]
    for progresses, images in zip(kept, alone, strict=True):
        assert [image.tobytes() for image in progresses[-1].preview()] == images
        assert [image.tobytes() for image in progresses[0].preview()] != images


def test_runs_from_threads(pipe: StableDiffusionPipeline, alone: list[list[bytes]]) -> None:
    found: dict[int, list[bytes]] = {}

    def work(index: int) -> None:
        found[index] = finish(start(pipe, CALLS[index % len(CALLS)]))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[index] for index in range(6)] == [alone[index % len(CALLS)] for index in range(6)]


def test_turns_are_served_in_the_order_of_asking() -> None:
    turn, served = Turn(), []
    waiting: list[threading.Thread] = []

    def work(name: int) -> None:
        with turn, turn:  # again by the same thread
            served.append(name)

    with turn:
        for name in range(5):
            waiting.append(threading.Thread(target=work, args=(name,)))
            waiting[-1].start()
            while len(turn._waiting) < name + 2:
                pass
    for thread in waiting:
        thread.join()
    assert served == list(range(5))


def num_buffers(device: Device) -> int:
    """Buffers of all devices, or bytes of this one's, by the implementation's own report."""
    gc.collect()
    if device.info.runtime == "dawn":
        from wgpudawn.backends.dawn.extras import get_memory_usage

        return get_memory_usage(device.handle)["buffers"]
    from wgpu.backends.wgpu_native import _helpers as native

    return native.generate_report()["hub"]["buffers"]["allocated"]


def test_closing_frees_the_device(device: Device) -> None:
    before = num_buffers(device)
    pipe = open_pipeline(device, model_folder("sd2"))
    run = start(pipe, CALLS[0])
    progress = next(run)
    assert num_buffers(device) > before
    pipe.close()
    assert num_buffers(device) == before
    for use in (lambda: next(run), progress.preview, lambda: start(pipe, CALLS[1])):
        with pytest.raises(DeviceError, match="this pipeline is closed; open the model again with from_pretrained"):
            use()
    pipe.close()  # again does nothing


def test_a_run_goes_on_after_a_failure(
    pipe: StableDiffusionPipeline, alone: list[list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a step or the pictures failed: nothing that was done is lost or done again."""
    run = start(pipe, CALLS[0])
    steps = [next(run).step, next(run).step]
    for method in ("program", "decode"):
        while len(steps) < (2 if method == "program" else OPTIONS["num_inference_steps"]):
            steps.append(next(run).step)
        with monkeypatch.context() as patch:
            patch.setattr(pipe._engine, method, raise_out_of_memory)
            with pytest.raises(GpuMemoryError):
                next(run)
    *_, last = run
    assert steps == [1, 2, 3, 4]
    assert [image.tobytes() for image in last.images or []] == alone[0]


@pytest.mark.parametrize("scheduler", ["euler_a", "lcm"])
def test_a_step_that_failed_is_done_again_with_its_noise(
    pipe: StableDiffusionPipeline, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In turn with another run too, whose noise is its own."""
    monkeypatch.setattr(pipe, "scheduler", scheduler)
    alone = finish(start(pipe, CALLS[2]))
    run, other = start(pipe, CALLS[2]), start(pipe, CALLS[0])
    for _ in range(OPTIONS["num_inference_steps"] - 1):
        with monkeypatch.context() as patch:
            patch.setattr(pipe._engine, "program", raise_out_of_memory)
            for _ in range(2):
                with pytest.raises(GpuMemoryError):
                    next(run)
        next(run)
        next(other)
    assert finish(run) == alone


def test_noise_of_steps_is_the_generators_next(pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first latents, or, where those are given, from the beginning, as in diffusers."""
    monkeypatch.setattr(pipe, "scheduler", "lcm")
    given: list[np.ndarray] = []
    denoise = pipe._engine.denoise

    def recorded(state: DenoisingState, step: Step, *then: Step) -> None:
        given.extend([] if step.noise is None else [step.noise])
        denoise(state, step, *then)

    monkeypatch.setattr(pipe._engine, "denoise", recorded)
    B, H, W, C = 2, 4, 4, 4
    generator = NormalGenerator(3)
    drawn = [generator.randn((B, C, H, W)) for _ in range(4)]
    options: dict[str, Any] = {"num_inference_steps": 4, "width": 8, "height": 8, "num_images_per_prompt": B, "seed": 3}
    finish(pipe.generate("a cat", **options))
    finish(pipe.generate("a cat", latents=drawn[0], **options))
    expected = np.stack([*drawn[1:4], *drawn[:3]]).transpose(0, 1, 3, 4, 2)
    np.testing.assert_array_equal(np.stack(given), expected)


def test_noise_of_steps_is_of_one_path(pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a picture to begin with too, whose run has the later part of it."""
    monkeypatch.setattr(pipe, "scheduler", "dpmpp_sde")
    given: list[np.ndarray] = []
    denoise = pipe._engine.denoise

    def recorded(state: DenoisingState, step: Step, *then: Step) -> np.ndarray:
        given.extend([] if step.noise is None else [step.noise])
        return denoise(state, step, *then)

    monkeypatch.setattr(pipe._engine, "denoise", recorded)
    options: dict[str, Any] = {"num_inference_steps": 4, "width": 8, "height": 8, "seed": 3}
    finish(pipe.generate("a cat", **options))
    times = make_schedule(pipe.model.scheduler_config, 4, "dpmpp_sde").path_times
    assert times
    expected = [PictureNoise(3, 1).draw_along(times, call, (4, 4, 4)).transpose(0, 2, 3, 1) for call in range(6)]
    np.testing.assert_array_equal(given, expected)
    given.clear()
    finish(pipe.generate("a cat", image=Image.new("RGB", (8, 8)), strength=0.5, **options))
    np.testing.assert_array_equal(given, expected[4:])


@pytest.mark.parametrize(
    ("scheduler", "eta", "rng"), [("ddim", 0.8, "cpu"), ("euler_a", 0.0, "philox"), ("dpmpp_sde", 0.0, "cpu")]
)
def test_seeds_each_make_the_pictures_of_each_seed(
    pipe: StableDiffusionPipeline, scheduler: str, eta: float, rng: Rng, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Latents and the steps' noise."""
    monkeypatch.setattr(pipe, "scheduler", scheduler)
    options: dict[str, Any] = {"num_inference_steps": 2, "width": 8, "height": 8, "rng": rng, "eta": eta}
    together = list(pipe.generate("a cat", seed=3, num_images_per_prompt=2, seeds="each", **options))
    for index in range(2):
        alone = list(pipe.generate("a cat", seed=3 + index, **options))
        for ours, theirs in zip(together, alone, strict=True):
            np.testing.assert_allclose(ours.latents[index], theirs.latents[0], rtol=1e-4, atol=1e-4)
    joint = next(pipe.generate("a cat", seed=3, num_images_per_prompt=2, **options))
    assert np.abs(joint.latents[1] - together[0].latents[1]).max() > 0.1


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rng": "cuda"}, r"rng \(='cuda'\) must be cpu or philox"),
        ({"seeds": "every"}, r"seeds \(='every'\) must be joint or each"),
        ({"eta": 0.5}, r"eta \(=0.5\) must be 0 with the scheduler pndm; only ddim and tcd take another"),
        ({"seed": 2**64 - 1, "seeds": "each", "num_images_per_prompt": 2}, r"seed \(=18446744073709551616\) must be"),
    ],
)
def test_refuses_noise(pipe: StableDiffusionPipeline, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        pipe.generate("a cat", **{**OPTIONS, "seed": 1, **options})


def raise_out_of_memory(*_: Any, **__: Any) -> None:
    """As a device would."""
    raise GpuMemoryError("the device is out of memory")


def test_closed_runs_end(pipe: StableDiffusionPipeline) -> None:
    with start(pipe, CALLS[0]) as run:
        assert next(run).step == 1
    assert list(run) == []


def test_what_is_kept_of_a_run_holds_no_memory(pipe: StableDiffusionPipeline) -> None:
    """30 sizes leave as many buffers and pipelines as the last ones need, whoever keeps their progress."""
    pipelines = pipe.device.pipelines

    def leave(sizes: list[tuple[int, int]]) -> tuple[int, int]:
        kept = [next(pipe.generate("a fox", num_inference_steps=2, width=w, height=h, seed=1)) for w, h in sizes]
        counted = num_buffers(pipe.device), len(pipelines)
        assert len(kept) == len(sizes)
        return counted

    last = [(40, 8), (8, 40)]
    few = leave(last)
    many = leave([(8 * (1 + index % 6), 8 * (1 + index // 6)) for index in range(28)] + last)
    assert many == few


def test_many_prompts(pipe: StableDiffusionPipeline) -> None:
    """One call is as several with the same noise."""
    prompts, negatives = ["a fox", "a dog"], ["rain", "snow"]
    noise = np.random.default_rng(0).standard_normal((4, 4, 4, 8)).astype(np.float32)
    options = {**OPTIONS, "num_images_per_prompt": 2}
    together = finish(pipe.generate(prompts, negative_prompt=negatives, latents=noise, **options))
    apart = [
        finish(pipe.generate(prompt, negative_prompt=negative, latents=noise[2 * k : 2 * k + 2], **options))
        for k, (prompt, negative) in enumerate(zip(prompts, negatives, strict=True))
    ]
    assert together == apart[0] + apart[1]
    shared = finish(pipe.generate(prompts, negative_prompt="rain", latents=noise, **options))
    assert shared[:2] == together[:2]
    assert shared[2:] != together[2:]


def test_latents_are_the_noise_to_begin_with(device: Device) -> None:
    pipe, run = load(device, "sd1", "f32"), golden("sd1").runs[0]
    noise = np.random.default_rng(0).standard_normal((1, 4, 4, 8)).astype(np.float32)
    options = {**OPTIONS, "width": 8 * pipe.model.scale_factor, "height": 4 * pipe.model.scale_factor}
    first = finish(pipe.generate("a fox", latents=noise, seed=1, **options))
    assert first == finish(pipe.generate("a fox", latents=noise, seed=2, **options))
    assert first != finish(pipe.generate("a fox", latents=-noise, **options))
    assert run.images.size


def test_embeddings_take_the_place_of_prompts(pipe: StableDiffusionPipeline) -> None:
    size = pipe.model.run_size()
    rows = pipe._engine.condition(pipe.model.tokenize(["a fox", ""]), size)["embedding"]
    text = finish(pipe.generate("a fox", seed=1, **OPTIONS))
    assert finish(pipe.generate(prompt_embeds=rows[:1], seed=1, **OPTIONS)) == text
    assert finish(pipe.generate(prompt_embeds=rows[:1], negative_prompt_embeds=rows[1:], seed=1, **OPTIONS)) == text
    longer = np.concatenate([rows, -rows], axis=1)  # as of a prompt in two chunks
    long = pipe.generate(prompt_embeds=longer[:1], negative_prompt_embeds=longer[1:], seed=1, **OPTIONS)
    assert finish(long) != text


def test_keys_and_values_of_the_prompt_are_made_once(
    pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[bool] = []
    run_program = Program.run

    def record(self: Program, *, again: bool = False) -> None:
        if self.graph.name == "unet":
            runs.append(again)
        run_program(self, again=again)

    monkeypatch.setattr(Program, "run", record)
    one, other = start(pipe, CALLS[0]), start(pipe, CALLS[0])
    for run in (one, one, other, one, one):
        next(run)
    # Anew for each run that takes the device; after a second step in a row the next one is submitted as well.
    assert runs == [False, True, True, False, False, True, True]


def test_the_next_step_is_submitted_before_this_one_is_waited_for(
    pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the second on, when nobody else has used the device since the first."""
    events: list[str] = []
    run_program, start_reading = Program.run, Program.start_reading

    def recorded_run(self: Program, *, again: bool = False) -> None:
        events.append("run" if self.graph.name == "unet" else "")
        run_program(self, again=again)

    def recorded_reading(self: Program, names: Sequence[str]) -> Callable[[], dict[str, np.ndarray]]:
        finish = start_reading(self, names)

        def recorded_finish() -> dict[str, np.ndarray]:
            events.append("wait" if self.graph.name == "unet" else "")
            return finish()

        return recorded_finish

    monkeypatch.setattr(Program, "run", recorded_run)
    monkeypatch.setattr(Program, "start_reading", recorded_reading)
    finish(start(pipe, CALLS[0]))
    events = [event for event in events if event]
    assert events == ["run", "wait", "run", *["run", "wait"] * 3, "wait"]


def test_a_step_that_nobody_waited_for_changes_nothing(
    pipe: StableDiffusionPipeline, alone: list[list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    left, run = start(pipe, CALLS[0]), start(pipe, CALLS[1])
    for _ in range(3):  # the fourth is under way
        next(left)
    assert finish(run) == alone[1]
    assert finish(left) == alone[0]
    again = start(pipe, CALLS[0])
    next(again)
    with monkeypatch.context() as patch:
        patch.setattr(Program, "start_reading", raise_out_of_memory)
        with pytest.raises(GpuMemoryError):
            next(again)
    assert finish(again) == alone[0]


@pytest.mark.parametrize("name", FAMILIES)
def test_runs_of_any_family_take_turns(device: Device, name: str) -> None:
    """What no prompt changes is a run's too: the same program serves another guidance scale in between."""
    pipe = load(device, name, "f32")
    calls: list[dict[str, Any]] = [
        {"prompt": prompt, "guidance_scale": scale, "seed": 1, "num_inference_steps": 2}
        for prompt, scale in (("a fox", 3.0), ("a dog", 6.0))
    ]
    alone = [finish(pipe.generate(**call)) for call in calls]
    runs = [pipe.generate(**call) for call in calls]
    for run in runs:
        next(run)
    assert [finish(run) for run in runs] == alone
    assert alone[0] != alone[1]


# ---------------------------------------------------------------------------------------------- overflow


def changed_model(folder: Path, component: str, tensor: str, factor: float, *, force_upcast: bool = False) -> Path:
    """The model with one tensor scaled, in f32, and that option of the decoder."""
    shutil.copytree(model_folder("sd2"), folder)
    file = next((folder / component).glob("*.safetensors"))
    tensors = {name: array.astype(np.float32) for name, array in load_file(file).items()}
    (name,) = (name for name in tensors if name.endswith(tensor))
    tensors[name] *= np.float32(factor)
    save_file(tensors, file)
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"force_upcast": force_upcast}))
    return folder


OVERFLOWING = {
    "text_encoder": ("layers.0.mlp.fc2.weight", 1e5),
    "unet": ("down_blocks.0.resnets.0.conv2.weight", 3e4),
    "vae": ("decoder.conv_in.weight", 1e5),
}


@pytest.mark.parametrize(("network", "memory"), [*((name, "normal") for name in OVERFLOWING), ("unet", "low")])
def test_a_network_that_overflows_f16_runs_in_f32(device: Device, tmp_path: Path, network: str, memory: Memory) -> None:
    if not device.info.has_f16:
        pytest.skip("the device has no f16")
    folder = changed_model(tmp_path / "model", network, *OVERFLOWING[network])
    with open_pipeline(device, folder, "f32") as wide:
        expected = np.stack([np.asarray(image) for image in list(start(wide, CALLS[0]))[-1].images or []])
    with open_pipeline(device, folder, "f16", memory=memory) as pipe:
        with pytest.warns(
            PrecisionWarning, match=f"^{network}: its values are over the range of f16, so it runs in f32"
        ):
            images = list(start(pipe, CALLS[0]))[-1].images
        assert {name: pipe._engine.dtype_of(name) for name in OVERFLOWING} == {
            name: "f32" if name == network else "f16" for name in OVERFLOWING
        }
        found = np.stack([np.asarray(image) for image in images or []])
        assert np.abs(found.astype(int) - expected).mean() < 8
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # it is said once
            finish(start(pipe, CALLS[1]))


def test_a_warning_that_is_raised_loses_no_step(device: Device, tmp_path: Path) -> None:
    """The step that overflowed is done again, from the same state."""
    if not device.info.has_f16:
        pytest.skip("the device has no f16")
    folder = changed_model(tmp_path / "model", "unet", *OVERFLOWING["unet"])
    with open_pipeline(device, folder, "f16") as pipe:
        run = start(pipe, CALLS[0])
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with pytest.raises(PrecisionWarning):
                finish(run)
        continued = finish(run)
    with open_pipeline(device, folder, "f16") as pipe, pytest.warns(PrecisionWarning):
        assert continued == finish(start(pipe, CALLS[0]))


@pytest.mark.parametrize(("network", "factor"), [("text_encoder", 1e38), ("unet", 1e38), ("vae", 1e38)])
def test_values_that_are_not_finite_in_f32_either(device: Device, tmp_path: Path, network: str, factor: float) -> None:
    folder = changed_model(tmp_path / "model", network, OVERFLOWING[network][0], factor)
    with (
        open_pipeline(device, folder) as pipe,
        pytest.raises(NotFiniteError, match=f"^{network}: its values are not finite"),
    ):
        finish(start(pipe, CALLS[0]))


def test_guidance_out_of_range(pipe: StableDiffusionPipeline, alone: list[list[bytes]]) -> None:
    with pytest.raises(NotFiniteError, match=r"guidance_scale"):
        finish(pipe.generate("a fox", guidance_scale=3e38, seed=1, **OPTIONS))
    assert finish(start(pipe, CALLS[0])) == alone[0]


def test_guidance_out_of_the_range_of_the_latents(pipe: StableDiffusionPipeline) -> None:
    size = pipe.model.run_size(width=8, height=8)
    x_t = np.full(pipe.model.latents_shape(size), 1e30, np.float32)
    state = DenoisingState(size, {"embedding": np.ones((2, 17, 24), np.float32)}, x_t, 0.0)
    message = r"^guidance_scale \(=3e\+38\) takes the latents out of the range of f32"
    with pytest.raises(NotFiniteError, match=message):
        pipe._engine.denoise(state, Step(1.0, Update(c_x=1e30), 3e38, 1.0))
    assert np.array_equal(state.x_t, x_t)


def test_force_upcast(device: Device, tmp_path: Path) -> None:
    """It is said when the model is opened."""
    for force in (True, False):
        folder = changed_model(tmp_path / str(force), "vae", "decoder.conv_in.weight", 1.0, force_upcast=force)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            with open_pipeline(device, folder, "f16") as pipe:
                assert pipe._engine.dtype_of("vae") == ("f32" if force else "f16")
                assert pipe._engine.dtype_of("unet") == "f16"
        messages = [str(warning.message) for warning in said if warning.category is PrecisionWarning]
        assert messages == ["vae: runs in f32, which its configuration asks for"] * force


def test_parts_are_told_as_they_begin(pipe: StableDiffusionPipeline) -> None:
    for options, parts in (
        ({}, ["text", "denoise"]),
        ({"image": Image.new("RGB", (8, 8))}, ["text", "encode", "denoise"]),
    ):
        run, told = start(pipe, CALLS[0] | options), list[str]()
        run.watch = told.append
        assert next(run).images is None
        assert told == parts
        *_, last = run
        assert last.images
        assert told == [*parts, "decode"]


def test_a_run_that_is_finished_early(pipe: StableDiffusionPipeline) -> None:
    run = start(pipe, CALLS[0])
    first = next(run)
    run.finish()
    (last,) = run
    assert (last.step, last.num_steps) == (1, first.num_steps)
    assert np.array_equal(last.latents, first.latents)
    assert [image.tobytes() for image in last.images or []] != [image.tobytes() for image in first.preview()]
    assert np.array_equal(last.estimate(), last.latents)


def test_a_change_that_fails_loses_no_step(pipe: StableDiffusionPipeline, alone: list[list[bytes]]) -> None:
    run = start(pipe, CALLS[0])

    def fail(step: int, latents: np.ndarray) -> None:
        if step == 1:
            raise ZeroDivisionError

    run.change = fail
    next(run)
    with pytest.raises(ZeroDivisionError):
        next(run)
    assert finish(run) == alone[0]
