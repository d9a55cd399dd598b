"""What host functions give a shader is what it uses: every param, every constant, every flag."""

import itertools
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from recorded_calls import adapter_calls, recorded_graphs

from shaderfusion.gpu.shader import compose
from shaderfusion.kernels.call import KERNELS_FOLDER, KernelCall
from shaderfusion.kernels.capabilities import DESKTOP_GPU, WEBGPU_DEFAULTS, Capabilities, MatrixShape
from shaderfusion.kernels.optimizations import Optimizations
from shaderfusion.kernels.select import Kernels
from shaderfusion.tensor import DType

DTYPES: tuple[DType, ...] = ("f16", "f32")
DEVICES = (
    WEBGPU_DEFAULTS,
    DESKTOP_GPU,
    Capabilities(is_cpu=True, has_subgroups=True),
    Capabilities(is_cpu=True, has_subgroups=True, subgroup_sizes=(4, 4)),
    Capabilities(is_cpu=True, has_subgroups=True, has_int64=True),
    replace(DESKTOP_GPU, matrix_shapes=(MatrixShape(16, 16, 16, "f16", "f32"),), subgroup_sizes=(32, 32)),
)

# ---- reading WGSL


def declarations(code: str) -> dict[str, list[str]]:
    """The module's declarations by name. Two bindings may share a name where no entry point uses both."""
    found: dict[str, list[str]] = {}
    for text in top_level(re.sub(r"//.*", "", code)):
        if named := re.search(r"\b(?:fn|const|alias|struct|var(?:<[^>]*>)?)\s+(\w+)", text):
            found.setdefault(named[1], []).append(text)
    return found


def top_level(code: str) -> Iterator[str]:
    """Each ends at a `;`, or at the `}` of a function or struct, outside of all brackets."""
    start = depth = 0
    for end, character in enumerate(code, start=1):
        depth += (character in "({") - (character in ")}")
        if depth == 0 and character in ";}":
            yield code[start:end]
            start = end


def reachable(code: str, entry_point: str) -> str:
    """The text of all declarations that an entry point uses, directly or through others."""
    known = declarations(code)
    waiting, used = [entry_point], {entry_point}
    texts: list[str] = []
    while waiting:
        for text in known.get(waiting.pop(), []):  # a flag may take the entry point itself away
            texts.append(text)
            names = set(re.findall(r"(?<![.\w])[A-Za-z_]\w*", text)) & known.keys() - used
            used |= names
            waiting += names
    return "\n".join(sorted(texts))


@cache
def flags_in(file: str) -> frozenset[str]:
    """All that the directives of a file name."""
    return frozenset(re.findall(r"#(?:ifdef|ifndef|elif) (\w+)", (KERNELS_FOLDER / file).read_text(encoding="utf-8")))


def params_of(call: KernelCall) -> set[str]:
    """Those that the entry point reads."""
    return set(re.findall(r"\bparams\.(\w+)", reachable(compose(call).code, call.entry_point)))


def constants_of(call: KernelCall, names: Collection[str]) -> set[str]:
    """Those of these constants without which, or with another value of which, the entry point's code differs."""
    source = compose(call)
    code = reachable(source.code, call.entry_point)
    flags = set().union(*(flags_in(origin.split(":")[0]) for origin in source.origins if origin != "prelude"))

    def others(name: str, value: float | str) -> Iterable[float | str]:
        if isinstance(value, str):
            return [flag.removeprefix(f"{name}_").lower() for flag in flags if flag.startswith(f"{name}_")]
        return [not value if isinstance(value, bool) else value + 1]

    def matters(name: str, value: float | str) -> bool:
        if not isinstance(value, (bool, str)) and re.search(rf"\bconst {name}\b", code):
            return True
        calls = (replace(call, constants={**call.constants, name: other}) for other in others(name, value))
        return any(reachable(compose(changed).code, call.entry_point) != code for changed in calls)

    return {name for name in names if matters(name, call.constants[name])}


def misuses(calls: Iterable[KernelCall]) -> set[str]:
    """Params that an entry point reads and is not given; params and constants that no call of their file uses."""
    found: set[str] = set()
    given: dict[str, set[str]] = {}
    used: dict[str, set[str]] = {}
    for call in calls:
        params = params_of(call)
        found |= {f"{call.name} is not given params.{name}" for name in params - call.params.keys()}
        given.setdefault(call.source, set()).update(call.params, call.constants)
        known = used.setdefault(call.source, set())
        known |= params
        known |= constants_of(call, call.constants.keys() - known)
    return found | {f"{source} does not use {name}" for source in given for name in given[source] - used[source]}


def test_misuses_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = """
    const SIZE_2 = 2 * SIZE; // not IDLE, nor params.comment
    #ifdef HELP
    fn helper() -> u32 { return params.helped + SIZE_2; }
    #endif
    #ifdef KIND_A
    fn other() -> u32 { return params.others; }
    #endif
    fn main() {
    #ifdef HELP
        helper();
    #endif
    #unroll
        for (var i = 0u; i < COPIES; i++) {
        }
    }
    """
    (tmp_path / "kernel.wgsl").write_text(text)
    monkeypatch.setattr("shaderfusion.gpu.shader.KERNELS_FOLDER", tmp_path)
    monkeypatch.setattr(f"{__name__}.KERNELS_FOLDER", tmp_path)
    call = KernelCall("kernel.wgsl", "main", "f32", (), (1, 1, 1), {"COPIES": 2})
    helped = replace(call, constants={"SIZE": 1, "COPIES": 2, "HELP": True}, params={"helped": 1})
    assert not misuses([call, helped])
    assert not misuses([replace(helped, constants={"SIZE": 1, "COPIES": 2, "HELP": False}), helped])
    assert misuses([replace(helped, params={})]) == {"kernel.main is not given params.helped"}
    assert misuses([replace(helped, params={"helped": 1, "others": 1})]) == {"kernel.wgsl does not use others"}
    idle = replace(call, constants={"SIZE": 1, "COPIES": 2, "HELP": False, "IDLE": 1, "KIND": "a"})
    assert misuses([idle]) == {f"kernel.wgsl does not use {name}" for name in ("SIZE", "IDLE", "KIND")}


# ---- the calls of models and adapters


def recorded_calls() -> Iterator[KernelCall]:
    """One of each kind that the models and adapters record, on any device, with all optimizations and none."""
    seen: set[object] = set()
    variants = itertools.product(DTYPES, DEVICES, map(Optimizations.parse, ("all", "none")))
    of_models = (graph.calls for graph in recorded_graphs(itertools.starmap(Kernels, variants)))
    of_adapters = (adapter_calls(Kernels("f32", device)) for device in DEVICES)
    for call in itertools.chain.from_iterable(itertools.chain(of_models, of_adapters)):
        kind = (call.source, call.entry_point, *call.constants.items(), *call.params)
        if kind not in seen:
            seen.add(kind)
            yield call


def test_every_call_of_models_and_adapters() -> None:
    assert not misuses(recorded_calls())
