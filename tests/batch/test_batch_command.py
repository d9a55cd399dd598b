"""`shaderfusion batch` from outside: what it leaves, whenever it ends."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from golden.models import FOLDER, model_folder
from PIL import Image

from shaderfusion import pipeline
from shaderfusion.batch.report import append_line
from shaderfusion.cli import batch, main
from shaderfusion.errors import InputError
from shaderfusion.progress import JobProgress
from shaderfusion.weights.lora.file import read_adapter

SOURCE = Path(__file__).parents[2] / "src"
SMALL = ["--output-dir", "out", "--steps", "1", "--width", "32", "--height", "32"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pictures() -> dict[str, bytes]:
    """The pictures that are there, each decoded whole, without the contact sheet."""
    found = {}
    for path in sorted(Path("out").glob("*.png")):
        if path.name != "contact.png":
            with Image.open(path) as image:
                found[path.name] = image.tobytes()
    return found


def report() -> list[dict[str, object]]:
    return [json.loads(line) for line in Path("out/report.jsonl").read_text().splitlines()]


def test_pictures_are_those_of_generate(capsys: pytest.CaptureFixture[str]) -> None:
    Path("jobs.csv").write_text("prompt,seed,scheduler\na heart,5,euler_a\na rocket,,\na heart,5,euler_a\n")
    assert main(["batch", "jobs.csv", *SMALL, "--vary", "guidance=3,1"]) == 0
    made = pictures()
    assert len(made) == 4  # two lines are one job
    assert capsys.readouterr().out.split() == [f"out/{line['file']}" for line in report()]
    assert {line["status"] for line in report()} == {"made"}
    with Image.open("out/contact.png") as sheet:
        assert sheet.width > sheet.height * 0.8  # two columns
    first = report()[0]["file"]
    assert main(["generate", "a heart", "--seed", "5", "--scheduler", "euler_a", "--guidance-scale", "3", *SMALL[2:],
                 "--output", "a.png"]) == 0  # fmt: skip
    with Image.open("a.png") as image:
        assert image.tobytes() == made[str(first)]
    capsys.readouterr()

    (Path("out") / str(first)).unlink()
    before = {path: path.stat().st_mtime_ns for path in Path("out").glob("a-*.png")}
    assert main(["batch", "jobs.csv", *SMALL, "--vary", "guidance=3,1"]) == 0
    assert capsys.readouterr().out == f"out/{first}\n"
    assert pictures() == made
    assert all(path.stat().st_mtime_ns == old for path, old in before.items())
    assert main(["batch", "jobs.csv", *SMALL, "--vary", "guidance=3,1"]) == 0
    assert capsys.readouterr() == ("", "shaderfusion: no picture is missing: 4 of 4 are there\n")


def test_adapters_that_prompts_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is read once; a picture and what it says are those of `generate`."""
    loras = FOLDER / "lora"
    Path("dir").mkdir()
    shutil.copy(loras / "lokr.safetensors", "dir/style v1.2.safetensors")
    options = ["--model", str(model_folder("sd1")), "--lora", f"{loras / 'kohya.safetensors'}:0.5", "--lora-dir", "dir"]
    prompts = ["a fox", "a fox <lora:none>", "a dog <lora:style v1.2:0.5>", "a cat <lora:style v1.2:0.5>"]
    prompts += ["a sun <lora:style v1.2><lora:kohya:-1>"]
    Path("jobs.txt").write_text("\n".join(prompts))
    read: list[Path] = []
    monkeypatch.setattr(pipeline, "read_adapter", lambda path, to: (read.append(path), read_adapter(path, to))[1])
    assert main(["batch", "jobs.txt", *SMALL, *options, "--seed", "3", "--at-once", "2"]) == 1
    assert [path.stem for path in read] == ["kohya", "style v1.2"]
    failed, *made = report()
    assert "adapter 'none' must be the name of a file given by --lora, or in the folder" in str(failed["error"])
    assert "(kohya, style v1.2)" in str(failed["error"])
    assert [line["prompt"] for line in made] == [prompts[0], *prompts[2:]]
    for line in (made[0], made[3]):  # the others were made at once, which rounds otherwise
        command = ["generate", str(line["prompt"]), "--seed", "3", *SMALL[2:], *options, "--output", "a.png"]
        assert main(command) == 0
        with Image.open("a.png") as image, Image.open(f"out/{line['file']}") as own:
            assert own.tobytes() == image.tobytes()
            assert own.info["parameters"] == image.info["parameters"]
    for line in made:
        with Image.open(f"out/{line['file']}") as image:
            hashes = re.search('Lora hashes: "(.*?)"', image.info["parameters"])
            assert hashes
            names = [entry.split(": ")[0] for entry in hashes[1].split(", ")]
            assert names == (["kohya"] if line["prompt"] == "a fox" else ["kohya", "style v1.2"])


def test_a_failed_job_is_not_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [{"prompt": "x", "width": 33}, {"prompt": "x", "steps": 0}, {"prompt": "x", "scheduler": "best"}]
    Path("jobs.jsonl").write_text("\n".join(json.dumps(line) for line in [*lines, {"prompt": "a heart"}]))
    assert main(["batch", "jobs.jsonl", *SMALL]) == 1
    assert len(pictures()) == 1
    assert [line["status"] for line in report()] == ["failed", "failed", "failed", "made"]
    err = capsys.readouterr().err
    for line, sentence in zip(report(), ["--steps: '0'", "'best'", "width (=33)"], strict=False):
        assert sentence in str(line["error"])
        assert sentence in err
    assert Path("out/contact.png").exists()


def test_a_grid_keeps_the_places_of_failed_jobs() -> None:
    Path("jobs.txt").write_text("a heart\na rocket\n")
    assert main(["batch", "jobs.txt", *SMALL, "--vary", "scheduler=best,euler,ddim"]) == 1
    with Image.open("out/contact.png") as sheet:
        gray = [sheet.getpixel((8 + column * 200, 8)) == (128, 128, 128) for column in range(3)]
    assert gray == [True, False, False]  # three columns, the first of empty boxes


def test_a_run_that_fails_on_the_device_is_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("jobs.txt").write_text("a heart\na rocket\n")
    encode, left = batch.write_whole, [1]

    def fail_once(option: str, path: Path, data: bytes) -> None:
        if left:
            left.pop()
            raise InputError("no room")
        encode(option, path, data)

    monkeypatch.setattr(batch, "write_whole", fail_once)
    assert main(["batch", "jobs.txt", *SMALL]) == 1
    assert [line["status"] for line in report()] == ["failed", "made"]
    assert main(["batch", "jobs.txt", *SMALL]) == 0
    assert len(pictures()) == 2


def test_an_interrupt_ends_between_two_pictures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("jobs.txt").write_text("a heart\na rocket\na tree\n")
    monkeypatch.setattr(batch, "show", lambda _: signal.raise_signal(signal.SIGINT))
    before = signal.getsignal(signal.SIGINT)
    assert main(["batch", "jobs.txt", *SMALL]) == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert "interrupted; 1 of 3 pictures are there" in capsys.readouterr().err
    assert len(pictures()) == 1
    assert not Path("out/contact.png").exists()


def test_an_interrupt_ends_after_the_current_step(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("jobs.txt").write_text("a heart\n")
    done: list[int] = []

    @contextlib.contextmanager
    def watched(job: JobProgress) -> Iterator[None]:
        def watch() -> None:
            if job.step > len(done):
                done.append(job.step)
                if job.step == 2:
                    signal.raise_signal(signal.SIGINT)

        job.watch = watch
        yield

    monkeypatch.setattr(batch, "progress_line", watched)
    assert main(["batch", "jobs.txt", *SMALL, "--steps", "5"]) == 130
    assert done == [1, 2]
    assert pictures() == {}


def test_several_at_once_are_those_of_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ["a heart,bad,1,ddim,3", "a rocket,worse,2,ddim,3", "a tree,bad,3,ddim,3"]  # one run of 2, and one of 1
    rows += ["a sun,,4,ddim,3", "a moon,,5,ddim,2", "a star,,6,euler_a,3", "a cat,,7,euler_a,3"]  # each alone
    rows += ["a sun,,8,ddim,3", "a heart BREAK a sun BREAK a tree,,9,ddim,3"]  # whose length the other would have
    Path("jobs.csv").write_text("prompt,negative,seed,scheduler,guidance\n" + "\n".join(rows))
    small = [*SMALL, "--steps", "2", "--rng", "philox"]
    assert main(["batch", "jobs.csv", *small]) == 0
    singly = pictures()
    shutil.rmtree("out")
    sizes: list[int] = []
    one_request = batch._one_request
    monkeypatch.setattr(
        batch, "_one_request", lambda group, model: sizes.append(len(group)) or one_request(group, model)
    )
    assert main(["batch", "jobs.csv", *small, "--at-once", "2"]) == 0
    assert sizes == [2]
    together = pictures()
    assert singly.keys() == together.keys()
    for name, single in singly.items():
        levels = [np.frombuffer(data, np.uint8).astype(int) for data in (single, together[name])]
        assert np.abs(levels[0] - levels[1]).max() <= 1  # but for rounding


@pytest.mark.parametrize(
    ("kind", "options", "sizes"), [("CPU", [], []), ("DiscreteGPU", [], [2]), ("DiscreteGPU", ["--memory", "low"], [])]
)
def test_a_gpu_makes_several_at_once(
    monkeypatch: pytest.MonkeyPatch, kind: str, options: list[str], sizes: list[int]
) -> None:
    Path("jobs.txt").write_text("a heart\na rocket\n")
    found: list[int] = []
    open_beside, one_request = batch.open_model_and_device, batch._one_request
    monkeypatch.setattr(
        batch, "_one_request", lambda group, model: found.append(len(group)) or one_request(group, model)
    )

    def open_as(*given: Any) -> Any:
        checked, _, load = open_beside(*given)
        return checked, SimpleNamespace(info=SimpleNamespace(kind=kind)), load

    monkeypatch.setattr(batch, "open_model_and_device", open_as)
    assert main(["batch", "jobs.txt", *SMALL, *options]) == 0
    assert found == sizes


@pytest.mark.skipif(sys.platform == "win32", reason="has no such signals")
def test_killed_at_ten_random_moments_and_resumed() -> None:
    """Every picture is there once and whole, whenever the process ends: while it starts, denoises or writes."""
    random = Random(5)
    phases = ["denoising"] * 3 + ["writing"] * 3 + ["starting"] * 4
    random.shuffle(phases)
    phases.insert(0, phases.pop(phases.index("denoising")))  # which shows how long the start takes
    number = 16
    Path("jobs.txt").write_text("".join(f"a heart of {index}\n" for index in range(number)))
    command = ["batch", "jobs.txt", "--model", str(model_folder("sd1")), *SMALL]
    before: dict[str, bytes] = {}
    seconds_to_start = 0.0
    moments: list[str] = []
    for phase in phases:
        started, share = time.perf_counter(), random.random()
        with kill_after(command, seconds=5.0 if phase == "writing" else 0.0) as is_running:
            if phase == "starting":
                end = started + share * seconds_to_start
                while time.perf_counter() < end and len(there()) <= len(before):  # it may be faster this time
                    time.sleep(0.002)
            elif phase == "denoising":
                while is_running() and len(there()) <= len(before):
                    time.sleep(0.002)
                seconds_to_start = seconds_to_start or time.perf_counter() - started
                time.sleep(share * 0.1)  # about as long as a picture takes
            else:
                parts = half_written()
                while is_running() and half_written() <= parts:
                    time.sleep(0.002)
                time.sleep(share * 0.5)
        made = pictures()
        assert before.items() <= made.items()
        before = made
        moments.append(f"{phase} {share:.2f}: {len(made)} there")
    print("\n".join(moments))
    assert 3 <= len(before) < number
    assert len(half_written()) >= 3
    assert main(command) == 0
    made = pictures()
    assert len(made) == number
    assert before.items() <= made.items()
    files = [line["file"] for line in report()]
    assert len(set(files)) == len(files)
    assert set(files) <= set(made)


def half_written() -> set[Path]:
    """Files that wait for their other half, or that a process left so; an empty one only shows that it may write."""
    found = set[Path]()
    for path in Path("out").glob(".*.part"):
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_size:
                found.add(path)
    return found


def there() -> list[Path]:
    return list(Path("out").glob("a-*.png"))


@contextlib.contextmanager
def kill_after(command: list[str], *, seconds: float) -> Iterator[Callable[[], bool]]:
    """Has the command run meanwhile, with files that take so long to be written; gives whether it still does."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("slow_writer.py")), str(seconds), *command],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield lambda: process.poll() is None
    finally:
        process.kill()
        process.wait()


def test_what_a_killed_command_left_half_written_is_deleted() -> None:
    Path("jobs.txt").write_text("a heart\n")
    old, new = (Path("out", f".{digit * 16}.part") for digit in "0a")
    Path("out").mkdir()
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    assert main(["batch", "jobs.txt", *SMALL]) == 0
    assert (old.exists(), new.exists()) == (False, True)  # another command may be writing the new one


def test_a_cut_report_goes_on_in_a_new_line(tmp_path: Path) -> None:
    path = tmp_path / "report.jsonl"
    append_line(path, {"a": 1})
    with path.open("a") as stream:
        stream.write('{"cut')
    append_line(path, {"b": 2})
    assert path.read_text().splitlines() == ['{"a": 1}', '{"cut', '{"b": 2}']


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["batch", "jobs.txt", *SMALL, "--vary", "seed"], "--vary (='seed') must be"),
        (["batch", "jobs.txt", *SMALL, "--vary", "seed=1,2", "--vary", "seed=3"], "must have seed once"),
        (["batch", "none.txt", *SMALL], "none.txt: no such file; check its name"),
        (["batch", *SMALL, "--ray", "jobs.txt"], "--ray: 'jobs.txt' is no value of it; name the file of jobs before"),
        (["batch", *SMALL, "--vary", "seed=1", "a.CSV"], "--vary: 'a.CSV' is no value of it; name the file of jobs"),
        (["batch", "jobs.txt"], "required: --output-dir"),
        (["batch", "jobs.txt", "--output-dir", "jobs.txt"], "--output-dir (=jobs.txt) cannot be a folder"),
        (["batch", "jobs.txt", *SMALL, "--model", "nowhere"], "nowhere"),
    ],
)
def test_refusals(args: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("jobs.txt").write_text("a heart\n")
    assert main(args) == 2
    assert sentence in capsys.readouterr().err
    assert not list(Path().glob("out/*"))
