"""Every stage, and the whole pipeline, against diffusers in float32 (golden/make_models.py)."""

from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath

import numpy as np
import pytest
from golden.models import NAMES, PADDED, TINY, Run, golden, load, model_folder
from kernel_runner import own_capabilities, relative_error

from shaderfusion.denoising import DenoisingState, Step
from shaderfusion.families import open_model
from shaderfusion.families.run_size import RunSize
from shaderfusion.gpu.device import Device
from shaderfusion.graph.graph import Graph
from shaderfusion.kernels import select
from shaderfusion.kernels.call import KernelCall
from shaderfusion.kernels.capabilities import WEBGPU_DEFAULTS
from shaderfusion.kernels.optimizations import Optimizations
from shaderfusion.kernels.select import Kernels
from shaderfusion.kernels.tuning import Attention, Convolution, GatedLinear, Linear
from shaderfusion.pipeline import StableDiffusionPipeline
from shaderfusion.random import randn
from shaderfusion.schedulers import make_schedule
from shaderfusion.tune.survey import NthChoice

STAGE_BOUND = 1e-4  # relative error in f32
# Some runs amplify rounding from step to step, in diffusers too (to 2e-4 by emoji's PNDM); so they do another order of
# summation.
ROUNDING_FACTOR = 10
IMAGE_BOUND = 2  # of 255, for every value in f32
F16_PSNR_DB = 35

RUNS = [pytest.param(name, run, id=f"{name}-{run}") for name in NAMES for run in golden(name).runs]
CHECKED_RUNS = [pytest.param("odd", run, id=f"odd-{run}") for run in golden("odd").runs]

# Which golden models use an optimization on a GPU, by itself: 32 channels on enough tiles.
UNPADDED = tuple(name for name in NAMES if name not in PADDED)
USED_IN = dict.fromkeys(("gn", "geglu", "pfs", "flash"), UNPADDED) | {"winograd": ("emoji",)}
BASELINES = {
    "gn": "group_norm_unfused",
    "geglu": "geglu_unfused",
    "pfs": "softmax_unfused",
    "flash": "softmax_unfused",
    "winograd": "conv2d_direct",
}
PARTIAL = ("flash", "winograd")  # large heads and small convolutions stay with the baseline
GPU_RUNS = [
    *(("none", name) for name in UNPADDED),
    *((option, name) for option, names in USED_IN.items() for name in names),
    ("all", "emoji"),  # its decoder has a head that is too large for flash, which leaves the others none for pfs
]


def size_of(pipe: StableDiffusionPipeline, height: int, width: int) -> RunSize:
    """Of one image with guidance; the size is in latent cells."""
    f = pipe.model.scale_factor
    return pipe.model.run_size(height=f * height, width=f * width)


def graphs_of(pipe: StableDiffusionPipeline) -> dict[str, Graph]:
    """The graphs of the pipeline's last run."""
    return {name: list(programs.values())[-1].graph for name, programs in pipe._engine._programs.items() if programs}


def run_pipeline(pipe: StableDiffusionPipeline, run: Run) -> tuple[np.ndarray, list[np.ndarray]]:
    """The run's images, and the latents after each step."""
    latents, images = [], []
    for progress in pipe.generate(**run.call):
        latents.append(progress.latents)
        images = progress.images or []
    return np.stack([np.asarray(image) for image in images]).astype(np.int32), latents


def psnr_db(images: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal to noise of 8-bit images."""
    difference = images - reference.astype(np.float64)
    return float(10 * np.log10(255**2 / max(np.mean(difference**2), 1e-9)))


def require_equal_run(pipe: StableDiffusionPipeline, run: Run) -> None:
    """The latents of every step and the images."""
    images, latents = run_pipeline(pipe, run)
    bounds = [max(STAGE_BOUND, ROUNDING_FACTOR * rounding) for rounding in run.rounding]
    errors = [relative_error(x, reference) for x, reference in zip(latents, run.latents, strict=True)]
    assert all(error < bound for error, bound in zip(errors, bounds, strict=True)), (errors, bounds)
    assert images.shape == run.images.shape
    assert np.abs(images - run.images).max() <= IMAGE_BOUND


@pytest.mark.parametrize("name", NAMES)
def test_golden_images_vary(name: str) -> None:
    for run in golden(name).runs:
        deviation = run.images.astype(np.float64).std(axis=(1, 2)).mean()
        assert 30 < deviation < 100
        assert len(np.unique(run.images)) > 100
    with_noise = {"sd1": {"euler_a", "lcm"}, "tiny_sd": {"lcm"}}.get(name, set())  # in the steps
    assert {run.scheduler for run in golden(name).runs} == {"ddim", "euler", "pndm"} | with_noise


@pytest.mark.parametrize("name", NAMES)
def test_token_ids(name: str) -> None:
    model = open_model(model_folder(name))
    np.testing.assert_array_equal(model.tokenize(golden(name).prompts), golden(name).token_ids)
    assert golden(name).token_ids.shape[1:] == model.tokens_shape


@pytest.mark.parametrize("name", NAMES)
def test_conditioning(device: Device, name: str) -> None:
    pipe, reference = load(device, name, "f32"), golden(name)
    actual = pipe._engine.condition(reference.token_ids, pipe.model.run_size())
    assert {key: array.shape[1:] for key, array in actual.items()} == pipe.model.conditioning_shapes
    assert set(actual) == set(reference.conditioning)
    for key, expected in reference.conditioning.items():
        for row, expected_row in zip(actual[key], expected, strict=True):
            assert relative_error(row, expected_row) < STAGE_BOUND


@pytest.mark.parametrize("name", NAMES)
def test_unet(device: Device, name: str) -> None:
    pipe, reference = load(device, name, "f32"), golden(name)
    B, _, H, W = reference.unet_latents_shape
    f = pipe.model.scale_factor
    size = pipe.model.run_size(batch=B, height=f * H, width=f * W, guidance=False)
    latents = randn(reference.unet_latents_shape, reference.unet_seed).transpose(0, 2, 3, 1)
    update = make_schedule(pipe.model.scheduler_config, 1, "euler").updates[0]
    inputs = reference.conditioning | pipe.model.shared_inputs(size, reference.unet_guidance_scale)
    for timestep, expected in zip(reference.unet_timesteps, reference.unet_outputs, strict=True):
        state = DenoisingState(size, inputs, latents, 1.0)
        pipe._engine.denoise(state, Step(timestep, update, 1.0, 1.0))
        actual = pipe._engine.program("unet", size).read("model_output")
        for row, expected_row in zip(actual, expected, strict=True):
            assert relative_error(row, expected_row) < STAGE_BOUND


@pytest.mark.parametrize("name", NAMES)
def test_decoder(device: Device, name: str) -> None:
    run = next(run for run in golden(name).runs if run.pixels is not None)
    assert run.pixels is not None
    pipe = load(device, name, "f32")
    pixels = pipe._engine.decode(run.latents[-1], size_of(pipe, *run.latents.shape[2:4]))
    assert relative_error(pixels, run.pixels) < STAGE_BOUND


@pytest.mark.parametrize(("name", "run"), RUNS)
def test_whole_run(device: Device, name: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = load(device, name, "f32")
    monkeypatch.setattr(pipe, "scheduler", run.scheduler)
    require_equal_run(pipe, run)


@pytest.mark.parametrize(("name", "run"), CHECKED_RUNS)
def test_whole_run_checked(checked_device: Device, name: str, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = load(checked_device, name, "f32")
    monkeypatch.setattr(pipe, "scheduler", run.scheduler)
    require_equal_run(pipe, run)


def count_kernels(calls: Iterable[KernelCall]) -> Counter[str]:
    """Dispatches by the kernel's file; a product with GEGLU as its epilogue counts as geglu."""
    return Counter("geglu" if "GEGLU" in call.constants else PurePosixPath(call.source).stem for call in calls)


@pytest.mark.parametrize(("option", "name"), GPU_RUNS)
def test_whole_run_with_the_kernels_of_gpus(
    device: Device, option: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each optimization by itself, none and all; the graphs that ran must really hold what is said to be on."""
    if option == "geglu":  # by itself as the projection's epilogue, as in large layers; with `all` in a dispatch
        monkeypatch.setattr(select, "_FUSED_GEGLU_SIZE", 0)
    run = golden(name).runs[0]
    kernels = Kernels("f32", optimizations=Optimizations.parse(option))
    pipe = load.__wrapped__(device, name, "f32", kernels)  # not kept: no other test uses it
    require_equal_run(pipe, run)  # by the model's own scheduler

    graphs = graphs_of(pipe)
    plain_kernels = Kernels("f32", optimizations=Optimizations.parse("none"))
    plain = pipe.model.record(plain_kernels, size_of(pipe, *run.latents.shape[2:4]))
    ran, baseline = (count_kernels(call for graph in g.values() for call in graph.calls) for g in (graphs, plain))
    allowed = {"all": tuple(USED_IN), "none": ()}.get(option, (option,))
    for short, kernel in Optimizations.SHORT_NAMES.items():
        used = short in allowed and name in USED_IN[short]
        assert (ran[kernel] > 0) == used
        if used:
            assert ran[BASELINES[short]] < baseline[BASELINES[short]]
            assert ran[BASELINES[short]] == 0 or short in PARTIAL
    if option == "none":
        assert ran == baseline
    assert any("GEGLU" in call.constants for call in graphs["unet"].calls) == (option == "geglu")


@pytest.mark.parametrize("option", ["none", "all"])
@pytest.mark.parametrize("name", PADDED)
def test_whole_run_with_padding_on_gpus(device: Device, option: str, name: str) -> None:
    kernels = Kernels("f32", optimizations=Optimizations.parse(option))
    pipe = load.__wrapped__(device, name, "f32", kernels)  # not kept: no other test uses it
    require_equal_run(pipe, golden(name).runs[0])
    for graph in graphs_of(pipe).values():
        assert any(binding.tensor.padding for call in graph.calls for binding in call.bindings)


@pytest.mark.parametrize(
    ("kind", "name", "n"),
    [
        *(("gpu", "sd1", n) for n in (1, 4, 9)),
        ("gpu", "emoji", 100),  # the last of each
        *(("cpu", "emoji", n) for n in (1, 4, 9)),
        *(("cpu", "ragged", n) for n in (1, 4)),
    ],
)
def test_whole_run_with_other_choices(device: Device, kind: str, name: str, n: int) -> None:
    """The n-th way to do each operation instead of the static rules', which `shaderfusion tune` might choose."""
    capabilities = WEBGPU_DEFAULTS if kind == "gpu" else device.capabilities
    tuning = NthChoice(n=n)
    pipe = load.__wrapped__(device, name, "f32", Kernels("f32", capabilities, tuning=tuning))  # not kept
    require_equal_run(pipe, golden(name).runs[0])
    changed = {type(operation) for operation, ways in tuning.ways.items() if len(ways) > 1}
    assert changed == {Linear, GatedLinear, Convolution, Attention}


def test_decoder_with_the_kernels_of_large_layers(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Filters transformed in the run, in slices, and group norms folded into the convolutions."""
    monkeypatch.setattr(select, "_MAX_LOADED_FILTERS_BYTES", 0)
    monkeypatch.setattr(select, "_FOLDED_GROUP_SIZE", 0)
    monkeypatch.setattr(select, "MAX_FILTERS_BYTES", 1 << 18)
    run = golden("emoji").runs[0]
    assert run.pixels is not None
    pipe = load.__wrapped__(device, "emoji", "f32", Kernels("f32"))  # not kept: no other test uses it
    pixels = pipe._engine.decode(run.latents[-1], size_of(pipe, *run.latents.shape[2:4]))
    calls = graphs_of(pipe)["vae"].calls
    assert any("NORM" in call.constants for call in calls)
    passes = [call.entry_point for call in calls]
    assert passes.count("transform_filters") > passes.count("transform_input")
    assert relative_error(pixels, run.pixels) < STAGE_BOUND


def require_f16(device: Device, name: str, run: Run) -> StableDiffusionPipeline:
    """The run's images in f16, emulated on a CPU, are as good as those of f32; its pipeline."""
    if not device.info.has_f16:
        pytest.skip("the device has no f16")
    pipe = load(device, name, "f16")
    images, _ = run_pipeline(pipe, run)
    assert psnr_db(images, run.images) > F16_PSNR_DB
    return pipe


@pytest.mark.parametrize("name", TINY)
def test_whole_run_f16(device: Device, name: str) -> None:
    require_f16(device, name, golden(name).runs[0])


def test_whole_run_f16_with_the_kernels_of_gpus(device: Device) -> None:
    """Products summed in pairs, FlashAttention and Winograd, at the embedded model's own size: 59 dB."""
    if not device.info.has_f16:
        pytest.skip("the device has no f16")
    run = golden("emoji").runs[4]
    pipe = load.__wrapped__(device, "emoji", "f16", Kernels("f16"))  # not kept: no other test uses it
    images, _ = run_pipeline(pipe, run)
    calls = [call for graph in graphs_of(pipe).values() for call in graph.calls]
    assert any(call.constants.get("PAIRS") for call in calls)
    assert {"flash_attention", "winograd_conv"} < set(count_kernels(calls))
    assert psnr_db(images, run.images) > F16_PSNR_DB


def test_whole_run_f16_on_matrix_units(device: Device) -> None:
    """All products whose sizes are in eights, and attention."""
    run = golden("sd1").runs[0]
    pipe = load.__wrapped__(device, "sd1", "f16", Kernels("f16", own_capabilities(device)))  # not kept
    images, _ = run_pipeline(pipe, run)
    on_matrices = {call.name for g in graphs_of(pipe).values() for call in g.calls if "MATRIX_UNITS" in call.constants}
    assert on_matrices == {"matmul.product", "conv2d_direct.product", "flash_attention"}
    assert psnr_db(images, run.images) > F16_PSNR_DB


def test_whole_run_f16_with_winograd_4(device: Device) -> None:
    """The embedded model at its own size: nearly all convolutions of its decoder, and the UNet's largest."""
    if device.capabilities.matrix_units:
        pytest.skip("on matrix units convolutions of so few channels are direct")
    run = golden("emoji").runs[4]
    assert run.images.shape == (1, 128, 128, 3)
    graphs = graphs_of(require_f16(device, "emoji", run))
    for name in ("unet", "vae"):
        calls = graphs[name].calls
        assert 4 in {call.constants["M"] for call in calls if call.source == "optimized/winograd_conv.wgsl"}
    kernels = count_kernels(graphs["vae"].calls)
    assert kernels["winograd_conv"] > kernels["conv2d_direct"]
