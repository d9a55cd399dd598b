"""Files of choices: written and read again, refused by name where they are no use, and where a device's own one is."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import shaderfusion
from shaderfusion import files
from shaderfusion.errors import InputError
from shaderfusion.gpu.device import DeviceInfo
from shaderfusion.kernels.tuning import NO_TUNING, Tuning
from shaderfusion.tuning_file import TunedOperation, default_path, find_tuning, read_tuning, write_tuning

INFO = DeviceInfo("wgpu", 0, "Some GPU / 2", "driver 1.2", "Vulkan", "DiscreteGPU", True, True, False, 1 << 27)
ROWS = [
    TunedOperation("Linear(rows=1)", "Tiling(tile=None)", 2.0, 1.5),
    TunedOperation("Linear(rows=2)", "x", 2.0, 1.0),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A good one."""
    write_tuning("--output", tmp_path / "a.json", ROWS, INFO, "f16")
    return tmp_path / "a.json"


def test_round_trip(file: Path) -> None:
    assert read_tuning(file, INFO, "f16") == ROWS
    assert find_tuning(str(file), INFO, "f16") == Tuning({row.operation: row.choice for row in ROWS}, str(file))
    assert find_tuning("off", INFO, "f16") is NO_TUNING
    assert [path.name for path in file.parent.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"format": 2}, "its format (=2) must be 1"),
        ({"format": None}, "its format (=None) must be 1"),
        ({"adapter": "Other GPU"}, "its adapter (='Other GPU') must be 'Some GPU / 2'"),
        ({"driver": 7}, "its driver (=7) must be 'driver 1.2'"),
        ({"backend": "Metal"}, "its backend (='Metal') must be 'Vulkan'"),
        ({"runtime": "dawn"}, "its runtime (='dawn') must be 'wgpu'"),
        ({"version": "0.0.1"}, f"its version (='0.0.1') must be {shaderfusion.__version__!r}"),
        ({"dtype": "f32"}, "its dtype (='f32') must be 'f16'"),
        ({"rows": {}}, "its rows (={}) must be a list"),
        ({"rows": None}, "its rows (=None) must be a list"),
        ({"rows": [3]}, "a row (=3) must have operation, choice, static_ms, tuned_ms"),
        ({"rows": [{"operation": "a", "choice": ["b"], "static_ms": 1.0, "tuned_ms": 1.0}]}, "a row (={'operation'"),
        ({"rows": [{"operation": "a", "choice": "b"}]}, "a row (={'operation'"),
    ],
    ids=str,
)
def test_what_is_not_for_this_device_is_refused(file: Path, changed: dict[str, Any], sentence: str) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    with pytest.raises(InputError) as error:
        read_tuning(file, INFO, "f16")
    assert str(error.value).startswith(f"tuning: {file}: ")
    assert sentence in str(error.value)
    assert str(error.value).endswith("; make it again with `shaderfusion tune`")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is not valid JSON"),
        (b'{"format": 1', "is not valid JSON"),
        (b"\xff", "must be UTF-8"),
        (b"[1]", "must hold a JSON object, not a list"),
        (b'{"a":' * 100_000, "nested at most"),
    ],
)
def test_damaged_files_are_refused(file: Path, data: bytes, sentence: str) -> None:
    file.write_bytes(data)
    with pytest.raises(InputError, match=rf"tuning: .*{sentence}.*; make it again with `shaderfusion tune`"):
        find_tuning(file, INFO, "f16")


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tuning \(=of\) must be auto, off, or a file that `shaderfusion tune` wrote"):
        find_tuning("of", INFO, "f16")
    with pytest.raises(InputError, match=r"must be a regular file"):
        find_tuning(tmp_path, INFO, "f16")


def test_the_devices_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHADERFUSION_CACHE", str(tmp_path))
    assert find_tuning("auto", INFO, "f16") is NO_TUNING
    path = default_path(INFO, "f16")
    assert path.parent == tmp_path
    assert path.name.startswith("tuning-some-gpu-2-f16-")
    write_tuning("--output", path, ROWS, INFO, "f16")
    assert find_tuning("auto", INFO, "f16").names == {row.operation: row.choice for row in ROWS}
    for info in (replace(INFO, **{field: "other"}) for field in ("runtime", "name", "driver", "backend")):
        assert default_path(info, "f16") != path
        assert find_tuning("auto", info, "f16") is NO_TUNING
    assert find_tuning("auto", INFO, "f32") is NO_TUNING
    monkeypatch.setattr(shaderfusion, "__version__", "9.9")
    assert find_tuning("auto", INFO, "f16") is NO_TUNING


def test_a_damaged_one_of_its_own_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHADERFUSION_CACHE", str(tmp_path))
    default_path(INFO, "f16").write_text("{")
    with pytest.warns(UserWarning, match=r"^tuning: .*is not valid JSON .*; it is ignored$"):
        assert find_tuning("auto", INFO, "f16") is NO_TUNING


@pytest.mark.parametrize(
    ("platform", "variable", "below"),
    [
        ("linux", "XDG_CACHE_HOME", ".cache"),
        ("darwin", None, "Library/Caches"),
        ("win32", "LOCALAPPDATA", "AppData/Local"),
    ],
)
def test_the_platforms_cache_folder(
    platform: str, variable: str | None, below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SHADERFUSION_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME" if sys.platform != "win32" else "USERPROFILE", str(tmp_path))
    monkeypatch.setattr(files.sys, "platform", platform)
    assert default_path(INFO, "f16").parent == tmp_path / below / "shaderfusion"
    if variable:
        monkeypatch.setenv(variable, str(tmp_path / "x"))
        assert default_path(INFO, "f16").parent == tmp_path / "x" / "shaderfusion"
