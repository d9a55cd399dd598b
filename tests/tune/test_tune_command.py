"""`shaderfusion tune` from outside: what it refuses, the file it leaves, and that the other commands use it."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from golden.models import model_folder

from shaderfusion.bench.subject import Subject, open_subject
from shaderfusion.cli import main
from shaderfusion.families import run_size
from shaderfusion.gpu.device import Device, list_devices
from shaderfusion.kernels.tuning import Linear, Tuning
from shaderfusion.tune import command
from shaderfusion.tune.compare import Comparison
from shaderfusion.tune.survey import Case
from shaderfusion.tuning_file import TunedOperation, default_path, read_tuning, write_tuning

MODEL = str(model_folder("sd1"))
SIZE = ["--width", "32", "--height", "32"]
TINY = ["tune", MODEL, *SIZE]
INFO = list_devices()[0]
DTYPE = INFO.default_dtype


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, the current one, whose folder `cache` is the user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHADERFUSION_CACHE", str(tmp_path / "cache"))
    return tmp_path


class FakeSearch:
    """Finds the last way of each operation of the denoiser to be the fastest, and no other of the rest."""

    interrupts = False

    def __init__(self, _: Device, cases: list[Case], *__: Any) -> None:
        self._cases = cases

    def __iter__(self) -> Iterator[tuple[Case, TunedOperation | None]]:
        for index, case in enumerate(self._cases):
            if self.interrupts and index == 10:
                raise KeyboardInterrupt
            name = repr(list(case.ways)[-1])
            yield case, TunedOperation(repr(case.operation), name, 2.0, 1.0) if "unet" in case.layers else None

    def close(self) -> None:
        pass


@pytest.fixture
def fake_search(monkeypatch: pytest.MonkeyPatch) -> type[FakeSearch]:
    monkeypatch.setattr(command, "Search", FakeSearch)
    monkeypatch.setattr(FakeSearch, "interrupts", False)
    return FakeSearch


@pytest.fixture
def fake_compare(monkeypatch: pytest.MonkeyPatch) -> list[Comparison]:
    """What the comparison says, to be changed."""
    rows = [Comparison("unet", 4.0, 3.0, True)]
    monkeypatch.setattr(command, "compare", lambda _, tuning: rows if tuning.names else [])
    return rows


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ("tune", "required: MODEL"),
        ("tune nowhere", "nowhere"),
        ("tune emoji --budget 0", "--budget: '0' must be a whole number from 1"),
        ("tune emoji --output none/a.json", "--output (=none/a.json) must be in a folder that exists"),
        ("tune emoji --output a.txt", "--output (=a.txt) must end in .json"),
        ("tune emoji --width 33", "width (=33) must be a positive multiple of 4 px"),
        ("generate x --tuning none.json", "tuning (=none.json) must be auto, off, or a file"),
        ("bench profile --tuning none.json", "tuning (=none.json) must be auto, off, or a file"),
    ],
)
def test_refuses(args: str, sentence: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert sentence in err
    assert not list(folder.rglob("*.*"))


@pytest.mark.usefixtures("fake_search", "fake_compare")
def test_file_and_summary(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(TINY) == 0
    out, err = capsys.readouterr()
    path = default_path(INFO, DTYPE)
    heading, unet, written = out.splitlines()
    assert heading.split("  ")[0] == "network"
    rows = read_tuning(path, INFO, DTYPE)
    assert unet.split() == ["unet", str(len(rows)), "4.00", "3.00", "25.0", "yes"]
    assert written == str(path)
    assert f"{len(rows)} can be faster" in err


@pytest.mark.usefixtures("fake_search", "fake_compare")
def test_the_file_is_used_unless_off(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(TINY) == 0
    path = str(default_path(INFO, DTYPE))
    made = ["generate", "x", "--model", MODEL, *SIZE, "--steps", "1", "--seed", "1", "--json"]
    for args, tuning in (([], path), (["--tuning", "off"], "off"), (["--tuning", path], path)):
        capsys.readouterr()
        assert main([*made, *args]) == 0
        assert json.loads(capsys.readouterr().out)["tuning"] == tuning
    device = open_subject(MODEL, width=32, height=32).device
    for tuning, is_tuned in (("off", False), ("auto", True)):
        subject = open_subject(MODEL, device=device, width=32, height=32, tuning=tuning)
        assert bool(subject.kernels().tuning.names) is is_tuned
        assert subject.as_dict()["tuning"] == (path if is_tuned else "off")


@pytest.mark.usefixtures("fake_search", "fake_compare")
@pytest.mark.parametrize("plenty", [False, True])
def test_memory_is_what_generate_takes(plenty: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_size, "_PLENTY_BYTES", 0 if plenty else 1 << 60)
    assert main(TINY) == 0
    convolutions = [
        row.operation for row in read_tuning(default_path(INFO, DTYPE), INFO, DTYPE) if "Conv" in row.operation
    ]
    assert convolutions
    assert all(("keeps_filters=True" in operation) is plenty for operation in convolutions)


@pytest.mark.usefixtures("fake_search")
@pytest.mark.parametrize(
    ("row", "reason"),
    [(Comparison("unet", 3.0, 3.5, True), "no: not faster"), (Comparison("unet", 3.0, 2.0, False), "results differ")],
)
def test_what_does_not_gain_is_not_kept(
    row: Comparison, reason: str, folder: Path, fake_compare: list[Comparison], capsys: pytest.CaptureFixture[str]
) -> None:
    fake_compare[:] = [row]
    assert main(TINY) == 0
    out, err = capsys.readouterr()
    assert reason in out
    assert "no choice was kept" in err
    assert not list(folder.rglob("*.json"))


@pytest.mark.usefixtures("fake_compare")
def test_interrupted_search_keeps_what_it_found(
    fake_search: type[FakeSearch], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fake_search, "interrupts", True)
    assert main(TINY) == 130
    rows = read_tuning(default_path(INFO, DTYPE), INFO, DTYPE)
    assert 0 < len(rows) <= 10
    assert capsys.readouterr().err.endswith("shaderfusion: interrupted\n")


def test_interrupted_search_takes_nothing_out(
    fake_search: type[FakeSearch], fake_compare: list[Comparison], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Choices that gained together need not gain one by one."""
    assert main(TINY) == 0
    path = default_path(INFO, DTYPE)
    before = read_tuning(path, INFO, DTYPE)
    monkeypatch.setattr(fake_search, "interrupts", True)
    fake_compare[:] = [Comparison("unet", 3.0, 3.0, True)]
    assert main(TINY) == 130
    assert read_tuning(path, INFO, DTYPE) == before
    monkeypatch.setattr(fake_search, "interrupts", False)
    assert main(TINY) == 0
    assert read_tuning(path, INFO, DTYPE) == []


@pytest.mark.usefixtures("fake_search")
def test_what_is_compared_is_what_the_file_will_have(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[dict[str, str]] = []

    def compare(_: Subject, tuning: Tuning) -> list[Comparison]:
        compared.append(dict(tuning.names))
        return [Comparison("unet", 2.0, 1.0, True)]

    monkeypatch.setattr(command, "compare", compare)
    other = TunedOperation("other", "choice", 2.0, 1.0)
    write_tuning("--output", folder / "a.json", [other], INFO, DTYPE)
    assert main([*TINY, "--output", "a.json"]) == 0
    rows = read_tuning(folder / "a.json", INFO, DTYPE)
    assert rows[0] == other
    assert compared == [{row.operation: row.choice for row in rows}]


@pytest.mark.usefixtures("fake_search", "fake_compare")
@pytest.mark.parametrize(
    ("data", "why"), [("{", "is not valid JSON"), ('{"format": 1}', "its adapter (=None) must be")]
)
def test_a_file_that_is_no_use_is_replaced(
    folder: Path, capsys: pytest.CaptureFixture[str], data: str, why: str
) -> None:
    (folder / "a.json").write_text(data)
    assert main([*TINY, "--output", "a.json"]) == 0
    assert read_tuning(folder / "a.json", INFO, DTYPE)
    err = capsys.readouterr().err
    assert why in err
    assert "; what is found now replaces it\n" in err


@pytest.mark.usefixtures("fake_search", "fake_compare")
def test_other_operations_stay_in_the_file(folder: Path) -> None:
    other = TunedOperation(repr(Linear("f32", 1, 2, 3)), "Tiling(tile=None, num_splits=2)", 2.0, 1.0)
    assert main([*TINY, "--output", "a.json"]) == 0
    first = read_tuning(folder / "a.json", INFO, DTYPE)
    outdated = TunedOperation(first[0].operation, "old", 9.0, 8.0)
    write_tuning("--output", folder / "a.json", [outdated, other], INFO, DTYPE)
    assert main([*TINY, "--output", "a.json"]) == 0
    assert read_tuning(folder / "a.json", INFO, DTYPE) == [other, *first]
    assert not (folder / "cache").exists()


def test_a_cache_folder_that_cannot_be(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "file").write_text("")
    monkeypatch.setenv("SHADERFUSION_CACHE", str(folder / "file" / "cache"))
    assert main(TINY) == 2
    assert "set SHADERFUSION_CACHE to another, or name a file with --output" in capsys.readouterr().err


def test_really(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A search of a second; whatever it finds, it ends well."""
    assert main([*TINY, "--budget", "1"]) == 0
    out, err = capsys.readouterr()
    assert "shapes in " in err
    files = list(folder.rglob("*.json"))
    assert [str(path) for path in files] == out.splitlines()[-1:] or not files
