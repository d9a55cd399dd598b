"""The command line from outside: what it refuses, what it prints where, and the files it leaves."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from golden.models import model_folder
from PIL import Image

import shaderfusion
from shaderfusion.cli import main, preview
from shaderfusion.schedulers import SCHEDULERS

SOURCE = Path(__file__).parent.parent / "src"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(SOURCE)}
COMMAND = [sys.executable, "-m", "shaderfusion"]
SMALL = ["--steps", "1", "--width", "32", "--height", "32"]
NO_ADAPTER = {"VK_ICD_FILENAMES": os.devnull, "VK_DRIVER_FILES": os.devnull}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a person would start it, its output piped."""
    return subprocess.run([*COMMAND, *args], env=ENVIRONMENT | environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ("", "required: COMMAND"),
        ("paint x", "'paint'"),
        ("generate", "required: PROMPT"),
        ("generate x --steps 0", "--steps: '0' must be a whole number from 1 to 1000000, such as 20"),
        ("generate x --steps -1", "--steps: '-1' must be a whole number"),
        ("generate x --steps 2.5", "--steps: '2.5' must be a whole number"),
        ("generate x --steps twenty", "--steps: 'twenty' must be a whole number"),
        (f"generate x --steps {'9' * 5000}", "must be a whole number"),
        ("generate x --guidance-scale nan", "--guidance-scale: 'nan' must be a number from 0 to 3.4e+38, such as 7.5"),
        ("generate x --guidance-scale=-inf", "--guidance-scale: '-inf' must be a number"),
        ("generate x --guidance-scale inf", "--guidance-scale: 'inf' must be a number"),
        ("generate x --guidance-scale -1", "--guidance-scale: '-1' must be a number"),
        ("generate x --guidance-scale 1e39", "--guidance-scale: '1e39' must be a number from 0 to 3.4e+38"),
        ("generate x --seed -1", "--seed: '-1' must be a whole number from 0 to 18446744073709551615"),
        (f"generate x --seed {2**64}", f"--seed: '{2**64}' must be a whole number from 0"),
        ("generate \udcff", r"PROMPT: '\udcff' must be valid Unicode; check the terminal's encoding"),
        ("generate x --negative-prompt \udcff", "--negative-prompt: "),
        ("generate x --width 0", "--width: '0' must be a whole number"),
        (f"generate x --width {10**400}", "must be a whole number from 1 to 1000000"),
        ("generate x --height -64", "--height: '-64' must be a whole number"),
        ("generate x --num-images 0", "--num-images: '0' must be a whole number"),
        (f"generate x --num-images {10**9}", f"--num-images: '{10**9}' must be a whole number from 1 to 1000"),
        ("generate x --dtype f8", "'f8' (choose from"),
        ("generate x --scheduler best", "--scheduler: scheduler (='best') must be one of ddim, ddpm, "),
        ("generate x --scheduler lcm_karras", "lcm is not implemented with karras; it has none"),
        ("generate x --rng cuda", "'cuda' (choose from"),
        ("generate x --seeds every", "'every' (choose from"),
        ("generate x --eta much", "--eta: invalid float value: 'much'"),
        ("generate x --image a.png --strength 0", "--strength: '0' must be a number above 0 and at most 1"),
        ("generate x --image a.png --strength nan", "--strength: 'nan' must be a number above 0 and at most 1"),
        ("generate x --hires 0.5", "--hires: '0.5' must be a number from 1 to 16, such as 2"),
        ("generate x --hires big", "--hires: 'big' must be a number from 1 to 16, such as 2"),
        ("generate x --hires-steps 4", "--hires-steps (=4) must come with --hires, the second run's scale"),
        ("generate x --hires-strength 0.5", "--hires-strength (=0.5) must come with --hires"),
        ("generate x --preview-every 0 a.png", "--preview-every: '0' must be a whole number from 1 to 1000000"),
        ("generate x --preview-every 3", "--preview-every: expected 2 arguments"),
        ("generate x --preview-every 3 a.gif", "--preview-every (=a.gif) must end in .png or .jpg or .jpeg or .webp"),
        ("generate x --preview-every 3 none/a.png", "--preview-every (=none/a.png) must be in a folder that exists"),
        ("generate x --preview-vae a", "--preview-vae (=a) must come with --preview-every, which says where to"),
        ("generate x --preview-every 3 a.png --preview-vae a --memory low", "must be left out with --memory low"),
        ("generate x --runtime best", "'best' (choose from"),
        ("bench kernels --runtime best", "'best' (choose from"),
        ("generate x --step 3", "unrecognized arguments: --step 3"),
        (
            "generate a red heart",
            "unrecognized arguments: red heart; words that belong together, such as a prompt, go in quotes",
        ),
        ("generate x --model=", "--model: '' must name a model"),
        ("info", "required: MODEL"),
        ("generate x --output none/a.png", "--output (=none/a.png) must be in a folder that exists; make none first"),
        ("generate x --output . --seed 7", "--output (=.) is a folder; name a file in it, such as x-7.png"),
        (
            "generate x --output a.gif",
            "--output (=a.gif) must end in .png or .jpg or .jpeg or .webp, formats that are written; try a.png",
        ),
        ("generate x --output a", "--output (=a) must end in .png"),
        (f"generate x --output {'a' * 300}.png", "cannot be a file"),
        (f"generate x --num-images 10 --output {'a' * 249}.png", "a-10.png) cannot be a file (File name too long)"),
    ],
)
def test_refuses_before_loading_anything(
    args: str, sentence: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("shaderfusion: ")
    assert err.count("\n") == 1
    assert sentence in err
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ("generate x --model nowhere", "nowhere"),
        (f"generate x --model {'a' * 300}", "must be an embedded model"),
        ("info nowhere", "nowhere"),
        ("generate x --width 101", "101"),
        ("generate x --device abacus", "'abacus'"),
        ("generate x --steps 5000", "5000"),
        ("generate x --preview-every 3 a.png --preview-vae no", "preview_vae (='no') must be a .safetensors file or a"),
        ("generate x --image nowhere.png", "image (='nowhere.png') must be a picture's file, and there is no file"),
        ("generate x --mask nowhere.png", "mask_image must come with image, the picture that is kept"),
        ("generate x --strength 0.5", "strength (=0.5) must come with image, the picture to begin with"),
        ("generate x --hires 2 --hires-steps 4 --hires-strength 0.2", "strength (=0.2) times num_inference_steps (=4)"),
    ],
)
def test_refuses_what_the_model_or_device_cannot(
    args: str, sentence: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(args.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("shaderfusion: ")
    assert err.count("\n") == 1
    assert sentence in err
    assert not list(folder.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="hides adapters from the Vulkan loader")
@pytest.mark.parametrize("args", [("devices",), ("devices", "--json"), ("generate", "x")])
def test_no_adapter(args: tuple[str, ...], folder: Path) -> None:
    done = run(*args, **NO_ADAPTER)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("shaderfusion: no GPU adapter answers. Install ")
    assert not list(folder.iterdir())


def test_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["devices", "--json"]) == 0
    devices = json.loads(capsys.readouterr().out)
    for runtime in {device["runtime"] for device in devices}:
        indices = [device["index"] for device in devices if device["runtime"] == runtime]
        assert indices == list(range(len(indices)))
    assert main(["devices"]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert re.split(r"  +", heading) == [
        *("runtime", "index", "name", "kind", "backend", "driver", "dtype", "matrix units")
    ]
    for line, device in zip(lines, devices, strict=True):
        assert line.split()[:2] == [device["runtime"], str(device["index"])]
        assert device["name"] in line


def test_version() -> None:
    assert run("--version").stdout == f"shaderfusion {shaderfusion.__version__}\n"


def test_info(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "emoji", "--json"]) == 0
    small = json.loads(capsys.readouterr().out)
    assert main(["info", "emoji", "--batch", "2", "--json"]) == 0
    large = json.loads(capsys.readouterr().out)
    assert {component["name"] for component in small["components"]} == {"text_encoder", "unet", "vae"}
    for one, two in zip(small["components"], large["components"], strict=True):
        assert one["parameters"] == two["parameters"]
        assert (one["tensors_bytes"] < two["tensors_bytes"]) == (one["name"] == "unet")
    assert main(["info", "emoji"]) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line}
    for component in small["components"]:
        _, parameters, *_, dispatches = rows[component["name"]]
        assert parameters == f"{component['parameters']:,}"
        assert dispatches == str(component["dispatches"])


def test_generate_prints_only_the_path(folder: Path) -> None:
    done = run("generate", "A red/heart: \u2764", "--steps", "2", "--seed", "5", "--runtime", "wgpu")
    assert (done.returncode, done.stdout, done.stderr) == (0, "a-red-heart-5.png\n", "")
    assert [path.name for path in folder.iterdir()] == ["a-red-heart-5.png"]
    with Image.open(folder / "a-red-heart-5.png") as image:
        assert image.size == (128, 128)
        assert image.getextrema() != ((0, 0), (0, 0), (0, 0))
        assert set(image.info) == {"parameters", "shaderfusion"}
        settings = json.loads(image.info["shaderfusion"])
    made_by = {name: settings.pop(name) for name in ("device", "driver", "dtype", "tuning")}
    assert all(made_by.values())
    assert settings == {
        "prompt": "A red/heart: \u2764",
        "steps": 2,
        "guidance_scale": 7.5,
        "seed": 5,
        "scheduler": "ddim",
        "width": 128,
        "height": 128,
        "num_images": 1,
        "eta": 0.0,
        "rng": "cpu",
        "seeds": "joint",
        "prompt_syntax": "webui",
        "model": "emoji",
        "optimizations": "all",
        "memory": "normal",
        "runtime": "wgpu",
        "version": shaderfusion.__version__,
    }


def test_a_models_own_defaults(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = ["--model", str(model_folder("tiny_sd")), "--width", "32", "--height", "32"]
    assert main(["generate", "a fox", *model, "--output", "a.png", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 4
    with Image.open(folder / "a.png") as image:
        assert "\nSteps: 4, Sampler: PLMS, CFG scale: 8.5, " in image.info["parameters"]
    (folder / "jobs.csv").write_text("prompt,steps\na fox,\na fox,1\n")
    assert main(["batch", "jobs.csv", *model, "--output-dir", "out"]) == 0
    made = [json.loads(line) for line in (folder / "out" / "report.jsonl").read_text().splitlines()]
    assert [(line["steps"], line["guidance_scale"]) for line in made] == [(4, 8.5), (1, 8.5)]


def test_generate_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "pictures").mkdir()
    args = ["generate", "pizza", *SMALL, "--num-images", "2", "--output", "pictures/p.png", "--json"]
    assert main([*args, "--device", "0", "--runtime", "wgpu"]) == 0
    report = json.loads(capsys.readouterr().out)
    paths = [Path("pictures/p-1.png"), Path("pictures/p-2.png")]
    assert [Path(path) for path in report["paths"]] == paths
    assert sorted(path.relative_to(folder) for path in folder.rglob("*.png")) == paths
    assert report["steps"] == 1
    assert report["dtype"] in ("f16", "f32")
    assert set(report["seconds"]) == {"load", "generate", "save"}
    assert report["device"]
    assert report["driver"]
    assert report["runtime"] == "wgpu"
    images = [Image.open(path) for path in paths]
    assert {image.size for image in images} == {(32, 32)}
    assert images[0].tobytes() != images[1].tobytes()
    settings = [json.loads(image.info["shaderfusion"]) for image in images]
    assert {each["seed"] for each in settings} == {report["seed"]}
    assert [(each["number"], each["num_images"]) for each in settings] == [(1, 2), (2, 2)]
    assert "Batch size: 2, Batch pos: 1" in images[1].info["parameters"]


def test_generate_from_a_picture_and_in_two_passes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGBA", (50, 30), (200, 10, 60, 255)).save(folder / "in.png")
    mask = Image.new("L", (50, 30))
    mask.paste(255, (25, 0, 50, 30))
    mask.save(folder / "mask.png")
    args = "generate x --seed 1 --steps 2 --width 32 --height 32 --image in.png --mask mask.png --strength 1"
    args += " --hires 1.5 --hires-steps 4 --hires-strength 0.5 --output out.png"
    assert main(args.split()) == 0
    assert main([*args.replace("--mask mask.png ", "").replace("out.png", "all.png").split()]) == 0
    assert capsys.readouterr().out == "out.png\nall.png\n"
    with Image.open(folder / "out.png") as image, Image.open(folder / "all.png") as painted_whole:
        settings = json.loads(image.info["shaderfusion"])
        assert (settings["strength"], settings["hires"], settings["hires_strength"]) == (1.0, 1.5, 0.5)
        assert "Denoising strength: 0.5, RNG: CPU, Hires upscale: 1.5, Hires steps: " in image.info["parameters"]
        assert image.size == (48, 48)
        difference = np.abs(np.asarray(image, float) - np.asarray(painted_whole, float))
    assert difference[:, :16].mean() > 20  # there the picture was kept


def test_previews_are_replaced_every_few_steps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[str, tuple[int, int], bytes]] = []
    write_whole = preview.write_whole

    def write(option: str, path: Path, data: memoryview) -> None:
        write_whole(option, path, data)
        with Image.open(path) as image:
            written.append((path.name, image.size, image.tobytes()))

    monkeypatch.setattr(preview, "write_whole", write)
    args = "generate x --seed 1 --steps 5 --width 32 --height 40 --num-images 3 --output a.png --preview-every 2"
    for name in ("now.png", "now.jpg"):
        assert main([*args.split(), name]) == 0
    assert [(name, size) for name, size, _ in written] == [("now.png", (64, 80))] * 2 + [("now.jpg", (64, 80))] * 2
    assert len({data for _, _, data in written}) == 4
    assert sorted(path.name for path in folder.iterdir()) == ["a-1.png", "a-2.png", "a-3.png", "now.jpg", "now.png"]
    with Image.open("a-1.png") as image:
        assert "preview_every" not in json.loads(image.info["shaderfusion"])
    with Image.open("now.png") as image:
        assert image.getpixel((48, 70)) == (255, 255, 255)  # there is no fourth picture


def test_empty_prompt_is_allowed(folder: Path) -> None:
    assert main(["generate", "", *SMALL, "--seed", "3"]) == 0
    assert [path.name for path in folder.iterdir()] == ["image-3.png"]


def test_long_prompt_is_cut_with_a_warning(folder: Path) -> None:
    done = run("generate", "heart " * 1700, *SMALL, "--prompt-syntax", "plain", "--output", "a.png")
    assert (done.returncode, done.stdout) == (0, "a.png\n")
    assert done.stderr.startswith("shaderfusion: warning: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGINT for one process")
def test_interrupt_leaves_nothing(folder: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "generate", "x", "--steps", "999"],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        # A shell starts what it runs in the background, these tests maybe, with the signal ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    # Python itself ends with the signal, which a shell reports as 130 too, if it came while a module was imported.
    assert process.returncode in (130, -signal.SIGINT)
    assert err == "shaderfusion: interrupted\n"
    assert not list(folder.iterdir())


def test_numbered_output_that_is_a_folder(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "a-2.png").mkdir()
    assert main(["generate", "x", "--num-images", "3", "--model", "nowhere", "--output", "a.png"]) == 2
    assert "--output (=a-2.png) is a folder" in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["a-2.png"]


def test_longest_output_name(folder: Path) -> None:
    name = f"{'a' * 251}.png"
    assert main(["generate", "x", *SMALL, "--output", name]) == 0
    assert [path.name for path in folder.iterdir()] == [name]


def test_model_folder_of_any_name(folder: Path) -> None:
    shutil.copytree(model_folder("sd1"), folder / "\udcff")
    assert main(["generate", "x", *SMALL, "--model", "\udcff", "--output", "a.png"]) == 0
    with Image.open("a.png") as image:
        assert json.loads(image.info["shaderfusion"])["model"] == "\udcff"
        assert r"Model: \udcff, " in image.info["parameters"]


@pytest.mark.skipif(sys.platform == "win32", reason="has other pipes")
@pytest.mark.parametrize(
    "args",
    [
        "info emoji --json",
        "info emoji",
        "devices",
        "--help",
        "--version",
        "generate x --steps 1 --json --output a.png",
        "bench profile --model emoji --width 32 --height 32",
    ],
)
def test_closed_pipe(args: str) -> None:
    process = subprocess.Popen(
        [*COMMAND, *args.split()], env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 141
    said = r"shaderfusion: (\d+\. |Dawn finds no GPU adapter )"
    assert [line for line in err.splitlines() if not re.match(said, line)] == []


def test_closed_stderr() -> None:
    process = subprocess.Popen([*COMMAND, "info", "nowhere"], env=ENVIRONMENT, stderr=subprocess.PIPE)
    assert process.stderr is not None
    process.stderr.close()
    assert process.wait() == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="has no device that is always full")
@pytest.mark.parametrize("args", ["info emoji --json", "--help"])
def test_full_output(args: str) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*COMMAND, *args.split()], env=ENVIRONMENT, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 2
    assert done.stderr == (
        "shaderfusion: the output could not be written: No space left on device; send it to another place\n"
    )


def test_scheduler_names_are_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["generate", "--help"])
    assert f"one of {', '.join(SCHEDULERS)}; most take a spacing" in " ".join(capsys.readouterr().out.split())


def test_failed_write_keeps_the_old_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "a.png").write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    assert main(["generate", "x", *SMALL, "--output", "a.png"]) == 2
    assert "--output (=a.png) could not be written: No space left on device" in capsys.readouterr().err
    assert [(path.name, path.read_bytes()) for path in folder.iterdir()] == [("a.png", b"old")]
