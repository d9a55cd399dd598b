"""Small pictures of latents: how a projection is fitted, which one a model has, and what of a step is shown."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.models import golden, load, model_folder
from PIL import Image
from safetensors.numpy import save_file

from shaderfusion.config import TinyVaeConfig
from shaderfusion.denoising import Step
from shaderfusion.engine import Engine
from shaderfusion.errors import InputError, ModelError
from shaderfusion.families import open_model
from shaderfusion.families.run_size import MEMORIES
from shaderfusion.gpu.device import Device
from shaderfusion.kernels.select import Kernels
from shaderfusion.models.tiny_autoencoder import tiny_decoder_graph
from shaderfusion.pipeline import StableDiffusionPipeline
from shaderfusion.previews import PROJECTIONS, SAMPLE_CELLS, fit_projection, sample_latents
from shaderfusion.schedulers import Update

SMALL: dict[str, Any] = {"num_inference_steps": 3, "width": 16, "height": 8, "seed": 1}


def averages(pixels: np.ndarray, f: int) -> np.ndarray:
    """Of each cell, (B, height / f, width / f, 3)."""
    B, height, width, _ = pixels.shape
    return pixels.reshape(B, height // f, f, width // f, f, 3).mean(axis=(2, 4))


def test_fit_finds_the_projection_that_there_is() -> None:
    noise = np.random.default_rng(0)
    latents, factors, bias = (
        noise.standard_normal((2, 5, 7, 6)),
        noise.standard_normal((6, 3)),
        noise.standard_normal(3),
    )
    pixels = (latents @ factors + bias).repeat(4, axis=1).repeat(4, axis=2)
    pixels += np.tile(np.array([[1, -1], [-1, 1]]).repeat(3).reshape(2, 2, 3), (1, 10, 14, 1))  # is 0 in each cell
    fitted = fit_projection(latents, pixels)
    assert np.allclose(fitted.factors, factors, atol=1e-5)
    assert np.allclose(fitted.bias, bias, atol=1e-5)


def test_pictures_have_a_pixel_for_each_cell() -> None:
    latents = np.zeros((2, 3, 5, 4), np.float32)
    latents[1, 2, 4] = (1e6, 0, 0, 0)
    first, second = PROJECTIONS[0.13025].pictures(latents)
    assert (first.size, first.mode) == ((5, 3), "RGB")
    assert first.getpixel((0, 0)) == (round(127.5 * 1.1084), round(127.5 * 0.9825), round(127.5 * 0.9989))
    assert second.getpixel((4, 2)) == (255, 255, 255)


def test_the_embedded_model_looks_like_its_pictures() -> None:
    run = golden("emoji").runs[4]
    latents, pixels = run.latents[-1], run.images / 127.5 - 1
    expected = averages(pixels, 4)
    projection = open_model("emoji").projection
    assert projection is not None
    error = np.clip(projection.project(latents), -1, 1) - expected
    assert np.square(error).mean() < 0.2 * expected.var(axis=(0, 1, 2)).mean()


def test_models_by_their_scaling_factor() -> None:
    assert open_model(model_folder("sd2")).projection is PROJECTIONS[0.18215]
    assert open_model(model_folder("sdxl")).projection is PROJECTIONS[0.13025]
    assert open_model(model_folder("thirds")).projection is None  # of 5 latent channels


def test_guidance_as_the_kernel_has_it() -> None:
    step = Step(1.0, Update(), 3.0, 1.0)
    rows = np.random.default_rng(0).standard_normal((6, 1, 2, 4)).astype(np.float16)
    uncond, first, second = np.split(rows.astype(np.float64), 3)
    weights = np.array([[1.5, 0], [-0.5, 1]], np.float32)
    for given, expected in (
        (step.guided(rows[:2], 2), uncond),
        (step.guided(rows[:4], 2), uncond + 3 * (first - uncond)),
        (
            step.guided(rows, 2, weights)[:1],
            (uncond + 3 * (1.5 * (first - uncond) - 0.5 * (second - uncond)))[:1],
        ),
        (step.guided(rows, 2, weights)[1:], (uncond + 3 * (second - uncond))[1:]),
    ):
        assert given.dtype == np.float32
        np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-5)


def test_unknown_latents_are_fitted_to_the_decoder_once(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    model, kernels = open_model(model_folder("odd")), Kernels("f32", device.capabilities)
    assert model.projection is None
    with StableDiffusionPipeline(device, model, kernels) as pipe:
        run = pipe.generate("a fox", **SMALL)
        first = next(run).latent_preview()
        side = SAMPLE_CELLS * model.scale_factor
        latents = sample_latents(model.latent_channels)
        pixels = pipe._engine.decode(latents, model.run_size(width=side, height=side))
        error = pipe._engine.projection().project(latents) - averages(pixels, model.scale_factor)
        for cell in (latents, np.ones_like(latents)):  # of the least squares, the error has nothing of either
            assert np.abs(np.einsum("bhwc,bhwp->cp", cell, error)).max() < 1e-2
        assert first[0].size == (16 // model.scale_factor, 8 // model.scale_factor)
        monkeypatch.setattr(Engine, "decode", None)  # nothing more is decoded for the next ones
        assert next(run).latent_preview()[0].tobytes() != first[0].tobytes()
        monkeypatch.undo()
        (last,) = run
        (expected,) = pipe("a fox", **SMALL).images
        assert [image.tobytes() for image in last.images or []] == [expected.tobytes()]


@pytest.mark.parametrize("guidance_scale", [1.0, 7.5])
@pytest.mark.parametrize("scheduler", ["ddim", "euler"])
def test_the_estimate_is_what_the_scheduler_goes_on_with(
    device: Device, scheduler: str, guidance_scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both schedulers' steps are x_prev = a x_0 + b x_t, so that x_0 follows from the latents before and after."""
    pipe = load(device, "sd2", "f32")
    monkeypatch.setattr(pipe, "scheduler", scheduler)
    run = pipe.generate("a fox", **SMALL, guidance_scale=guidance_scale)
    before = run.request.schedule.init_noise_sigma * run._first_noise()
    run._noise = type(run._noise)(1, 1, "cpu", "joint")  # whose first noise was just drawn
    schedule = run.request.schedule
    for progress in run:
        call = progress.step - 1
        if progress.step == progress.num_steps:
            assert np.array_equal(progress.estimate(), progress.latents)
            break
        # x = (sqrt(alpha) x_0 + sqrt(1 - alpha) eps) / scale, before the step and after it, with equal x_0 and eps
        signal, noise = (
            np.array([alpha**0.5, (1 - alpha) ** 0.5]) / scale
            for alpha, scale in zip(schedule.alphas[call:][:2], schedule.input_scales[call:][:2], strict=True)
        )
        share = noise[1] / signal[1]
        x_0 = (progress.latents - share * before) / (noise[0] - share * signal[0])
        np.testing.assert_allclose(progress.estimate(), x_0, rtol=1e-3, atol=1e-3)
        before = progress.latents


def write_tiny_vae(folder: Path, **options: Any) -> Path:
    """An AutoencoderTiny with random weights, by default for the latents of sd2."""
    given = {"latent_channels": 4, "decoder_block_out_channels": [8, 8], "num_decoder_blocks": [1, 2], **options}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"_class_name": "AutoencoderTiny", **given}))
    noise = np.random.default_rng(0)
    config = TinyVaeConfig.from_json(folder)
    weights = tiny_decoder_graph(config, Kernels("f32"), batch=1, height=4, width=4).weights
    tensors = {path: noise.normal(0, 0.2, weight.source_shape).astype(np.float32) for path, weight in weights.items()}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    return folder


def test_previews_by_another_vae(device: Device, tmp_path: Path) -> None:
    """They are those of a model that has that one as its own; pictures stay as they are."""
    tiny, kernels = write_tiny_vae(tmp_path / "tiny"), Kernels("f32", device.capabilities)
    seen = {}
    for name, options in {"none": {}, "beside": {"preview_vae": tiny}, "own": {"vae": tiny}}.items():
        model = open_model(model_folder("sd2"), **options)
        with StableDiffusionPipeline(device, model, kernels) as pipe:
            pipe.load(model.run_size(width=16, height=8))
            assert not pipe._engine._programs.get("preview_vae")
            first, *_, last = pipe.generate("a fox", **SMALL, num_images_per_prompt=2)
            seen[name] = [
                [image.tobytes() for image in pictures]
                for pictures in (first.quick_preview(), first.preview(), last.images or [])
            ]
            assert [image.size for image in first.quick_preview()] == [(16, 8)] * 2
    assert seen["beside"][0] == seen["own"][0] == seen["own"][1] != seen["none"][0]
    assert seen["beside"][1:] == seen["none"][1:]


def test_low_memory_takes_the_projection(device: Device, tmp_path: Path) -> None:
    model = open_model(model_folder("sd2"), preview_vae=write_tiny_vae(tmp_path / "tiny"))
    with StableDiffusionPipeline(device, model, Kernels("f32", device.capabilities), memory="low") as pipe:
        for progress in pipe.generate("a fox", **SMALL):
            small, large = progress.latent_preview()[0], progress.quick_preview()[0]
            assert (small.size, large.size) == ((8, 4), (16, 8))
            assert not pipe._engine._programs["preview_vae"]
    with pytest.raises(InputError, match=r"^preview_vae must be left out with memory='low'"):
        StableDiffusionPipeline.from_pretrained("emoji", preview_vae=tmp_path, memory="low")


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        (
            {"latent_channels": 3},
            r"^preview_vae's latents \(of 3 channels for 2 px\) must be the model's \(of 4 for 2 px\)",
        ),
        ({"decoder_block_out_channels": [8], "num_decoder_blocks": [1]}, r"^preview_vae's latents .*of 4 .* for 1 px"),
        ({"out_channels": 4}, r"^preview_vae's out_channels \(=4\) must be 3"),
    ],
)
def test_vaes_of_other_latents(tmp_path: Path, options: dict[str, Any], rule: str) -> None:
    with pytest.raises(ModelError, match=rule):
        open_model(model_folder("sd2"), preview_vae=write_tiny_vae(tmp_path / "tiny", **options))


def test_only_a_small_vae_is_for_previews() -> None:
    with pytest.raises(ModelError, match=r"^preview_vae \(=AutoencoderKL\) must be an AutoencoderTiny"):
        open_model(model_folder("sd2"), preview_vae=model_folder("sd2"))


def test_estimates_are_the_same_in_low_memory_and_keep_what_a_mask_keeps(device: Device) -> None:
    mask = Image.new("L", (16, 8))
    mask.paste(255, (8, 0, 16, 8))
    options = {**SMALL, "image": Image.new("RGB", (16, 8), "red"), "mask_image": mask, "num_images_per_prompt": 2}
    found = []
    for memory in MEMORIES:
        model = open_model(model_folder("sd2"))
        with StableDiffusionPipeline(device, model, Kernels("f32", device.capabilities), memory=memory) as pipe:
            run = pipe.generate("a fox", **options, strength=1.0)
            found.append([progress.estimate() for progress in run])
            assert run._kept is not None
            for estimate in found[-1]:
                np.testing.assert_allclose(estimate[:, :, :4], run._kept.latents[:, :, :4], atol=1e-6)
                assert np.abs(estimate - run._kept.latents)[:, :, 4:].mean() > 0.1
    np.testing.assert_allclose(found[0], found[1], rtol=1e-3, atol=1e-3)
