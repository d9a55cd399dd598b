"""A model's JSON and text files, hostile ones among them: read, or refused by name and at once."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from golden.models import model_folder

from shaderfusion.errors import ModelError
from shaderfusion.files import LARGEST_BYTES, exists, is_folder, load_json, load_text, shown
from shaderfusion.info import describe
from shaderfusion.text.tokenizer import Tokenizer

NOT_JSON = {
    "nothing": b"",
    "half": b'{"a": ',
    "array": b"[]",
    "deep": b"[" * 100_000,
    "deep_object": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "closed_deep": b'{"a": ' + b"[" * 80 + b"]" * 80 + b"}",
    "digits": b'{"a": ' + b"9" * 5000 + b"}",
    "nan": b'{"a": NaN}',
    "infinity": b'{"a": [Infinity]}',
    "latin_1": b'{"a": "\xe9"}',
    "utf_16": '{"a": 1}'.encode("utf-16"),
    "byte_order_mark": b'\xef\xbb\xbf{"a": 1}',
    "large": b'{"a": 1}' + b" " * LARGEST_BYTES,
}


@pytest.mark.parametrize("name", NOT_JSON)
def test_what_is_no_json_object_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.json").write_bytes(NOT_JSON[name])
    with pytest.raises(ModelError, match=rf"^{tmp_path}/a.json: [^\n]*; fetch the file again$"):
        load_json(tmp_path / "a.json")


def test_json_of_the_greatest_depth_and_size(tmp_path: Path) -> None:
    nested: dict[str, Any] = {}
    for _ in range(63):
        nested = {"a": nested}
    (tmp_path / "a.json").write_text(json.dumps(nested).ljust(LARGEST_BYTES))
    assert load_json(tmp_path / "a.json") == nested


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="has no named pipes")
def test_what_is_no_regular_file_is_never_opened(tmp_path: Path) -> None:
    (tmp_path / "zero").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("zero", "pipe", "folder"):
        with pytest.raises(ModelError, match=rf"{name}: must be a regular file"):
            load_text(tmp_path / name)


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none: no such file"):
        load_text(tmp_path / "none")
    with pytest.raises(ModelError, match=r"cannot be read \(File name too long\)"):
        load_text(tmp_path / ("a" * 300))


def test_paths_that_cannot_be_looked_at(tmp_path: Path) -> None:
    for path in (tmp_path / ("a" * 300), tmp_path / "a\0b"):
        assert not exists(path)
        assert not is_folder(path)
    assert exists(tmp_path)
    assert is_folder(tmp_path)


def test_shown_values_are_short() -> None:
    assert shown(["a", 1]) == "['a', 1]"
    assert len(shown("a" * 1000)) == 120
    assert len(shown(10**10_000)) <= 120  # more digits than Python writes


# ---- whole models


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A golden model without its weights."""
    ignore = shutil.ignore_patterns("*.safetensors")
    return Path(shutil.copytree(model_folder("sd1"), tmp_path / "model", ignore=ignore))


JSON_FILES = (
    "model_index.json",
    "text_encoder/config.json",
    "unet/config.json",
    "vae/config.json",
    "tokenizer/vocab.json",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer.json",
    "tokenizer/special_tokens_map.json",
)


def read_all(folder: Path) -> None:
    """Whatever of a model is read without a device."""
    describe(folder, width=32, height=32)
    Tokenizer.from_folder(folder / "tokenizer")


@pytest.mark.parametrize("content", ["deep", "large", "/dev/zero"])
@pytest.mark.parametrize("file", JSON_FILES)
def test_every_file_is_read_with_care(folder: Path, file: str, content: str) -> None:
    read_all(folder)
    if content == "/dev/zero":
        (folder / file).unlink(missing_ok=True)
        (folder / file).symlink_to(content)
    else:
        (folder / file).write_bytes(NOT_JSON[content])
    with pytest.raises(ModelError, match=file.split("/")[0]):
        read_all(folder)


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("unet/config.json", "block_out_channels", [10**12, 10**12]),
        ("unet/config.json", "block_out_channels", [64] * 100_000),
        ("unet/config.json", "layers_per_block", 10**9),
        ("unet/config.json", "transformer_layers_per_block", 10**9),
        ("unet/config.json", "norm_eps", 10**400),  # an integer that no float holds
        ("unet/config.json", "norm_eps", 1e300),  # nor f32
        ("unet/config.json", "sample_size", 10**9),
        ("unet/config.json", "act_fn", [[["silu"] * 10_000] * 10]),
        ("text_encoder/config.json", "vocab_size", 10**15),
        ("text_encoder/config.json", "num_hidden_layers", 10**9),
        ("vae/config.json", "layers_per_block", 10**9),
        ("model_index.json", "_class_name", "x" * 10_000),
    ],
)
def test_absurd_values_are_refused_at_once(folder: Path, file: str, key: str, value: object) -> None:
    config = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps(config | {key: value}))
    with pytest.raises(ModelError) as caught:
        read_all(folder)
    assert len(str(caught.value)) < 500
