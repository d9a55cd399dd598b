"""What texts of several programs say, by our options."""

import json

import pytest

from shaderfusion.errors import ModelError
from shaderfusion.metadata.recipe import read_recipes
from shaderfusion.metadata.samplers import find_sampler, find_web_uis, schedule_type, web_ui_name
from shaderfusion.metadata.settings import make_texts
from shaderfusion.schedulers import SCHEDULERS
from shaderfusion.schedulers.config import SchedulerConfig

SETTINGS = {
    "prompt": "a fox",
    "negative_prompt": "blurry",
    "steps": 20,
    "scheduler": "dpmpp_2m",
    "schedule_type": "Karras",
    "guidance_scale": 7.0,
    "seed": 5,
    "num_images": 2,
    "number": 2,
    "width": 512,
    "height": 768,
    "model": "folder/dream, 8.safetensors",
    "model_hash": "0123456789",
    "vae": "folder/v.safetensors",
    "vae_hash": "9876543210",
    "lora": [{"file": "l/style.safetensors", "strength": 0.8, "hash": "0123456789ab"}],
    "embedding": [{"file": "word.safetensors", "hash": "ba9876543210"}],
    "version": "0.1.0",
}


def test_infotext_of_settings() -> None:
    assert make_texts(SETTINGS)["parameters"] == (
        "a fox <lora:style:0.8>\n"
        "Negative prompt: blurry\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 5, Size: 512x768, "
        'Model hash: 0123456789, Model: "dream, 8", VAE hash: 9876543210, VAE: v.safetensors, RNG: CPU, '
        'Lora hashes: "style: 0123456789ab", TI hashes: "word: ba9876543210", Batch size: 2, Batch pos: 1, '
        "Version: shaderfusion 0.1.0"
    )


def test_our_own_texts_come_back() -> None:
    exact, infotext = read_recipes("a.png", make_texts(SETTINGS))
    taken = ("prompt", "negative_prompt", "steps", "scheduler", "guidance_scale", "seed", "width", "height")
    assert exact.source == infotext.source == "shaderfusion"
    assert exact.options == {name: SETTINGS[name] for name in (*taken, "num_images")}
    spaced = {"scheduler": "dpmpp_2m_karras", "rng": "cpu"}
    assert infotext.options == {name: SETTINGS[name] for name in taken} | spaced
    assert set(exact.demands) == {"Schedule type", "VAE", "VAE hash", "Lora", "TI"}
    assert set(infotext.demands) == {"VAE", "VAE hash", "Lora", "TI hashes"}
    assert exact.facts["model_hash"] == infotext.facts["Model hash"] == "0123456789"


def test_a_schedule_that_the_schedulers_name_has_is_no_demand() -> None:
    for scheduler, demands in (("euler_karras", {}), ("euler", {"Schedule type": "Karras"})):
        text = json.dumps({"prompt": "x", "scheduler": scheduler, "schedule_type": "Karras"})
        (recipe,) = read_recipes("a.png", {"shaderfusion": text})
        assert (recipe.options["scheduler"], recipe.demands) == (scheduler, demands)


def test_an_option_of_another_version_is_a_demand() -> None:
    (recipe,) = read_recipes("a.png", {"shaderfusion": json.dumps({"prompt": "x", "frobnication": 3})})
    assert (recipe.options, recipe.demands) == ({"prompt": "x"}, {"frobnication": "3"})


WEB_UI = (
    "a fox <lora:style:0.8>, night\nNegative prompt: bad\n"
    "Steps: 20, Sampler: DPM++ 2M Karras, CFG scale: 6.5, Seed: 18446744073709551615, Size: 640x512, "
    "Model hash: 31e35c80fc, Model: sd_xl, Denoising strength: 0.5, Clip skip: 2, Hires upscale: 2, Version: v1.10.1"
)


def test_a_web_uis() -> None:
    (recipe,) = read_recipes("a.png", {"parameters": WEB_UI})
    assert recipe.source == "web UI"
    assert recipe.options == {
        "prompt": "a fox , night",
        "negative_prompt": "bad",
        "steps": 20,
        "scheduler": "dpmpp_2m_karras",
        "seeds": "each",
        "rng": "philox",
        "guidance_scale": 6.5,
        "seed": 2**64 - 1,
        "width": 640,
        "height": 512,
        "hires": 2.0,
        "hires_steps": 40,
        "hires_strength": 0.5,
        "clip_skip": 1,
        "emphasis": "original",
    }
    assert recipe.demands == {
        "Hires upscaler": "Latent, as none is named",
        "Lora": "<lora:style:0.8>",
    }
    assert recipe.facts == {"Model hash": "31e35c80fc", "Model": "sd_xl", "Version": "v1.10.1"}


def test_stable_diffusion_cpps() -> None:
    text = (
        "a fox\nNegative prompt: bad\nSteps: 8, CFG scale: 7.000000, Guidance: 3.500000, Eta: 0.000000, Seed: 42, "
        "Size: 512x512, Model: sd.safetensors, RNG: cuda, Sampler: dpm++2m karras, Version: stable-diffusion.cpp, "
        'SDCPP: {"seed": 42, "prompt": {"positive": "a, b: c"}}'
    )
    (recipe,) = read_recipes("a.png", {"parameters": text})
    assert recipe.source == "stable-diffusion.cpp"
    assert recipe.options["scheduler"] == "dpmpp_2m_karras"
    assert recipe.options["rng"] == "philox"
    assert recipe.options["guidance_scale"] == 7
    assert recipe.demands == {}


def test_invoke_ais() -> None:
    metadata = {
        "app_version": "5.0",
        "generation_mode": "txt2img",
        "positive_prompt": "a well-known fox - red",
        "negative_prompt": "",
        "width": 512,
        "height": 512,
        "seed": 7,
        "rand_device": "cpu",
        "cfg_scale": 7.5,
        "cfg_rescale_multiplier": 0,
        "steps": 30,
        "scheduler": "dpmpp_2m_k",
        "model": {"name": "dreamshaper", "hash": "blake3:00"},
        "loras": [{"model": {"name": "style"}, "weight": 0.5}],
        "seamless_x": True,
    }
    (recipe,) = read_recipes("a.png", {"invokeai_metadata": json.dumps(metadata)})
    assert recipe.options == {
        "prompt": "a well-known fox - red",
        "prompt_syntax": "plain",
        "negative_prompt": "",
        "width": 512,
        "height": 512,
        "seed": 7,
        "guidance_scale": 7.5,
        "steps": 30,
        "scheduler": "dpmpp_2m_karras",
    }
    assert set(recipe.demands) == {"loras", "seamless_x"}


@pytest.mark.parametrize("prompt", ["a fox++", "(a fox)1.2, snow", "a fox-, snow", "a (fox)"])
def test_invoke_ais_weights(prompt: str) -> None:
    (recipe,) = read_recipes("a.png", {"invokeai_metadata": json.dumps({"positive_prompt": prompt})})
    assert recipe.options["prompt"] == prompt
    assert set(recipe.demands) == {"prompt"}


@pytest.mark.parametrize(
    ("field", "name"),
    [
        ("Steps: many", "Steps"),
        (f"Steps: {'9' * 5000}", "Steps"),
        ("CFG scale: high", "CFG scale"),
        ("CFG scale: nan", "CFG scale"),
        ("Seed: -1", "Seed"),
        ("Size: large", "Size"),
        (f"Size: {'9' * 50}x8", "Size"),
        ("Sampler: Restart", "Sampler"),
    ],
)
def test_a_value_outside_its_rule_is_a_demand(field: str, name: str) -> None:
    (recipe,) = read_recipes("a.png", {"parameters": f"x\n{field}, Version: 1, Model: m, RNG: CPU"})
    assert set(recipe.demands) == {name}
    assert set(recipe.options) == {"prompt", "rng", "seeds", "emphasis"}


@pytest.mark.parametrize("key", ["shaderfusion", "invokeai_metadata"])
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("{", "is not valid JSON"),
        ("[1]", "must hold a JSON object"),
        ('{"a":' * 70 + "1" + "}" * 70, "nested"),
        ('{"a":' * 100_000, "nested"),
        (f'{{"steps": {"9" * 5000}}}', "is not valid JSON"),
        ('{"steps": NaN}', "is not valid JSON"),
    ],
)
def test_damaged_json(key: str, text: str, sentence: str) -> None:
    with pytest.raises(ModelError, match=rf"a.png \({key}\): .*{sentence}"):
        read_recipes("a.png", {key: text})


@pytest.mark.parametrize("value", [None, [], {}, True, -1, 1e400, "5.5", {"a": 1}])
def test_json_of_another_kind_is_a_demand(value: object) -> None:
    text = json.dumps({"prompt": "x", "steps": value}).replace("Infinity", "1e400")
    (recipe,) = read_recipes("a.png", {"shaderfusion": text})
    assert set(recipe.options) == {"prompt"}
    assert set(recipe.demands) == {"steps"}


def test_eta_of_ddim() -> None:
    eta = {"scheduler": "ddim", "eta": 0.5, "lora": [], "embedding": []}
    text = make_texts({**SETTINGS, **eta})["parameters"]
    assert ", Eta DDIM: 0.5, " in text
    for written in (text, text.replace("shaderfusion", "v")):
        assert read_recipes("a.png", {"parameters": written})[0].options["eta"] == 0.5


@pytest.mark.parametrize(
    ("sampler", "scheduler", "demands"),
    [
        ("UniPC", "unipc", {"Sampler": "UniPC, there of order 3 with bh1, where models mostly have 2 with bh2"}),
        ("DPM2 a Karras", "dpm2_a_karras", {"Sampler": "DPM2 a Karras, there without the last noise level but one"}),
        ("DPM++ 2M SDE", "dpmpp_2m_sde_linspace", {"Sampler": "DPM++ 2M SDE, there with the noise of a Brownian path"}),
        ("DPM++ 2M", "dpmpp_2m_linspace", {}),
    ],
)
def test_samplers_that_are_not_as_there(sampler: str, scheduler: str, demands: dict[str, str]) -> None:
    (recipe,) = read_recipes("a.png", {"parameters": f"x\nSteps: 20, Sampler: {sampler}, Seed: 5, Size: 8x8"})
    assert recipe.options["scheduler"] == scheduler
    assert recipe.demands == demands


def test_samplers_of_all_schedulers() -> None:
    for ours in SCHEDULERS:
        theirs = web_ui_name(ours)
        assert find_sampler(ours) == find_sampler(theirs) == find_sampler(theirs.upper()) == (ours, None)
    for name in ("DPM++ 2M Karras", "dpm++2m karras", "dpmpp_2m_k"):
        assert find_sampler(name) == find_sampler("DPM++ 2M", "Karras") == ("dpmpp_2m_karras", None)
    assert find_sampler("Euler a Karras") == ("euler_a", "Karras")
    assert find_sampler("Euler", "KL Optimal") == ("euler", "KL Optimal")
    assert find_sampler("k_euler_a") == ("euler_a", None)
    assert find_sampler("Euler SGM Uniform") == ("euler_trailing", None)
    for ours, theirs in {"dpm2": "kdpm_2", "dpm2_a_karras": "kdpm_2_a_k", "dpmpp_2m_sde": "dpm++2m sde"}.items():
        assert find_sampler(theirs) == (ours, None)
    assert find_sampler("Karras") == find_sampler("") == find_sampler("k") == (None, None)


@pytest.mark.parametrize(
    ("name", "schedule", "found"),
    [
        ("Euler a", None, ("euler_a_linspace", None)),
        ("Euler a", "Automatic", ("euler_a_linspace", None)),
        ("DPM++ 2M", None, ("dpmpp_2m_linspace", None)),
        ("DPM++ 2M", "Automatic", ("dpmpp_2m_karras", None)),
        ("DPM++ 2M Karras", None, ("dpmpp_2m_karras", None)),
        ("DPM++ 2M SDE", "Automatic", ("dpmpp_2m_sde_exponential", None)),
        ("DPM++ SDE", "Karras", ("dpmpp_sde_karras", None)),
        ("UniPC", "Automatic", ("unipc", None)),
        ("DDIM", "Karras", ("ddim", None)),  # as there, where it spaces its own steps
        ("DDIM CFG++", "Automatic", (None, None)),
        ("DPM++ 2M SDE Heun", "Exponential", (None, None)),
        ("Euler a Karras", None, ("euler_a_linspace", "Karras")),
        ("UniPC", "Karras", ("unipc", None)),  # as DDIM
        ("Euler", "KL Optimal", ("euler", "KL Optimal")),
        ("Restart", "Karras", (None, None)),
    ],
)
def test_samplers_of_web_uis(name: str, schedule: str | None, found: tuple[str | None, str | None]) -> None:
    assert find_web_uis(name, schedule) == found


@pytest.mark.parametrize(
    ("scheduler", "options", "name"),
    [
        ("euler", {"use_karras_sigmas": True}, "Karras"),
        ("euler", {"timestep_spacing": "trailing"}, "SGM Uniform"),
        ("euler", {"timestep_spacing": "linspace"}, "Uniform"),
        ("euler", {"timestep_spacing": "leading"}, None),
        ("dpmpp_2m", {"timestep_spacing": "linspace"}, "Uniform"),
        ("ddim", {"timestep_spacing": "trailing"}, None),
    ],
)
def test_schedule_types(scheduler: str, options: dict[str, object], name: str | None) -> None:
    assert schedule_type(SchedulerConfig.from_options(options, "scheduler"), scheduler) == name
