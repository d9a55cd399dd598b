"""Workgroup memory that holds NaN when a kernel begins, as it may where the implementation does not clear it."""

import re
from typing import Any

from shaderfusion.gpu.backend import Runtime

__all__ = ["PoisonedRuntime", "poison"]


class PoisonedRuntime:
    """A runtime whose modules are poisoned."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def create_module(self, device: Any, code: str, label: str, *, trusted: bool) -> Any:
        """As the runtime's own."""
        return self._runtime.create_module(device, poison(code), label, trusted=trusted)


def poison(code: str) -> str:
    """The shader with NaN, or all bits, in its workgroup memory before the first statement of each entry point."""
    variables = re.findall(r"^var<workgroup> (\w+): (.+?);", code, re.MULTILINE)
    aliases = dict(re.findall(r"^alias (\w+) = (.+?);", code, re.MULTILINE))
    if not variables:
        return code

    def value(kind: str) -> str:
        if kind in aliases:
            return value(aliases[kind])
        if vector := re.fullmatch(r"vec\d<(.+)>", kind):
            return f"{kind}({value(vector[1])})"
        return "0xffffffffu" if kind == "u32" else f"{kind}(poison_nan)"

    def fill(entry: re.Match[str]) -> str:
        threads = " * ".join(f"({size})" for size in entry["size"].split(","))
        parameters = entry["parameters"]
        body = "var poison_bits = 0x7fc00000u; let poison_nan = bitcast<f32>(poison_bits);"
        lane = re.search(r"@builtin\(local_invocation_index\) (\w+)", parameters)
        if not lane:
            parameters += ", @builtin(local_invocation_index) poison_lane: u32"
        for name, kind in variables:
            if array := re.fullmatch(r"array<(.+?), ((?:[^<>]|max\(.+\)|min\(.+\))+)>", kind):
                place = f"for (var i = {lane[1] if lane else 'poison_lane'}; i < u32({array[2]}); i += u32({threads}))"
                body += f" {place} {{ {name}[i] = {value(array[1])}; }}"
            else:
                body += f" atomicStore(&{name}, 0xffffffffu);"
        return f"{entry['head']}({parameters}) {{ {body} workgroupBarrier();"

    poisoned, count = re.subn(
        r"(?P<head>@workgroup_size\((?P<size>[^)]+)\)\s*(?:@subgroup_size\([^)]+\)\s*)?fn \w+)"
        r"\((?P<parameters>[^{]*)\)\s*\{",
        fill,
        code,
    )
    assert count == code.count("@compute")
    return poisoned
