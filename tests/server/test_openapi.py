"""The description of the API: it is what is committed, it is valid where clients look, and its examples work."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("starlette", reason="starlette comes with the test extra")
from server.serving import SMALL, Client

from shaderfusion.cli.generate import make_field_parser
from shaderfusion.server.openapi import EXAMPLES, all_paths, document
from shaderfusion.server.service import GENERATE_FIELDS
from shaderfusion.server.settings import Fields
from shaderfusion.server.setup import Setup

DOCUMENT = Path(__file__).parents[2] / "docs" / "openapi.json"


def test_the_committed_document_is_what_is_served() -> None:
    """script/write_openapi makes it anew."""
    setup = Setup()
    made = document(all_paths(Fields(make_field_parser(), setup), setup.limits))
    assert json.loads(DOCUMENT.read_text("utf-8")) == json.loads(json.dumps(made))


def test_it_names_every_field_and_route(client: Client) -> None:
    served = client.get("/openapi.json").json
    body = served["paths"]["/api/generate"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["properties"]) == set(GENERATE_FIELDS)
    assert body["properties"]["width"]["maximum"] == 64
    assert all(schema["description"] for schema in body["properties"].values())
    for path, methods in served["paths"].items():
        for method in methods:
            answer = client.ask(method.upper(), path, b"x" if method == "post" else None)
            assert answer.status not in (405, 404 if "{" not in path else None), path


def test_references_are_there() -> None:
    served = json.loads(DOCUMENT.read_text("utf-8"))

    def find(value: Any) -> None:
        if isinstance(value, dict):
            if "$ref" in value:
                target = served
                for part in value["$ref"].removeprefix("#/").split("/"):
                    target = target[part]
            list(map(find, value.values()))
        elif isinstance(value, list):
            list(map(find, value))

    find(served)


def test_examples_work(client: Client) -> None:
    small = {name: SMALL[name] for name in ("width", "height")}
    example = dict(EXAMPLES["/api/generate"])
    events = client.generate(**example, **small)
    assert "preview" in [name for name, _ in events]
    assert example.pop("preview_every") > 0
    (own,) = [data["settings"] for name, data in events if name == "picture"]
    assert {name: own[name] for name in example} == example
    assert client.post("/api/cancel", EXAMPLES["/api/cancel"]).json == {"cancelled": False}
    with client.events("/api/ablation", **EXAMPLES["/api/ablation"]) as events:
        assert next(events)[0] == "queued"  # test_api.py has the rest
