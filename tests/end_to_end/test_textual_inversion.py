"""Textual inversions as diffusers reads them: token ids, embeddings, and what a pipeline makes of its words."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.models import FOLDER, model_folder
from kernel_runner import relative_error

from shaderfusion.errors import InputError, ModelError, WeightsError
from shaderfusion.families import open_model
from shaderfusion.gpu.device import Device
from shaderfusion.pipeline import StableDiffusionPipeline
from shaderfusion.text.tokenizer import PromptTruncatedWarning

BOUND = 1e-4
EMBEDDINGS = FOLDER / "embeddings"
ARRAYS = np.load(FOLDER / "embeddings.npz")
CASES: dict[str, dict[str, Any]] = json.loads(str(ARRAYS["facts"]))
SIZE: dict[str, Any] = {"width": 16, "height": 8}
SMALL: dict[str, Any] = {"num_inference_steps": 1, "seed": 1, **SIZE}

pytestmark = pytest.mark.filterwarnings("ignore::shaderfusion.text.tokenizer.PromptTruncatedWarning")


def file(case: str, stem: str) -> Path:
    return EMBEDDINGS / case / f"{stem}.safetensors"


def open_pipe(device: Device, model: str, **options: Any) -> StableDiffusionPipeline:
    """One of its own, in f32, since what a model was taught stays with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shaderfusion.pipeline.open_device", lambda *_, **__: device)
        size = open_model(model_folder(model)).run_size(**SIZE)
        return StableDiffusionPipeline.from_pretrained(model_folder(model), dtype="f32", size=size, **options)


@pytest.mark.parametrize("model", CASES)
def test_as_diffusers(device: Device, model: str) -> None:
    """Token ids, and what the text encoders make of them. SDXL's pooled outputs are of the end of text, whose id is not
    the largest any more."""
    facts = CASES[model]
    with open_pipe(device, model, embeddings=[file(model, stem) for stem in facts["files"]]) as pipe:
        tokens = pipe.model.tokenize(facts["prompts"])
        np.testing.assert_array_equal(tokens, ARRAYS[f"{model}_ids"])
        conditioning = pipe._engine.condition(tokens, pipe.model.run_size(**SIZE))
        assert set(conditioning) == set(pipe.model.conditioning_shapes)
        for name, rows in conditioning.items():
            for ours, expected in zip(rows, ARRAYS[f"{model}_{name}"], strict=True):
                assert relative_error(ours, expected) < BOUND


def test_a_file_of_the_other_kind_is_refused() -> None:
    for model, other, stem in (("sd1", "sdxl", "web_y2k"), ("sdxl", "sd1", "my_style")):
        opened = open_model(model_folder(model))
        with pytest.raises(WeightsError, match=r"a textual inversion of SD.*, and must be of SD.*, as the model is"):
            opened.added_tokens.load(file(other, stem), None, opened.tokenizers)


def test_words_come_and_go(device: Device) -> None:
    prompt = "a fox, my_style"
    with open_pipe(device, "sd1") as pipe:

        def image(text: str = prompt) -> bytes:
            return pipe(text, **SMALL).images[0].tobytes()

        plain = image()
        assert pipe.load_textual_inversion(file("sd1", "my_style")) == "my_style"
        taught = image()
        assert taught != plain
        assert image("a fox, MY_STYLE") == taught
        assert image("a fox, my_styles") != taught
        assert pipe.load_textual_inversion(str(file("sd1", "bad-dream")), token="<other>") == "<other>"
        assert image() == taught
        pipe.unload_textual_inversion("My_Style")
        assert image() == plain
        late = pipe.generate("a fox <other>", **SMALL)  # its ids are known now, and not when it begins
        pipe.unload_textual_inversion()
        pipe.load_textual_inversion(file("sd1", "bad-dream"), token="<other>")
        with pytest.raises(ModelError, match=r"token id \(=717\) must be .* or of a loaded embedding; .* unloaded sin"):
            next(late)
        assert image("a fox <other>") != image("a fox")


def test_a_file_is_refused_before_weights_are_read(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StableDiffusionPipeline, "load", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(WeightsError, match=r"web_y2k.safetensors: a textual inversion of SDXL \(clip_l and clip_g\)"):
        open_pipe(device, "sd1", embeddings=[file("sdxl", "web_y2k")])


def test_what_is_dropped_of_a_word_is_said() -> None:
    model = open_model(model_folder("sd2"))
    model.added_tokens.load(file("sd2", "learned_embeds"), None, model.tokenizers)
    with pytest.warns(PromptTruncatedWarning, match=r"has 26 tokens and the model reads 15, .*: '<TWELVE> a fox'"):
        model.tokenize(["<twelve> <TWELVE> a fox"])


def test_words_of_one_model_are_unknown_to_another() -> None:
    first, second = open_model(model_folder("sd1")), open_model(model_folder("sd1"))
    first.added_tokens.load(file("sd1", "my_style"), None, first.tokenizers)
    assert second.tokenize(["my_style"]).max() == 713
    with pytest.raises(InputError, match=r"token \(='my_style'\) must be a loaded one \(none\)"):
        second.added_tokens.unload("my_style")
