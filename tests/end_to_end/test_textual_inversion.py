"""Textual inversions as diffusers reads them: token ids, embeddings, and what a pipeline makes of its words."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.models import FOLDER, model_folder
from kernel_runner import relative_error

from shaderfusion.errors import InputError, ModelError, WeightsError
from shaderfusion.families import open_model
from shaderfusion.gpu.device import Device
from shaderfusion.graph.graph import Graph
from shaderfusion.graph.program import Program
from shaderfusion.kernels.select import Kernels
from shaderfusion.models.clip import TOKEN_TABLE, find_end_of_text, text_encoder_graph
from shaderfusion.pipeline import StableDiffusionPipeline
from shaderfusion.text.tokenizer import PromptTruncatedWarning
from shaderfusion.weights.checkpoint import TensorSource
from shaderfusion.weights.embeddings import AddedTokens
from shaderfusion.weights.store import WeightStore

BOUND = 1e-4
EMBEDDINGS = FOLDER / "embeddings"
ARRAYS = np.load(FOLDER / "embeddings.npz")
CASES: dict[str, dict[str, Any]] = json.loads(str(ARRAYS["facts"]))
SMALL: dict[str, Any] = {"num_inference_steps": 1, "width": 16, "height": 8, "seed": 1}

pytestmark = pytest.mark.filterwarnings("ignore::shaderfusion.text.tokenizer.PromptTruncatedWarning")


def file(case: str, stem: str) -> Path:
    return EMBEDDINGS / case / f"{stem}.safetensors"


def open_pipe(device: Device, model: str, **options: Any) -> StableDiffusionPipeline:
    """One of its own, in f32, since what a model was taught stays with it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shaderfusion.pipeline.open_device", lambda *_, **__: device)
        size = open_model(model_folder(model)).run_size(width=16, height=8)
        return StableDiffusionPipeline.from_pretrained(model_folder(model), dtype="f32", size=size, **options)


def run_graph(device: Device, graph: Graph, source: TensorSource, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs of a graph whose inputs are rows of tables."""
    store = WeightStore(device)
    (weights,) = store.load({graph: source})
    program = Program(device, graph, weights)
    for name, array in rows.items():
        program.write(name, store.read_rows(graph, source, name, array))
    program.run()
    outputs = program.read_all(list(graph.outputs))
    program.close()
    store.close()
    return outputs


@pytest.mark.parametrize("case", ["sd1", "sd2"])
def test_as_diffusers(device: Device, case: str) -> None:
    facts = CASES[case]
    with open_pipe(device, case, embeddings=[file(case, stem) for stem in facts["files"]]) as pipe:
        tokens = pipe.model.tokenize(facts["prompts"])
        np.testing.assert_array_equal(tokens, ARRAYS[f"{case}_text_encoder_ids"])
        states = pipe._engine.condition(tokens, pipe.model.run_size(width=16, height=8))["embedding"]
        for ours, expected in zip(states, ARRAYS[f"{case}_text_encoder_states"], strict=True):
            assert relative_error(ours, expected) < BOUND
        # The pooled output is of the end of text, in spite of larger ids; also where its id is written as of old.
        for eos_token_id in (713, 2):
            config = replace(pipe.model.text_encoders["text_encoder"], eos_token_id=eos_token_id)
            places = find_end_of_text(config, tokens)
            pooled = states[np.arange(len(tokens)), places]
            assert relative_error(pooled, ARRAYS[f"{case}_text_encoder_pooled"]) < BOUND


def test_two_text_encoders_as_diffusers(device: Device) -> None:
    """SDXL's, each with its part of the file."""
    facts = CASES["sdxl"]
    models = {component: open_model(model_folder(model)) for component, model in facts["models"].items()}
    tokens = AddedTokens({key: model.text_encoders["text_encoder"] for key, model in models.items()})
    tokenizers = {component: model.tokenizers["text_encoder"] for component, model in models.items()}
    assert tokens.load(file("sdxl", "web_y2k"), None, tokenizers) == "web_y2k"
    for component, model in models.items():
        ids = tokens.teach(component, tokenizers[component])(facts["prompts"])
        np.testing.assert_array_equal(ids, ARRAYS[f"sdxl_{component}_ids"])
        graph = text_encoder_graph(model.text_encoders["text_encoder"], Kernels("f32"))
        source = tokens.extend(component, model.files.tensors("text_encoder"))
        for row, expected in zip(ids, ARRAYS[f"sdxl_{component}_states"], strict=True):
            actual = run_graph(device, graph, source, {TOKEN_TABLE: row[None]})["embedding"]
            assert relative_error(actual[0], expected) < BOUND


@pytest.mark.parametrize(("stem", "word"), CASES["sd1"]["files"].items())
def test_a_word_is_named_by_its_file(stem: str, word: str) -> None:
    model = open_model(model_folder("sd1"))
    assert model.added_tokens.load(file("sd1", stem), None, model.tokenizers) == word


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
