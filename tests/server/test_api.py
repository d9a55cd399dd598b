"""The own API, from outside."""

import json
import os
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import numpy as np
import pytest
from golden.models import model_folder
from PIL import Image

from shaderfusion.cli import main
from shaderfusion.errors import DeviceLostError
from shaderfusion.kernels.optimizations import Optimizations
from shaderfusion.metadata.image_files import OWN, PARAMETERS, encode

pytest.importorskip("starlette", reason="starlette comes with the test extra")
from server.serving import LONG, MODELS, PATIENCE_S, SMALL, Client, data_url, make_png, picture_of, process, serving

from shaderfusion.server.inspect import inspect_picture


def names(events: list[tuple[str, Any]]) -> list[str]:
    return [name for name, _ in events]


def test_a_picture_is_that_of_generate(client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = client.generate(**SMALL, num_images=2, preview_every=1)
    assert names(events)[:2] == ["queued", "started"]
    assert names(events)[-4:] == ["step", "picture", "picture", "done"]
    jobs = {data["job"] for _, data in events}
    assert len(jobs) == 1
    started = events[1][1]
    assert {key: started[key] for key in ("model", "seed", "steps", "width", "height", "num_images")} == {
        "model": "sd1", "seed": 1, "steps": 2, "width": 16, "height": 16, "num_images": 2}  # fmt: skip
    steps = [data for name, data in events if name == "step"]
    assert steps == sorted(steps, key=lambda data: data["step"])
    assert {data["part"] for data in steps} <= {"loading", "text", "denoise", "decode"}
    assert {key: steps[-1][key] for key in ("step", "steps", "seconds_left")} == {
        "step": 2, "steps": 2, "seconds_left": 0}  # fmt: skip
    assert all(len(data["images"]) == 2 for name, data in events if name == "preview")
    pictures = [picture_of(data["image"]) for name, data in events if name == "picture"]
    monkeypatch.chdir(tmp_path)
    options = ["--steps", "2", "--width", "16", "--height", "16", "--seed", "1", "--num-images", "2"]
    options += ["--dtype", "f32", "--scheduler", "ddim", "--output", "a.png"]
    assert (
        main(
            [
                "generate",
                "a fox",
                "--model",
                MODELS[0],
                *options,
                "--dtype",
                "f32",
                "--scheduler",
                "ddim",
                "--output",
                "a.png",
            ]
        )
        == 0
    )
    for index, picture in enumerate(pictures):
        with picture, open(f"a-{index + 1}.png", "rb") as stream:
            from PIL import Image

            made = Image.open(stream)
            assert np.array_equal(np.asarray(picture), np.asarray(made))
            texts, own = picture.text, json.loads(picture.text[OWN])  # type: ignore[attr-defined]
            assert own | {"model": 0} == json.loads(made.text[OWN]) | {"model": 0}  # type: ignore[attr-defined]
            assert own["model"] == "sd1"
            assert events[index - 3][1]["settings"] == own
            assert events[index - 3][1]["parameters"] == texts[PARAMETERS]


def test_an_answer_without_events(client: Client) -> None:
    answer = client.post("/api/generate", {**SMALL, "seed": None}, Accept="application/json")
    assert answer.status == 200
    (picture,) = answer.json["pictures"]
    assert picture["settings"]["seed"] < 2**32
    assert picture_of(picture["image"]).size == (16, 16)


def test_every_field_is_taken(client: Client) -> None:
    red = data_url(make_png())
    fields = {"negative_prompt": "rain", "model": "sd1", "guidance_scale": 3, "eta": 0.5}
    fields |= {"rng": "philox", "seeds": "each", "clip_skip": 0, "emphasis": "no_norm", "prompt_syntax": "webui"}
    fields |= {"hires": 1.5, "hires_steps": 4, "hires_strength": 0.5, "optimizations": "gn,pfs", "image": red}
    fields |= {"mask": red, "strength": 0.5, "num_images": 2, "preview_every": 0}
    events = client.generate(**{**SMALL, **fields, "scheduler": "DDIM"})
    last = [data for name, data in events if name == "step"][-1]
    assert (last["step"], last["steps"], last["part"]) == (3, 3, "decode")
    started, own = events[1][1], events[-2][1]["settings"]
    assert (started["steps"], started["width"], started["height"]) == (3, 24, 24)
    assert own["number"] == 2
    given = {key: value for key, value in fields.items() if key not in ("image", "mask", "preview_every")}
    assert {key: own[key] for key in given} == given
    assert own["scheduler"] == "ddim"
    assert own["image"] == "20x12 px"


def test_models_switch(client: Client) -> None:
    for name in ("odd", "sd1"):
        events = client.generate(**{**SMALL, "model": name})
        assert events[-1][0] == "done"
        answer = client.get("/api/models").json
        assert answer["current"] == name
        assert [(model["name"], model["loaded"]) for model in answer["models"]] == [
            (each, each == name) for each in ("sd1", "odd")
        ]
        device = client.get("/api/device").json
        assert device["model"] == name
        assert 0 < device["memory"]["used_bytes"] <= device["memory"]["planned_bytes"]
        assert device["ms_per_step"] > 0
        client.generate(**{**SMALL, "model": name, "hires": 4})
        assert client.get("/api/device").json["memory"]["planned_bytes"] > device["memory"]["planned_bytes"]
    assert set(answer["models"][0]) == {
        "name", "family", "width", "height", "steps", "guidance_scale", "loaded"}  # fmt: skip


def test_options_have_the_defaults_and_bounds(client: Client) -> None:
    options = client.get("/api/options").json
    assert "euler_a" in options["schedulers"]
    assert "karras" in options["spacings"]["dpmpp_2m"]
    assert options["spacings"]["lcm"] == []
    assert options["limits"] == {
        "width": [1, 64], "height": [1, 64], "steps": [1, 1000], "num_images": [1, 2], "queue": 3}  # fmt: skip
    assert options["defaults"]["steps"] == 20
    assert {"name": "gn", "about": "Group norm in one dispatch"} in options["optimizations"]
    assert {each["name"] for each in options["optimizations"]} == set(Optimizations.SHORT_NAMES)


def test_cancel_within_a_step(client: Client) -> None:
    with client.events(**LONG) as events:
        for name, data in events:
            if name == "step":
                assert client.post("/api/cancel", {"job": data["job"]}).json == {"cancelled": True}
                break
        name, last = list(events)[-1]
    assert name == "cancelled"
    assert client.post("/api/cancel", {"job": last["job"]}).json == {"cancelled": False}


@pytest.mark.parametrize("headers", [{}, {"Accept": "application/json"}])
def test_a_client_that_goes_away_cancels_its_job(client: Client, headers: dict[str, str]) -> None:
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=PATIENCE_S)
    connection.request("POST", "/api/generate", json.dumps(LONG), headers)
    client.wait_for(lambda queue: queue["running"] is not None)
    connection.close()
    client.wait_for(lambda queue: queue["running"] is None)
    assert client.generate(**SMALL)[-1][0] == "done"


def test_the_queue_is_bounded_and_says_when_to_come_again(client: Client) -> None:
    from contextlib import ExitStack

    with ExitStack() as opened:
        running = opened.enter_context(client.events(**LONG))
        assert next(name for name, _ in running if name == "started")
        waiting = [opened.enter_context(client.events(**SMALL)) for _ in range(3)]
        assert [next(each)[1]["position"] for each in waiting] == [1, 2, 3]
        answer = client.post("/api/generate", SMALL)
        assert answer.status == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert "queue is full" in answer.json["error"]
        text = client.get("/metrics").body.decode()
        assert "shaderfusion_queue_waiting 3" in text
        assert 'shaderfusion_requests_refused_total{status="429"}' in text
        job = next(data["job"] for name, data in running if name == "step")
        client.post("/api/cancel", {"job": job})
        assert [list(each)[-1][0] for each in waiting] == ["done"] * 3


def test_inspect_says_what_a_picture_holds(client: Client) -> None:
    (picture,) = [data for name, data in client.generate(**{**SMALL, "scheduler": "euler_a"}) if name == "picture"]
    import base64

    answer = client.post("/api/inspect", base64.b64decode(picture["image"].partition(",")[2]))
    settings = answer.json["settings"]
    assert {key: settings[key] for key in SMALL} == {**SMALL, "scheduler": "euler_a"}
    assert settings["model"] == "sd1"
    assert answer.json["parameters"] == picture["parameters"]
    assert client.post("/api/inspect", make_png()).json == {"settings": None, "parameters": None, "missing": []}
    assert client.post("/api/inspect", b"GIF89a").status == 400


def test_ablation_goes_through_the_queue(client: Client) -> None:
    with client.events("/api/ablation", model="sd1", steps=1) as found:
        events = list(found)
    assert names(events) == ["queued", *["row"] * 5, "done"]
    rows = [data for name, data in events if name == "row"]
    assert rows[0]["against_none_percent"] == 0
    assert all(row["ms"] > 0 for row in rows)
    assert events[-1][1]["svg"].startswith("<svg ")
    assert client.get("/api/device").json["model"] is None
    assert client.generate(**SMALL)[-1][0] == "done"


def test_health_and_metrics(client: Client) -> None:
    assert client.get("/health").json == {"status": "ok"}
    client.generate(**SMALL)
    lines = client.get("/metrics").body.decode().splitlines()
    values = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}
    assert values["shaderfusion_pictures_total"] >= 1
    assert values['shaderfusion_job_seconds_bucket{le="+Inf"}'] == values["shaderfusion_job_seconds_count"] >= 1
    assert values["shaderfusion_device_memory_used_bytes"] > 0


def test_adapters_come_from_their_folder_alone(runtime: str, tmp_path: Path) -> None:
    (tmp_path / "outside.safetensors").write_bytes(b"")
    folder = tmp_path / "loras"
    folder.mkdir()
    lora = Path(__file__).parents[1] / "golden" / "lora" / "core.safetensors"
    (folder / "mine.safetensors").write_bytes(lora.read_bytes())
    with serving(runtime, models=[str(model_folder("sd1"))], lora_dir=folder) as client:
        for name in ("../outside", "outside", "/etc/passwd", ".."):
            answer = client.post("/api/generate", {**SMALL, "prompt": f"a fox <lora:{name}:1>"})
            assert (answer.status, answer.json["field"]) == (400, "prompt")
        plain = client.generate(**SMALL)[-2][1]
        changed = client.generate(**{**SMALL, "prompt": "a fox <lora:mine:1>"})[-2][1]
        assert changed["settings"]["lora"][0]["file"] == "mine.safetensors"
        assert picture_of(plain["image"]).tobytes() != picture_of(changed["image"]).tobytes()
        assert client.generate(**SMALL)[-2][1]["image"] == plain["image"]


def test_inspected_adapters_and_clip_skip(client: Client) -> None:
    """What this server can do is in the settings; what it cannot is said."""
    known, mine = client.service.models.known, "a fox <lora:mine:0.5>"
    text = "a fox <lora:mine:0.5>\nSteps: 2, Sampler: DDIM, CFG scale: 7, Seed: 1, Size: 16x16, Clip skip: 2, Model: "

    def inspect(texts: dict[str, str], adapters: tuple[str, ...] = ("mine",)) -> tuple[dict[str, Any], list[str]]:
        found = inspect_picture(bytes(encode(Image.new("RGB", (8, 8)), ".png", texts)), known, adapters)
        return found["settings"], found["missing"]

    settings, missing = inspect({PARAMETERS: text + "sd1"})
    assert (settings["prompt"], settings["clip_skip"], settings["model"], missing) == (mine, 1, "sd1", [])
    settings, missing = inspect({PARAMETERS: text + "other"}, ("yours",))
    assert settings["prompt"] == "a fox"
    assert settings["clip_skip"] == 1
    assert [each.partition(":")[0] for each in missing] == ["Lora", "model"]
    own = {"prompt": mine, "steps": 2, "model": "sd1", "lora": [{"file": "mine.safetensors", "strength": 0.5}]}
    settings, missing = inspect({OWN: json.dumps(own)})
    assert (settings["prompt"], missing) == (mine, [])
    for more in ({"lora": [*own["lora"], {"file": "more.safetensors"}]}, {"prompt": "a fox"}):
        assert inspect({OWN: json.dumps(own | more)})[1][0].startswith("Lora: ")


def test_errors_tell_no_folder(runtime: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither of a model whose files broke since, nor of an adapter, which then changes nothing; the log does."""
    model = tmp_path / "mine"
    shutil.copytree(model_folder("sd1"), model)
    loras = Path(__file__).parents[1] / "golden" / "lora"
    with serving(runtime, models=[str(model), MODELS[1]], lora_dir=loras, output_dir=tmp_path / "out") as client:
        (tmp_path / "out").mkdir()
        fields = {**SMALL, "prompt": "a fox <lora:core:1><lora:xl:1>"}
        before = client.generate(**SMALL)[-2][1]
        name, data = client.generate(**fields)[-1]
        assert (name, data["field"]) == ("error", "prompt")
        assert data["error"].startswith("prompt: xl.safetensors: is a LoRA for SDXL")
        assert client.post("/api/generate", fields, Accept="application/json").status == 400
        assert picture_of(client.generate(**SMALL)[-2][1]["image"]).tobytes() == picture_of(before["image"]).tobytes()
        shutil.rmtree(tmp_path / "out")
        name, data = client.generate(**SMALL)[-1]
        assert (name, data["error"][:20]) == ("error", "--output-dir (=a-fox")
        (weights,) = (model / "unet").glob("*.safetensors")
        weights.write_bytes(b"x")
        client.generate(**SMALL, model="odd")
        name, data = client.generate(**SMALL)[-1]
        assert data["error"].startswith(f"mine/unet/{weights.name}: ")
    said = capsys.readouterr().err
    assert str(weights) in said
    assert str(loras / "xl.safetensors") in said


def test_a_lost_device_is_opened_again(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(work: object, job: object) -> None:
        raise DeviceLostError("the device is gone")

    before = client.service.models.device
    with monkeypatch.context() as patch:
        patch.setattr(client.service.maker, "make", lose)
        assert client.generate(**SMALL)[-1] == ("error", {"job": ANY, "error": "the device is gone", "field": None})
    assert client.service.models.device is not before
    assert client.generate(**SMALL)[-1][0] == "done"


def test_a_second_signal_ends_at_once(runtime: str) -> None:
    with process(runtime) as (started, client), client.events(**LONG) as running:
        assert next(name for name, _ in running if name == "step")
        for _ in range(2):
            started.send_signal(signal.SIGINT)
            time.sleep(0.5)
        assert started.wait(PATIENCE_S) == 0


def test_sigterm_finishes_and_keeps_the_picture(runtime: str, tmp_path: Path) -> None:
    with process(runtime, "--output-dir", str(tmp_path / "out")) as (started, client):
        with client.events(**{**SMALL, "steps": 200}) as running:
            assert next(name for name, _ in running if name == "step")
            with client.events(**SMALL) as waiting, ThreadPoolExecutor(1) as beside:
                assert next(waiting)[0] == "queued"
                answer = beside.submit(client.post, "/api/generate", SMALL, Accept="application/json")
                client.wait_for(lambda queue: queue["waiting"] == 2)
                started.terminate()
                name, data = list(waiting)[-1]
                assert name == "error"
                assert "stopping" in data["error"]
                assert (answer.result().status, answer.result().json["error"]) == (503, data["error"])
            last = list(running)
        assert names(last)[-2:] == ["picture", "done"]
        assert started.wait(PATIENCE_S) == 0
        (kept,) = (tmp_path / "out").iterdir()
        assert kept.read_bytes() == picture_bytes(last[-2][1]["image"])


def picture_bytes(url: str) -> bytes:
    import base64

    return base64.b64decode(url.partition(",")[2])


def test_a_killed_server_leaves_nothing_half_written(runtime: str, tmp_path: Path) -> None:
    from PIL import Image

    cut, begun = tmp_path / ".0123456789abcdef.part", tmp_path / ".fedcba9876543210.part"
    for path in (cut, begun):  # as of a server that was killed while it wrote, and of one that writes just now
        path.write_bytes(make_png()[:50])
    os.utime(cut, (0, 0))
    for _ in range(2):
        with process(runtime, "--output-dir", str(tmp_path)) as (started, client):
            assert client.generate(**SMALL)[-1][0] == "done"
            with client.events(**LONG) as running:
                assert next(name for name, _ in running if name == "step")
                started.kill()
    assert not cut.exists()
    begun.unlink()
    kept = list(tmp_path.iterdir())
    assert len(kept) == 2
    for path in kept:
        with Image.open(path) as picture:
            picture.load()
