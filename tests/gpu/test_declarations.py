"""C declarations of the wgpu package: parsed once, then loaded."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cffi
import pytest

from shaderfusion.files import cache_folder
from shaderfusion.gpu.declarations import compiled_declarations

MODEL = Path(__file__).parents[1] / "golden" / "models" / "sd1"

PICTURE = """
import sys
from cffi.cparser import Parser
from shaderfusion import StableDiffusionPipeline
parsed = []
parse = Parser._parse
Parser._parse = lambda parser, text: (parsed.append(text), parse(parser, text))[1]
pipe = StableDiffusionPipeline.from_pretrained(sys.argv[1], runtime="wgpu")
print(len(pipe("a red heart", num_inference_steps=1).images), len(parsed))
"""


def make_ffi(declarations: str = "typedef struct { int x; } Point; int abs(int);") -> Any:
    """As the wgpu package does it."""
    with compiled_declarations():
        from cffi import FFI

        ffi = FFI()
        ffi.cdef(declarations)
        ffi.set_source("a name", None)
    return ffi


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder, which is not there yet."""
    monkeypatch.setenv("SHADERFUSION_CACHE", str(tmp_path / "cache"))
    return cache_folder()


def count_parses(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A list that grows with each call of cdef."""
    texts: list[str] = []
    cdef = cffi.FFI.cdef
    monkeypatch.setattr(cffi.FFI, "cdef", lambda ffi, text: (texts.append(text), cdef(ffi, text))[1])
    return texts


def test_a_picture_parses_nothing_the_second_time(tmp_path: Path) -> None:
    def make_picture() -> list[str]:
        environment = {**os.environ, "SHADERFUSION_CACHE": str(tmp_path)}
        command = [sys.executable, "-c", PICTURE, str(MODEL)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()

    assert make_picture() == ["1", "1"]
    assert make_picture() == ["1", "0"]


def test_what_the_package_does_with_it(cache: Path) -> None:
    real = cffi.FFI
    ffi = make_ffi()
    assert cffi.FFI is real
    assert ffi.new("Point *", {"x": 3}).x == ffi.new("Point[]", [{"x": 3}])[0].x == 3
    assert ffi.dlopen(None).abs(-4) == 4
    called = []
    ffi.callback("void(Point *)", lambda point: called.append(point.x))(ffi.new("Point *", {"x": 5}))
    assert called == [5]


def test_it_is_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = count_parses(monkeypatch)
    make_ffi()
    assert make_ffi().sizeof("Point") == 4
    assert len(texts) == len([*cache.iterdir()]) == 1
    assert make_ffi("typedef struct { int x, y; } Point;").sizeof("Point") == 8
    assert len(texts) == len([*cache.iterdir()]) == 2


@pytest.mark.parametrize("code", ["", "ffi = "])
def test_a_damaged_file_is_made_again(cache: Path, code: str) -> None:
    make_ffi()
    (file,) = cache.iterdir()
    whole = file.read_text()
    file.write_text(code)
    assert make_ffi().sizeof("Point") == 4
    assert file.read_text() == whole


def test_a_cache_that_cannot_be_written(cache: Path) -> None:
    cache.write_text("a file")
    assert make_ffi().sizeof("Point") == 4


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="files have no owner")
def test_another_users_file_is_not_run(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_ffi()
    (file,) = cache.iterdir()
    file.write_text("ffi = None")
    monkeypatch.setattr(os, "geteuid", lambda: file.stat().st_uid + 1)
    assert make_ffi().sizeof("Point") == 4
