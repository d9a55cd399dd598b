"""What /openapi.json says of the APIs of others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shaderfusion.server.compat.openai_fields import EXTRA, FORMATS
from shaderfusion.server.compat.web_ui_fields import UPSCALERS
from shaderfusion.server.openapi_parts import (
    ANY_OBJECT,
    Json,
    a_list,
    an_object,
    field_schema,
    get_path,
    json_content,
    post_path,
    responses,
)
from shaderfusion.server.settings import Fields
from shaderfusion.server.setup import Limits

__all__ = ["EXAMPLES", "OPENAI_ERROR", "WEB_UI_ERROR", "openai_paths", "web_ui_paths"]

RED_DOT = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEUlEQVR42mP4z8CAFTEMLQkAKP8/wc53yE8AAAAASUVORK5CYII="
"""A PNG, red all over, of 8x8 pixels."""

EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "/sdapi/v1/txt2img": {"prompt": "a red heart", "steps": 8, "cfg_scale": 5, "sampler_name": "Euler a", "seed": 42},
    "/sdapi/v1/img2img": {
        "prompt": "a red heart",
        "init_images": [RED_DOT],
        "denoising_strength": 0.75,
        "steps": 8,
        "sampler_name": "DPM++ 2M",
        "scheduler": "Karras",
    },
    "/sdapi/v1/options": {"CLIP_stop_at_last_layers": 1},
    "/sdapi/v1/png-info": {"image": RED_DOT},
    "/v1/images/generations": {"prompt": "a red heart", "n": 1, "response_format": "b64_json", "seed": 42, "steps": 8},
}
"""Bodies of requests, which tests send."""

_TEXT: Json = {"type": "string"}
_WHOLE: Json = {"type": "integer"}
_BASE64: Json = {"type": "string", "description": "a PNG, JPEG or WebP file in base64, alone or as a data URL"}

WEB_UI_ERROR = an_object(
    error={"type": "string", "description": "a sentence"},
    detail={"type": "string", "description": "the same sentence"},
    errors=_TEXT,
    field={"type": ["string", "null"], "description": "the field that caused it"},
)
OPENAI_ERROR = an_object(
    error=an_object(
        message={"type": "string", "description": "a sentence"},
        type=_TEXT,
        param={"type": ["string", "null"], "description": "the field that caused it"},
        code={"type": ["string", "null"]},
    )
)


def web_ui_paths(fields: Fields, limits: Limits) -> Json:
    """Of /sdapi/v1. Fields that are passed over where they ask for nothing are not among those that it names."""

    def own(name: str) -> Json:
        return field_schema(fields, limits, name)

    taken: Json = {
        **{name: own(name) for name in ("prompt", "negative_prompt", "width", "height", "steps")},
        "cfg_scale": own("guidance_scale"),
        "seed": {"type": ["integer", "null"], "description": "picture i has the seed + i; -1, the default, is random"},
        "batch_size": {**_WHOLE, "description": f"with n_iter, as a product, at most {limits.max_images}; default: 1"},
        "n_iter": {**_WHOLE, "description": "default: 1"},
        "sampler_name": {**_TEXT, "description": "of /sdapi/v1/samplers; default: the model's own"},
        "scheduler": {**_TEXT, "description": "of /sdapi/v1/schedulers; default: Automatic"},
        "denoising_strength": {"type": "number", "description": "default: 0.75"},
        "clip_skip": {**_WHOLE, "description": "1, the default, is the last layer"},
        "eta": own("eta"),
        "override_settings": {"type": "object", "description": "of /sdapi/v1/options, for this job"},
        "send_images": {"type": "boolean", "description": "default: true"},
    }
    second = {
        "enable_hr": {"type": "boolean", "description": "a second pass over larger pictures"},
        "hr_scale": own("hires"),
        "hr_second_pass_steps": {**_WHOLE, "description": "0, the default, is as many as steps"},
        "hr_upscaler": {"enum": list(UPSCALERS)},
    }
    begin = {
        "init_images": {**a_list(_BASE64), "minItems": 1, "maxItems": 1},
        "mask": {**_BASE64, "description": "white where to paint"},
        "inpainting_mask_invert": {"enum": [0, 1], "description": "1 paints where the mask is black"},
    }
    pictures = json_content(
        an_object(
            images=a_list({"type": "string", "description": "a PNG in base64, with its settings"}),
            parameters=ANY_OBJECT,
            info={"type": "string", "description": "JSON: seed, all_seeds, infotexts and so on"},
        )
    )

    def post(name: str, summary: str, about: str, body: Json, answer: Json, *statuses: int) -> Json:
        example = EXAMPLES[f"/sdapi/v1/{name}"]
        return post_path(example, summary, about, body, answer, 422, *statuses, error="WebUiError")

    about = "Fields that ask for what is not done are refused by name."
    options = post(
        "options", "Sets options of this API", "A model is loaded with the next picture.", ANY_OBJECT, json_content({})
    )
    return {
        "/sdapi/v1/txt2img": post(
            "txt2img", "Makes pictures as web UIs", about, _optional(**taken, **second), pictures, 409, 429, 503
        ),
        "/sdapi/v1/img2img": post(
            "img2img", "Makes pictures from one", about, _optional(**taken, **begin), pictures, 409, 429, 503
        ),
        "/sdapi/v1/options": {**get_path("The options of this API", ANY_OBJECT), **options},
        "/sdapi/v1/png-info": post(
            "png-info",
            "What a picture's file says of how it was made",
            "No pixel is decoded.",
            an_object(image=_BASE64),
            json_content(an_object(info=_TEXT, items=ANY_OBJECT, parameters=ANY_OBJECT)),
        ),
        "/sdapi/v1/interrupt": {
            "post": {
                "summary": "Cancels the job of this API that runs, if it came from the same address",
                "responses": responses(json_content(ANY_OBJECT)),
            }
        },
        "/sdapi/v1/progress": get_path(
            "Of the job of this API that runs or waits; ?skip_current_image=true leaves the preview out",
            an_object(
                progress={"type": "number"},
                eta_relative={"type": "number", "description": "seconds"},
                state=ANY_OBJECT,
                current_image={"type": ["string", "null"], "description": "a JPEG in base64"},
                textinfo={"type": "null"},
            ),
        ),
        **{f"/sdapi/v1/{name}": get_path(about, a_list(ANY_OBJECT)) for name, about in _LISTS.items()},
    }


_LISTS = {
    "samplers": "Names for sampler_name",
    "schedulers": "Names for scheduler",
    "sd-models": "Names for the option sd_model_checkpoint",
    "sd-vae": "Nothing: models have their own",
    "upscalers": "Names for hr_upscaler",
    "latent-upscale-modes": "Nothing: pictures are enlarged, not latents",
    "loras": "Names for <lora:name:weight> in prompts",
}


def openai_paths(fields: Fields, limits: Limits) -> Json:
    """Of /v1."""
    taken: Json = {
        "prompt": field_schema(fields, limits, "prompt"),
        "model": {"type": ["string", "null"], "description": "of /v1/models; default: the first"},
        "n": {"type": ["integer", "null"], "minimum": 1, "maximum": limits.max_images},
        "size": {"type": ["string", "null"], "description": "WIDTHxHEIGHT, or auto, the default: the model's own"},
        "response_format": {"enum": ["b64_json", "url", None], "description": "default: b64_json"},
        "output_format": {"enum": [*FORMATS, None], "description": "default: png"},
        "output_compression": {"type": ["integer", "null"], "minimum": 0, "maximum": 100},
        **{name: field_schema(fields, limits, name) for name in EXTRA},
    }
    made = an_object(
        created=_WHOLE, data=a_list({"type": "object", "properties": {"b64_json": _TEXT, "url": _TEXT}}), seed=_WHOLE
    )
    file: Json = {"type": "string", "format": "binary"}
    form = _optional(image=file, mask={**file, "description": "transparent where to paint"}, **taken)
    content = json_content(made)
    statuses = (400, 409, 429, 503)
    return {
        "/v1/images/generations": post_path(
            EXAMPLES["/v1/images/generations"],
            "Makes pictures as OpenAI's API",
            "Fields of /api/generate may be sent on top.",
            {**_optional(**taken), "required": ["prompt"]},
            content,
            *statuses,
            error="OpenAiError",
        ),
        "/v1/images/edits": {
            "post": {
                "summary": "Makes pictures from one, where its mask is transparent",
                "requestBody": {
                    "required": True,
                    "content": {"multipart/form-data": {"schema": {**form, "required": ["image", "prompt"]}}},
                },
                "responses": responses(content, *statuses, error="OpenAiError"),
            }
        },
        "/v1/models": get_path("The models that may be named", an_object(object=_TEXT, data=a_list(ANY_OBJECT))),
        "/pictures/{name}": {
            "get": {
                "summary": "A picture that was asked for with response_format url, for an hour",
                "parameters": [{"name": "name", "in": "path", "required": True, "schema": _TEXT}],
                "responses": {
                    "200": {
                        "description": "Done",
                        "content": {f"image/{kind}": {"schema": file} for kind in FORMATS},
                    }
                },
            }
        },
    }


def _optional(**properties: Json) -> Json:
    return {"type": "object", "properties": properties}
