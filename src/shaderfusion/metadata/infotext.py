"""Infotext: the text by which web UIs and model sites say what made a picture.

    PROMPT, of any number of lines
    Negative prompt: TEXT, of any number of lines
    Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 5, Size: 512x512, ...

A value with a comma, a colon or a line break is quoted as a JSON string. Extensions of web UIs may have added lines
after the fields.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Infotext", "read_infotext"]

_NEGATIVE = "Negative prompt:"
_FIELD = re.compile(r'(\w[\w \-/]{1,99}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
"""As web UIs read it, with a longest name, so that the time does not grow with the square of a text's length."""
_NAME = re.compile(r"\w[\w \-/]{1,99}")
_FIRST = "Steps: "
"""Of a line of fields that is not the last one."""
_AFTER = "After the fields"
"""The name of what follows them without one."""
_JSON_FIELDS = ("Civitai metadata", "Civitai resources", "Hashes", "SDCPP")
"""Written without quotes by some programs, though their values have commas."""
_FEWEST_FIELDS = 3
"""A line with fewer is a part of the prompt."""


@dataclass(frozen=True)
class Infotext:
    """A text's parts; fields are in order, each value as it is without quotes."""

    prompt: str
    negative_prompt: str
    fields: Mapping[str, str]

    def __str__(self) -> str:
        negative = [f"{_NEGATIVE} {self.negative_prompt}"] if self.negative_prompt else []
        fields = ", ".join(f"{name}: {_quote(value)}" for name, value in self.fields.items())
        return "\n".join([self.prompt, *negative, fields])


def read_infotext(text: str) -> Infotext:
    """The parts of any text: it has no fields where no line looks like them, and is then all prompt."""
    lines = text.strip().split("\n")
    fields: dict[str, str] = {}
    for at in (len(lines) - 1, *(at for at in range(len(lines) - 1, -1, -1) if lines[at].startswith(_FIRST))):
        rest, json_fields = _cut_json(lines[at])
        fields = {name: _unquote(value.strip()) for name, value in _FIELD.findall(rest)} | json_fields
        if len(fields) >= _FEWEST_FIELDS:
            lines, after = lines[:at], "\n".join(lines[at + 1 :])
            break
    else:
        fields, after = {}, ""
    if after:
        name, colon, value = after.partition(":")
        fields |= {name.strip(): value.strip()} if colon and _NAME.fullmatch(name.strip()) else {_AFTER: after}
    prompt: list[str] = []
    negative: list[str] = []
    part = prompt
    for line in map(str.strip, lines):
        if line.startswith(_NEGATIVE):
            part, line = negative, line.removeprefix(_NEGATIVE).strip()
        part.append(line)
    texts = ["\n".join(part).lstrip("\n") for part in (prompt, negative)]
    return Infotext(texts[0], texts[1], fields)


def _cut_json(line: str) -> tuple[str, dict[str, str]]:
    """A last line without its fields of plain JSON, and these."""
    fields = {}
    for name in _JSON_FIELDS:
        at = line.find(f"{name}: ")
        begin = at + len(f"{name}: ")
        if at < 0 or line[begin : begin + 1] not in ("{", "["):
            continue
        try:
            _, end = json.JSONDecoder().raw_decode(line, begin)
        except (ValueError, RecursionError):
            continue
        fields[name] = line[begin:end]
        line = line[:at] + line[end:].lstrip(", ")
    return line, fields


def _quote(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search("[,:\n]", value) else value


def _unquote(value: str) -> str:
    """The text of a JSON string; anything else as it is."""
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value
