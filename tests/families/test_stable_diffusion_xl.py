"""SDXL: its components fitted to each other, what its prompts become, and arguments that only it takes."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.models import golden, load, model_folder
from test_config import SD1_VAE, SDXL_UNET

from shaderfusion.errors import InputError, ModelError
from shaderfusion.families import open_model
from shaderfusion.gpu.device import Device
from shaderfusion.info import describe
from shaderfusion.kernels.capabilities import DESKTOP_GPU
from shaderfusion.kernels.select import Kernels
from shaderfusion.request import make_request

COMPONENTS = ("text_encoder", "text_encoder_2", "unet", "vae")
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "projection_dim": 768}
CLIP_G = {
    "architectures": ["CLIPTextModelWithProjection"],
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_attention_heads": 20,
    "num_hidden_layers": 32,
    "projection_dim": 1280,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The configurations of a tiny model, and its tokenizers."""
    shutil.copytree(model_folder("sdxl"), tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors"))
    return tmp_path / "model"


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """The configurations of the published model."""
    vae = SD1_VAE | {"force_upcast": True, "scaling_factor": 0.13025, "sample_size": 1024}
    for component, options in zip(COMPONENTS, (CLIP_L, CLIP_G, SDXL_UNET, vae), strict=True):
        (tmp_path / component).mkdir()
        (tmp_path / component / "config.json").write_text(json.dumps(options))
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    return tmp_path


def change(file: Path, **options: Any) -> None:
    """Overwrites options in a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text()) | options))


# ---- components


def test_parameters_of_the_published_model(published: Path) -> None:
    """Those that diffusers counts, but for what follows the states that are read: a layer and a norm of the first."""
    info = describe(published)
    assert (info.width, info.height) == (1024, 1024)
    counts = {component.name: component.parameters for component in info.components}
    unread = 4 * (768 * 768 + 768) + 2 * 768 * 3072 + 3072 + 768 + 4 * 768 + 2 * 768
    assert counts["text_encoder"] == 123_060_480 - unread
    assert counts["text_encoder_2"] == 694_659_840
    assert counts["unet"] == 2_567_463_684


def test_largest_tensors_are_as_estimated(published: Path) -> None:
    model = open_model(published)
    size = model.run_size(width=512, height=768, batch=2)
    graphs = model.record(Kernels("f16", DESKTOP_GPU), size)
    for name, values in model.largest_tensors(size).items():
        bound = (b.tensor for call in graphs[name].calls for b in call.bindings if b.tensor.role == "intermediate")
        made = [tensor.size for tensor in bound if tensor.name.endswith((".out", ".concat"))]
        assert max(made) / 2 <= values <= max(made)


@pytest.mark.parametrize(
    ("file", "options", "message"),
    [
        (
            "text_encoder/config.json",
            {"hidden_size": 12},
            r"text_encoder \(=12\) and text_encoder_2 \(=14\) must equal",
        ),
        ("text_encoder/config.json", {"max_position_embeddings": 9}, r"max_position_embeddings \(=9\) must equal"),
        ("text_encoder/config.json", {"num_hidden_layers": 1}, r"text_encoder's num_hidden_layers \(=1\) must be at"),
        ("text_encoder_2/config.json", {"num_hidden_layers": 1}, r"text_encoder_2's num_hidden_layers \(=1\) must be"),
        ("text_encoder_2/config.json", {"projection_dim": 10}, r"projection_dim \(=10\) must be what unet's"),
        ("unet/config.json", {"addition_embed_type": None}, r"addition_embed_type \(=null\) must be 'text_time' in a"),
        ("unet/config.json", {"in_channels": 8}, r"unet's in_channels \(=8\) and out_channels \(=4\) must equal"),
        ("vae/config.json", {"out_channels": 4}, r"vae's out_channels \(=4\) must be 3: red, green and blue"),
        ("model_index.json", {"force_zeros_for_empty_prompt": 1}, r"force_zeros_for_empty_prompt \(=1\) must be true"),
        ("model_index.json", {"_class_name": "StableDiffusionPipeline"}, r"it is the UNet of a StableDiffusionXLPipel"),
    ],
)
def test_refuses(folder: Path, file: str, options: dict[str, Any], message: str) -> None:
    change(folder / file, **options)
    with pytest.raises(ModelError, match=message) as caught:
        open_model(folder)
    assert str(caught.value).startswith(str(folder))


def test_a_missing_text_encoder(folder: Path) -> None:
    shutil.rmtree(folder / "text_encoder_2")
    with pytest.raises(ModelError, match=r"text_encoder_2.*no such"):
        open_model(folder)


def test_tokenizers_fit(folder: Path) -> None:
    model = open_model(folder)
    change(folder / "tokenizer_2" / "tokenizer_config.json", model_max_length=77)
    with pytest.raises(ModelError, match=r"the tokenizer_2's model_max_length \(=77\) must equal"):
        model.tokenize([""])


@pytest.mark.parametrize(("force_upcast", "wide"), [(None, {"vae"}), (True, {"vae"}), (False, set())])
def test_the_decoder_runs_in_f32_unless_it_says_otherwise(folder: Path, force_upcast: bool, wide: set[str]) -> None:
    change(folder / "vae" / "config.json", force_upcast=force_upcast)
    assert open_model(folder).wide_networks == wide


# ---- prompts


def test_the_second_tokenizer_pads_with_its_own_token(folder: Path) -> None:
    (first, second), (_, empty) = open_model(folder).tokenize(["a dog", ""])
    assert (first[-1], second[-1]) == (713, 0)
    assert list(empty[:3]) == [712, 713, 0]


def test_without_a_negative_prompt_guidance_starts_from_zeros(folder: Path) -> None:
    negative, _ = make_request(open_model(folder), "a dog", seed=1).prompts
    assert isinstance(negative, dict)
    assert {name: array.shape for name, array in negative.items()} == {"embedding": (1, 12, 24), "pooled": (1, 9)}
    assert not any(array.any() for array in negative.values())
    negative, _ = make_request(open_model(folder), "a dog", negative_prompt="", seed=1).prompts
    np.testing.assert_array_equal(negative, open_model(folder).tokenize([""]))
    change(folder / "model_index.json", force_zeros_for_empty_prompt=False)
    negative, _ = make_request(open_model(folder), "a dog", seed=1).prompts
    np.testing.assert_array_equal(negative, open_model(folder).tokenize([""]))


def test_embeddings_take_the_place_of_texts(device: Device) -> None:
    pipe, run = load(device, "sdxl", "f32"), golden("sdxl").runs[1]
    assert run.call["guidance_scale"] > 1
    rows = golden("sdxl").conditioning
    options = {key: value for key, value in run.call.items() if key not in ("prompt", "negative_prompt")}
    images = pipe(
        prompt_embeds=rows["embedding"][1:],
        pooled_prompt_embeds=rows["pooled"][1:],
        negative_prompt_embeds=rows["embedding"][:1],
        negative_pooled_prompt_embeds=rows["pooled"][:1],
        **options,
    ).images
    texts = pipe(**run.call).images
    difference = np.stack([np.asarray(image) for image in images]).astype(int) - np.stack(list(map(np.asarray, texts)))
    assert np.abs(difference).max() <= 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("sdxl", {"prompt_embeds": (1, 12, 24)}, "^pooled_prompt_embeds must come with prompt_embeds$"),
        ("sdxl", {"prompt": "a", "pooled_prompt_embeds": (1, 9)}, "^pooled_prompt_embeds must come with prompt_embeds"),
        (
            "sdxl",
            {"prompt_embeds": (2, 12, 24), "pooled_prompt_embeds": (1, 9)},
            r"^pooled_prompt_embeds of shape \(1, 9\) must be \(2, 9\), a row for each of prompt_embeds",
        ),
        (
            "sdxl",
            {"prompt": "a", "negative_prompt_embeds": (1, 12, 24)},
            "^negative_pooled_prompt_embeds must come with negative_prompt_embeds",
        ),
        (
            "sdxl",
            {"prompt": "a", "negative_pooled_prompt_embeds": (1, 9)},
            "^negative_prompt and negative_prompt_embeds must not both be left out",
        ),
        (
            "sd1",
            {"prompt_embeds": (1, 16, 32), "pooled_prompt_embeds": (1, 9)},
            "^pooled_prompt_embeds must not be given: the model takes only prompt_embeds",
        ),
    ],
)
def test_embeddings_that_are_refused(name: str, options: dict[str, Any], message: str) -> None:
    def of_shape(value: Any) -> Any:
        return np.ones(value, np.float32) if isinstance(value, tuple) else value

    given: dict[str, Any] = {key: of_shape(value) for key, value in options.items()}
    with pytest.raises(InputError, match=message):
        make_request(open_model(model_folder(name)), **given)


# ---- other inputs


def test_time_ids_are_the_size(folder: Path) -> None:
    model = open_model(folder)
    size = model.run_size(batch=2, height=24, width=40)
    assert set(model.shared_inputs(size, 5.0)) == {"time_ids"}
    np.testing.assert_array_equal(model.shared_inputs(size, 5.0)["time_ids"], [[24, 40, 0, 0, 24, 40]] * 4)


def test_a_guidance_scale_that_is_read_needs_nothing_unconditional() -> None:
    model = open_model(model_folder("tiny_sd"))
    request = make_request(model, "a dog", negative_prompt="a cat", guidance_scale=7.5, seed=1)
    assert (len(request.prompts), request.size.rows, model.run_size().rows) == (1, 1, 1)
    assert model.shared_inputs(request.size, 7.5)["guidance_embedding"].shape == (1, 11)
