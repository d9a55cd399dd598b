"""What descriptions of APIs are made of: paths, answers, schemas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shaderfusion.arguments import LARGEST_SEED
from shaderfusion.server.settings import KINDS, Fields
from shaderfusion.server.setup import Limits

__all__ = [
    "ANY_OBJECT",
    "PICTURE",
    "Json",
    "a_list",
    "an_object",
    "field_schema",
    "get_path",
    "json_content",
    "picture_schema",
    "post_path",
    "responses",
]

Json = dict[str, Any]

PICTURE = "a PNG, JPEG or WebP file as a data URL"
ANY_OBJECT: Json = {"type": "object"}

_MEANINGS = {
    400: "A value is against its rule",
    409: "The job was cancelled",
    422: "A value is against its rule",
    429: "The queue is full; Retry-After says when to come again",
    503: "The server is stopping",
}


def field_schema(fields: Fields, limits: Limits, name: str) -> Json:
    """By the option of that name."""
    schema: Json = {"type": [KINDS[name], "null"], "description": fields.about(name)}
    if bound := fields.bound(name):
        schema |= {"minimum": 1, "maximum": getattr(limits, bound)}
    if name == "seed":
        schema |= {"minimum": 0, "maximum": LARGEST_SEED}
    return schema


def picture_schema(fields: Fields, name: str) -> Json:
    return {"type": ["string", "null"], "description": f"{fields.about(name)}: {PICTURE}"}


def get_path(summary: str, schema: Json) -> Json:
    return {"get": {"summary": summary, "responses": responses(json_content(schema))}}


def post_path(
    example: Mapping[str, Any],
    summary: str,
    about: str,
    body: Json,
    content: Json,
    *statuses: int,
    error: str = "Error",
) -> Json:
    """`example` is a body; refusals have those statuses, and the schema that `error` names."""
    return {
        "post": {
            "summary": summary,
            "description": about,
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": body, "example": dict(example)}},
            },
            "responses": responses(content, *statuses, error=error),
        }
    }


def responses(content: Json, *statuses: int, error: str = "Error") -> Json:
    """That of success, and those of refusals."""
    schema = json_content({"$ref": f"#/components/schemas/{error}"})
    refused = {str(status): {"description": _MEANINGS[status], "content": schema} for status in statuses}
    return {"200": {"description": "Done", "content": content}, **refused}


def json_content(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}


def an_object(**properties: Json) -> Json:
    return {"type": "object", "required": list(properties), "properties": properties}


def a_list(items: Json) -> Json:
    return {"type": "array", "items": items}
