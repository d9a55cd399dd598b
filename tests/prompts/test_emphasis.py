"""Weights of a prompt's pieces, as A1111's web UI reads them, and what they do to an embedding."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shaderfusion.errors import InputError
from shaderfusion.prompts.emphasis import Span, emphasize, read_spans

# What the web UI's own examples say.
EXAMPLES: dict[str, list[tuple[str | None, float]]] = {
    "normal text": [("normal text", 1)],
    "an (important) word": [("an ", 1), ("important", 1.1), (" word", 1)],
    "(unbalanced": [("unbalanced", 1.1)],
    r"\(literal\]": [("(literal]", 1)],
    "(unnecessary)(parens)": [("unnecessaryparens", 1.1)],
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).": [
        ("a ", 1),
        ("house", 1.3 * 1.1**2),
        (" ", 1.1),
        ("on", 1),
        (" a ", 1.1),
        ("hill", 0.55),
        (", sun, ", 1.1),
        ("sky", 1.1**4),
        (".", 1.1),
    ],
}
# By its rules.
OURS: dict[str, list[tuple[str | None, float]]] = {
    "": [],
    "[cold] a]b)c": [("cold", 1 / 1.1), (" a]b)c", 1)],
    "(a [b) c]": [("a ", 1.1), ("b", 1), (" c", 1 / 1.1)],
    "(x:-.5)(y:+2.)": [("x", -0.5), ("y", 2)],
    "(a: 1.3) 4:3) b": [("a: 1.3", 1.1), (" 4:3) b", 1)],
    r"a\b \\ (c\):2)": [("ab \\ ", 1), ("c)", 2)],
    "a, BREAK b": [("a,", 1), (None, 1), ("b", 1)],
    "(a BREAK\nb:1.5) BREAKS": [("a", 1.5), (None, 1), ("b", 1.5), (" BREAKS", 1)],
    "BREAK BREAK": [(None, 1), (None, 1)],
}


@pytest.mark.parametrize("text", [*EXAMPLES, *OURS])
def test_spans(text: str) -> None:
    spans, expected = read_spans(text), {**EXAMPLES, **OURS}[text]
    assert [span.text for span in spans] == [text for text, _ in expected]
    assert [span.weight for span in spans] == pytest.approx([weight for _, weight in expected], rel=1e-12)


@pytest.mark.parametrize("weight", ["1.2.3", ".", "9" * 50])
def test_a_weight_that_is_no_number(weight: str) -> None:
    with pytest.raises(InputError, match=r"prompt, at character 6 \('\(a fo:.*'\): the weight \(=.*must be a num"):
        read_spans(f"(a fo:{weight})")


def test_too_many_brackets() -> None:
    with pytest.raises(InputError, match=r"at character 202 .* at most 100 brackets"):
        read_spans("a(" * 101)


@given(st.lists(st.tuples(st.text("ab ()[]\\", min_size=1), st.sampled_from([0.5, 1.0, 1.25, -2.0])), max_size=6))
def test_round_trip(spans: list[tuple[str, float]]) -> None:
    def write(span: Span) -> str:
        escaped = "".join("\\" + letter if letter in "()[]\\" else letter for letter in span.text or "")
        return f"({escaped}:{span.weight})"

    read = read_spans("".join(write(Span(*span)) for span in spans))
    assert "".join(span.text or "" for span in read) == "".join(text for text, _ in spans)
    assert read_spans("".join(map(write, read))) == read


def test_emphasize() -> None:
    """Each encoder's channels have weights of their own, and each chunk its own mean."""
    rng = np.random.default_rng(1)
    embedding = rng.normal(0.3, 1, (3, 5, 7)).astype(np.float32)
    weights = rng.uniform(0.5, 1.5, (3, 2, 5)).astype(np.float32)
    weights[1] = 1
    for restores_mean in (False, True):
        result = emphasize(embedding, weights, [3, 4], restores_mean=restores_mean)
        np.testing.assert_array_equal(result[1], embedding[1])
        for chunk in (0, 2):
            for encoder, channels in enumerate((slice(0, 3), slice(3, 7))):
                given = embedding[chunk, :, channels].astype(np.float64)
                expected = given * weights[chunk, encoder][:, None]
                if restores_mean:
                    expected *= given.mean() / expected.mean()
                np.testing.assert_allclose(result[chunk, :, channels], expected, rtol=1e-6)


def test_emphasize_to_nothing() -> None:
    result = emphasize(np.ones((1, 2, 2), np.float32), np.zeros((1, 1, 2), np.float32), [2], restores_mean=True)
    assert not result.any()
