"""The pipeline as its callers see it: what it yields and when, what repeats, what it refuses, what loading costs."""

import math
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.models import golden, load, model_folder
from safetensors.numpy import save_file

from shaderfusion.config import ClipTextConfig
from shaderfusion.errors import DeviceLimitError, InputError, ModelError
from shaderfusion.gpu.device import Device
from shaderfusion.kernels.select import Kernels
from shaderfusion.models.clip import text_encoder_graph
from shaderfusion.pipeline import Progress, StableDiffusionPipeline
from shaderfusion.text.tokenizer import PromptTruncatedWarning
from shaderfusion.weights.checkpoint import Checkpoint
from shaderfusion.weights.prepare import WeightLoader

SMALL: dict[str, Any] = {"num_inference_steps": 2, "width": 16, "height": 8}


@pytest.fixture
def pipe(device: Device) -> StableDiffusionPipeline:
    """A tiny model; its scheduler is DDIM."""
    return load(device, "sd2", "f32")


def images_of(pipe: StableDiffusionPipeline, prompt: str = "a fox", **options: Any) -> list[bytes]:
    """The images' bytes, of a seeded call unless told otherwise."""
    return [image.tobytes() for image in pipe(prompt, **{**SMALL, "seed": 1, **options}).images]


@pytest.mark.parametrize(("scheduler", "calls"), [("ddim", 3), ("euler", 3), ("pndm", 4)])
def test_progress(pipe: StableDiffusionPipeline, scheduler: str, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe, "scheduler", scheduler)
    seen = list(pipe.generate("a fox", **{**SMALL, "num_inference_steps": 3}, seed=5, num_images_per_prompt=2))
    assert [(p.step, p.num_steps, p.seed) for p in seen] == [(k, calls, 5) for k in range(1, calls + 1)]
    assert all(p.images is None for p in seen[:-1])
    images = seen[-1].images
    assert images is not None
    assert [(image.size, image.mode) for image in images] == [((16, 8), "RGB")] * 2
    assert images[0].tobytes() != images[1].tobytes()


def test_preview_shows_the_latents_of_its_step_and_changes_nothing(pipe: StableDiffusionPipeline) -> None:
    previews, last = [], None
    for last in pipe.generate("a fox", **SMALL, seed=1):
        previews.append([image.tobytes() for image in last.preview()])
    assert isinstance(last, Progress)
    assert previews[0] != previews[1]
    assert [image.tobytes() for image in last.images or []] == previews[-1] == images_of(pipe)


def test_closing_the_generator_cancels(pipe: StableDiffusionPipeline) -> None:
    expected = images_of(pipe)
    generator: Any = pipe.generate("another prompt", **{**SMALL, "num_inference_steps": 50}, seed=2)
    assert next(generator).step == 1
    generator.close()
    assert list(generator) == []
    assert images_of(pipe) == expected


def test_bad_input_is_refused_when_it_is_given(pipe: StableDiffusionPipeline) -> None:
    bad: list[dict[str, Any]] = [{"width": 7}, {"num_inference_steps": 0}, {"seed": "x"}, {"latents": 1}]
    for options in bad:
        with pytest.raises(InputError):
            pipe.generate("a fox", **options)


def test_seeds(pipe: StableDiffusionPipeline) -> None:
    first = images_of(pipe)
    assert images_of(pipe, seed=2) != first
    assert images_of(pipe, prompt="a dog") != first
    assert images_of(pipe, negative_prompt="a dog") != first
    assert images_of(pipe, guidance_scale=3) != first
    assert images_of(pipe) == first


def test_without_guidance_the_negative_prompt_is_unused(pipe: StableDiffusionPipeline) -> None:
    plain = images_of(pipe, guidance_scale=1)
    assert plain == images_of(pipe, guidance_scale=0) == images_of(pipe, guidance_scale=1, negative_prompt="a dog")
    assert plain != images_of(pipe, guidance_scale=1.5)


def test_no_seed_draws_one_that_makes_the_images_again(pipe: StableDiffusionPipeline) -> None:
    outputs = [pipe("a fox", **SMALL) for _ in range(2)]
    assert outputs[0].seed != outputs[1].seed
    for output in outputs:
        assert [image.tobytes() for image in output.images] == images_of(pipe, seed=output.seed)


def test_default_size_is_the_models(pipe: StableDiffusionPipeline) -> None:
    assert pipe("a fox", num_inference_steps=1, seed=1).images[0].size == (16, 16)
    assert pipe("a fox", num_inference_steps=1, seed=1, height=8).images[0].size == (16, 8)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"width": 0}, r"width \(=0\) must be a positive multiple of 2 px"),
        ({"width": -16}, r"width \(=-16\) must be a positive multiple"),
        ({"height": 17}, r"height \(=17\) must be a positive multiple of 2 px"),
        ({"height": 16.0}, r"height \(=16\.0\) must be"),
        ({"height": True}, r"height \(=True\) must be"),
        ({"num_inference_steps": 0}, r"num_inference_steps \(=0\) must be a whole number from 1 to"),
        ({"num_inference_steps": -1}, r"num_inference_steps \(=-1\)"),
        ({"num_inference_steps": 2.0}, r"num_inference_steps \(=2\.0\)"),
        ({"num_inference_steps": 1001}, r"num_inference_steps \(=1001\) must .* num_train_timesteps \(=1000\)"),
        ({"guidance_scale": math.nan}, r"guidance_scale \(=nan\) must be a number from 0 to"),
        ({"guidance_scale": math.inf}, r"guidance_scale \(=inf\)"),
        ({"guidance_scale": -1}, r"guidance_scale \(=-1\)"),
        ({"guidance_scale": "7.5"}, r"guidance_scale \(='7\.5'\)"),
        ({"num_images_per_prompt": 0}, r"num_images_per_prompt \(=0\) must be a whole number from 1 to"),
        ({"num_images_per_prompt": 10**99}, r"num_images_per_prompt \(=10+\) must be a whole number from 1 to"),
        ({"width": 8 * 10**400}, r"width \(=80000.*\.\.\.\) must be a positive multiple of 2 px"),
        ({"width": 2**30, "height": 2**30}, r"width x height \(=1073741824x1073741824\) .* needs a tensor"),
        ({"num_images_per_prompt": 1.5}, r"num_images_per_prompt \(=1\.5\)"),
        ({"guidance_scale": 1e39}, r"guidance_scale \(=1e\+39\) must be a number from 0 to 3.4e\+38"),
        ({"prompt": None}, "prompt and prompt_embeds must not both be left out"),
        ({"prompt": []}, r"prompt \(=\[\]\) must be a text or a list of at least one text"),
        ({"prompt": ["a fox", 1]}, r"prompt \(=\['a fox', 1\]\) must be"),
        ({"negative_prompt": 5}, r"negative_prompt \(=5\) must be a text or a list"),
        (
            {"prompt": ["a", "b", "c"], "negative_prompt": ["x", "y"]},
            r"negative_prompt \(of 2\) must be one, or one for",
        ),
        ({"latents": np.zeros((1, 4, 8, 9))}, r"latents of shape \(1, 4, 8, 9\) must be \(1, 4, 4, 8\)"),
        ({"latents": np.full((1, 4, 4, 8), np.nan)}, "latents must be finite"),
        ({"latents": "noise"}, "latents must be an array of numbers"),
        ({"prompt_embeds": np.zeros((1, 17, 24))}, "prompt and prompt_embeds must not both be given"),
        (
            {"prompt": None, "prompt_embeds": np.zeros((1, 17, 25))},
            r"shape \(1, 17, 25\) must be \(prompts, tokens, 24\)",
        ),
        ({"prompt": None, "prompt_embeds": np.ones((1, 9, 24))}, r"same number of tokens, not \[9, 17\]"),
        ({"num_images_per_prompt": 10**9}, r"batch \(=1000000000\) needs a tensor of .* MB in unet"),
        ({"prompt": "\ud800"}, "is not valid Unicode"),
        ({"seed": 1.5}, "seed"),
        ({"seed": "1"}, "seed"),
        ({"seed": 2**64}, "seed"),
    ],
    ids=lambda value: str(value)[:40].encode("ascii", "replace").decode() if isinstance(value, dict) else "",
)
def test_refuses(pipe: StableDiffusionPipeline, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises((InputError, DeviceLimitError), match=sentence) as caught:
        pipe.generate(**{"prompt": "a fox", **SMALL, **options})
    assert "\n" not in str(caught.value)


def test_empty_prompts(pipe: StableDiffusionPipeline) -> None:
    assert len(images_of(pipe, prompt="")) == 1
    assert images_of(pipe, prompt="", negative_prompt="a dog") != images_of(pipe, prompt="")


def test_long_prompt_is_truncated_with_a_warning(pipe: StableDiffusionPipeline) -> None:
    words = ["the", "old", "fox", "in", "snow"] * 3
    head = " ".join(words)
    with pytest.warns(PromptTruncatedWarning, match="the model reads 15, so its end is dropped: "):
        long = images_of(pipe, prompt=(head + " ").ljust(10_000, "x"))
    with pytest.warns(PromptTruncatedWarning):
        also_long = images_of(pipe, prompt=head + " fox" * 100)
    assert long == also_long


def test_from_pretrained(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def record(selector: object, *, runtime: str) -> Device:
        opened.append((selector, runtime))
        return device

    monkeypatch.setattr("shaderfusion.pipeline.open_device", record)
    pipe = StableDiffusionPipeline.from_pretrained(model_folder("sd2"), device="a name", runtime="wgpu")
    assert opened == [("a name", "wgpu")]
    assert (pipe.dtype, pipe.scheduler) == (device.info.default_dtype, None)
    run = golden("sd2").runs[0]
    assert run.scheduler == "ddim"  # the model's own
    pixels = np.asarray(pipe(**run.call).images[0]).astype(np.int32)
    assert np.abs(pixels - run.images[0]).max() <= (2 if pipe.dtype == "f32" else 16)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"scheduler": "best"}, r"scheduler \(='best'\) must be one of ddim, ddpm, dpm2, "),
        ({"device": "abacus"}, r"device \(='abacus'\) must be an index or part of a name"),
        ({"device": 99}, r"device \(='99'\)"),
        ({"runtime": "vulkan"}, r"runtime \(='vulkan'\) must be auto or one of wgpu, dawn"),
        ({"dtype": "f8"}, r"dtype \(='f8'\)"),
    ],
)
def test_from_pretrained_refuses(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        StableDiffusionPipeline.from_pretrained(model_folder("sd2"), **options)


def test_f16_needs_a_device_that_has_it(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shaderfusion.pipeline.open_device", lambda *_, **__: device)
    monkeypatch.setattr(device, "info", replace(device.info, has_f16=False))
    with pytest.raises(InputError, match=r"dtype \(='f16'\) is not supported by device .*; use f32"):
        StableDiffusionPipeline.from_pretrained(model_folder("sd2"), dtype="f16")


def test_tokenizer_must_fit_the_text_encoder(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder("sd2"), folder)
    config = folder / "tokenizer" / "tokenizer_config.json"
    config.write_text(config.read_text("utf-8").replace("17", "18"), "utf-8")
    with pytest.raises(ModelError, match=r"model_max_length \(=18\) must equal .* \(=17\)"):
        StableDiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_loading_copies_no_tensor_on_the_host(device: Device, tmp_path: Path, dtype: Any) -> None:
    config = ClipTextConfig(hidden_size=512, intermediate_size=4096, num_hidden_layers=3)
    weights = list(text_encoder_graph(config, Kernels(dtype)).weights.values())
    arrays = {path: np.zeros(w.source_shape, np.float32) for w in weights for path in w.paths}
    largest_bytes = max(a.nbytes for a in arrays.values())
    assert largest_bytes >= 8e6
    save_file(arrays, tmp_path / "model.safetensors")
    del arrays
    tracemalloc.start()
    try:
        buffers = WeightLoader(device).load(dict.fromkeys(weights, Checkpoint(tmp_path)))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(buffers) == len(weights)
    assert peak_bytes < largest_bytes / 4
