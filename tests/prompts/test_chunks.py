"""Chunks: as long as CLIP reads, cut after a near comma, words whole; and their ids as transformers makes them."""

import json
from typing import Any

import numpy as np
import pytest
from golden.models import FOLDER, model_folder

from shaderfusion.families import open_model
from shaderfusion.prompts.chunks import read_chunks
from shaderfusion.prompts.emphasis import Span, read_spans
from shaderfusion.prompts.scheduled import read_prompts
from shaderfusion.text.tokenizer import Tokenizer
from shaderfusion.text.words import AddedWords

ARRAYS = np.load(FOLDER / "prompts.npz")
CASES: dict[str, dict[str, Any]] = json.loads(str(ARRAYS["facts"]))
WORD = 49408


@pytest.fixture(scope="module")
def clip() -> Tokenizer:
    """CLIP's own, which was taught a word of 30 vectors."""
    plain = Tokenizer.clip()
    words = AddedWords({"long_word": range(WORD, WORD + 30)})
    return Tokenizer(plain.bpe, plain.bos_id, plain.eos_id, plain.pad_id, plain.max_length, words)


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("", [0]),
        ("fox " * 75, [75]),
        ("fox " * 76, [75, 1]),
        ("fox " * 55 + "," + " fox" * 20, [56, 20]),  # the comma is the 20th from the end
        ("fox " * 54 + "," + " fox" * 21, [75, 1]),  # the 21st
        ("fox " * 74 + ", fox", [75, 1]),
        ("fox " * 75 + ", fox", [75, 2]),
        ("fox " * 70 + ", fox, fox fox fox", [73, 3]),
        ("fox, BREAK " + "fox " * 75 + "fox", [2, 75, 1]),  # a comma of the chunk before is none
        ("BREAK fox", [0, 1]),
        ("fox " * 46 + "long_word", [46, 30]),
        ("fox, " + "fox " * 50 + "long_word " * 3, [52, 60, 30]),
        ("fox " * 74 + ", long_word long_word long_word", [75, 60, 30]),
        ("fox " * 60 + "," + " fox" * 14 + " long_word", [61, 44]),
    ],
)
def test_lengths(clip: Tokenizer, text: str, lengths: list[int]) -> None:
    chunks = read_chunks(clip, read_spans(text))
    assert [row.tolist().index(clip.eos_id) - 1 for row in chunks.ids] == lengths
    flat = [token for row, length in zip(chunks.ids, lengths, strict=True) for token in row[1 : length + 1].tolist()]
    assert flat == [id for span in read_spans(text) if span.text for ids in clip.split(span.text) for id in ids]


def test_weights_are_those_of_tokens(clip: Tokenizer) -> None:
    chunks = read_chunks(clip, [Span("fox", 2.0), Span(" long_word", 0.5), Span(" fox " * 50)])
    (first, second), (ids, _) = chunks.weights, chunks.ids
    assert first.tolist() == [1, 2, *[0.5] * 30, *[1] * 45]
    assert second.tolist() == [1] * 77
    assert ids[2:32].tolist() == list(range(WORD, WORD + 30))


@pytest.mark.parametrize("model", CASES)
def test_as_transformers(model: str) -> None:
    opened, facts = open_model(model_folder(model)), CASES[model]
    opened.added_tokens.load(FOLDER / "embeddings" / model / f"{facts['word']}.safetensors", None, opened.tokenizers)
    begin = 0
    for prompt, count in facts["prompts"].items():
        read = read_prompts(list(opened.taught_tokenizers.values()), [prompt], 1, restores_mean=True)
        end = begin + count
        np.testing.assert_array_equal(read.ids[0], ARRAYS[f"{model}_ids"][begin:end])
        for encoder in range(read.ids.shape[2]):
            np.testing.assert_allclose(read.weights[0, :, encoder], ARRAYS[f"{model}_weights"][begin:end], rtol=1e-6)
        begin = end
    assert begin == len(ARRAYS[f"{model}_ids"])
