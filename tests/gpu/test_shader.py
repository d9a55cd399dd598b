"""Composition of WGSL, and compiler errors with our own files and lines."""

import re
from pathlib import Path

import numpy as np
import pytest
from kernel_runner import run_calls

from shaderfusion.errors import ShaderError
from shaderfusion.gpu import shader
from shaderfusion.gpu.device import Device
from shaderfusion.gpu.shader import ShaderSource, compose
from shaderfusion.kernels.call import KernelCall, write
from shaderfusion.tensor import DType, TensorSpec

OUT = TensorSpec("out", (4,), "f32", "output")


@pytest.fixture
def kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of kernels of our own, in place of the package's."""
    monkeypatch.setattr(shader, "KERNELS_FOLDER", tmp_path)
    (tmp_path / "fragments").mkdir()
    monkeypatch.setattr(shader, "_read_lines", shader._read_lines.__wrapped__)  # uncached
    return tmp_path


def make_call(dtype: DType = "f32", entry_point: str = "main", **options) -> KernelCall:
    """A call of kernel.wgsl."""
    return KernelCall("kernel.wgsl", entry_point, dtype, write(OUT), (1, 1, 1), **options)


def body(kernels: Path, text: str, *flags: str) -> list[str]:
    """The lines of kernel.wgsl after composition, without the prelude."""
    (kernels / "kernel.wgsl").write_text(text)
    source = compose(make_call(constants=dict.fromkeys(flags, True)))
    return [line for line, origin in zip(source.code.splitlines(), source.origins, strict=True) if origin != "prelude"]


def test_prelude(kernels: Path) -> None:
    (kernels / "kernel.wgsl").write_text("// body\n")
    constants = {"SIZE": 64, "OFFSET": -1, "EPS": 1e-05, "ONE": 1.0, "FLAG": True, "OFF": False, "ACTIVATION": "silu"}
    source = compose(make_call("f16", constants=constants, params={"rows": 3, "scale": 0.5, "columns": 4}))
    assert source.code.splitlines() == [
        "enable f16;",
        "alias Elem = f16;",
        "const SIZE = 64;",
        "const OFFSET = -1;",
        "const EPS = 1e-05;",
        "const ONE = 1.0;",
        "struct Params { rows: u32, scale: f32, columns: u32 }",
        "@group(0) @binding(0) var<uniform> params: Params;",
        "// body",
    ]
    assert source.origins == ("prelude",) * 8 + ("kernel.wgsl:1",)


def test_prelude_of_f32_without_params(kernels: Path) -> None:
    (kernels / "kernel.wgsl").write_text("// body\n")
    assert compose(make_call()).code == "alias Elem = f32;\n// body\n"


DIRECTIVES = {
    "f16": ("enable f16;",),
    "subgroups": ("enable s;",),
    "matrix_units": ("enable m;", "diagnostic(off, m);"),
}


@pytest.mark.parametrize(
    ("dtype", "text", "flags", "expected"),
    [
        ("f32", "fn f(lane: u32) { subgroup_size(); } // subgroups", {}, []),
        ("f16", "fn f() { subgroupAdd(1.0); }", {}, ["enable f16;", "enable s;"]),
        ("f32", "fn f(@builtin(subgroup_id) id: u32) {}", {}, ["enable s;"]),
        ("f32", "#ifdef A\nfn f() { subgroupAdd(1.0); }\n#endif", {"A": False}, []),
        ("f16", "alias A = subgroup_matrix_left<f16, 8, 8>;", {}, ["enable f16;", "enable m;", "diagnostic(off, m);"]),
        ("f32", "// subgroup matrices", {"MATRIX_UNITS": True}, []),
    ],
)
def test_directives_of_what_a_shader_uses(
    kernels: Path, dtype: DType, text: str, flags: dict[str, bool], expected: list[str]
) -> None:
    (kernels / "kernel.wgsl").write_text(f"{text}\n")
    source = compose(make_call(dtype, constants=flags), DIRECTIVES)
    assert source.code.splitlines()[: len(expected) + 1] == [*expected, f"alias Elem = {dtype};"]
    assert source.origins[: len(expected)] == ("prelude",) * len(expected)


def test_an_implementation_that_needs_no_directive(kernels: Path) -> None:
    (kernels / "kernel.wgsl").write_text("fn f() { subgroupAdd(1.0); }\n")
    assert compose(make_call(), {"f16": ("enable f16;",)}).code.startswith("alias Elem = f32;\n")


def test_strings_make_flags(kernels: Path) -> None:
    (kernels / "kernel.wgsl").write_text("#ifdef ACTIVATION_QUICK_GELU\nyes\n#endif\n#ifdef ACTIVATION\nno\n#endif\n")
    assert compose(make_call(constants={"ACTIVATION": "quick_gelu"})).code == "alias Elem = f32;\nyes\n"


def test_false_is_no_flag(kernels: Path) -> None:
    (kernels / "kernel.wgsl").write_text("#ifdef A\nyes\n#else\nno\n#endif\n")
    assert compose(make_call(constants={"A": False})).code.endswith("\nno\n")
    assert compose(make_call(constants={"A": 1})).code.endswith("\nno\n")  # a number is a constant, not a flag


NESTED = """\
0
#ifdef A
1
  #ifdef B
2
  #else
3
  #endif
4
#else
5
  #ifdef B
6
  #else
7
  #endif
#endif
8
"""


@pytest.mark.parametrize(("flags", "kept"), [("", "0578"), ("A", "01348"), ("B", "0568"), ("AB", "01248")])
def test_nested_flags(kernels: Path, flags: str, kept: str) -> None:
    assert body(kernels, NESTED, *flags) == list(kept)


LADDER = """\
#ifndef A
0
#elif B
1
#elif C
2
  #ifndef B
3
  #endif
#else
4
#endif
#ifndef B
5
#else
6
#endif
"""


@pytest.mark.parametrize(
    ("flags", "kept"), [("", "05"), ("B", "06"), ("A", "45"), ("AB", "16"), ("AC", "235"), ("ABC", "16")]
)
def test_ladder_keeps_the_first_branch_that_holds(kernels: Path, flags: str, kept: str) -> None:
    assert body(kernels, LADDER, *flags) == list(kept)


def test_origins_skip_what_is_left_out(kernels: Path) -> None:
    (kernels / "kernel.wgsl").write_text(NESTED)
    assert compose(make_call()).origins == ("prelude", *(f"kernel.wgsl:{line}" for line in (1, 11, 15, 18)))


def test_import_once_and_in_place(kernels: Path) -> None:
    (kernels / "fragments" / "one.wgsl").write_text("one\n#import fragments/two\nlast\n")
    (kernels / "fragments" / "two.wgsl").write_text("two\n#import fragments/one\n")  # a circle ends
    text = "first\n#import fragments/one\n  #import fragments/two\nend\n"
    assert body(kernels, text) == ["first", "one", "two", "last", "end"]
    origins = compose(make_call()).origins
    assert origins[1:4] == ("kernel.wgsl:1", "fragments/one.wgsl:1", "fragments/two.wgsl:1")


def test_import_under_a_flag(kernels: Path) -> None:
    (kernels / "fragments" / "one.wgsl").write_text("#ifdef B\nb\n#else\nnot b\n#endif\n")
    text = "#ifdef A\n#import fragments/one\n#endif\n#import fragments/one\n"
    assert body(kernels, text) == ["not b"]
    assert body(kernels, text, "A", "B") == ["b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a\n#define X 1\n", r"kernel.wgsl:2: unknown directive '#define X 1'"),
        ("#include fragments/one\n", r"kernel.wgsl:1: unknown directive"),
        ("#ifndef\n#endif\n", r"kernel.wgsl:1: unknown directive '#ifndef'"),
        ("#ifdef A\n#elif\n#endif\n", r"kernel.wgsl:2: unknown directive '#elif'"),
        ("#elif A\n", r"kernel.wgsl:1: #elif belongs to no open #ifdef"),
        ("#ifdef A\n#else\n#elif B\n#endif\n", r"kernel.wgsl:3: #elif belongs to no open #ifdef"),
        ("#ifndef A\n", r"kernel.wgsl: 1 #ifdef or #ifndef without #endif"),
        ("# ifdef A\n#endif\n", r"kernel.wgsl:1: unknown directive '# ifdef A'"),
        ("#ifdef\n#endif\n", r"kernel.wgsl:1: unknown directive '#ifdef'"),
        ("#ifdef A B\n#endif\n", r"kernel.wgsl:1: unknown directive '#ifdef A B'"),
        ("#import\n", r"kernel.wgsl:1: unknown directive '#import'"),
        ("#ifdef A\n#oops\n#endif\n", r"kernel.wgsl:2: unknown directive '#oops'"),  # even where it is left out
        ("#else\n", r"kernel.wgsl:1: #else belongs to no open #ifdef"),
        ("#ifdef A\n#else\n#else\n#endif\n", r"kernel.wgsl:3: #else belongs to no open #ifdef"),
        ("#ifdef A\n#endif\n#endif\n", r"kernel.wgsl:3: #endif belongs to no open #ifdef"),
        ("#ifdef A\n#ifdef B\n#endif\n", r"kernel.wgsl: 1 #ifdef or #ifndef without #endif"),
        ("#import fragments/none\n", r"fragments/none.wgsl: no such WGSL file under kernels/"),
    ],
)
def test_directives_that_raise(kernels: Path, text: str, message: str) -> None:
    with pytest.raises(ShaderError, match=f"^{message}"):
        body(kernels, text)


def test_missing_kernel(kernels: Path) -> None:
    with pytest.raises(ShaderError, match=r"^kernel.wgsl: no such WGSL file under kernels/"):
        compose(make_call())


def test_map_lines() -> None:
    source = ShaderSource("a\nb\n", ("prelude", "fragments/x.wgsl:7"))
    assert source.map_lines("wgsl:2:5 and wgsl:1:3") == "fragments/x.wgsl:7:5 and prelude:3"
    assert source.map_lines("┌─ common/y.wgsl:2:5") == "┌─ fragments/x.wgsl:7:5"  # modules are labelled by file
    assert source.map_lines("wgsl:3:1") == "fragments/x.wgsl:7:1"  # the end
    tint = "Error while parsing WGSL: :2:8 error: no\n  f();\n\n:1:1 note: here\nat 2:8"
    mapped = "Error while parsing WGSL: fragments/x.wgsl:7:8 error: no\n  f();\n\nprelude:1 note: here\nat 2:8"
    assert source.map_lines(tint) == mapped
    assert source.map_lines("common/y.wgsl: 2 errors") == "common/y.wgsl: 2 errors"


MAIN = """\
#import fragments/helper
@group(0) @binding(1) var<storage, read_write> out: array<f32>;

@compute @workgroup_size(1)
fn main() {
    out[0] = helper();
}
"""


@pytest.mark.parametrize(
    ("helper", "main", "place"),
    [
        ("// one\nfn helper() -> f32 {\n    retur 1.0;\n}\n", MAIN, "fragments/helper.wgsl:3:11"),  # does not parse
        ("// one\n\nfn helper() -> f32 { return 1u; }\n", MAIN, "fragments/helper.wgsl:3:1"),  # is not valid
        ("fn helper() -> f32 { return 1.0; }\n", MAIN.replace("helper()", "nobody()"), "kernel.wgsl:6:14"),
        ("fn helper() -> f32 { return 1.0; }\n", f"{MAIN}fn open() {{\n", "kernel.wgsl:8:1"),
    ],
    ids=["syntax", "type", "name", "end"],
)
def test_compiler_errors_name_file_and_line(
    any_device: Device, kernels: Path, helper: str, main: str, place: str
) -> None:
    (kernels / "fragments" / "helper.wgsl").write_text(helper)
    (kernels / "kernel.wgsl").write_text(main)
    with pytest.raises(ShaderError, match=r"^kernel.wgsl: ") as caught:
        any_device.pipelines.get(make_call(constants={"UNUSED": 1}))
    if any_device.info.runtime == "dawn":  # Tint's columns are not naga's
        place = place.rpartition(":")[0]
    assert re.search(rf"(┌─ |parsing WGSL: ){place}\b", str(caught.value))


UNWRITTEN = """\
@group(0) @binding(1) var<storage, read_write> out: array<f32>;
var<workgroup> sh: array<vec2<f32>, 2>;

@compute @workgroup_size(2, 2)
fn main(@builtin(local_invocation_id) id: vec3u) {
    out[2 * id.y + id.x] = sh[id.y][id.x];
}
"""


def test_checked_modules_begin_with_poisoned_workgroup_memory(checked_device: Device, kernels: Path) -> None:
    (kernels / "kernel.wgsl").write_text(UNWRITTEN)
    (values,) = run_calls(checked_device, make_call(), {}, OUT)
    assert np.isnan(values).all()


def test_missing_entry_point(any_device: Device, kernels: Path) -> None:
    (kernels / "kernel.wgsl").write_text(MAIN.replace("#import fragments/helper", "").replace("helper()", "1.0"))
    with pytest.raises(ShaderError, match=r"^kernel.wgsl \(other\): [\s\S]*(?i:entry point) ['\"]+other"):
        any_device.pipelines.get(make_call(entry_point="other"))


@pytest.mark.parametrize(
    ("directive", "flags", "is_unrolled"),
    [
        ("#unroll", (), True),
        ("#unroll", ("EMULATED",), False),
        ("#unroll FLAG", (), False),
        ("#unroll FLAG", ("FLAG",), True),
    ],
)
def test_unroll(kernels: Path, directive: str, flags: tuple[str, ...], is_unrolled: bool) -> None:
    loop = ["for (var i = 0u; i < 2; i++) {", "    f(i);", "}"]
    copies = [line for i in range(2) for line in (f"{{ const i = {i}u;", "    f(i);", "}")]
    assert body(kernels, "\n".join([directive, *loop]), *flags) == (copies if is_unrolled else loop)
