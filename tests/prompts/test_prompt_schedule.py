"""Prompts that change from step to step, as A1111's web UI reads them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shaderfusion.errors import InputError
from shaderfusion.prompts.schedule import Alternating, Changing, read_schedule, text_at, write_schedule
from shaderfusion.prompts.scheduled import read_prompts
from shaderfusion.text.tokenizer import Tokenizer

# What the web UI's own examples say, of 10 steps: the last step of each text. The steps are counted as a part of all
# only where there is a point.
EXAMPLES: dict[str, dict[int, str]] = {
    "test": {10: "test"},
    "a [b:3]": {3: "a ", 10: "a b"},
    "a [b: 3]": {3: "a ", 10: "a b"},
    "a [[[b]]:2]": {2: "a ", 10: "a [[b]]"},
    "[(a:2):3]": {3: "", 10: "(a:2)"},
    "a [b : c : 1] d": {1: "a b  d", 10: "a  c  d"},
    "a[b:[c:d:2]:1]e": {1: "abe", 2: "ace", 10: "ade"},
    "a [unbalanced": {10: "a [unbalanced"},
    "a [b:.5] c": {5: "a  c", 10: "a b c"},
    "a [{b|d{:.5] c": {5: "a  c", 10: "a {b|d{ c"},
    "((a][:b:c [d:3]": {3: "((a][:b:c ", 10: "((a][:b:c d"},
    "[a|(b:1.1)]": {step: "a" if step % 2 else "(b:1.1)" for step in range(1, 11)},
    "[fe|]male": {step: "female" if step % 2 else "male" for step in range(1, 11)},
    "[fe|||]male": {step: "female" if step % 4 == 1 else "male" for step in range(1, 11)},
}
# What it does not define.
OURS: dict[str, dict[int, str]] = {
    "x [a::4] [b:1.0]": {4: "x a ", 10: "x  "},  # after all steps
    "[a:b:20][c:d:-1]": {10: "ad"},
    "[a:b:0.29]": {2: "a", 10: "b"},
    r"\[a:3] [b\]:c:3]": {3: r"\[a:3] b\]", 10: r"\[a:3] c"},
    "[a:b:c:3] [a:b] [3]": {10: "[a:b:c:3] [a:b] [3]"},
    "(a [b) c:d:3]": {10: "(a [b) c:d:3]"},
    "(a|b) c|d:3": {10: "(a|b) c|d:3"},
    "[x [a:b:3]]": {3: "[x a]", 10: "[x b]"},
    "[[a|b]:[c|d]:2]": {1: "a", 2: "b", **{step: "c" if step % 2 else "d" for step in range(3, 11)}},
    "[a:b:9999999999]": {10: "[a:b:9999999999]"},
    "end\\": {10: "end\\"},
    "": {10: ""},
}


@pytest.mark.parametrize("text", [*EXAMPLES, *OURS])
def test_texts_of_steps(text: str) -> None:
    expected = {**EXAMPLES, **OURS}[text]
    prompt = read_schedule(text)
    for step in range(1, 11):
        last = min(last for last in expected if last >= step)
        assert text_at(prompt, step, 10) == expected[last]


# Of a second pass of 10 steps after 10 others: the web UI's own examples, and numbers, which count both.
SECOND: dict[str, dict[int, str]] = {
    "a [b:.5] c": {10: "a b c"},
    "a [b:1.5] c": {5: "a  c", 10: "a b c"},
    "[a:b:4]": {10: "b"},
    "[a:b:14]": {4: "a", 10: "b"},
    "[a|b]": {step: "a" if step % 2 else "b" for step in range(1, 11)},
}


@pytest.mark.parametrize("text", SECOND)
def test_a_second_pass_goes_on(text: str) -> None:
    for step in range(1, 11):
        last = min(last for last in SECOND[text] if last >= step)
        assert text_at(read_schedule(text), step, 10, 10) == SECOND[text][last]


@pytest.mark.parametrize(
    ("text", "num_calls", "num_steps", "rows", "second"),
    [
        ("a", 4, None, [0, 0, 0, 0], [0, 0]),
        ("[a|b]", 5, None, [0, 0, 1, 0, 1], [0, 0]),  # the first two calls are of step 1
        ("[a:b:2]", 5, None, [0, 0, 0, 1, 1], [0, 0]),
        ("[a:b:.5]", 4, 8, [0, 0, 0, 0], [0, 0]),  # half of all steps, of which a picture to begin with leaves 4
        ("[a:b:.25]", 4, 8, [0, 0, 0, 1], [0, 0]),
        ("[a:b:1.25]", 4, None, [0, 0, 0, 0], [0, 0, 1, 1, 1, 1]),
        ("[a:b:9]", 4, 8, [0, 0, 0, 0], [0, 0, 1, 1]),
    ],
)
def test_texts_of_calls(text: str, num_calls: int, num_steps: int | None, rows: list[int], second: list[int]) -> None:
    prompts = read_prompts([Tokenizer.clip()], [text], num_calls, num_steps=num_steps, restores_mean=True)
    assert prompts.row_of[:, 0].tolist() == rows
    assert prompts.second_pass(len(second)).row_of[:, 0].tolist() == second


def test_tree() -> None:
    assert read_schedule("a [b:[c|d]:.5]") == ("a ", Changing(("b",), (Alternating((("c",), ("d",))),), 0.5))


def test_too_many_brackets() -> None:
    with pytest.raises(InputError, match=r"prompt, at character 101 .* at most 100 brackets may be open; close some"):
        read_schedule("[" * 101)
    read_schedule("[)" * 1000)


@given(st.text("ab[]()|:\\.1 ", max_size=30))
def test_texts_round_trip(text: str) -> None:
    prompt = read_schedule(text)
    assert read_schedule(write_schedule(prompt)) == prompt


PROMPTS = st.recursive(
    st.lists(st.sampled_from(["a ", "(b:1.2)", r"\[", "[c]"]), max_size=1).map(tuple),
    lambda inner: st.one_of(
        st.builds(Changing, inner, inner, st.integers(-3, 99) | st.floats(0, 9).map(lambda x: round(x, 5))),
        st.builds(Alternating, st.lists(inner, min_size=2, max_size=3).map(tuple)),
    ).map(lambda node: ("x", node, "y")),
    max_leaves=8,
)


@given(PROMPTS)
def test_prompts_round_trip(prompt: tuple) -> None:
    assert read_schedule(write_schedule(prompt)) == prompt
