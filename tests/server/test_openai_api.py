"""OpenAI's images API, from outside."""

import base64
import io
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("starlette", reason="starlette comes with the test extra")
from server.serving import LONG, SMALL, Answer, Client, data_url, make_png, picture_of, serving

from shaderfusion.metadata.image_files import PARAMETERS, parse_texts
from shaderfusion.server.compat.openai_fields import fields_of_form, read_fields, read_output
from shaderfusion.server.compat.pictures import KEEP_S, MOST_KEPT, KeptPictures
from shaderfusion.server.refusal import RefusedError

BODY: dict[str, Any] = {"prompt": "a fox", "size": "16x16", "steps": 2, "seed": 1, "scheduler": "ddim"}
GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"


def make_form(fields: dict[str, Any], files: dict[str, bytes]) -> tuple[bytes, str]:
    """A multipart form, and its content type."""
    head = b'--part\r\nContent-Disposition: form-data; name="%s"'
    parts = [head % name.encode() + b"\r\n\r\n" + str(value).encode() for name, value in fields.items()]
    parts += [
        head % name.encode() + b'; filename="a.png"\r\nContent-Type: image/png\r\n\r\n' + data
        for name, data in files.items()
    ]
    return b"\r\n".join([*parts, b"--part--\r\n"]), "multipart/form-data; boundary=part"


def edit(client: Client, files: dict[str, bytes], **fields: Any) -> Answer:
    body, kind = make_form({**BODY, **fields}, files)
    return client.ask("POST", EDITS, body, {"Content-Type": kind})


def own_images(client: Client, **fields: Any) -> list[str]:
    events = client.generate(**{**SMALL, **fields})
    return [data["image"].partition(",")[2] for name, data in events if name == "picture"]


def make_clear(*, is_clear: bool = True) -> bytes:
    """A picture whose left half is transparent."""
    picture, data = Image.new("RGBA", (16, 16), "red"), io.BytesIO()
    if is_clear:
        picture.paste((255, 255, 255, 0), (0, 0, 8, 16))
    picture.save(data, "png")
    return data.getvalue()


def make_half() -> bytes:
    """The same as our masks: white where to paint."""
    mask, data = Image.new("L", (16, 16)), io.BytesIO()
    mask.paste(255, (0, 0, 8, 16))
    mask.save(data, "png")
    return data.getvalue()


def test_pictures_are_those_of_our_fields(client: Client) -> None:
    more = {"negative_prompt": "rain", "guidance_scale": 3}
    answer = client.post(GENERATIONS, {**BODY, **more, "n": 2}).json
    assert [each["b64_json"] for each in answer["data"]] == own_images(client, **more, num_images=2)
    assert (answer["seed"], answer["output_format"]) == (1, "png")
    assert answer["created"] > 1.7e9


def test_fields_that_ask_for_nothing_new(client: Client) -> None:
    neutral = {"quality": "standard", "style": "vivid", "background": "auto", "moderation": "auto", "user": "someone"}
    neutral |= {"n": None, "output_compression": 100, "stream": False, "partial_images": 0, "model": "sd1"}
    assert client.post(GENERATIONS, {**BODY, **neutral}).json["data"] == client.post(GENERATIONS, BODY).json["data"]
    assert read_fields({"prompt": "x", "size": "auto"}) == read_fields({"prompt": "x"})


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("quality", {"quality": "hd"}),
        ("style", {"style": "natural"}),
        ("background", {"background": "transparent"}),
        ("stream", {"stream": True}),
        ("input_fidelity", {"input_fidelity": "high"}),
        ("width", {"width": 16}),
        ("num_images", {"num_images": 2}),
        ("nonsense", {"nonsense": 1}),
        *(
            ("size", {"size": size})
            for size in ("16", "16x", "x", "16X16", "-1x16", "16x16x16", "", 16, [16, 16], "１x１")
        ),
    ],
)
def test_what_is_not_done_is_refused_by_name(field: str, body: dict[str, Any]) -> None:
    with pytest.raises(RefusedError) as found:
        read_fields({**BODY, **body})
    assert found.value.field == field


@pytest.mark.parametrize(
    ("field", "body"),
    [
        ("response_format", {"response_format": "file"}),
        ("output_format", {"output_format": "gif"}),
        ("output_compression", {"output_compression": 50}),
        ("output_compression", {"output_compression": 101, "output_format": "jpeg"}),
        ("output_compression", {"output_compression": True, "output_format": "jpeg"}),
    ],
)
def test_outputs_that_there_are_not(field: str, body: dict[str, Any]) -> None:
    with pytest.raises(RefusedError) as found:
        read_output(body)
    assert found.value.field == field


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_files_to_be_fetched(client: Client, kind: str) -> None:
    small = {} if kind == "png" else {"output_compression": 20}
    body = {**BODY, "output_format": kind, "response_format": "url", **small}
    (made,) = client.post(GENERATIONS, body).json["data"]
    prefix = f"http://127.0.0.1:{client.port}"
    assert made["url"].startswith(f"{prefix}/pictures/")
    assert made["url"].endswith(f".{kind}")
    answer = client.get(made["url"].removeprefix(prefix))
    assert (answer.status, answer.headers["content-type"]) == (200, f"image/{kind}")
    picture = Image.open(io.BytesIO(answer.body))
    assert (picture.format, picture.size) == (kind.upper(), (16, 16))
    assert "Seed: 1" in parse_texts(Path("a"), answer.body)[PARAMETERS]
    assert client.get("/pictures/nonsense.png").status == 404


def test_kept_pictures_are_bounded() -> None:
    now = 0.0
    kept = KeptPictures(lambda: now)
    names = [kept.add("image/png", ".png", b"x") for _ in range(MOST_KEPT + 1)]
    assert len(set(names)) == len(names)
    assert all(len(name) > 24 for name in names)
    assert kept.get(names[0]) is None
    now = KEEP_S / 2
    newest = kept.add("image/png", ".png", b"y")
    now = KEEP_S
    assert kept.get(names[-1]) is None
    found = kept.get(newest)
    assert found is not None
    assert found.data == b"y"
    assert len(kept) == 1


def test_kept_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shaderfusion.server.compat.pictures.MOST_KEPT_BYTES", 10)
    kept = KeptPictures()
    names = [kept.add("image/png", ".png", bytes(size)) for size in (4, 6, 5)]
    assert [kept.get(name) is not None for name in names] == [False, False, True]
    assert kept.get(kept.add("image/png", ".png", bytes(99))) is not None  # a single one always


def test_edits(client: Client) -> None:
    for name in ("image", "image[]"):
        answer = edit(client, {name: make_png()}, strength=0.5, steps=4)
        own = own_images(client, image=data_url(make_png()), strength=0.5, steps=4)
        assert [each["b64_json"] for each in answer.json["data"]] == own


def test_edits_paint_where_a_mask_is_transparent(client: Client) -> None:
    red = make_clear(is_clear=False)
    own = own_images(client, image=data_url(red), mask=data_url(make_half()), strength=1.0)
    (made,) = edit(client, {"image": red, "mask": make_clear()}).json["data"]
    assert made["b64_json"] == own[0]
    (alone,) = edit(client, {"image": make_clear()}).json["data"]
    own = own_images(client, image=data_url(make_clear()), mask=data_url(make_half()), strength=1.0)
    assert alone["b64_json"] == own[0]
    (whole,) = edit(client, {"image": red}, steps=4).json["data"]
    assert whole["b64_json"] == own_images(client, image=data_url(red), steps=4)[0]  # opaque: no mask
    answer = edit(client, {"image": red, "mask": make_half()})
    assert (answer.status, answer.json["error"]["param"]) == (400, "mask")


def test_texts_of_a_form() -> None:
    texts = {"n": "2", "steps": "x", "guidance_scale": "3.5", "prompt": "3", "stream": "false", "seed": "-1"}
    read = {"n": 2, "steps": "x", "guidance_scale": 3.5, "prompt": "3", "stream": False, "seed": -1}
    assert fields_of_form(texts) == read


def test_models(client: Client) -> None:
    listed = client.get("/v1/models").json
    assert listed["object"] == "list"
    assert [each["id"] for each in listed["data"]] == ["sd1", "odd"]
    assert all(each["object"] == "model" for each in listed["data"])
    (made,) = client.post(GENERATIONS, {**BODY, "model": "odd"}).json["data"]
    assert picture_of(f"data:,{made['b64_json']}").size == (16, 16)


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        ({"model": "dall-e-3"}, 400, "model", "model_not_found"),
        ({"n": 3}, 400, "n", None),
        ({"size": "17x16"}, 400, "size", None),
        ({"prompt": None}, 400, "prompt", None),
        ({"steps": 0}, 400, "steps", None),
    ],
)
def test_errors_have_openais_shape(
    client: Client, body: dict[str, Any], status: int, param: str, code: str | None
) -> None:
    answer = client.post(GENERATIONS, {**BODY, **body})
    error = answer.json["error"]
    assert (answer.status, error["param"], error["code"]) == (status, param, code)
    assert error["type"] == "invalid_request_error"
    assert len(error["message"]) > 10


def test_a_full_queue(client: Client) -> None:
    with ExitStack() as opened:
        running = opened.enter_context(client.events(**LONG))
        assert next(name for name, _ in running if name == "started")
        waiting = [opened.enter_context(client.events(**SMALL)) for _ in range(3)]
        assert [next(each)[0] for each in waiting] == ["queued"] * 3
        for path in (GENERATIONS, "/sdapi/v1/txt2img"):
            answer = client.post(path, BODY)
            assert answer.status == 429
            assert int(answer.headers["retry-after"]) >= 1
        assert edit(client, {"image": make_png()}).json["error"]["code"] == "rate_limit_exceeded"
    client.wait_for(lambda queue: queue == {"waiting": 0, "running": None})


def test_a_key(runtime: str) -> None:
    with serving(runtime, api_key="secret", models=["emoji"]) as client:
        refused = client.post(GENERATIONS, {})
        assert (refused.status, refused.json["error"]["code"]) == (401, "invalid_api_key")
        key = {"Authorization": "Bearer secret"}
        assert client.get("/v1/models", **key).json["data"][0]["id"] == "emoji"
        assert client.post(GENERATIONS, {"prompt": "x", "n": 0}, **key).status == 400
        assert client.get("/pictures/x.png").status == 404  # open: names are keys


def test_base64_is_plain(client: Client) -> None:
    (made,) = client.post(GENERATIONS, BODY).json["data"]
    assert base64.b64decode(made["b64_json"], validate=True).startswith(b"\x89PNG")
