"""Infotext: texts by the published rules, and the published pattern as a second reader."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shaderfusion.metadata.infotext import Infotext, read_infotext

PUBLISHED = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
"""By which web UIs read a last line."""

REAL = (
    "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 1, Seed: 2250936571, Size: 512x512, "
    "Model hash: 31e35c80fc, Model: sd_xl_base_1.0, Clip skip: 2, Version: v1.10.1"
)
QUOTED = (
    'Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 512x768, Model: "a, b: c", '
    'Lora hashes: "one: 0123456789ab, two: ba9876543210", Note: "line\\nand \\"quote\\"", Version: v1.10.1'
)


@pytest.mark.parametrize("last", [REAL, QUOTED])
@pytest.mark.parametrize(
    ("prompt", "negative"),
    [
        ("a fox", ""),
        ("a fox", "blurry, (bad:1.3)"),
        ("two\nlines: one, two", "and\nthree\n\nmore"),
        ("", "only this"),
        ("", ""),
        ("Steps: 3, but: a prompt", "x"),
        ("ein Fuchs, 狐, 🦊", "é"),
    ],
)
def test_a_web_uis_text_is_read_and_written_as_it_was(last: str, prompt: str, negative: str) -> None:
    text = f"{prompt}\n" + (f"Negative prompt: {negative}\n" if negative else "") + last
    found = read_infotext(text)
    assert (found.prompt, found.negative_prompt) == (prompt, negative)
    assert str(found) == text
    assert [(name, value) for name, value in PUBLISHED.findall(last) if value[:1] != '"'] == [
        (name, value) for name, value in found.fields.items() if not re.search("[,:\n]", value)
    ]


def test_values() -> None:
    fields = read_infotext(f"x\n{QUOTED}").fields
    assert fields["Model"] == "a, b: c"
    assert fields["Lora hashes"] == "one: 0123456789ab, two: ba9876543210"
    assert fields["Note"] == 'line\nand "quote"'
    assert list(fields)[:3] == ["Steps", "Sampler", "CFG scale"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", Infotext("", "", {})),
        ("a fox\nSteps: 20, Seed: 5", Infotext("a fox\nSteps: 20, Seed: 5", "", {})),  # too few to be settings
        ("a\nNegative prompt: b", Infotext("a", "b", {})),
        ("a\nNegative prompt:\n\n b\n\nc", Infotext("a", "b\n\nc", {})),  # without its first empty lines
        ("Steps: 1, Seed: 2, Size: 8x8", Infotext("", "", {"Steps": "1", "Seed": "2", "Size": "8x8"})),
        ('Aa: "x, Bb: 1, Cc: 2', Infotext("", "", {"Aa": '"x', "Bb": "1", "Cc": "2"})),  # a quote that does not end
        (r'Aa: "\x", Bb: 1, Cc: 2', Infotext("", "", {"Aa": r'"\x"', "Bb": "1", "Cc": "2"})),  # no JSON
    ],
)
def test_tolerance(text: str, expected: Infotext) -> None:
    assert read_infotext(text) == expected


@pytest.mark.parametrize(
    ("after", "field"),
    [
        ("Template: a {fox|dog}\nof: two, lines", ("Template", "a {fox|dog}\nof: two, lines")),
        ("a note", ("After the fields", "a note")),
        ("(a: note)", ("After the fields", "(a: note)")),
    ],
)
def test_lines_after_the_fields(after: str, field: tuple[str, str]) -> None:
    found = read_infotext(f"a fox\nNegative prompt: bad\n{REAL}\n{after}")
    assert (found.prompt, found.negative_prompt) == ("a fox", "bad")
    assert found.fields == {**read_infotext(f"x\n{REAL}").fields, field[0]: field[1]}


def test_plain_json_is_one_value() -> None:
    hashes, resources = '{"model": "31e3", "lora:x": "a, b"}', '[{"type": "checkpoint", "air": "urn:air:1"}]'
    text = f"x\nSteps: 20, Hashes: {hashes}, Seed: 5, Civitai resources: {resources}"
    fields = {"Steps": "20", "Seed": "5", "Civitai resources": resources, "Hashes": hashes}
    assert read_infotext(text).fields == fields
    broken = read_infotext('x\nSteps: 20, Seed: 5, Hashes: {"model": ').fields
    assert broken == {"Steps": "20", "Seed": "5", "Hashes": '{"model":'}


names = st.sampled_from(["Steps", "Size", "CFG scale", "Mask-blur", "Init/seed", "ControlNet 0", "TI hashes"])
values = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1).map(str.strip).filter(bool)


@given(st.dictionaries(names, values, min_size=3))
def test_any_fields_come_back(fields: dict[str, str]) -> None:
    plain = {name: value for name, value in fields.items() if not value.startswith('"')}
    if len(plain) >= 3:
        assert read_infotext(str(Infotext("x", "y", plain))) == Infotext("x", "y", plain)


@given(st.text())
def test_any_text_is_read(text: str) -> None:
    read_infotext(text)


@pytest.mark.parametrize("part", ["a", " ", "a ", 'aa:"', 'aa:"\\",', "a-/ ", ":,", '"'])
def test_long_texts_take_no_longer_than_their_length(part: str) -> None:
    started = time.process_time()
    read_infotext(part * (300_000 // len(part)))
    assert time.process_time() - started < 5
