"""`shaderfusion bench` from outside: what it refuses before measuring, what it prints where, the files it writes."""

import builtins
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from golden.models import model_folder

import shaderfusion
from shaderfusion.bench import command
from shaderfusion.bench.charts import CHARTS
from shaderfusion.cli import main
from shaderfusion.cli.bench import BENCHMARKS as NAMES
from shaderfusion.cli.bench import CHARTED

TINY = ["--model", str(model_folder("sd1")), "--width", "32", "--height", "32"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder, and the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fake_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Profiles take no time."""

    def measure_rows(_: object) -> Iterator[dict[str, Any]]:
        for name in ("geglu", "matmul.product"):
            yield {"network": "unet", "name": name, "dispatches": 3, "p50_ms": 1.5, "share": 0.5}

    fake = command.Benchmark(measure_rows, command.BENCHMARKS["profile"].tables)
    monkeypatch.setitem(command.BENCHMARKS, "profile", fake)


def test_names_agree() -> None:
    assert set(NAMES) == set(command.BENCHMARKS)
    assert set(CHARTED) == set(CHARTS)


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ("", "required: BENCHMARK"),
        ("speed", "'speed'"),
        ("profile --plot a.png", "unrecognized arguments: --plot a.png"),
        ("ablation --plot a.jpg", "--plot (=a.jpg) must end in .png, the only format that is written; try a.png"),
        ("ablation --plot none/a.png", "--plot (=none/a.png) must be in a folder that exists; make none first"),
        ("kernels --json .", "--json (=.) is a folder; name a file in it, such as kernels.json"),
        ("kernels --json rows", "--json (=rows) must end in .json"),
        ("kernels --markdown a.txt", "--markdown (=a.txt) must end in .md"),
        ("kernels --model nowhere", "model (='nowhere') must be"),
        ("kernels --model emoji --width 33", "width (=33) must be a positive multiple of 4 px"),
        ("kernels --device nowhere", "device (='nowhere') must be"),
        ("kernels --batch 0", "--batch: '0' must be a whole number"),
        ("kernels --dtype f8", "'f8' (choose from"),
    ],
)
def test_refuses_before_measuring(
    args: str, sentence: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "BENCHMARKS", {})
    assert main(["bench", *args.split()]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("shaderfusion: ")
    assert err.count("\n") == 1
    assert sentence in err
    assert not list(folder.iterdir())


def test_plot_needs_matplotlib(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["bench", "ablation", "--plot", "a.png"]) == 2
    assert '--plot needs the extra plot, which is not installed; run `pip install -e ".[plot]"`' in (
        capsys.readouterr().err
    )


@pytest.mark.usefixtures("fake_rows")
def test_writes_rows_and_tables(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "profile", *TINY, "--dtype", "f32", "--json", "p.json", "--markdown", "p.md"]) == 0
    out, err = capsys.readouterr()
    rows = json.loads((folder / "p.json").read_text())
    assert [row["name"] for row in rows] == ["geglu", "matmul.product"]
    for row in rows:
        assert row["benchmark"] == "profile"
        assert (row["model"], row["width"], row["height"], row["batch"], row["dtype"]) == (TINY[1], 32, 32, 1, "f32")
        assert row["version"] == shaderfusion.__version__
        assert {"device", "driver", "backend", "commit", "date"} <= set(row)
    assert "geglu" in out
    assert "| geglu | 3 | 1.500 | 50.0 |" in (folder / "p.md").read_text()
    assert err.splitlines() == ["shaderfusion: 1. geglu: 1.500 ms", "shaderfusion: 2. matmul.product: 1.500 ms"]
    assert sorted(path.name for path in folder.iterdir()) == ["p.json", "p.md"]


def test_interrupted_run_keeps_its_rows(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure_rows(_: object) -> Iterator[dict[str, Any]]:
        yield {"name": "first", "p50_ms": 1.0}
        raise KeyboardInterrupt

    monkeypatch.setitem(command.BENCHMARKS, "kernels", command.Benchmark(measure_rows, lambda _: []))
    assert main(["bench", "kernels", *TINY, "--json", "k.json", "--markdown", "k.md"]) == 130
    assert [row["name"] for row in json.loads((folder / "k.json").read_text())] == ["first"]
    assert [path.name for path in folder.iterdir()] == ["k.json"]
    assert capsys.readouterr().err.endswith("shaderfusion: interrupted\n")


@pytest.mark.usefixtures("fake_rows")
def test_default_on_a_cpu_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "profile", "--json", "p.json"]) == 0
    err = capsys.readouterr().err
    model = json.loads((folder / "p.json").read_text())[0]["model"]
    assert model in ("emoji", "sd14")
    assert ("is a CPU, on which sd14 would take hours; measuring emoji" in err) == (model == "emoji")


def test_command_line_is_light(monkeypatch: pytest.MonkeyPatch) -> None:
    """--help imports no NumPy: see tests/test_package.py for the rest."""
    imported: list[str] = []
    real = builtins.__import__

    def spy(name: str, *args: Any, **kwargs: Any) -> Any:
        imported.append(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", spy)
    with pytest.raises(SystemExit):
        main(["bench", "ablation", "--help"])
    assert not [name for name in imported if name.startswith(("numpy", "wgpu", "shaderfusion.bench"))]
