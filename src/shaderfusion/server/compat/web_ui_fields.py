"""Bodies of the web UIs' `txt2img` and `img2img`, and their options, as fields of our own API.

Fields that are not done are refused by name where they ask for something. What changes no picture is passed over.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from PIL.Image import Image

from shaderfusion.errors import InputError
from shaderfusion.metadata.samplers import AUTOMATIC, HAVE_OWN, find_sampler
from shaderfusion.schedulers import SCHEDULERS, find_scheduler
from shaderfusion.schedulers.names import Choice
from shaderfusion.server.compat.errors import FieldError
from shaderfusion.server.compat.pictures import decode_base64, inverted
from shaderfusion.server.models import Known
from shaderfusion.server.safety import decode_picture

__all__ = ["NAMES", "UPSCALERS", "WORDS", "Options", "default_options", "read_fields", "read_options"]

NAMES: Mapping[str, str] = {
    "guidance_scale": "cfg_scale",
    "num_images": "batch_size",
    "scheduler": "sampler_name",
    "strength": "denoising_strength",
    "hires": "hr_scale",
    "hires_steps": "hr_second_pass_steps",
    "hires_strength": "denoising_strength",
    "image": "init_images",
    "model": "sd_model_checkpoint",
}
"""Of the web UIs, by ours."""
WORDS: Mapping[str, str] = {"num_images": "batch_size times n_iter", "clip_skip": "clip_skip less 1"}
"""For errors: what fields of ours are made of."""

UPSCALERS = ("None", "Lanczos")
"""Which are the same for a second pass: web UIs resize by Lanczos' filter where there is no upscaler."""

SAME = ("prompt", "negative_prompt", "width", "height", "steps")
"""Fields that are ours too."""
TAKEN = (*SAME, "cfg_scale", "seed", "batch_size", "n_iter", "sampler_name", "sampler_index", "scheduler")
TAKEN += ("eta", "s_churn", "s_noise", "denoising_strength", "clip_skip", "override_settings")
PICTURES = ("init_images", "mask", "inpainting_mask_invert")

NO_MATTER = ("send_images", "save_images", "do_not_save_samples", "do_not_save_grid", "include_init_images")
NO_MATTER += ("force_task_id", "user", "comments", "seed_enable_extras", "do_not_reload_embeddings")
NO_MATTER += ("override_settings_restore_afterwards", "url", "auth")
NO_MATTER += ("subseed", "script_args", "refiner_switch_at", "s_tmin", "s_tmax", "inpaint_full_res_padding")
NO_MATTER += ("distilled_cfg_scale", "image_cfg_scale")
"""They change no picture: the first by what they are, the others without fields that are refused (subseed_strength,
script_name, ...), or for models of other kinds alone."""

EMPTY = (None, False, 0, "", [], {})
NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "seed_resize_from_h": (None, 0, -1),
    "seed_resize_from_w": (None, 0, -1),
    "styles": (None, [], [""]),
    "initial_noise_multiplier": (None, 1),
    "refiner_checkpoint": (None, "", "None"),
    "hr_checkpoint_name": (None, "", "Use same checkpoint"),
    "hr_sampler_name": (None, "", "Use same sampler"),
    "hr_scheduler": (None, "", "Use same scheduler"),
    "inpainting_fill": (None, 1),
    "mask_round": (None, True),
}
"""Values that ask for nothing, of other fields EMPTY."""

REMEDIES = {
    "restore_faces": "faces are not restored here",
    "tiling": "pictures that tile are not made here",
    "mask_blur": "a mask has sharp edges here: send 0",
    "mask_blur_x": "a mask has sharp edges here: send 0",
    "mask_blur_y": "a mask has sharp edges here: send 0",
    "inpaint_full_res": "a mask is painted in the whole picture here: send false",
    "inpainting_fill": "a mask is painted over the picture that is there: send 1, original",
    "hr_resize_x": "send hr_scale",
    "hr_resize_y": "send hr_scale",
    "resize_mode": "a picture is resized to width and height: send 0",
    "styles": "write them into the prompt",
}
_STRENGTH = 0.75
"""The web UIs' denoising_strength where none is given."""

_TAKES_CHURN = ("euler", "heun", "dpm2")
_TAKES_NOISE = ("dpm2_a", "dpmpp_sde", "dpmpp_2m_sde")
"""Rules for which web UIs read s_churn and s_noise."""
_ANCESTRAL = ("euler_a", *_TAKES_NOISE)
"""Rules whose eta is 1 in web UIs, and here always."""
_XL = "StableDiffusionXL"

Options = Mapping[str, Any]
_RNGS = {"GPU": "philox", "NV": "philox", "CPU": "cpu"}
_MOST = 10_000


def default_options(model: str) -> Options:
    """What `options` says before anybody has set anything."""
    return {
        "sd_model_checkpoint": model,
        "sd_vae": "Automatic",
        "CLIP_stop_at_last_layers": 1,
        "randn_source": "NV",
        "eta_noise_seed_delta": 0,
        "show_progress_every_n_steps": 5,
        "samples_format": "png",
    }


def read_options(given: Mapping[str, Any], options: Options, models: Mapping[str, Known]) -> Options:
    """All options, with those that are given in the place of others; FieldError of one that cannot be so."""
    found = dict(options)
    for name, value in given.items():
        if value is None:
            continue
        match name:
            case "sd_model_checkpoint":
                found[name] = _model(value, models)
            case "CLIP_stop_at_last_layers":
                found[name] = _whole(name, value, 1)
            case "show_progress_every_n_steps":
                found[name] = _whole(name, value, -1)
            case "randn_source":
                if value not in tuple(_RNGS):
                    raise FieldError(name, value, f"it must be one of {', '.join(_RNGS)}")
                found[name] = value
            case "sd_vae":
                if value not in ("Automatic", "None", ""):
                    raise FieldError(name, value, "models have their own here: send Automatic")
            case _ if name in found and value != found[name]:
                raise FieldError(name, value, f"it is {found[name]!r} here")
            case _ if name not in found and value not in EMPTY:
                raise FieldError(name, value, f"options are {', '.join(found)}")
    return found


def _model(value: object, models: Mapping[str, Known]) -> str:
    """A name, as clients write it: with `.safetensors` or with a hash in brackets behind it."""
    name = value.partition(" [")[0].removesuffix(".safetensors") if isinstance(value, str) else ""
    found = value if isinstance(value, str) and value in models else name
    if found not in models:
        raise FieldError("sd_model_checkpoint", value, f"it must be one of {', '.join(models)}")
    return found


def read_fields(
    body: Mapping[str, Any], options: Options, models: Mapping[str, Known], max_pixels: int, *, has_image: bool
) -> dict[str, Any]:
    """The own API's fields of a body of img2img, where it has an image, or of txt2img."""
    overrides = body.get("override_settings") or {}
    if not isinstance(overrides, Mapping):
        raise FieldError("override_settings", overrides, "it must be an object of options")
    if overrides and body.get("override_settings_restore_afterwards") is False:
        raise FieldError("override_settings_restore_afterwards", False, "POST /sdapi/v1/options keeps what it sets")
    settings = read_options(overrides, options, models)
    model = settings["sd_model_checkpoint"]
    is_xl = models[model].family == _XL
    _require_nothing_else(body, has_image=has_image)
    own = {name: body.get(name) for name in SAME}
    own["prompt"] = "" if own["prompt"] is None else own["prompt"]
    own |= {"model": model, "guidance_scale": body.get("cfg_scale"), "seeds": "each"}
    own["seed"] = None if body.get("seed") == -1 else body.get("seed")
    own["num_images"] = _number(body, "batch_size") * _number(body, "n_iter")
    own["rng"] = _RNGS[settings["randn_source"]]
    own["scheduler"], own["eta"] = _with_noise(body, _scheduler(body, is_xl=is_xl))
    skip = _clip_skip(body, overrides, settings)
    own["clip_skip"] = None if skip == 1 or is_xl else skip - 1  # web UIs skip none of SDXL's
    own["preview_every"] = max(0, settings["show_progress_every_n_steps"])
    strength = body.get("denoising_strength")
    strength = _STRENGTH if strength is None else strength
    if has_image:
        own |= {"strength": strength, **_pictures(body, max_pixels)}
    elif _flag(body, "enable_hr"):
        own |= {"hires_strength": strength, **_second_pass(body)}
    return own


def _require_nothing_else(body: Mapping[str, Any], *, has_image: bool) -> None:
    """FieldError of a field that asks for what is not done."""
    known = {*TAKEN, *NO_MATTER, *(PICTURES if has_image else ("enable_hr",))}
    has_second_pass = not has_image and bool(body.get("enable_hr"))
    has_mask = has_image and bool(body.get("mask"))
    if has_second_pass:
        known |= {"hr_scale", "hr_upscaler", "hr_second_pass_steps"}
    for name, value in body.items():
        if name in known or value in NEUTRAL.get(name, EMPTY):
            continue
        if name.startswith("hr_") and not has_second_pass:
            continue
        if name.startswith(("mask_", "inpaint")) and not has_mask:
            continue
        if name == "alwayson_scripts" and _asks_for_none(value):
            continue
        about = REMEDIES.get(name, "this server does not do it, so that it must be left out")
        raise FieldError(name, value, about)


def _asks_for_none(scripts: object) -> bool:
    """Whether each script is given nothing, or that it is off."""
    if not isinstance(scripts, Mapping):
        return False
    return all(isinstance(each, Mapping) and each.get("args") in (None, [], [False]) for each in scripts.values())


def _scheduler(body: Mapping[str, Any], *, is_xl: bool) -> Choice | None:
    """Ours of a sampler and a scheduler; None where the model's own shall be taken."""
    name, spacing = body.get("sampler_name") or body.get("sampler_index"), body.get("scheduler") or "automatic"
    if not isinstance(spacing, str):
        raise FieldError("scheduler", spacing, "it must be a name of /sdapi/v1/schedulers")
    is_automatic = spacing.lower() in ("automatic", "use same scheduler")
    if name is None and is_automatic:
        return None
    name = "Euler" if name is None else name  # the web UIs' own
    if not isinstance(name, str):
        raise FieldError("sampler_name", name, "it must be a name of /sdapi/v1/samplers")
    found, left = find_sampler(name)
    if found is None or left:
        samplers = ", ".join(rule.web_ui for rule in SCHEDULERS.values())
        raise FieldError("sampler_name", name, f"it must be one of {samplers}")
    choice = find_scheduler(found)
    if choice.rule in HAVE_OWN:
        return choice
    if not is_automatic:
        try:
            choice = find_scheduler(f"{choice.rule} {spacing}")
        except InputError as error:
            raise FieldError("scheduler", spacing, str(error)) from None
    elif choice.spacing is None and choice.rule in AUTOMATIC:
        choice = choice._replace(spacing=AUTOMATIC[choice.rule])
    if choice.spacing == "ays" and is_xl:
        choice = choice._replace(spacing="ays_xl")
    return choice


def _with_noise(body: Mapping[str, Any], choice: Choice | None) -> tuple[str | None, Any]:
    """The scheduler and its eta. How much noise steps add is passed over for the rules for which web UIs do so."""
    rule = choice.rule if choice else None
    eta, churn, noise = body.get("eta"), body.get("s_churn"), body.get("s_noise")
    if churn not in (None, 0) and rule in (None, *_TAKES_CHURN):
        raise FieldError("s_churn", churn, "noise of that kind is not added here: send 0")
    if noise not in (None, 1) and rule in _TAKES_NOISE:
        raise FieldError("s_noise", noise, f"{rule} adds all of its noise here: send 1")
    if choice is None:
        if eta not in (None, 0):
            raise FieldError("eta", eta, "send sampler_name with it")
        return None, None
    if SCHEDULERS[choice.rule].takes_eta:
        return str(choice), eta
    if rule == "euler_a" and eta == 0:  # which is that
        choice = choice._replace(rule="euler")
    elif rule in _ANCESTRAL and eta not in (None, 1):
        raise FieldError("eta", eta, f"{rule} adds all of its noise here: send 1")
    return str(choice), None


def _clip_skip(body: Mapping[str, Any], overrides: Mapping[str, Any], settings: Options) -> int:
    """As web UIs count: 1 is the last layer."""
    given, option = body.get("clip_skip"), settings["CLIP_stop_at_last_layers"]
    if given is None:
        return option
    skip = _whole("clip_skip", given, 1)
    if overrides.get("CLIP_stop_at_last_layers") not in (None, skip):
        raise FieldError("clip_skip", skip, f"override_settings.CLIP_stop_at_last_layers is {option}")
    return skip


def _second_pass(body: Mapping[str, Any]) -> dict[str, Any]:
    upscaler = body.get("hr_upscaler")
    if upscaler not in (None, "", *UPSCALERS):
        raise FieldError("hr_upscaler", upscaler, f"it must be one of {', '.join(UPSCALERS)}")
    scale = body.get("hr_scale")
    return {"hires": 2.0 if scale is None else scale, "hires_steps": body.get("hr_second_pass_steps") or None}


def _pictures(body: Mapping[str, Any], max_pixels: int) -> dict[str, Image]:
    images = body.get("init_images")
    if not isinstance(images, list) or len(images) != 1:
        about = "it must be a list of one picture, a PNG, JPEG or WebP file in base64"
        raise FieldError("init_images", images, about)
    found = {"image": decode_picture("init_images", decode_base64("init_images", images[0]), max_pixels)}
    if body.get("mask"):
        mask = decode_picture("mask", decode_base64("mask", body["mask"]), max_pixels)
        found["mask"] = inverted(mask) if _flag(body, "inpainting_mask_invert") else mask
    return found


def _number(body: Mapping[str, Any], name: str) -> int:
    return 1 if body.get(name) is None else _whole(name, body[name], 1)


def _whole(name: str, value: object, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _MOST:
        raise FieldError(name, value, f"it must be a whole number from {least} to {_MOST:,}")
    return value


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value not in (None, False, True):  # 0 and 1 too
        raise FieldError(name, value, "it must be true or false")
    return bool(value)
