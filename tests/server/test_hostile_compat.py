"""Requests to the APIs of others that are broken on purpose, as those of test_hostile.py to our own."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("starlette", reason="starlette comes with the test extra")
from server.serving import LIMITS, Answer, Client, make_png
from server.test_hostile import BODIES, BOMBS, NO_NUMBERS, NO_TEXTS, NO_WHOLES, TRAVERSALS, Case, lives
from server.test_openai_api import make_form

__all__ = ["lives"]  # for all of this module too

TXT2IMG, IMG2IMG, PNG_INFO = "/sdapi/v1/txt2img", "/sdapi/v1/img2img", "/sdapi/v1/png-info"
OPTIONS, GENERATIONS, EDITS = "/sdapi/v1/options", "/v1/images/generations", "/v1/images/edits"
SMALL: dict[str, dict[str, Any]] = {
    TXT2IMG: {"prompt": "a fox", "width": 16, "height": 16, "steps": 2, "seed": 1},
    GENERATIONS: {"prompt": "a fox", "size": "16x16", "steps": 2, "seed": 1},
}
RED = base64.b64encode(make_png()).decode()


def web_ui_cases() -> Iterator[Case]:
    for name in ("prompt", "negative_prompt"):
        yield from ((name, {name: value}) for value in NO_TEXTS)
    for name in ("sampler_name", "scheduler"):
        yield from ((name, {name: value}) for value in (1, True, ["a"], {"a": 1}, "nonsense", "x" * 10_000, "../x"))
    for name in ("cfg_scale",):
        yield from ((name, {name: value}) for value in NO_NUMBERS)
    for name in ("width", "height", "steps", "batch_size", "n_iter", "clip_skip"):
        yield from ((name, {name: value}) for value in (*NO_WHOLES, 0))
    yield from (("seed", {"seed": value}) for value in ("1", True, 1.5, [], {}, -2, 2**64, 10**300))
    yield from (("width", {"width": value}) for value in (17, 65, 100_000))
    yield from (("steps", {"steps": value}) for value in (1001, 2**31))
    yield ("batch_size", {"batch_size": 10_000, "n_iter": 10_000})
    yield ("batch_size", {"batch_size": 2, "n_iter": 2})
    for value in TRAVERSALS[:-2]:
        if value != "sd1.safetensors":
            yield ("sd_model_checkpoint", {"override_settings": {"sd_model_checkpoint": value}})
    for value in ("../sd1", "/etc/passwd", "vae.safetensors", 1, ["a"]):
        yield ("sd_vae", {"override_settings": {"sd_vae": value}})
    yield from (("override_settings", {"override_settings": value}) for value in (1, "x", [1], True))
    for name in ("../../x", "/etc/passwd", "..", "x"):
        yield ("prompt", {"prompt": f"<lora:{name}:1>"})
    yield from (("prompt", {"prompt": value}) for value in ("x" * 5001, "\ud800", "<hypernet:x:1>"))
    for name, values in {"hr_scale": ("2", 0.5, 5, 10**30), "hr_second_pass_steps": ("2", 1.5, 10**9)}.items():
        yield from ((name, {"enable_hr": True, name: value}) for value in values)
    yield from (("denoising_strength", {"enable_hr": True, "denoising_strength": v}) for v in (0, -1, 2, "x", [], True))
    yield from (("enable_hr", {"enable_hr": value}) for value in ("true", [1], 2))
    yield from ((name, {name: "x"}) for name in ("lora", "output_dir", "__class__", "outpath_samples", "device"))
    yield ("alwayson_scripts", {"alwayson_scripts": {"x": {"args": [{}] * 100}}})


def openai_cases() -> Iterator[Case]:
    yield from (("prompt", {"prompt": value}) for value in (*NO_TEXTS, None, "x" * 5001))
    yield from (("n", {"n": value}) for value in (*NO_WHOLES, 0, 3, 10**9))
    for value in (
        "17x16",
        "0x16",
        "16x0",
        "65x65",
        "999999x999999",
        "1e3x1e3",
        "16x16\n",
        "9" * 10_000,
        "auto ",
        -1,
        {},
    ):
        yield ("size", {"size": value})
    yield from (("model", {"model": value}) for value in (*TRAVERSALS, 1, [], {}))
    yield from (("response_format", {"response_format": value}) for value in ("../x", 1, ["url"], {"type": "url"}))
    yield from (("output_format", {"output_format": value}) for value in ("gif", "../x", 1, ["png"]))
    for value in ("50", 1.5, -1, 101, 10**30, True):
        yield ("output_compression", {"output_compression": value, "output_format": "webp"})
    yield from (("guidance_scale", {"guidance_scale": value}) for value in NO_NUMBERS)
    yield from (("seed", {"seed": value}) for value in NO_WHOLES)
    yield from ((name, {name: "x"}) for name in ("image", "mask", "device", "__class__", "preview_every"))


CASES = [*((TXT2IMG, *case) for case in web_ui_cases()), *((GENERATIONS, *case) for case in openai_cases())]
PICTURES: dict[str, Any] = {**{name: base64.b64encode(data).decode() for name, data in BOMBS.items()}}
PICTURES |= {"a path": "/etc/passwd", "an address": "file:///etc/passwd", "a number": 1, "a list": [RED], "spaces": " "}
PICTURES |= {"another kind": "data:text/html;base64,AAAA", "cut base64": RED[:-1], "no base64": "\x00"}

FORM = "multipart/form-data; boundary=part"
PART = b'--part\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
FORMS: dict[str, tuple[str, bytes]] = {
    "no form": ("", b"x"),
    "JSON": ("application/json", b'{"prompt": "x"}'),
    "letters of an address": ("application/x-www-form-urlencoded", b"image=a&prompt=x"),
    "no boundary": ("multipart/form-data", PART),
    "an empty boundary": ("multipart/form-data; boundary=", PART),
    "a long boundary": (f"multipart/form-data; boundary={'a' * 5000}", PART),
    "another boundary": ("multipart/form-data; boundary=other", PART + b"x\r\n--part--\r\n"),
    "nothing": (FORM, b""),
    "no parts": (FORM, b"--part--\r\n"),
    "a cut part": (FORM, PART + b"\x89PNG"),
    "a part without a name": (FORM, b"--part\r\nContent-Disposition: form-data\r\n\r\nx\r\n--part--\r\n"),
    "a part without headers": (FORM, b"--part\r\n\r\nx\r\n--part--\r\n"),
    "a header that is none": (FORM, b"--part\r\n\xff\xfe: \x00\r\n\r\nx\r\n--part--\r\n"),
    "long headers": (FORM, b"--part\r\nX-A: " + b"a" * 100_000 + b"\r\n\r\nx\r\n--part--\r\n"),
    "many headers": (FORM, b"--part\r\n" + b"X-A: a\r\n" * 20_000 + b"\r\nx\r\n--part--\r\n"),
    "another charset": (f"{FORM}; charset=nonsense", make_form({"prompt": "x"}, {})[0]),
    "a long text": (FORM, make_form({"prompt": "x" * 200_000}, {"image": make_png()})[0]),
    "many texts": (FORM, make_form({f"a{index}": 1 for index in range(200)}, {"image": make_png()})[0]),
    "many files": (FORM, make_form({"prompt": "x"}, {f"a{index}": b"x" for index in range(200)})[0]),
    "too much": (FORM, make_form({"prompt": "x"}, {"image": bytes(LIMITS.max_body)})[0]),
    "an image that is a text": (FORM, make_form({"prompt": "x", "image": "red.png"}, {})[0]),
    "a prompt that is a file": (FORM, make_form({}, {"prompt": b"x", "image": make_png()})[0]),
    "two images": (FORM, make_form({"prompt": "x"}, {"image": make_png(), "image[]": make_png()})[0]),
    "no image": (FORM, make_form({"prompt": "x"}, {"mask": make_png()})[0]),
    "no prompt": (FORM, make_form({}, {"image": make_png()})[0]),
    "another file": (FORM, make_form({"prompt": "x"}, {"image": make_png(), "../x": b"x"})[0]),
    "a mask that is opaque": (FORM, make_form({"prompt": "x"}, {"image": make_png(), "mask": make_png()})[0]),
    "a size that is none": (FORM, make_form({"prompt": "x", "size": "1e9x1"}, {"image": make_png()})[0]),
    "huge n": (FORM, make_form({"prompt": "x", "n": 10**9, "size": "16x16"}, {"image": make_png()})[0]),
    "n of letters": (FORM, make_form({"prompt": "x", "n": "two", "size": "16x16"}, {"image": make_png()})[0]),
    "n of 5000 digits": (FORM, make_form({"prompt": "x", "n": "9" * 5000}, {"image": make_png()})[0]),
    "strength that is no number": (FORM, make_form({"prompt": "x", "strength": "nan"}, {"image": make_png()})[0]),
}
NAMES = ("..", "%2e%2e", "..%2f..%2fetc%2fpasswd", "x/y", "%00", "a" * 5000, "x.png")


def require_sentence(path: str, answer: Answer, status: int | None = None) -> str | None:
    """In the shape of the API; the field that it names."""
    assert 400 <= answer.status < 500, answer
    assert status is None or answer.status == status, answer
    if path.startswith("/sdapi/"):
        assert set(answer.json) == {"error", "detail", "errors", "field"}, answer
        sentence, field = answer.json["detail"], answer.json["field"]
    else:
        assert set(answer.json["error"]) == {"message", "type", "param", "code"}, answer
        sentence, field = answer.json["error"]["message"], answer.json["error"]["param"]
    assert len(sentence) > 10
    assert "Traceback" not in sentence
    return field


def test_there_are_many() -> None:
    assert len(CASES) + len(PICTURES) * 3 + len(FORMS) + len(BODIES) * 6 >= 250


@pytest.mark.parametrize(("path", "name"), sorted({(path, name) for path, name, _ in CASES}))
def test_fields(client: Client, path: str, name: str) -> None:
    for body in (body for where, field, body in CASES if (where, field) == (path, name)):
        answer = client.post(path, {**SMALL[path], **body})
        assert require_sentence(path, answer, 422 if path == TXT2IMG else 400) == name, (body, answer)


@pytest.mark.parametrize("name", BODIES)
def test_bodies(client: Client, name: str) -> None:
    for path in (TXT2IMG, IMG2IMG, PNG_INFO, OPTIONS, GENERATIONS, EDITS):
        require_sentence(path, client.post(path, BODIES[name]), 413 if name == "too much" else None)


@pytest.mark.parametrize("name", PICTURES)
def test_pictures(client: Client, name: str) -> None:
    value = PICTURES[name]
    body = {**SMALL[TXT2IMG], "init_images": [value]}
    assert require_sentence(IMG2IMG, client.post(IMG2IMG, body), 422) == "init_images"
    if value not in ("", 1, [RED]) or value:
        body = {**SMALL[TXT2IMG], "init_images": [RED], "mask": value}
        assert require_sentence(IMG2IMG, client.post(IMG2IMG, body), 422) == "mask"
    answer = client.post(PNG_INFO, {"image": value})
    if answer.status != 200:  # of those that are pictures no pixel is decoded
        assert require_sentence(PNG_INFO, answer, 422) == "image"
    else:
        assert answer.json["info"] == ""


@pytest.mark.parametrize("name", BOMBS)
def test_files_of_forms(client: Client, name: str) -> None:
    for files in ({"image": BOMBS[name]}, {"image": make_png(), "mask": BOMBS[name]}):
        body, kind = make_form(SMALL[GENERATIONS], files)
        answer = client.post(EDITS, body, **{"Content-Type": kind})
        assert require_sentence(EDITS, answer, 400) == list(files)[-1]


@pytest.mark.parametrize("name", FORMS)
def test_forms(client: Client, name: str) -> None:
    kind, body = FORMS[name]
    require_sentence(EDITS, client.post(EDITS, body, **{"Content-Type": kind}), 413 if name == "too much" else 400)


@pytest.mark.parametrize(
    "body",
    [{"sd_model_checkpoint": name} for name in TRAVERSALS if name != "sd1.safetensors"] + [{"x": 1}, {"sd_vae": 1}],
)
def test_options(client: Client, body: dict[str, Any]) -> None:
    before = client.get(OPTIONS).json
    require_sentence(OPTIONS, client.post(OPTIONS, body), 422)
    assert client.get(OPTIONS).json == before


@pytest.mark.parametrize("name", NAMES)
def test_names_of_pictures(client: Client, name: str) -> None:
    assert client.get(f"/pictures/{name}").status == 404
    assert client.get(f"/sdapi/v1/{name}").status == 404


def test_guards_speak_as_the_api(client: Client) -> None:
    for path in (TXT2IMG, GENERATIONS):
        for headers in ({"Host": "example.org"}, {"Origin": "https://example.org"}, {"Content-Length": "9" * 15}):
            require_sentence(path, client.ask("POST", path, b"{}", headers))
        require_sentence(path, client.get(path), 405)
