"""Bodies of the web UIs' API as fields of our own, without a server."""

import base64
from typing import Any

import numpy as np
import pytest

pytest.importorskip("starlette", reason="starlette comes with the test extra")
from server.serving import make_png

from shaderfusion.metadata.samplers import AUTOMATIC
from shaderfusion.schedulers import SCHEDULERS, find_scheduler
from shaderfusion.server.compat.web_ui_answers import samplers, schedulers
from shaderfusion.server.compat.web_ui_fields import default_options, read_fields, read_options
from shaderfusion.server.models import Known
from shaderfusion.server.refusal import RefusedError
from shaderfusion.server.settings import KINDS

MODELS = {
    "sd": Known("sd", "StableDiffusion", 512, 512, 20, 7.5),
    "owner/xl": Known("xl", "StableDiffusionXL", 1024, 1024, 20, 5.0),
}
OPTIONS = default_options("sd")
RED = base64.b64encode(make_png()).decode()
IMAGE: dict[str, Any] = {"prompt": "x", "init_images": [RED]}


def read(body: dict[str, Any], *, has_image: bool = False) -> dict[str, Any]:
    return read_fields(body, OPTIONS, MODELS, 1 << 16, has_image=has_image)


def test_nothing_given_is_the_models_own() -> None:
    own = {name: value for name, value in read({}).items() if value is not None}
    assert own == {"prompt": "", "model": "sd", "seeds": "each", "num_images": 1, "rng": "philox", "preview_every": 5}
    assert set(read({})) <= {*KINDS, "preview_every"}


@pytest.mark.parametrize(
    ("body", "own"),
    [
        ({"prompt": "a", "negative_prompt": "b", "steps": 9}, {"prompt": "a", "negative_prompt": "b", "steps": 9}),
        ({"cfg_scale": 3.5, "width": 64, "height": 32}, {"guidance_scale": 3.5, "width": 64, "height": 32}),
        ({"seed": -1}, {"seed": None}),
        ({"seed": 7}, {"seed": 7}),
        ({"batch_size": 2, "n_iter": 3}, {"num_images": 6}),
        ({"clip_skip": 1}, {"clip_skip": None}),
        ({"clip_skip": 2}, {"clip_skip": 1}),
        ({"override_settings": {"CLIP_stop_at_last_layers": 3}}, {"clip_skip": 2}),
        ({"clip_skip": 3, "override_settings": {"CLIP_stop_at_last_layers": 3}}, {"clip_skip": 2}),
        ({"override_settings": {"randn_source": "CPU"}}, {"rng": "cpu"}),
        ({"override_settings": {"randn_source": "GPU"}}, {"rng": "philox"}),
        ({"override_settings": {"show_progress_every_n_steps": -1}}, {"preview_every": 0}),
        ({"override_settings": {"sd_model_checkpoint": "sd.safetensors [0123456789]"}}, {"model": "sd"}),
        ({"override_settings": {"sd_model_checkpoint": "owner/xl", "sd_vae": None}}, {"model": "owner/xl"}),
        # The web UIs leave out no layers of SDXL's.
        ({"clip_skip": 2, "override_settings": {"sd_model_checkpoint": "owner/xl"}}, {"clip_skip": None}),
        ({"enable_hr": True}, {"hires": 2.0, "hires_steps": None, "hires_strength": 0.75}),
        (
            {"enable_hr": True, "hr_scale": 1.5, "hr_second_pass_steps": 4, "denoising_strength": 0.3},
            {"hires": 1.5, "hires_steps": 4, "hires_strength": 0.3},
        ),
        ({"enable_hr": True, "hr_upscaler": "None", "hr_second_pass_steps": 0}, {"hires_steps": None}),
    ],
)
def test_fields(body: dict[str, Any], own: dict[str, Any]) -> None:
    found = read(body)
    assert {name: found[name] for name in own} == own


@pytest.mark.parametrize(
    ("body", "scheduler"),
    [
        ({}, None),
        ({"scheduler": "Automatic"}, None),
        ({"scheduler": "Karras"}, "euler_karras"),  # of the web UIs' own sampler
        ({"sampler_name": "Euler a"}, "euler_a_linspace"),
        ({"sampler_index": "Euler a", "scheduler": ""}, "euler_a_linspace"),
        ({"sampler_name": "Euler a", "sampler_index": "Euler"}, "euler_a_linspace"),
        ({"sampler_name": "k_euler_a"}, "euler_a_linspace"),
        ({"sampler_name": "Euler", "scheduler": "SGM Uniform"}, "euler_trailing"),
        ({"sampler_name": "Euler", "scheduler": "sgm_uniform"}, "euler_trailing"),
        ({"sampler_name": "DPM++ 2M"}, "dpmpp_2m_karras"),
        ({"sampler_name": "DPM++ 2M", "scheduler": "karras"}, "dpmpp_2m_karras"),
        ({"sampler_name": "DPM++ 2M Karras"}, "dpmpp_2m_karras"),
        ({"sampler_name": "DPM++ 2M", "scheduler": "Uniform"}, "dpmpp_2m_linspace"),
        ({"sampler_name": "DPM++ SDE", "scheduler": "automatic"}, "dpmpp_sde_karras"),
        ({"sampler_name": "DPM++ 2M SDE", "scheduler": "Automatic"}, "dpmpp_2m_sde_exponential"),
        ({"sampler_name": "DDIM", "scheduler": "Karras"}, "ddim"),  # which no scheduler changes there
        ({"sampler_name": "PLMS"}, "pndm"),
        ({"sampler_name": "LCM"}, "lcm"),
        ({"sampler_name": "Euler", "scheduler": "Align Your Steps"}, "euler_ays"),
    ],
)
def test_samplers(body: dict[str, Any], scheduler: str | None) -> None:
    assert read(body)["scheduler"] == scheduler


def test_align_your_steps_is_that_of_the_model() -> None:
    body = {"sampler_name": "Euler", "scheduler": "Align Your Steps"}
    assert read({**body, "override_settings": {"sd_model_checkpoint": "owner/xl"}})["scheduler"] == "euler_ays_xl"


def test_all_that_is_listed_is_taken() -> None:
    for sampler in samplers():
        read({"sampler_name": sampler["name"]})
    for each in schedulers():
        for name in (each["name"], each["label"]):
            assert read({"sampler_name": "DPM++ 2M", "scheduler": name})["scheduler"].startswith("dpmpp_2m_")
    for rule, spacing in AUTOMATIC.items():
        assert spacing in SCHEDULERS[rule].spacings
        assert str(find_scheduler(f"{rule}_{spacing}")) == f"{rule}_{spacing}"


@pytest.mark.parametrize(
    ("body", "scheduler", "eta"),
    [
        ({"sampler_name": "DDIM", "eta": 0.5}, "ddim", 0.5),
        ({"sampler_name": "Euler a", "eta": 1.0}, "euler_a_linspace", None),
        ({"sampler_name": "Euler a", "eta": 0}, "euler_linspace", None),  # without its noise it is that
        ({"sampler_name": "Euler", "eta": 0.7, "s_noise": 0}, "euler_linspace", None),
        ({"sampler_name": "Euler a", "s_churn": 5, "s_noise": 0.9}, "euler_a_linspace", None),
        ({"eta": 0}, None, None),
    ],
)
def test_noise_of_steps(body: dict[str, Any], scheduler: str | None, eta: float | None) -> None:
    found = read(body)
    assert (found["scheduler"], found["eta"]) == (scheduler, eta)


def test_pictures() -> None:
    white, black = (np.asarray(read(body, has_image=True)["mask"].convert("L")) for body in masks())
    assert (white == 255 - black).all()
    found = read({**IMAGE, "denoising_strength": 0.4, "enable_hr": False}, has_image=True)
    assert (found["strength"], found["image"].size) == (0.4, (20, 12))
    assert "mask" not in found
    assert read({**IMAGE, "init_images": [f"data:image/png;base64,{RED}"]}, has_image=True)["strength"] == 0.75


def masks() -> list[dict[str, Any]]:
    return [{**IMAGE, "mask": RED, "inpainting_mask_invert": flag} for flag in (0, 1)]


PASSED_OVER: dict[str, Any] = {
    "restore_faces": False,
    "tiling": None,
    "styles": [""],
    "subseed": 5,
    "subseed_strength": 0,
    "seed_resize_from_h": -1,
    "seed_resize_from_w": 0,
    "save_images": True,
    "do_not_save_samples": True,
    "do_not_save_grid": True,
    "override_settings": {},
    "override_settings_restore_afterwards": False,
    "refiner_checkpoint": "",
    "refiner_switch_at": 0.8,
    "s_min_uncond": 0,
    "s_tmax": 0,
    "script_name": None,
    "script_args": [1, 2],
    "alwayson_scripts": {"ControlNet": {"args": []}, "ADetailer": {"args": [False]}},
    "firstphase_width": 0,
    "hr_upscaler": "R-ESRGAN 4x+",  # of no second pass
    "hr_resize_x": 0,
    "hr_prompt": "x",
    "infotext": "",
    "comments": {"a": "b"},
    "a_new_field": False,
}


def test_what_changes_no_picture_is_passed_over() -> None:
    for has_image in (False, True):
        plain = {"prompt": "x", **(IMAGE if has_image else {})}
        found, expected = (read({**plain, **more}, has_image=has_image) for more in (PASSED_OVER, {}))
        assert {**found, "image": 0} == {**expected, "image": 0}
    of_masks = {"mask_blur": 4, "inpainting_fill": 0, "inpaint_full_res": True, "inpaint_full_res_padding": 32}
    assert read({**IMAGE, **of_masks}, has_image=True)["strength"] == 0.75


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("restore_faces", {"restore_faces": True}),
        ("tiling", {"tiling": True}),
        ("styles", {"styles": ["anime"]}),
        ("subseed_strength", {"subseed_strength": 0.1}),
        ("seed_resize_from_h", {"seed_resize_from_h": 512}),
        ("refiner_checkpoint", {"refiner_checkpoint": "x"}),
        ("s_churn", {"s_churn": 1, "sampler_name": "Euler"}),
        ("s_noise", {"s_noise": 0, "sampler_name": "DPM++ SDE"}),
        ("eta", {"eta": 0.5, "sampler_name": "Euler a"}),
        ("eta", {"eta": 1}),
        ("script_name", {"script_name": "X/Y/Z plot"}),
        ("alwayson_scripts", {"alwayson_scripts": {"ADetailer": {"args": [True]}}}),
        ("alwayson_scripts", {"alwayson_scripts": ["ADetailer"]}),
        ("infotext", {"infotext": "a fox\nSteps: 20"}),
        ("firstphase_width", {"firstphase_width": 512}),
        ("a_new_field", {"a_new_field": 1}),
        ("init_images", {"init_images": [RED]}),
        ("sampler_name", {"sampler_name": "DPM fast"}),
        ("sampler_name", {"sampler_name": "DPM++ 2M SDE Heun"}),
        ("sampler_name", {"sampler_name": ["Euler"]}),
        ("scheduler", {"sampler_name": "Euler", "scheduler": "KL Optimal"}),
        ("scheduler", {"sampler_name": "Euler a", "scheduler": "Karras"}),
        ("scheduler", {"scheduler": 3}),
        ("hr_upscaler", {"enable_hr": True, "hr_upscaler": "Latent"}),
        ("hr_resize_x", {"enable_hr": True, "hr_resize_x": 1024}),
        ("hr_sampler_name", {"enable_hr": True, "hr_sampler_name": "Heun"}),
        ("hr_prompt", {"enable_hr": True, "hr_prompt": "more"}),
        ("enable_hr", {"enable_hr": "yes"}),
        ("batch_size", {"batch_size": 0}),
        ("n_iter", {"n_iter": "2"}),
        ("clip_skip", {"clip_skip": 0}),
        ("clip_skip", {"clip_skip": 2, "override_settings": {"CLIP_stop_at_last_layers": 3}}),
        ("override_settings", {"override_settings": [1]}),
        ("sd_model_checkpoint", {"override_settings": {"sd_model_checkpoint": "../sd"}}),
        ("sd_vae", {"override_settings": {"sd_vae": "vae-ft-mse.safetensors"}}),
        ("eta_noise_seed_delta", {"override_settings": {"eta_noise_seed_delta": 31337}}),
        ("samples_format", {"override_settings": {"samples_format": "jpg"}}),
        ("token_merging_ratio", {"override_settings": {"token_merging_ratio": 0.5}}),
        (
            "override_settings_restore_afterwards",
            {"override_settings": {"randn_source": "CPU"}, "override_settings_restore_afterwards": False},
        ),
    ],
)
def test_what_is_not_done_is_refused_by_name(field: str, body: dict[str, Any]) -> None:
    with pytest.raises(RefusedError) as found:
        read(body)
    assert found.value.field == field
    assert str(found.value).startswith(field)


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("init_images", {"init_images": None}),
        ("init_images", {"init_images": []}),
        ("init_images", {"init_images": [RED, RED]}),
        ("init_images", {"init_images": ["http://127.0.0.1/a.png"]}),
        ("mask", {"mask": "nonsense!"}),
        ("mask_blur", {"mask": RED, "mask_blur": 4}),
        ("inpainting_fill", {"mask": RED, "inpainting_fill": 0}),
        ("inpaint_full_res", {"mask": RED, "inpaint_full_res": True}),
        ("inpainting_mask_invert", {"mask": RED, "inpainting_mask_invert": 2}),
        ("resize_mode", {"resize_mode": 1}),
        ("initial_noise_multiplier", {"initial_noise_multiplier": 1.1}),
        ("enable_hr", {"enable_hr": True}),
    ],
)
def test_what_is_not_done_with_pictures(field: str, body: dict[str, Any]) -> None:
    with pytest.raises(RefusedError) as found:
        read({**IMAGE, **body}, has_image=True)
    assert found.value.field == field


def test_options() -> None:
    changed = read_options({"sd_model_checkpoint": "owner/xl", "CLIP_stop_at_last_layers": 2}, OPTIONS, MODELS)
    assert changed == {**OPTIONS, "sd_model_checkpoint": "owner/xl", "CLIP_stop_at_last_layers": 2}
    assert read_options(dict(changed), changed, MODELS) == changed  # as clients send all of them back
    assert read_fields({}, changed, MODELS, 1, has_image=False)["model"] == "owner/xl"
    with pytest.raises(RefusedError, match="options are"):
        read_options({"nonsense": 1}, OPTIONS, MODELS)
