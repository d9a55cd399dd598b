"""`inspect`, and `generate --like`, on pictures of ours and of others."""

import hashlib
import json
import shutil
import warnings
from pathlib import Path

import pytest
from golden.models import FOLDER, model_folder
from metadata.picture_files import png_texts, png_with
from PIL import Image
from weights.ldm_files import write_weights

from shaderfusion.cli import main

SMALL = ["--steps", "1", "--width", "32", "--height", "32"]
WEB_UI = (
    "a fox\nNegative prompt: bad\nSteps: 2, Sampler: Euler a, CFG scale: 3, Seed: 9, Size: 40x32, "
    "Model hash: 31e35c80fc, Model: dream, RNG: CPU, Version: v1.10.1"
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pixels(path: str) -> bytes:
    with Image.open(path) as image:
        return image.tobytes()


def settings(path: str) -> dict[str, object]:
    return json.loads(png_texts(Path(path).read_bytes())["shaderfusion"])


def test_inspect_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "a heart, 狐", *SMALL, "--seed", "5", "--output", "a.jpg"]) == 0
    capsys.readouterr()
    assert main(["inspect", "a.jpg", "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    exact, infotext = report["read"]
    assert exact["settings"] == infotext["settings"] | {
        "num_images": 1,
        "eta": 0.0,
        "seeds": "joint",
        "prompt_syntax": "webui",
    }
    assert exact["settings"]["prompt"] == "a heart, 狐"
    assert exact["not_met"] == infotext["not_met"] == {}
    assert report["texts"]["parameters"].startswith("a heart, 狐\nSteps: 1, Sampler: DDIM, CFG scale: 7.5, Seed: 5, ")


def test_inspect_of_others(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = WEB_UI.replace("Euler a", "Restart").replace("bad", "\x1b[2Jbad") + ", Hires upscale: 2"
    path = png_with(folder, parameters=text, workflow="{}", prompt="{}", note="hi")
    assert main(["inspect", str(path)]) == 0
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "written by web UI:" in lines
    assert r"negative_prompt: \x1b[2Jbad" in lines
    assert "Sampler: Restart (--scheduler or --ignore 'Sampler')" in lines
    assert "Hires upscale: 2 (--hires or --ignore 'Hires upscale')" in lines
    assert "Hires upscaler: Latent, as none is named (--ignore 'Hires upscaler')" in lines
    assert "workflow: ComfyUI's, not read, 2 characters" in lines
    assert "note: not read, 2 characters" in lines
    assert "not said: scheduler" in lines
    assert main(["inspect", "none.png"]) == 2
    assert "none.png: no such file; give a PNG, JPEG or WebP file" in capsys.readouterr().err


def test_like_makes_the_same_picture() -> None:
    made = ["generate", "a heart", "--negative-prompt", "red", "--scheduler", "euler_a", "--guidance-scale", "3"]
    assert main([*made, *SMALL, "--seed", "5", "--num-images", "2", "--output", "a.png"]) == 0
    assert main(["generate", "--like", "a-2.png", "--output", "b.png"]) == 0
    assert pixels("b-2.png") == pixels("a-2.png")
    assert settings("b-2.png") == settings("a-2.png")


def test_a_picture_that_says_little(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = png_with(folder, parameters="a fox")
    with warnings.catch_warnings(action="always"):
        assert main(["generate", "--like", str(path), "--steps", "1", "--output", "b.png"]) == 0
    said = capsys.readouterr().err
    assert "warning: --like" in said
    assert "does not say scheduler, guidance_scale, seed, width, height; the defaults are taken" in said
    assert settings("b.png")["prompt"] == "a fox"


@pytest.mark.parametrize(
    "text", ['{"sui_image_params": {"prompt": "a fox", "seed": 5}}', '{"prompt": "a: 1, bb: 2, cc: 3", "seed": 5}']
)
def test_json_of_other_programs_is_no_prompt(text: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """SwarmUI and Fooocus keep theirs where infotext is."""
    path = png_with(folder, parameters=text)
    assert main(["inspect", str(path)]) == 0
    assert f"parameters: not read, {len(text)} characters" in capsys.readouterr().out
    assert main(["generate", "--like", str(path), "--output", "b.png"]) == 2
    assert "must be a picture that holds its settings, and has no settings" in capsys.readouterr().err


def test_options_take_the_place_of_the_pictures(folder: Path) -> None:
    path = png_with(folder, parameters=WEB_UI)
    assert main(["generate", "--like", str(path), "--steps", "1", "--scheduler", "ddim", "--output", "b.png"]) == 0
    assert main(["generate", "a fox", "--negative-prompt", "bad", "--guidance-scale", "3", "--seed", "9", "--steps",
                 "1", "--width", "40", "--height", "32", "--output", "c.png"]) == 0  # fmt: skip
    assert settings("b.png") == settings("c.png") | {"scheduler": "ddim", "seeds": "each", "emphasis": "original"}
    assert pixels("b.png") == pixels("c.png")


@pytest.mark.parametrize(
    ("text", "args", "sentence"),
    [
        (WEB_UI.replace("Euler a", "Restart"), [], "Sampler: Restart (give --scheduler or --ignore 'Sampler')"),
        (WEB_UI.replace("Euler a", "Euler a Karras"), [], "Schedule type: Karras (give --scheduler or --ignore"),
        (WEB_UI.replace("Version", "Clip skip: 0, Version"), [], "Clip skip: 0 (give --clip-skip or --ignore 'Clip sk"),
        (WEB_UI.replace("Version", "Clip skip: 99, Version"), [], "clip_skip (=98)"),
        (WEB_UI.replace("a fox", "<lora:x:1>"), [], "Lora: <lora:x:1> (give --lora or --ignore 'Lora')"),
        (WEB_UI.replace("Size: 40x32", "Size: 41x32"), [], "width (=41)"),
        (WEB_UI.replace("Steps: 2", "Steps: 0"), [], "num_inference_steps (=0)"),
        (WEB_UI, ["--ignore", "x", "--scheduler", "best"], "scheduler (='best') must be one of"),
        ("", [], "must be a picture that holds its settings"),
    ],
)
def test_what_cannot_be_met_is_named(
    text: str, args: list[str], sentence: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = png_with(folder, **({"parameters": text} if text else {}))
    assert main(["generate", "--like", str(path), *args]) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert err.count("\n") == 1
    assert [path.name for path in folder.iterdir()] == ["picture.png"]


def test_what_is_ignored(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = png_with(folder, parameters=WEB_UI.replace("RNG: CPU", "Hires upscale: 2, ENSD: 31337"))
    like = ["generate", "--like", str(path), "--output", "b.png"]
    assert main([*like, "--ignore", "Hires upscale"]) == 2
    err = capsys.readouterr().err
    assert "ENSD" in err
    assert "Hires" not in err
    assert main([*like, "--ignore", "Hires upscale", "--ignore", "ENSD"]) == 0
    assert settings("b.png")["seed"] == 9


def test_a_second_pass(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = WEB_UI.replace("RNG", "Denoising strength: 0.7, Hires upscale: 1.5, Hires steps: 2, Hires upscaler: X, RNG")
    text = text.replace("40x32", "48x32")
    path = png_with(folder, parameters=text)
    assert main(["generate", "--like", str(path)]) == 2
    assert "asks for what is not done: Hires upscaler: X (give --ignore 'Hires upscaler')\n" in capsys.readouterr().err
    path = png_with(folder, parameters=text.replace("Hires upscaler: X", "Hires upscaler: Lanczos"))
    assert main(["generate", "--like", str(path), "--output", "a.png"]) == 0
    second = {"hires": 1.5, "hires_steps": 2, "hires_strength": 1.0}  # 2 of int(2 / 0.7) steps
    assert settings("a.png").items() >= second.items()
    assert main(["generate", "--like", "a.png", "--output", "b.png"]) == 0
    assert pixels("b.png") == pixels("a.png")
    path = png_with(folder, parameters=text)
    assert main(["generate", "--like", str(path), "--ignore", "Hires upscale", "--output", "c.png"]) == 0
    assert not settings("c.png").keys() & second.keys()


def test_a_picture_to_begin_with(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = png_with(folder, parameters=WEB_UI.replace("RNG", "Denoising strength: 0.5, Init image hash: 0123, RNG"))
    like = ["generate", "--like", str(path), "--output", "a.png"]
    assert main(like) == 2
    err = capsys.readouterr().err
    assert "image: the picture that it began with, which the text does not name (give --image or --ignore 'im" in err
    assert "Init image hash: 0123 (give --image or --ignore 'Init image hash')" in err
    assert main([*like, "--ignore", "image", "--ignore", "Init image hash"]) == 0
    assert "strength" not in settings("a.png")
    assert main([*like, "--image", "a.png"]) == 0
    assert settings("a.png")["strength"] == 1.0  # 2 of 2 steps, where a web UI runs one more


@pytest.mark.parametrize(
    ("model", "scheduler", "clip_skip"), [("ragged", "euler_a_ays", 1), ("sdxl", "euler_a_ays_xl", None)]
)
def test_what_web_uis_do_by_the_model(model: str, scheduler: str, clip_skip: int | None, folder: Path) -> None:
    """They skip none of SDXL's layers, and have other steps for it."""
    fields = "Schedule type: Align Your Steps, Clip skip: 2, Emphasis: No norm, RNG"
    path = png_with(folder, parameters=WEB_UI.replace("RNG", fields).replace("Steps: 2", "Steps: 10"))
    assert main(["generate", "--like", str(path), "--model", str(model_folder(model)), "--output", "a.png"]) == 0
    made = settings("a.png")
    assert (made["scheduler"], made.get("clip_skip"), made["emphasis"]) == (scheduler, clip_skip, "no_norm")


def test_adapters_that_a_prompt_names_are_found_in_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(FOLDER / "lora" / "kohya.safetensors", folder / "my style.safetensors")
    path = png_with(folder, parameters=WEB_UI.replace("a fox", "a <lora:my style:0.5>fox"))
    options = ["--lora-dir", ".", "--model", str(model_folder("sd1"))]
    assert main(["generate", "--like", str(path), *options, "--output", "a.png"]) == 0
    text = png_texts((folder / "a.png").read_bytes())["parameters"]
    assert text.startswith("a <lora:my style:0.5>fox\n")
    assert 'Lora hashes: "my style: ' in text
    assert main(["generate", "--like", "a.png", *options, "--output", "b.png"]) == 0
    assert pixels("b.png") == pixels("a.png")
    assert main(["generate", "--like", str(path), *options, "--ignore", "Lora", "--output", "c.png"]) == 0
    assert pixels("c.png") != pixels("a.png")
    (folder / "my style.safetensors").unlink()
    capsys.readouterr()
    assert main(["generate", "--like", str(path), *options]) == 2
    assert "the adapter 'my style' must be the name of a file" in capsys.readouterr().err


def test_pictures_without_settings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = png_with(folder, prompt="{}", workflow="{}")
    assert main(["generate", "--like", str(path)]) == 2
    assert "only a graph of ComfyUI, which is not read" in capsys.readouterr().err
    assert main(["generate", "x", "--ignore", "RNG"]) == 2
    assert "--ignore (=RNG) must come with --like" in capsys.readouterr().err


@pytest.mark.filterwarnings("always:--like")
def test_hashes_of_files(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_weights(folder / "model.safetensors", "little_sd1")
    whole = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    args = ["generate", "a fox", "--steps", "1", "--width", "16", "--height", "16", "--model", "model.safetensors"]
    assert main([*args, "--output", "a.png"]) == 0
    text = png_texts((folder / "a.png").read_bytes())["parameters"]
    assert f"Model hash: {whole[:10]}, Model: model, " in text
    assert settings("a.png")["model_hash"] == whole[:10]

    other = text.replace(whole[:10], "0123456789")
    like = ["generate", "--like", str(png_with(folder, parameters=other)), "--model", "model.safetensors"]
    capsys.readouterr()
    assert main([*like, "--output", "b.png"]) == 0
    warning = f"was made by another model, 'model' of hash '0123456789', not {whole[:10]}; give it by --model"
    assert warning in capsys.readouterr().err
    assert pixels("b.png") == pixels("a.png")


def test_adapters_of_a_picture(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lora = FOLDER / "lora" / "kohya.safetensors"
    data = lora.read_bytes()
    after_header = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    model = ["--model", str(model_folder("sd1"))]
    made = ["generate", "a fox", *SMALL, *model, "--lora", f"{lora}:0.5", "--output", "a.png"]
    assert main(made) == 0
    text = png_texts((folder / "a.png").read_bytes())["parameters"]
    assert text.startswith("a fox <lora:kohya:0.5>\n")
    assert f'Lora hashes: "kohya: {after_header[:12]}"' in text

    assert main(["generate", "--like", "a.png", *model, "--output", "b.png"]) == 2
    assert "asks for what is not done: Lora: " in capsys.readouterr().err
    assert main(["generate", "--like", "a.png", *model, "--lora", f"{lora}:0.5", "--output", "b.png"]) == 0
    assert pixels("b.png") == pixels("a.png")
