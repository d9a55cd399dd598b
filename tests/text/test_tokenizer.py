"""tokenizer: transformers' ids for every form of model folder, the truncation warning, and damaged folders."""

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shaderfusion.errors import InputError, ModelError
from shaderfusion.text.tokenizer import PromptTruncatedWarning, Tokenizer

FOLDER = Path(__file__).parents[1] / "golden" / "tokenizer"
GOLDEN: dict[str, Any] = json.loads((FOLDER / "golden.json").read_text(encoding="utf-8"))
CLIP: dict[str, Any] = json.loads((FOLDER.parent / "clip_vocabulary.json").read_text(encoding="utf-8"))
PLAIN = GOLDEN["folders"]["plain"]


def model_folder(path: Path, files: dict[str, Any], vocabulary: list[str]) -> Path:
    for name in vocabulary:
        shutil.copy(FOLDER / name, path)
    for name, content in files.items():
        (path / name).write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """vocab.json, merges.txt and only a length in tokenizer_config.json: 24 tokens, 22 of them the prompt's."""
    return model_folder(tmp_path, PLAIN["files"], PLAIN["vocabulary"])


@pytest.mark.parametrize("name", GOLDEN["folders"])
def test_matches_transformers(name: str, tmp_path: Path) -> None:
    case = GOLDEN["folders"][name]
    tokenizer = Tokenizer.from_folder(model_folder(tmp_path, case["files"], case["vocabulary"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptTruncatedWarning)
        ids = tokenizer(GOLDEN["texts"])
    assert ids.dtype == np.int32
    for text, ours, expected in zip(GOLDEN["texts"], ids, case["ids"], strict=True):
        assert ours.tolist() == expected, text


@pytest.mark.parametrize("pad_token", CLIP["ids"])
def test_the_vocabulary_of_the_package(pad_token: str) -> None:
    tokenizer = Tokenizer.clip(pad_token=pad_token)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PromptTruncatedWarning)
        ids = tokenizer(CLIP["texts"])
    for text, ours, expected in zip(CLIP["texts"], ids, CLIP["ids"][pad_token], strict=True):
        assert ours.tolist() == expected, text


def test_padding_token_of_sd_1_and_2(tmp_path: Path) -> None:
    ids = {}
    for name in ("sd1", "sd2"):
        case = GOLDEN["folders"][name]
        (tmp_path / name).mkdir()
        tokenizer = Tokenizer.from_folder(model_folder(tmp_path / name, case["files"], case["vocabulary"]))
        ids[name] = tokenizer([""])[0, :4].tolist()
    assert ids["sd1"] == [712, 713, 713, 713]
    assert ids["sd2"] == [712, 713, 0, 0]


def test_truncation_says_what_is_dropped(plain: Path) -> None:
    tokenizer = Tokenizer.from_folder(plain)
    fits = "a fox " * 11
    assert tokenizer([fits])[0, -2] != tokenizer.pad_id  # 22 tokens and both ends: not one place is left
    with pytest.warns(PromptTruncatedWarning, match="has 28 tokens and the model reads 22.*: 'İn snow'") as caught:
        ids = tokenizer([fits + "İn snow"])
    assert caught[0].filename == __file__
    assert ids[0].tolist() == tokenizer([fits])[0].tolist()


def test_a_long_dropped_text_is_shortened(plain: Path) -> None:
    with pytest.warns(PromptTruncatedWarning) as caught:
        Tokenizer.from_folder(plain)(["fox " * 500])
    assert len(str(caught[0].message)) < 200
    assert str(caught[0].message).endswith("...'")


def test_a_batch_is_its_prompts(plain: Path) -> None:
    tokenizer = Tokenizer.from_folder(plain)
    both = tokenizer(["a fox", ""])
    assert both.shape == (2, 24)
    assert both[0].tolist() == tokenizer(["a fox"])[0].tolist()
    assert both[1].tolist() == tokenizer([""])[0].tolist()


@pytest.mark.parametrize("texts", ["a fox", [], [1], [None], ["half of a pair: \ud83e"]])
def test_texts_that_are_none(plain: Path, texts: Any) -> None:
    with pytest.raises(InputError, match=r"^texts? "):
        Tokenizer.from_folder(plain)(texts)


@pytest.mark.parametrize("name", ["tokenizer_config.json", "vocab.json", "merges.txt"])
def test_a_missing_file_is_named(plain: Path, name: str) -> None:
    (plain / name).unlink()
    with pytest.raises(ModelError, match=rf"{name}: no such file; .* fetch"):
        Tokenizer.from_folder(plain)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokenizer_config.json", "{"),
        ("vocab.json", "[]"),
        ("vocab.json", '{"a": "b"}'),
        ("vocab.json", '{"a": 0}'),
        ("merges.txt", "#version: 0.2\na b c\n"),
        ("merges.txt", "#version: 0.2\nnot there\n"),
        ("special_tokens_map.json", '{"pad_token": 3}'),
        ("tokenizer.json", "{}"),
        ("tokenizer.json", '{"model": {"type": "Unigram", "vocab": [["a", -1.0]], "merges": []}}'),
    ],
)
def test_a_damaged_file(plain: Path, name: str, content: str) -> None:
    (plain / name).write_text(content, encoding="utf-8")
    with pytest.raises(ModelError, match=r"fetch|special token"):
        Tokenizer.from_folder(plain)


@pytest.mark.parametrize("length", [None, 2, "77", 77.0, 10**30, True])
def test_model_max_length(plain: Path, length: object) -> None:
    (plain / "tokenizer_config.json").write_text(json.dumps({"model_max_length": length}), encoding="utf-8")
    with pytest.raises(ModelError, match=r"tokenizer_config.json: model_max_length \(=.*\) must be a whole number"):
        Tokenizer.from_folder(plain)


def test_a_role_outside_the_vocabulary(plain: Path) -> None:
    config = {"model_max_length": 24, "pad_token": "<pad>"}
    (plain / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match=r"pad_token \(='<pad>'\) is not in the vocabulary"):
        Tokenizer.from_folder(plain)


def test_importing_does_not_import_tokenizers() -> None:
    code = "import sys, shaderfusion.text.tokenizer; sys.exit('tokenizers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
