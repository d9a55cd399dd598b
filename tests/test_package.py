"""The package from outside: what importing it costs, what the wheel holds, and its public names."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import shaderfusion

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"
MAX_IMPORT_S = 0.5
MAX_WHEEL_BYTES = 60e6


def run_python(code: str) -> str:
    """What a fresh interpreter prints."""
    environment = {**os.environ, "PYTHONPATH": str(SOURCE)}
    return subprocess.check_output([sys.executable, "-c", code], env=environment, text=True)


@pytest.mark.parametrize("module", ["shaderfusion", "shaderfusion.cli"])
def test_import_is_light(module: str) -> None:
    out = run_python(
        f"import sys, time; start = time.process_time(); import {module}; took = time.process_time() - start\n"
        "print(took); print(*sys.modules)"
    )
    seconds, modules = out.splitlines()
    assert float(seconds) < MAX_IMPORT_S
    assert not {"wgpu", "numpy", "torch", "shaderfusion.pipeline"} & set(modules.split())


def test_using_a_name_needs_no_torch() -> None:
    assert (
        run_python("import sys, shaderfusion; shaderfusion.StableDiffusionPipeline; print('torch' in sys.modules)")
        == "False\n"
    )


def test_public_names() -> None:
    assert set(shaderfusion.__all__) <= set(dir(shaderfusion))
    for name in shaderfusion.__all__:
        assert getattr(shaderfusion, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = shaderfusion.Nonsense  # type: ignore[attr-defined]


def test_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build = pytest.importorskip("hatchling.build", reason="hatchling comes with the test extra")
    monkeypatch.chdir(ROOT)
    wheel = tmp_path / build.build_wheel(str(tmp_path))
    assert wheel.stat().st_size < MAX_WHEEL_BYTES
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    package = SOURCE / "shaderfusion"
    files = {file.relative_to(SOURCE).as_posix() for file in package.rglob("*") if file.is_file()}
    assert {name for name in files if "__pycache__" not in name} <= held
    assert any(name.endswith("unet/diffusion_pytorch_model.safetensors") for name in held)
    assert {name for name in held if not name.startswith("shaderfusion/")} == {
        f"shaderfusion-{shaderfusion.__version__}.dist-info/{name}"
        for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE", "licenses/NOTICE")
    }
