"""AND and the weights of its parts, as A1111's web UI reads them."""

import re
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shaderfusion.errors import InputError
from shaderfusion.prompts.combined import Part, combine, read_parts

PUBLISHED = re.compile(r"^(\s*.*?)(?:\s*:\s*([-+]?(?:\d+\.?|\d*\.\d+)))?\s*$")
"""By which the web UI reads a part."""

CASES: dict[str, list[tuple[str, float]]] = {
    # The first is the web UI's own example, in its wiki.
    "a cat :1.2 AND a dog AND a penguin :2.2": [("a cat", 1.2), (" a dog ", 1), (" a penguin", 2.2)],
    # By its rules.
    "": [("", 1)],
    "AND": [("", 1), ("", 1)],
    "sand AND_ BAND ANDY and": [("sand AND_ BAND ANDY and", 1)],
    "a,AND(b)AND": [("a,", 1), ("(b)", 1), ("", 1)],
    "a:-.5 AND b : +2. AND :3": [("a", -0.5), (" b", 2), ("", 3)],
    "at 16:9": [("at 16", 9)],  # also of a whole prompt
    "a:1:2 AND b:1.5x AND c:. AND d:1e3": [("a:1", 2), (" b:1.5x ", 1), (" c:. ", 1), (" d:1e3", 1)],
    "(a AND b:1.2)": [("(a ", 1), (" b:1.2)", 1)],
    "[a:b AND c:0.5]": [("[a:b ", 1), (" c:0.5]", 1)],
    "a [b:c:0.5]:2": [("a [b:c:0.5]", 2)],
    "\n a :2\nAND b\n: 3 \n AND a\nb:2": [("\n a", 2), (" b", 3), (" a\nb:2", 1)],  # a weight is for one line
    r"a\:2": [("a\\", 2)],
}


@pytest.mark.parametrize("text", CASES)
def test_parts(text: str) -> None:
    assert read_parts(text) == [Part(*part) for part in CASES[text]]


@given(st.lists(st.sampled_from(["AND", " AND ", *" \n\ta:1.-+5()[]"]), max_size=14).map("".join))
def test_the_published_pattern_reads_the_same(text: str) -> None:
    expected = []
    for piece in re.split(r"\bAND\b", text):
        match = PUBLISHED.search(piece)
        found, weight = match.groups() if match else (piece, None)
        expected.append((found.rstrip(), 1.0 if weight is None else float(weight)))
    assert [(part.text.rstrip(), part.weight) for part in read_parts(text)] == expected


def test_prompts_of_several_numbers_of_parts() -> None:
    texts, weights = combine(["a AND b:2 AND c", "d:0.5"])
    assert texts == [["a ", "d"], [" b", ""], [" c", ""]]
    np.testing.assert_array_equal(weights, [[1, 0.5], [2, 0], [1, 0]])
    texts, weights = combine(["a", "b:1"])
    assert texts == [["a", "b"]]
    assert weights is None


def test_long_prompts_take_no_time() -> None:
    started = time.process_time()
    for text in (" " * 100_000, ":" * 100_000, "a :1 AND " * 20_000, "1" * 100_000):
        read_parts(text)
    assert time.process_time() - started < 5


def test_a_weight_that_is_too_large() -> None:
    with pytest.raises(InputError, match=r"prompt, at character 11 \('a AND fox :9+'\): the weight must be at most"):
        read_parts(f"a AND fox :{'9' * 50}")
