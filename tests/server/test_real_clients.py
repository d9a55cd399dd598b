"""Clients that others made, against a running server. They are no dependencies: `pip install openai webuiapi`."""

import base64
import io
import threading
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("starlette", reason="starlette comes with the test extra")
from server.serving import PATIENCE_S, Client, make_png, process

SMALL: dict[str, Any] = {"prompt": "a fox", "width": 16, "height": 16, "steps": 2, "seed": 5}


def decoded(text: str | None) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text or "")))


@pytest.fixture
def openai_client(client: Client) -> Any:
    openai = pytest.importorskip("openai", reason="openai is not installed")
    with openai.OpenAI(base_url=f"http://127.0.0.1:{client.port}/v1", api_key="any", timeout=PATIENCE_S) as made:
        yield made


@pytest.fixture
def web_ui(client: Client) -> Any:
    return connect(client)


def connect(client: Client) -> Any:
    webuiapi = pytest.importorskip("webuiapi", reason="webuiapi is not installed")
    return webuiapi.WebUIApi(host="127.0.0.1", port=client.port, steps=2)


def test_openai_generates(openai_client: Any) -> None:
    more = {"seed": 3, "steps": 2, "negative_prompt": "rain", "guidance_scale": 4}
    ask = {"prompt": "a fox", "size": "16x16", "response_format": "b64_json"}
    one, two = (openai_client.images.generate(**ask, n=2, extra_body=more) for _ in range(2))
    assert [decoded(each.b64_json).size for each in one.data] == [(16, 16)] * 2
    assert [each.b64_json for each in one.data] == [each.b64_json for each in two.data]
    assert one.data[0].b64_json != one.data[1].b64_json


def test_openai_edits(openai_client: Any) -> None:
    mask = io.BytesIO()
    Image.new("RGBA", (16, 16), (0, 0, 0, 0)).save(mask, "png")
    more = {"seed": 3, "steps": 4}
    for image in (("a.png", make_png()), [("a.png", make_png())]):
        made = openai_client.images.edit(
            image=image, prompt="a cat", size="16x16", extra_body={**more, "strength": 0.5}
        )
        assert decoded(made.data[0].b64_json).size == (16, 16)
    files = {"image": ("a.png", make_png()), "mask": ("mask.png", mask.getvalue())}
    made = openai_client.images.edit(**files, prompt="a cat", size="16x16", n=2, extra_body=more)
    assert len(made.data) == 2


def test_openai_fetches_what_it_is_told_the_address_of(openai_client: Any, client: Client) -> None:
    ask = {"prompt": "a fox", "size": "16x16", "response_format": "url", "output_format": "webp"}
    made = openai_client.images.generate(**ask, output_compression=50, extra_body={"steps": 2})
    answer = client.get(made.data[0].url.partition(str(client.port))[2])
    assert Image.open(io.BytesIO(answer.body)).format == "WEBP"


def test_openai_reads_models_and_errors(openai_client: Any) -> None:
    openai = pytest.importorskip("openai", reason="openai is not installed")
    assert [model.id for model in openai_client.models.list()] == ["sd1", "odd"]
    for fields, param in (({"size": "17x16"}, "size"), ({"model": "dall-e-3"}, "model"), ({"n": 9}, "n")):
        with pytest.raises(openai.BadRequestError) as found:
            openai_client.images.generate(prompt="a fox", **fields)
        assert found.value.param == param
        assert found.value.type == "invalid_request_error"


def test_openai_sends_its_key(runtime: str) -> None:
    openai = pytest.importorskip("openai", reason="openai is not installed")
    with process(runtime, "--api-key", "secret") as (_, client):
        url = f"http://127.0.0.1:{client.port}/v1"
        with openai.OpenAI(base_url=url, api_key="secret") as made:
            assert made.models.list().data[0].id == "sd1"
        with openai.OpenAI(base_url=url, api_key="other") as made, pytest.raises(openai.AuthenticationError):
            made.models.list()


def test_webuiapi_lists(web_ui: Any) -> None:
    assert web_ui.get_options()["sd_model_checkpoint"] == "sd1"
    assert web_ui.util_get_model_names() == ["odd", "sd1"]
    assert web_ui.get_progress()["progress"] == 0
    for name in ("samplers", "schedulers", "sd_vae", "upscalers", "latent_upscale_modes", "loras"):
        assert isinstance(getattr(web_ui, f"get_{name}")(), list)


def test_webuiapi_makes_pictures(web_ui: Any) -> None:
    made = web_ui.txt2img(**SMALL, negative_prompt="rain", batch_size=2)
    assert [image.size for image in made.images] == [(16, 16)] * 2
    assert made.info["all_seeds"] == [5, 6]
    larger = web_ui.txt2img(**SMALL, enable_hr=True, hr_scale=1.5, hr_upscaler="Lanczos")
    assert larger.image.size == (24, 24)
    assert web_ui.png_info(made.image).info == made.info["infotexts"][0]
    again = web_ui.img2img(images=[made.image], **SMALL, denoising_strength=0.5)
    assert again.info["denoising_strength"] == 0.5
    mask = Image.new("L", (16, 16), 255)
    exact = {"mask_blur": 0, "inpaint_full_res": False, "inpainting_fill": 1}  # not its defaults, which we lack
    kept = web_ui.img2img(images=[made.image], mask_image=mask, inpainting_mask_invert=1, **exact, **SMALL)
    assert kept.image.tobytes() != again.image.tobytes()
    with pytest.raises(RuntimeError, match="mask_blur"):
        web_ui.img2img(images=[made.image], mask_image=mask, **SMALL)


def test_webuiapi_switches_models(web_ui: Any) -> None:
    try:
        web_ui.util_set_model("odd")
        web_ui.util_wait_for_ready(0.1)
        assert web_ui.util_get_current_model() == "odd"
        assert web_ui.txt2img(**SMALL).info["sd_model_name"] == "odd"
    finally:
        assert web_ui.set_options({"sd_model_checkpoint": "sd1"}) is None


def test_webuiapi_interrupts(web_ui: Any, client: Client) -> None:
    found: list[Exception] = []

    def ask() -> None:
        try:
            web_ui.txt2img(**{**SMALL, "steps": 1000}, sampler_name="DPM2")
        except RuntimeError as error:
            found.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    other = connect(client)
    while other.get_progress()["state"]["sampling_step"] == 0:
        assert asking.is_alive()
    assert other.interrupt() == {}
    asking.join(PATIENCE_S)
    assert "cancelled" in str(found[0])
