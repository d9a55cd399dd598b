"""Words that a model was taught, found in a text where they stand alone."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shaderfusion.text.words import AddedWords, same_word


def found(text: str, *words: str) -> list[str]:
    """Which words are found in a text, in order."""
    pieces = list(AddedWords({word: [i + 1] for i, word in enumerate(words)}).split(text))
    assert "".join(piece for _, piece, _ in pieces) == text
    assert all(text[begin:].startswith(piece) for begin, piece, _ in pieces)
    return [words[ids[0] - 1] for _, _, ids in pieces if ids]


@pytest.mark.parametrize(
    "text",
    ["my_style", "a my_style,", "MY_Style", "(my_style:1.2)", "my_style's", "my_style-2", "é my_style!", "\nmy_style"],
)
def test_a_word_that_stands_alone(text: str) -> None:
    assert found(text, "my_style") == ["my_style"]


@pytest.mark.parametrize("text", ["", "my style", "my_styles", "not_my_style", "my_style2", "émy_style", "my_styleж"])
def test_a_word_inside_others(text: str) -> None:
    assert found(text, "my_style") == []


def test_a_word_that_ends_with_other_signs_is_found_anywhere() -> None:
    assert found("a<cat-toy>b<CAT-TOY><cat-toy>", "<cat-toy>") == ["<cat-toy>"] * 3
    assert found("style!!, style!!s mystyle!!", "style!!") == ["style!!"] * 2  # each end by its own sign


def test_signs_of_patterns_are_signs() -> None:
    assert found("a.c abc a|c (a*c)", "a.c", "a|c", "(a*c)") == ["a.c", "a|c", "(a*c)"]
    assert found(r"\d 5", r"\d") == [r"\d"]


def test_the_longer_of_two_words() -> None:
    words = ("style", "style-2", "my style", "my")
    assert found("style-2 my style my styles style-25", *words) == ["style-2", "my style", "my", "style"]


def test_white_space_in_a_word() -> None:
    assert found("two words, two \n words, TWO\u3000words, twowords", "two  words") == ["two  words"] * 3


def test_composed_and_decomposed() -> None:
    word, text = "crème-brûlée", "a Crème-Brûlée, crème"
    for form in (word, unicodedata.normalize("NFD", word)):
        assert found(unicodedata.normalize("NFC", text), form) == [form]
        assert found(unicodedata.normalize("NFD", text), form) == [form]


def test_no_words() -> None:
    assert list(AddedWords().split("a fox")) == [(0, "a fox", ())]


def test_words_that_a_prompt_cannot_tell_apart() -> None:
    assert same_word("My  Café") == same_word("my cafe\u0301 ")
    assert same_word("my_style") != same_word("my-style")


@settings(max_examples=150, derandomize=True)
@given(words=st.lists(st.text(min_size=1, max_size=6).filter(str.strip), min_size=1, max_size=3), text=st.text())
def test_any_words_in_any_text(words: list[str], text: str) -> None:
    found(text, *words)  # the pieces are the text
    word = unicodedata.normalize("NFC", words[0])
    for alone in (word, f"({word})", f"{text} {word} {text}"):
        assert word in found(alone, word)
