"""Prompts in the web UIs' syntax, run: weighted embeddings, schedules, adapters; and clip_skip."""

import json
import math
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.models import FOLDER, model_folder
from kernel_runner import relative_error

from shaderfusion.denoising import DenoisingState
from shaderfusion.errors import InputError
from shaderfusion.families import open_model
from shaderfusion.gpu.device import Device
from shaderfusion.hires import SecondPass
from shaderfusion.kernels.select import Kernels
from shaderfusion.pipeline import StableDiffusionPipeline
from shaderfusion.request import make_request

ARRAYS = np.load(FOLDER / "prompts.npz")
CASES: dict[str, dict[str, Any]] = json.loads(str(ARRAYS["facts"]))
KOHYA = FOLDER / "lora" / "kohya.safetensors"
SIZE: dict[str, Any] = {"width": 16, "height": 8}
WEBUI: dict[str, Any] = {"prompt_syntax": "webui", "seed": 3, **SIZE}

Open = Callable[..., StableDiffusionPipeline]


@pytest.fixture
def open_pipe(device: Device) -> Iterator[Open]:
    """Of a golden model, in f32."""
    with ExitStack() as opened:

        def open_it(name: str, **options: Any) -> StableDiffusionPipeline:
            options = {"device": device, "dtype": "f32", "tuning": "off", **options}
            size = open_model(model_folder(name)).run_size(**SIZE)
            return opened.enter_context(
                StableDiffusionPipeline.from_pretrained(model_folder(name), size=size, **options)
            )

        yield open_it


def conditioning(pipe: StableDiffusionPipeline, prompt: str | list[str], **options: Any) -> dict[str, np.ndarray]:
    """What the denoiser is given in the first step."""
    return pipe.generate(prompt, num_inference_steps=1, **{**WEBUI, **options})._begin().conditioning


def picture(pipe: StableDiffusionPipeline, prompt: str, **options: Any) -> bytes:
    return pipe(prompt, **{"num_inference_steps": 2, **WEBUI, **options}).images[0].tobytes()


@pytest.mark.parametrize(("model", "by_default"), [("sd1", "original"), ("sdxl", "no_norm")])
def test_embeddings(open_pipe: Open, model: str, by_default: str) -> None:
    """In float64, of what transformers makes of each chunk: the prompts of one call have equally many chunks."""
    word, prompts = CASES[model]["word"], CASES[model]["prompts"]
    pipe = open_pipe(model, embeddings=[FOLDER / "embeddings" / model / f"{word}.safetensors"])
    for emphasis in (None, "original", "no_norm"):
        found = conditioning(pipe, list(prompts), negative_prompt="", emphasis=emphasis)
        assert found["embedding"].shape[0] == 2 * len(prompts)
        at = 0
        for row, chunks in enumerate(prompts.values()):
            weighted = [expected(pipe, model, chunk, emphasis or by_default) for chunk in range(at, at + chunks)]
            weighted += [expected(pipe, model, 0, "no_norm")] * (2 - chunks)  # the first prompt is empty
            assert relative_error(found["embedding"][len(prompts) + row], np.concatenate(weighted)) < 1e-4
            if model == "sdxl":
                assert relative_error(found["pooled"][len(prompts) + row], ARRAYS["sdxl_pooled"][at]) < 1e-4
            at += chunks
        empty = np.concatenate([expected(pipe, model, 0, "no_norm")] * 2)
        assert relative_error(found["embedding"][0], empty) < 1e-4


def expected(pipe: StableDiffusionPipeline, model: str, chunk: int, emphasis: str) -> np.ndarray:
    """(L, C): one of the golden chunks, weighted, each encoder by itself."""
    embedding = ARRAYS[f"{model}_embedding"][chunk].astype(np.float64)
    widths = [encoder.hidden_size for encoder in pipe.model.text_encoders.values()]
    parts = np.split(embedding, np.cumsum(widths)[:-1], axis=1)
    weighted = [part * ARRAYS[f"{model}_weights"][chunk][:, None] for part in parts]
    if emphasis == "original":
        weighted = [new * (old.mean() / new.mean()) for old, new in zip(parts, weighted, strict=True)]
    return np.concatenate(weighted, axis=1)


@pytest.mark.parametrize("model", ["sd1", "sdxl"])
def test_a_short_prompt_is_as_in_plain_syntax(open_pipe: Open, model: str) -> None:
    pipe = open_pipe(model)
    for negative in (None, "snow"):
        ours, plain = (
            conditioning(pipe, "a fox", negative_prompt=negative, prompt_syntax=syntax) for syntax in ("webui", "plain")
        )
        assert all(np.array_equal(ours[name], plain[name]) for name in {*ours, *plain})
    assert picture(pipe, "a fox") == picture(pipe, "a fox", prompt_syntax="plain")
    assert picture(pipe, "a (fox)") != picture(pipe, "a fox")


@pytest.mark.parametrize(
    ("model", "memory", "guidance_scale", "prompt", "texts"),
    [
        ("sd2", "normal", 7.5, "a [fox:dog:0.5] in [the|(snow:1.5)|]", "a fox in the,a fox in the,a dog in (snow:1.5)"),
        ("sd2", "low", 7.5, "a [fox:dog:1]", "a fox,a fox,a dog"),
        ("sd2", "low", 1.0, "a [fox:dog:1]", "a fox,a fox,a dog"),
        # Texts of one prompt have equally many chunks.
        ("sdxl", "normal", 7.5, "a [:dog BREAK fox:1]", "a BREAK BREAK,a BREAK BREAK,a dog BREAK fox"),
    ],
)
def test_a_schedule(open_pipe: Open, model: str, memory: str, guidance_scale: float, prompt: str, texts: str) -> None:
    """As steps that are made one by one, each of a state of its own with the embedding of that step's text."""
    pipe = open_pipe(model, memory=memory, scheduler="euler")
    options = {"guidance_scale": guidance_scale, "negative_prompt": "[snow:a river:1] BREAK [a|b]", **WEBUI}
    run = pipe.generate(prompt, num_inference_steps=3, **options)
    begun = pipe.generate(prompt, num_inference_steps=3, **options)
    negatives = ["snow BREAK a", "snow BREAK a", "a river BREAK b"]
    state = begun._begin()
    for step, (text, negative) in enumerate(zip(texts.split(","), negatives, strict=True)):
        made = conditioning(pipe, text, guidance_scale=guidance_scale, negative_prompt=negative)
        state = DenoisingState(state.size, made, state.x_t, state.input_scale, state.carried)
        pipe._engine.denoise(state, begun._make_step(step))
        np.testing.assert_array_equal(next(run).latents, state.x_t)
    assert run.request.size == state.size


@pytest.mark.parametrize("model", ["sd1", "sdxl"])
@pytest.mark.parametrize(
    ("prompt", "negative_prompt", "lengths"),
    [
        ("a fox BREAK the river", "snow", (2, 1)),
        ("a fox", "snow BREAK the dog BREAK a river", (1, 3)),
        ("a fox BREAK the river", "snow BREAK the dog BREAK a river", (2, 3)),
    ],
)
def test_prompts_of_different_lengths_leave_each_other_as_they_are(
    open_pipe: Open, model: str, prompt: str, negative_prompt: str, lengths: tuple[int, int]
) -> None:
    """Euler's step is linear in what the denoiser says, so that a guided one is a sum of two that are not."""
    pipe = open_pipe(model, scheduler="euler")
    made = [conditioning(pipe, text, guidance_scale=1)["embedding"][0] for text in (negative_prompt, prompt)]
    rows = conditioning(pipe, prompt, negative_prompt=negative_prompt)["embedding"]
    assert rows.shape[1] == math.lcm(*lengths) * (len(made[1]) // lengths[0])
    for row, own in zip(rows, made, strict=True):
        np.testing.assert_array_equal(row, np.tile(own, (len(row) // len(own), 1)))
    unguided = {"num_inference_steps": 1, "guidance_scale": 1, **WEBUI}
    alone = [next(pipe.generate(text, **unguided)).latents for text in (negative_prompt, prompt)]
    guided = {**unguided, "guidance_scale": 3, "negative_prompt": negative_prompt}
    expected = alone[0] + 3 * (alone[1] - alone[0])
    assert relative_error(next(pipe.generate(prompt, **guided)).latents, expected) < 1e-4


@pytest.mark.parametrize(("model", "negative_prompt"), [("sdxl", None), ("sdxl", "snow"), ("sd1", None)])
def test_a_second_pass_with_longer_texts(open_pipe: Open, model: str, negative_prompt: str | None) -> None:
    """The SDXL model has zeros in place of a negative prompt, in as many tokens as they are needed."""
    pipe = open_pipe(model, scheduler="euler")
    options = {**WEBUI, "negative_prompt": negative_prompt, "num_inference_steps": 2}
    first = pipe.generate("a [fox:dog BREAK the river:1.5]", **options)
    second = SecondPass(pipe.model, first.request, scale=2, num_inference_steps=4, strength=1, scheduler="euler")
    assert [first.request.size.num_tokens * 2, 4] == [second.size.num_tokens, second.num_steps]
    *_, last = first
    assert last.images
    run = pipe.run(second.request(last.images))
    texts = ["a fox BREAK BREAK", "a dog BREAK the river"]
    for step, text in enumerate([texts[0]] * 3 + texts[1:]):
        alone = conditioning(pipe, text, guidance_scale=1)["embedding"][0]
        next(run)
        np.testing.assert_array_equal(run._conditioning(step)["embedding"][1], alone)


def test_prompts_whose_lengths_have_nothing_in_common(open_pipe: Open) -> None:
    """Of 7 and 6 chunks, which 42 would hold: the shorter one has an empty chunk more."""
    pipe = open_pipe("sd1")
    negative, empty = (
        conditioning(pipe, text, guidance_scale=1)["embedding"][0] for text in (" BREAK ".join("aaaaaa"), "")
    )
    rows = conditioning(pipe, " BREAK ".join("bbbbbbb"), negative_prompt=" BREAK ".join("aaaaaa"))["embedding"]
    np.testing.assert_array_equal(rows[0], np.concatenate([negative, empty]))


def test_several_prompts_of_several_pictures(open_pipe: Open) -> None:
    pipe = open_pipe("sd1")
    negative, fox, dog = (conditioning(pipe, text, guidance_scale=1)["embedding"][0] for text in ("b", "(fox)", "dog"))
    options: dict[str, Any] = {"negative_prompt": "b", "num_images_per_prompt": 2}
    request = pipe.generate(["[(fox)|dog]", "dog"], num_inference_steps=3, **options, **WEBUI)
    rows = request._begin().conditioning["embedding"]
    np.testing.assert_array_equal(rows, [negative] * 4 + [fox] * 2 + [dog] * 2)
    np.testing.assert_array_equal(request._conditioning(2)["embedding"], [negative] * 4 + [dog] * 4)


def test_adapters(open_pipe: Open) -> None:
    pipe = open_pipe("sd1")
    plain = picture(pipe, "a fox")
    pipe.load_lora_weights(KOHYA, adapter_name="style")
    full = picture(pipe, "a fox")
    pipe.set_adapters("style", {"unet": 0.5, "text_encoder": 0.25})
    weak = picture(pipe, "a fox")
    assert len({plain, full, weak}) == 3
    pipe.set_adapters([])
    assert picture(pipe, "a fox<lora:style:1>") == full
    assert picture(pipe, "a <lora:style:0.25:0.5>fox") == weak
    assert pipe.get_active_adapters() == []
    assert picture(pipe, "a fox") == plain
    pipe.set_adapters("style", 0.5)
    assert picture(pipe, "<lora: style >a fox") == full
    with pytest.raises(InputError, match=r"adapter \(='stile'\) must be one that is loaded \(style\)"):
        picture(pipe, "a fox <lora:stile>")


def test_clip_skip(open_pipe: Open) -> None:
    for memory in ("normal", "low"):
        pipe = open_pipe("sd2", memory=memory)
        for syntax in ("plain", "webui"):
            options = {"guidance_scale": 1.0, "prompt_syntax": syntax}
            whole = conditioning(pipe, "a fox in the snow", **options)
            skipped = conditioning(pipe, "a fox in the snow", clip_skip=1, **options)
            assert relative_error(skipped["embedding"], ARRAYS["clip_skip"]) < 1e-4
            assert relative_error(whole["embedding"], ARRAYS["clip_skip"]) > 0.1
            again = conditioning(pipe, "a fox in the snow", clip_skip=0, **options)
            np.testing.assert_array_equal(again["embedding"], whole["embedding"])
    size = pipe.model.run_size(**SIZE)
    keys = {pipe.model.networks["unet"].size_of(replace(size, clip_skip=skip)) for skip in (0, 1)}
    assert len(keys) == 1  # it is nothing to the UNet


def test_clip_skip_of_sdxl_begins_at_the_last_but_one(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model_folder("sdxl"), folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for name in ("text_encoder", "text_encoder_2"):
        file = folder / name / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 4}))
    model = open_model(folder)
    for skip in (0, 1, 2):
        graph = model.networks["text_encoder"].record(Kernels("f32"), model.run_size(clip_skip=skip))
        layers = {path.split(".layers.")[1][0] for path in graph.weights if ".layers." in path}
        assert layers == set("012"[: 3 - skip])
    with pytest.raises(InputError, match=r"clip_skip \(=3\) must be a whole number from 0 to 2"):
        model.run_size(clip_skip=3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": "a fox <hypernet:x:1>"}, r"at character 7 .*: <hypernet:> is not implemented; only <lora:"),
        ({"prompt": "a <lora:x:y>"}, r"at character 3 .*: an adapter must be <lora:name>, <lora:name:weight> or"),
        ({"prompt": "<lora: :1>"}, r"at character 1 .*: an adapter must be"),
        ({"prompt": "<lora:x:1:2:3>"}, r"at character 1 .*: an adapter must be"),
        ({"prompt": "<lora:x><lora:x>"}, r"at character 9 .*: the adapter 'x' must be named once"),
        ({"prompt": ["<lora:x>", "a"]}, r"prompts of one call must name the same adapters; make a call for each"),
        ({"negative_prompt": "<lora:x>"}, r"negative_prompt must name no adapter \(=x\); the prompt does"),
        ({"negative_prompt": "a (fox:..)"}, r"at character 7 .*: the weight \(=\.\.\) must be a number such as 1.3"),
        ({"prompt_syntax": "a1111"}, r"prompt_syntax \(='a1111'\) must be plain or webui"),
        ({"emphasis": "none"}, r"emphasis \(='none'\) must be original or no_norm"),
        ({"prompt_syntax": "plain", "emphasis": "original"}, r"emphasis \(=original\) must be left out where"),
        ({"clip_skip": 1}, r"clip_skip \(=1\) must be a whole number from 0 to 0, the layers of the text encoder that"),
        ({"clip_skip": -1}, r"clip_skip \(=-1\) must be"),
        ({"clip_skip": True}, r"clip_skip \(=True\) must be"),
        (
            {"negative_prompt_embeds": np.ones((1, 5, 32))},
            r"must be of the same number of tokens, not \[5, 16\]",
        ),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_request(open_model(model_folder("sd1")), **{"prompt": "a fox", "prompt_syntax": "webui", **options})
