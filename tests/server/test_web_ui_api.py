"""The web UIs' API, from outside, and the requests that its clients send."""

import base64
import http.client
import io
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from golden.models import model_folder
from PIL import Image

pytest.importorskip("starlette", reason="starlette comes with the test extra")
from server.serving import LONG, PATIENCE_S, SMALL, Client, data_url, make_png, picture_of, serving

BODY = {"prompt": "a fox", "width": 16, "height": 16, "steps": 2, "seed": 5, "sampler_name": "Euler a"}
SAME = {**SMALL, "seed": 5, "scheduler": "euler_a_linspace", "rng": "philox", "seeds": "each"}
RED = base64.b64encode(make_png()).decode()
INFO_KEYS = {
    "prompt", "all_prompts", "negative_prompt", "all_negative_prompts", "seed", "all_seeds", "subseed", "all_subseeds",
    "subseed_strength", "width", "height", "sampler_name", "cfg_scale", "steps", "batch_size", "restore_faces",
    "face_restoration_model", "sd_model_name", "sd_model_hash", "sd_vae_name", "sd_vae_hash", "seed_resize_from_w",
    "seed_resize_from_h", "denoising_strength", "extra_generation_params", "index_of_first_image", "infotexts",
    "styles", "job_timestamp", "clip_skip", "is_using_inpainting_conditioning", "version",
}  # fmt: skip


def make(client: Client, kind: str = "txt2img", **fields: Any) -> dict[str, Any]:
    answer = client.post(f"/sdapi/v1/{kind}", {**BODY, **fields})
    assert answer.status == 200, answer.body
    return answer.json


def own_images(client: Client, **fields: Any) -> list[str]:
    """Of the own API, in base64."""
    events = client.generate(**{**SAME, **fields})
    return [data["image"].partition(",")[2] for name, data in events if name == "picture"]


def pixels(image: str) -> bytes:
    return picture_of(f"data:,{image}").tobytes()


def test_pictures_are_those_of_our_fields(client: Client) -> None:
    made = make(client, batch_size=2, negative_prompt="rain", cfg_scale=3)
    own = own_images(client, num_images=2, negative_prompt="rain", guidance_scale=3)
    assert made["images"] == own
    assert made["parameters"]["cfg_scale"] == 3
    info = json.loads(made["info"])
    assert set(info) == INFO_KEYS
    assert (info["seed"], info["all_seeds"], info["all_prompts"]) == (5, [5, 6], ["a fox"] * 2)
    assert (info["sampler_name"], info["clip_skip"], info["sd_model_name"]) == ("Euler a", 1, "sd1")
    assert "Seed: 6" in info["infotexts"][1]


def test_picture_i_is_that_of_seed_plus_i(client: Client) -> None:
    two = make(client, n_iter=2)["images"]
    assert pixels(make(client, seed=6)["images"][0]) == pixels(two[1])
    assert len({json.loads(make(client, seed=-1)["info"])["seed"] for _ in range(2)}) == 2


def test_a_second_pass(client: Client) -> None:
    made = make(client, enable_hr=True, hr_scale=1.5, hr_second_pass_steps=4, denoising_strength=0.5)
    assert made["images"] == own_images(client, hires=1.5, hires_steps=4, hires_strength=0.5)
    assert picture_of(f"data:,{made['images'][0]}").size == (24, 24)
    assert json.loads(made["info"])["denoising_strength"] == 0.5


def test_pictures_from_pictures(client: Client) -> None:
    made = make(client, "img2img", init_images=[RED], denoising_strength=0.5)
    assert made["images"] == own_images(client, image=data_url(make_png()), strength=0.5)
    assert made["parameters"]["init_images"] is None
    kept = make(client, "img2img", init_images=[RED], include_init_images=True, send_images=False)
    assert (kept["parameters"]["init_images"], kept["images"]) == ([RED], [])


def test_a_mask_keeps_what_is_black(client: Client) -> None:
    half = make_half()
    masked = {"init_images": [RED], "mask": half, "denoising_strength": 1.0}
    made, other = (make(client, "img2img", **masked, inpainting_mask_invert=flag)["images"][0] for flag in (0, 1))
    own = own_images(client, image=data_url(make_png()), mask=f"data:image/png;base64,{half}", strength=1.0)
    assert made == own[0]
    assert pixels(made) != pixels(other)


def make_half() -> str:
    """A mask that is white on its left."""
    mask, data = Image.new("L", (16, 16)), io.BytesIO()
    mask.paste(255, (0, 0, 8, 16))
    mask.save(data, "png")
    return base64.b64encode(data.getvalue()).decode()


def test_options_switch_the_model_of_this_api(client: Client) -> None:
    try:
        options = client.get("/sdapi/v1/options").json
        assert options["sd_model_checkpoint"] == "sd1"
        changed = client.post("/sdapi/v1/options", {**options, "sd_model_checkpoint": "odd"})
        assert (changed.status, changed.json) == (200, None)
        assert json.loads(make(client)["info"])["sd_model_name"] == "odd"
        once = make(client, override_settings={"sd_model_checkpoint": "sd1"})
        assert json.loads(once["info"])["sd_model_name"] == "sd1"
        assert client.get("/sdapi/v1/options").json["sd_model_checkpoint"] == "odd"
        assert client.generate(**SMALL)[1][1]["model"] == "sd1"
    finally:
        assert client.post("/sdapi/v1/options", {"sd_model_checkpoint": "sd1.safetensors"}).status == 200


def test_lists(client: Client) -> None:
    lists = {
        name: client.get(f"/sdapi/v1/{name}").json for name in ("samplers", "schedulers", "sd-models", "upscalers")
    }
    assert "DPM++ 2M" in [each["name"] for each in lists["samplers"]]
    assert {"name": "karras", "label": "Karras"}.items() <= lists["schedulers"][2].items()
    assert [each["title"] for each in lists["sd-models"]] == ["sd1", "odd"]
    assert not any("/" in each["filename"] for each in lists["sd-models"])
    assert [each["name"] for each in lists["upscalers"]] == ["None", "Lanczos"]
    for name in ("latent-upscale-modes", "sd-vae", "loras"):
        assert client.get(f"/sdapi/v1/{name}").json == []


def test_progress_and_interrupt(client: Client) -> None:
    idle = client.get("/sdapi/v1/progress").json
    assert (idle["progress"], idle["state"]["job_count"], idle["current_image"]) == (0, 0, None)
    answers: list[Any] = []
    long = {**BODY, "steps": 1000, "sampler_name": "DPM2", "override_settings": {"show_progress_every_n_steps": 1}}
    asking = threading.Thread(target=lambda: answers.append(client.post("/sdapi/v1/txt2img", long)))
    asking.start()
    found = idle
    while found["current_image"] is None or not found["eta_relative"]:
        assert asking.is_alive()
        found = client.get("/sdapi/v1/progress?skip_current_image=false").json
    assert client.get("/sdapi/v1/progress?skip_current_image=true").json["current_image"] is None
    state = found["state"]
    assert (state["job"], state["job_count"], state["interrupted"]) == ("txt2img", 1, False)
    assert 0 < state["sampling_step"] < state["sampling_steps"]
    assert found["progress"] == state["sampling_step"] / state["sampling_steps"]
    assert picture_of(f"data:,{found['current_image']}").size == (16, 16)
    assert client.post("/sdapi/v1/interrupt", b"").json == {}
    asking.join()
    (answer,) = answers
    assert (answer.status, answer.json["detail"]) == (409, "the job was cancelled")
    assert client.get("/sdapi/v1/progress").json == idle


def test_interrupt_leaves_others_jobs_alone(client: Client) -> None:
    with client.events(**LONG) as events:
        assert next(name for name, _ in events if name == "step")
        assert client.get("/sdapi/v1/progress").json["state"]["job_count"] == 0
        assert client.post("/sdapi/v1/interrupt", None).status == 200
        job = next(data["job"] for name, data in events if name == "step")
        assert client.post("/api/cancel", {"job": job}).json == {"cancelled": True}


@pytest.mark.parametrize("path", ["/sdapi/v1/txt2img", "/v1/images/generations"])
def test_a_client_that_goes_away_cancels_its_job(client: Client, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=PATIENCE_S)
    size = {"size": "16x16", "scheduler": "dpm2"} if path.startswith("/v1") else {"width": 16, "height": 16}
    connection.request("POST", path, json.dumps({"prompt": "a fox", "steps": 1000, **size}))
    client.wait_for(lambda queue: queue["running"] is not None)
    connection.close()
    client.wait_for(lambda queue: queue["running"] is None)
    assert client.get("/sdapi/v1/progress").json["state"]["job_count"] == 0


def test_png_info(client: Client) -> None:
    made = make(client, negative_prompt="rain")
    for image in (made["images"][0], f"data:image/png;base64,{made['images'][0]}"):
        found = client.post("/sdapi/v1/png-info", {"image": image}).json
        assert found["info"] == json.loads(made["info"])["infotexts"][0]
        assert json.loads(found["items"]["shaderfusion"])["seed"] == 5
        parameters = found["parameters"]
        assert (parameters["Prompt"], parameters["Negative prompt"], parameters["Size-1"]) == ("a fox", "rain", "16")
    assert client.post("/sdapi/v1/png-info", {"image": RED}).json == {"info": "", "items": {}, "parameters": {}}


def test_adapters_of_the_folder(runtime: str, tmp_path: Path) -> None:
    lora = Path(__file__).parents[1] / "golden" / "lora" / "core.safetensors"
    (tmp_path / "mine.safetensors").write_bytes(lora.read_bytes())
    with serving(runtime, models=[str(model_folder("sd1"))], lora_dir=tmp_path, api_key="sécret") as client:
        key = base64.b64encode("user:sécret".encode()).decode()
        for kind, status in ((f"Basic {key}", 200), ("Basic dXNlcjp4", 401), ("Basic !", 401), (key, 401)):
            assert client.get("/sdapi/v1/loras", Authorization=kind).status == status
        refused = client.get("/sdapi/v1/loras")
        assert set(refused.json) == {"error", "detail", "errors", "field"}
        assert client.get("/api/models", Authorization=f"Basic {key}").status == 401
        (listed,) = client.get("/sdapi/v1/loras", Authorization=f"Basic {key}").json
        assert (listed["name"], listed["path"]) == ("mine", "mine.safetensors")
        texts = ("a fox", "a fox <lora:mine:1>")
        plain, changed = (
            client.post("/sdapi/v1/txt2img", {**BODY, "prompt": text}, Authorization=f"Basic {key}").json
            for text in texts
        )
        assert pixels(plain["images"][0]) != pixels(changed["images"][0])
        assert "Lora hashes" in json.loads(changed["info"])["infotexts"][0]


def test_errors_are_such_as_clients_show(client: Client) -> None:
    for body, field in (
        ({"cfg_scale": "x"}, "cfg_scale"),
        ({"batch_size": 3}, "batch_size"),
        ({"width": 17}, "width"),
        ({"steps": 0}, "steps"),
        ({"enable_hr": True, "hr_scale": 9}, "hr_scale"),
        ({"clip_skip": 9}, "clip_skip"),
        ({"restore_faces": True}, "restore_faces"),
    ):
        answer = client.post("/sdapi/v1/txt2img", {**BODY, **body})
        assert answer.status == 422, answer.body
        assert answer.json["field"] == field
        assert answer.json["detail"] == answer.json["error"]
        assert answer.json["detail"].startswith(field)


# ------------------------------------------------------------------------------ requests as clients send them

SILLY_TAVERN = {
    "url": "http://localhost:7860",
    "auth": "",
    "prompt": "a fox",
    "negative_prompt": "rain",
    "sampler_name": "DPM++ 2M",
    "scheduler": "karras",
    "steps": 2,
    "cfg_scale": 7,
    "width": 16,
    "height": 16,
    "restore_faces": False,
    "enable_hr": False,
    "hr_upscaler": "Latent",
    "hr_scale": 1.0,
    "denoising_strength": 0.7,
    "hr_second_pass_steps": 0,
    "seed": 5,
    "override_settings": {"CLIP_stop_at_last_layers": 1},
    "override_settings_restore_afterwards": True,
    "clip_skip": 1,
    "save_images": True,
    "send_images": True,
    "do_not_save_grid": False,
    "do_not_save_samples": False,
}
"""What SillyTavern's image extension posts, by its source (src/endpoints/stable-diffusion.js, and the extension)."""


def test_sillytavern(client: Client) -> None:
    """In the order in which it asks: what there is, the model, a picture."""
    basic = {"Authorization": "Basic Og=="}  # of an empty user and password
    for name in ("options", "upscalers", "latent-upscale-modes", "sd-vae", "samplers", "schedulers", "sd-models"):
        assert client.get(f"/sdapi/v1/{name}", **basic).status == 200
    titles = [each["title"] for each in client.get("/sdapi/v1/sd-models").json]
    assert client.get("/sdapi/v1/options").json["sd_model_checkpoint"] in titles
    assert client.post("/sdapi/v1/options", {"sd_model_checkpoint": titles[0]}, **basic).status == 200
    progress = client.get("/sdapi/v1/progress", **basic).json
    assert (progress["progress"], progress["state"]["job_count"]) == (0, 0)
    answer = client.post("/sdapi/v1/txt2img", SILLY_TAVERN, **basic)
    assert answer.status == 200
    own = own_images(client, negative_prompt="rain", guidance_scale=7, scheduler="dpmpp_2m_karras")
    assert answer.json["images"][0] == own[0]
    assert client.post("/sdapi/v1/interrupt", None, **basic).status == 200


def test_open_webui(client: Client) -> None:
    """It reads the options and sends all of them back with another model, then asks for pictures."""
    basic = {"authorization": "Basic dXNlcjpwYXNz"}
    options = client.get("/sdapi/v1/options", **basic).json
    for model in ("odd", "sd1"):
        options["sd_model_checkpoint"] = model
        assert client.post("/sdapi/v1/options", options, **basic).status == 200
    body = {"prompt": "a fox", "batch_size": 2, "width": 16, "height": 16, "steps": 2, "negative_prompt": "rain"}
    answer = client.post("/sdapi/v1/txt2img", body, **basic).json
    assert [picture_of(f"data:,{image}").size for image in answer["images"]] == [(16, 16)] * 2
    assert json.loads(answer["info"])["all_seeds"][1] == json.loads(answer["info"])["seed"] + 1
