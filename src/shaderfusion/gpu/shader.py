"""WGSL files to a shader's text: a prelude, imports, flags, and error lines mapped back to the file.

A kernel file is plain WGSL plus directives, each on a line of its own:

    #import fragments/reduce     the text of kernels/fragments/reduce.wgsl, once
    #ifdef FLAG or #ifndef FLAG, #elif FLAG, #else, #endif
                                 keeps the lines of the first branch that holds; may be nested
    #unroll                      repeats the loop that follows, `for (var i = 0u; i < COUNT; i++) {` with a number or a
                                 constant of the call, up to the `}` below its `for`; may be nested. i is a constant in
                                 each copy: drivers keep arrays, above all of matrices, in registers if nothing else
                                 indexes them. With the flag EMULATED, where matrices are in memory, loops stay
    #unroll FLAG                 does so where the flag is set
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

from shaderfusion.errors import ShaderError
from shaderfusion.kernels.call import KERNELS_FOLDER, KernelCall

__all__ = ["Directives", "ShaderSource", "compose"]

Directives = Mapping[str, tuple[str, ...]]
"""By extension of WGSL, the lines that a shader which uses it begins with: f16, subgroups, matrix_units,
subgroup_size_control. Implementations differ; an extension that is left out needs none."""

_F16_ALONE: Directives = {"f16": ("enable f16;",)}

_Line = tuple[str, str]
"""Its text, and the file and line it came from."""

_UNROLL = "#unroll"


@dataclass(frozen=True)
class ShaderSource:
    """Composed WGSL, and for each of its lines the file and line it came from."""

    code: str
    origins: tuple[str, ...]

    def map_lines(self, message: str) -> str:
        """A compiler's message with the file's own line for each place in the text.

        These are `wgsl:LINE:COLUMN` or `LABEL.wgsl:LINE:COLUMN` in naga's words, `:LINE:COLUMN error` in Tint's.
        """

        def replace(match: re.Match[str]) -> str:
            line = min(int(match["line"]), len(self.origins))  # naga finds the end of the text on a line after the last
            return f"{self.origins[line - 1]}:{match['column']}"

        label = r"(?:[\w/.]+\.)?\bwgsl|(?<!\S)(?=:\d+:\d+ (?:error|warning|note)\b)"
        return re.sub(rf"(?:{label}):(?P<line>\d+):(?P<column>\d+)", replace, message)


def compose(call: KernelCall, directives: Directives = _F16_ALONE) -> ShaderSource:
    """The whole WGSL text of a call: prelude (directives, `Elem`, constants, Params), then its file with imports."""
    flags = {name for name, value in call.constants.items() if value is True}
    flags |= {f"{name}_{value.upper()}" for name, value in call.constants.items() if isinstance(value, str)}
    body = _unroll(list(_expand(call.source, frozenset(flags), set())), call.constants)
    extensions = _extensions(call, "\n".join(text for text, _ in body))
    prelude = [line for extension in extensions for line in directives.get(extension, ())]
    lines = [*((text, "prelude") for text in (*prelude, *_declarations(call))), *body]
    code = "\n".join(text for text, _ in lines) + "\n"
    return ShaderSource(code, tuple(origin for _, origin in lines))


def _extensions(call: KernelCall, body: str) -> Iterator[str]:
    """The extensions of WGSL that a call's shader uses."""
    if call.dtype == "f16":
        yield "f16"
    if re.search(r"@builtin\(subgroup_|\bsubgroup[A-Z]\w*\(", body):
        yield "subgroups"
    if re.search(r"\bsubgroup_matrix_(left|right|result)\b", body):
        yield "matrix_units"
    if "@subgroup_size(" in body:
        yield "subgroup_size_control"


def _declarations(call: KernelCall) -> Iterator[str]:
    yield f"alias Elem = {call.dtype};"
    for name, value in call.constants.items():
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"const {name} = {value!r};"
    if call.params:
        fields = (f"{name}: {'u32' if isinstance(value, int) else 'f32'}" for name, value in call.params.items())
        yield f"struct Params {{ {', '.join(fields)} }}"
        yield "@group(0) @binding(0) var<uniform> params: Params;"


@cache
def _read_lines(path: str) -> tuple[str, ...]:
    file = KERNELS_FOLDER / path
    if not file.is_file():
        raise ShaderError(f"{path}: no such WGSL file under kernels/")
    return tuple(file.read_text(encoding="utf-8").splitlines())


class _Block:
    """What stands between an #ifdef or #ifndef and its #endif; at most one of its branches is kept."""

    def __init__(self, *, holds: bool) -> None:
        self.keeps = holds  # the branch that is being read
        self.has_kept = holds  # any branch so far
        self.has_else = False

    def branch(self, *, holds: bool) -> None:
        """The next branch begins."""
        self.keeps = holds and not self.has_kept
        self.has_kept |= self.keeps


def _expand(path: str, flags: frozenset[str], imported: set[str]) -> Iterator[_Line]:
    """The lines of a file that its flags keep, each with `file:line`; imports in place, each file once."""
    if path in imported:
        return
    imported.add(path)
    blocks: list[_Block] = []  # those open, outermost first
    for number, text in enumerate(_read_lines(path), start=1):
        origin = f"{path}:{number}"
        directive = re.fullmatch(r"\s*#(\w+)\s*([\w/]*)\s*", text)
        if not directive:
            if text.lstrip().startswith("#"):
                raise ShaderError(f"{origin}: unknown directive {text.strip()!r}")
            if all(block.keeps for block in blocks):
                yield text, origin
            continue
        match directive[1], directive[2]:
            case "unroll", flag:
                is_on = flag in flags if flag else "EMULATED" not in flags
                if is_on and all(block.keeps for block in blocks):
                    yield _UNROLL, origin
            case "import", fragment if fragment:
                if all(block.keeps for block in blocks):
                    yield from _expand(f"{fragment}.wgsl", flags, imported)
            case "ifdef", flag if flag:
                blocks.append(_Block(holds=flag in flags))
            case "ifndef", flag if flag:
                blocks.append(_Block(holds=flag not in flags))
            case "elif", flag if flag and blocks and not blocks[-1].has_else:
                blocks[-1].branch(holds=flag in flags)
            case "else", "" if blocks and not blocks[-1].has_else:
                blocks[-1].branch(holds=True)
                blocks[-1].has_else = True
            case "endif", "" if blocks:
                blocks.pop()
            case ("elif", flag) if flag:
                raise ShaderError(f"{origin}: #elif belongs to no open #ifdef")
            case ("else" | "endif") as stray, "":
                raise ShaderError(f"{origin}: #{stray} belongs to no open #ifdef")
            case _:
                raise ShaderError(f"{origin}: unknown directive {text.strip()!r}")
    if blocks:
        raise ShaderError(f"{path}: {len(blocks)} #ifdef or #ifndef without #endif")


def _unroll(lines: list[_Line], constants: Mapping[str, int | float | bool | str]) -> list[_Line]:
    """The lines with each loop after an _UNROLL as copies of its body, one block each."""
    unrolled: list[_Line] = []
    index = 0
    while index < len(lines):
        text, origin = lines[index]
        index += 1
        if text is not _UNROLL:
            unrolled.append((text, origin))
            continue
        head, head_origin = lines[index] if index < len(lines) else ("", origin)
        loop = re.fullmatch(r"(\s*)for \(var (\w+) = 0u; \2 < (\w+); \2\+\+\) \{", head)
        count = (int(loop[3]) if loop[3].isdigit() else constants.get(loop[3])) if loop else None
        end = next((i for i in range(index, len(lines)) if loop and lines[i][0] == f"{loop[1]}}}"), None)
        if not loop or not isinstance(count, int) or end is None:
            raise ShaderError(
                f"{origin}: #unroll must stand before `for (var i = 0u; i < COUNT; i++) {{`, with a constant"
            )
        body = _unroll(lines[index + 1 : end], constants)
        for i in range(count):
            unrolled += [(f"{loop[1]}{{ const {loop[2]} = {i}u;", head_origin), *body, lines[end]]
        index = end + 1
    return unrolled
