"""What /openapi.json says. Fields are described by the options whose rules they have; docs/openapi.json is a copy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import shaderfusion
from shaderfusion.arguments import LARGEST_SEED
from shaderfusion.server.settings import KINDS, PICTURES, Fields
from shaderfusion.server.setup import Limits

__all__ = ["EXAMPLES", "document", "own_paths"]

Json = dict[str, Any]

EXAMPLES: Mapping[str, Mapping[str, Any]] = {
    "/api/generate": {"prompt": "a red heart", "steps": 8, "guidance_scale": 5, "seed": 42, "preview_every": 2},
    "/api/cancel": {"job": "VsaKMaV4NST0uGWn"},
    "/api/ablation": {"steps": 3},
}
"""Bodies of requests, which tests send."""

_PICTURE = "a PNG, JPEG or WebP file as a data URL"
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
                "Error": _object(
                    error={"type": "string", "description": "a sentence"},
                    field={"type": ["string", "null"], "description": "the field that caused it"},
                )
            },
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }
    if asks_for_key:
        found["security"] = [{"key": []}]
    return found


def own_paths(fields: Fields, limits: Limits) -> Json:
    """Of the own API."""
    return {
        "/api/options": _get("Schedulers, optimizations, defaults and bounds", _any_object()),
        "/api/models": _get(
            "The models that may be named",
            _object(
                models=_list(
                    _object(
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
        "/api/device": _get("The device, its memory, the queue", _any_object()),
        "/api/generate": _post(
            "/api/generate",
            "Makes pictures",
            "Answers with server-sent events: `queued` {job, position}, again when the position, of jobs before it, "
            "changes; `started` {job, model, seed, steps, width, height, num_images}; `step` {job, step, steps, part, "
            "seconds_left}; `preview` {job, step, images}; `picture` {job, index, image, settings, parameters}; at "
            "last `done` {job, seconds}, `cancelled` {job} or `error` {job, error, field}. Steps and previews that were not "
            "read in time are left out. A client that closes the connection cancels the job. With `Accept: "
            "application/json` the pictures come at the end, without events.",
            {
                "type": "object",
                "additionalProperties": False,
                "required": ["prompt"],
                "properties": {
                    **{name: _field(fields, limits, name) for name in KINDS},
                    **{name: _picture_field(fields, name) for name in PICTURES},
                    "preview_every": {
                        "type": ["integer", "null"],
                        "minimum": 0,
                        "description": "steps from one preview to the next; default: 0, none",
                    },
                },
            },
            {
                "text/event-stream": {"schema": {"type": "string"}},
                "application/json": {"schema": _object(job=_JOB, pictures=_list(_any_object()))},
            },
            429,
            503,
        ),
        "/api/cancel": _post(
            "/api/cancel",
            "Cancels a job",
            "One that runs ends after its current step.",
            _object(job=_JOB),
            _json(_object(cancelled={"type": "boolean", "description": "no where there is no such job"})),
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
                "responses": _responses(
                    _json(
                        _object(
                            settings={"type": ["object", "null"], "description": "fields of /api/generate"},
                            parameters={"type": ["string", "null"], "description": "as web UIs write it"},
                            missing=_list({"type": "string"}),
                        )
                    )
                ),
            }
        },
        "/api/ablation": _post(
            "/api/ablation",
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
            429,
            503,
        ),
        "/health": _get("Whether the server answers", _object(status={"const": "ok"})),
        "/metrics": {
            "get": {
                "summary": "Counts and gauges in the text format of Prometheus",
                "responses": _responses({"text/plain": {"schema": {"type": "string"}}}),
            }
        },
    }


def _field(fields: Fields, limits: Limits, name: str) -> Json:
    """By the option of that name."""
    schema: Json = {"type": [KINDS[name], "null"], "description": fields.about(name)}
    if bound := fields.bound(name):
        schema |= {"minimum": 1, "maximum": getattr(limits, bound)}
    if name == "seed":
        schema |= {"minimum": 0, "maximum": LARGEST_SEED}
    return schema


def _picture_field(fields: Fields, name: str) -> Json:
    return {"type": ["string", "null"], "description": f"{fields.about(name)}: {_PICTURE}"}


def _get(summary: str, schema: Json) -> Json:
    return {"get": {"summary": summary, "responses": _responses(_json(schema))}}


def _post(path: str, summary: str, about: str, body: Json, content: Json, *statuses: int) -> Json:
    """With the path's example."""
    return {
        "post": {
            "summary": summary,
            "description": about,
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": body, "example": EXAMPLES[path]}},
            },
            "responses": _responses(content, 400, *statuses),
        }
    }


def _responses(content: Json, *statuses: int) -> Json:
    """That of success, and those of refusals."""
    meanings = {400: "A value is against its rule", 429: "The queue is full; Retry-After says when to come again"}
    meanings[503] = "The server is stopping"
    error = _json({"$ref": "#/components/schemas/Error"})
    refused = {str(status): {"description": meanings[status], "content": error} for status in statuses}
    return {"200": {"description": "Done", "content": content}, **refused}


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def _object(**properties: Json) -> Json:
    return {"type": "object", "required": list(properties), "properties": properties}


def _any_object() -> Json:
    return {"type": "object"}


def _list(items: Json) -> Json:
    return {"type": "array", "items": items}
