"""What /openapi.json says. Fields are described by the options whose rules they have; docs/openapi.json is a copy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import shaderfusion
from shaderfusion.server.compat.openapi import OPENAI_ERROR, WEB_UI_ERROR, openai_paths, web_ui_paths
from shaderfusion.server.openapi_parts import (
    ANY_OBJECT,
    Json,
    a_list,
    an_object,
    field_schema,
    get_path,
    json_content,
    picture_schema,
    post_path,
    responses,
)
from shaderfusion.server.settings import KINDS, PICTURES, Fields
from shaderfusion.server.setup import Limits

__all__ = ["EXAMPLES", "all_paths", "document"]

EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "/api/generate": {"prompt": "a red heart", "steps": 8, "guidance_scale": 5, "seed": 42, "preview_every": 2},
    "/api/cancel": {"job": "VsaKMaV4NST0uGWn"},
    "/api/ablation": {"steps": 3},
}
"""Bodies of requests, which tests send."""

_JOB = {"type": "string", "description": "of the job, for /api/cancel"}


def document(paths: Mapping[str, Any], *, asks_for_key: bool = False) -> Json:
    """The whole document, of the paths of all APIs."""
    found: Json = {
        "openapi": "3.1.0",
        "info": {
            "title": "shaderfusion serve",
            "version": shaderfusion.__version__,
            "description": "Pictures of Stable Diffusion. Jobs wait in one queue and are done one after the other.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": dict(paths),
        "components": {
            "schemas": {
                "Error": an_object(
                    error={"type": "string", "description": "a sentence"},
                    field={"type": ["string", "null"], "description": "the field that caused it"},
                ),
                "WebUiError": WEB_UI_ERROR,
                "OpenAiError": OPENAI_ERROR,
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }
    if asks_for_key:
        found["security"] = [{"key": []}]
    return found


def all_paths(fields: Fields, limits: Limits) -> Json:
    """Of the own API and of those of others."""
    return {**_own_paths(fields, limits), **web_ui_paths(fields, limits), **openai_paths(fields, limits)}


def _own_paths(fields: Fields, limits: Limits) -> Json:
    return {
        "/api/options": get_path("Schedulers, optimizations, defaults and bounds", ANY_OBJECT),
        "/api/models": get_path(
            "The models that may be named",
            an_object(
                models=a_list(
                    an_object(
                        name={"type": "string"},
                        family={"type": "string"},
                        width={"type": "integer"},
                        height={"type": "integer"},
                        loaded={"type": "boolean", "description": "it is on the device"},
                    )
                ),
                current={"type": ["string", "null"]},
            ),
        ),
        "/api/device": get_path("The device, its memory, the queue", ANY_OBJECT),
        "/api/generate": post_path(
            EXAMPLES["/api/generate"],
            "Makes pictures",
            "Answers with server-sent events: `queued` {job, position}, again when the position, of jobs before it, "
            "changes; `started` {job, model, seed, steps, width, height, num_images}; `step` {job, step, steps, part, "
            "seconds_left}, for each step and each part that begins; `preview` {job, step, images}; `picture` {job, "
            "index, image, settings, parameters}; at last `done` {job, seconds}, `cancelled` {job} or `error` {job, "
            "error, field}. Steps and previews that were not read in time are left out. A client that closes the "
            "connection cancels the job. With `Accept: application/json` the pictures come at the end, without events.",
            {
                "type": "object",
                "additionalProperties": False,
                "required": ["prompt"],
                "properties": {
                    **{name: field_schema(fields, limits, name) for name in KINDS},
                    **{name: picture_schema(fields, name) for name in PICTURES},
                    "preview_every": {
                        "type": ["integer", "null"],
                        "minimum": 0,
                        "description": "steps from one preview to the next; default: 0, none",
                    },
                },
            },
            {
                "text/event-stream": {"schema": {"type": "string"}},
                "application/json": {"schema": an_object(job=_JOB, pictures=a_list(ANY_OBJECT))},
            },
            400,
            429,
            503,
        ),
        "/api/cancel": post_path(
            EXAMPLES["/api/cancel"],
            "Cancels a job",
            "One that runs ends after its current step.",
            an_object(job=_JOB),
            json_content(an_object(cancelled={"type": "boolean", "description": "no where there is no such job"})),
            400,
        ),
        "/api/inspect": {
            "post": {
                "summary": "What a picture's file says of how it was made",
                "requestBody": {
                    "required": True,
                    "content": {
                        kind: {"schema": {"type": "string", "format": "binary"}}
                        for kind in ("image/png", "image/jpeg", "image/webp")
                    },
                },
                "responses": responses(
                    json_content(
                        an_object(
                            settings={"type": ["object", "null"], "description": "fields of /api/generate"},
                            parameters={"type": ["string", "null"], "description": "as web UIs write it"},
                            missing=a_list({"type": "string"}),
                        )
                    )
                ),
            }
        },
        "/api/ablation": post_path(
            EXAMPLES["/api/ablation"],
            "Measures the five optimizations on this device",
            "Answers with server-sent events: `queued`; `row` {job, name, ms, against_none_percent} for each line of "
            "the paper's table; at last `done` {job, seconds, svg}, `cancelled` or `error`.",
            {
                "type": "object",
                "additionalProperties": False,
                "properties": {
                    "model": {"type": ["string", "null"]},
                    "steps": {"type": ["integer", "null"], "description": "iterations of each; default: 5"},
                },
            },
            {"text/event-stream": {"schema": {"type": "string"}}},
            400,
            429,
            503,
        ),
        "/health": get_path("Whether the server answers", an_object(status={"const": "ok"})),
        "/metrics": {
            "get": {
                "summary": "Counts and gauges in the text format of Prometheus",
                "responses": responses({"text/plain": {"schema": {"type": "string"}}}),
            }
        },
    }
