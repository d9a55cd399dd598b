"""C types that the wgpu package uses are parsed together."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import cffi

from shaderfusion.gpu.c_types import parse_together

MODEL = Path(__file__).parents[1] / "golden" / "models" / "sd1"

PICTURE = """
import sys
from cffi.cparser import Parser
import wgpu.backends.wgpu_native
from shaderfusion import StableDiffusionPipeline
parsed = []
parse_type = Parser.parse_type
Parser.parse_type = lambda parser, text: (parsed.append(text), parse_type(parser, text))[1]
StableDiffusionPipeline.from_pretrained(sys.argv[1], runtime="wgpu")("a red heart", num_inference_steps=1)
print("\\n".join(parsed))
"""


def test_a_picture_needs_one_parse() -> None:
    done = subprocess.run([sys.executable, "-c", PICTURE, MODEL], capture_output=True, text=True, check=True)
    assert [text[:8] for text in done.stdout.splitlines()] == ["void(*)("]


def test_types_are_those_of_their_text() -> None:
    declarations = """
    typedef unsigned int uint32_t; typedef unsigned char uint8_t;
    typedef struct { int x; } Point;
    """
    texts = ("Point *", "Point[]", "uint8_t []", "void(Point const *, void *)")
    ffi: Any = cffi.FFI()
    ffi.cdef(declarations)
    parse_together(ffi, texts)
    assert ffi.new("Point *", {"x": 3}).x == ffi.new("Point[]", [{"x": 3}])[0].x == 3
    assert int(ffi.cast("uint32_t", -1)) == 2**32 - 1  # not among them
    data = bytearray(b"abc")
    assert [*ffi.from_buffer("uint8_t []", data)] == [97, 98, 99]
    assert [*ffi.from_buffer(data)] == [b"a", b"b", b"c"]  # without a type
    called = []
    callback = ffi.callback("void(Point const *, void *)", lambda point, _: called.append(point.x))
    callback(ffi.new("Point *", {"x": 5}), ffi.NULL)
    assert called == [5]


def test_without_a_type_all_is_as_it_was() -> None:
    ffi: Any = cffi.FFI()
    ffi.cdef("typedef struct { int x; } Point;")
    parse_together(ffi, ["Point *", "Nowhere *"])
    assert ffi.new("Point *").x == 0
