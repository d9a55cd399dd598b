"""Textual inversion files: every form that people have, everything that is refused, and files that lie."""

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from array_source import ArraySource
from golden.models import FOLDER
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors_file import write_safetensors
from weights.hostile_files import HostileFile, encode_header, lying_files, whole_files

from shaderfusion.config import ClipTextConfig
from shaderfusion.errors import InputError, ModelError, ShaderfusionError, WeightsError
from shaderfusion.text.tokenizer import Tokenizer
from shaderfusion.weights.checkpoint import Checkpoint
from shaderfusion.weights.embeddings import AddedTokens, read_embedding

VOCABULARY = 714
SD1 = {"text_encoder": ClipTextConfig(vocab_size=VOCABULARY, hidden_size=8, max_position_embeddings=16)}
SDXL = SD1 | {"text_encoder_2": ClipTextConfig(vocab_size=900, hidden_size=16, max_position_embeddings=16)}
TOKENIZER = Tokenizer.from_folder(FOLDER / "models" / "sd1" / "tokenizer")
TOKENIZERS = {"text_encoder": TOKENIZER, "text_encoder_2": TOKENIZER}
VECTORS = np.arange(24.0).reshape(3, 8) / 8


def write(path: Path, tensors: dict[str, np.ndarray], dtype: str = "f32") -> Path:
    write_safetensors(path, tensors, dtype)
    return path


@pytest.fixture
def style(tmp_path: Path) -> Path:
    """Three vectors."""
    return write(tmp_path / "my_style.safetensors", {"emb_params": VECTORS})


@pytest.fixture
def tokens() -> AddedTokens:
    """Of a model with one text encoder."""
    return AddedTokens(SD1)


# ---- files


@pytest.mark.parametrize(
    ("name", "word"), [("emb_params", "file"), ("string_to_param.*", "file"), ("*", "file"), ("<cat-toy>", "<cat-toy>")]
)
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_one_tensor(tmp_path: Path, name: str, word: str, dtype: str) -> None:
    path = tmp_path / "file.safetensors"
    for vectors in (VECTORS, VECTORS[:1], VECTORS[1]):
        write_safetensors(path, {name: vectors}, dtype)
        embedding = read_embedding(path, SD1)
        assert embedding.word == word
        np.testing.assert_array_equal(embedding.vectors["text_encoder"], np.atleast_2d(vectors))
        assert embedding.vectors["text_encoder"].dtype == np.float32


def test_a_file_of_sdxl(tmp_path: Path) -> None:
    path = write(tmp_path / "web.v2.safetensors", {"clip_g": np.ones((3, 16)), "clip_l": VECTORS})
    embedding = read_embedding(path, SDXL)
    assert embedding.word == "web.v2"
    np.testing.assert_array_equal(embedding.vectors["text_encoder"], VECTORS)
    np.testing.assert_array_equal(embedding.vectors["text_encoder_2"], np.ones((3, 16)))


def test_metadata_is_no_tensor(tmp_path: Path) -> None:
    header = json.dumps(
        {"__metadata__": {"format": "pt"}, "emb_params": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}}
    ).encode()
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + VECTORS[0].astype("<f4").tobytes())
    np.testing.assert_array_equal(read_embedding(path, SD1).vectors["text_encoder"], VECTORS[:1])


ONE, BOTH = r"SD 1.x or 2.x \(one tensor\)", r"SDXL \(clip_l and clip_g\)"


@pytest.mark.parametrize(
    ("encoders", "tensors", "message"),
    [
        (SD1, {"clip_l": VECTORS, "clip_g": np.ones((3, 16))}, f"of {BOTH}, and must be of {ONE}, as the model is"),
        (SDXL, {"emb_params": VECTORS}, f"of {ONE}, and must be of {BOTH}, as the model is; use one that was trained"),
        (SD1, {"clip_l": VECTORS}, r"its tensors \(=\['clip_l'\]\) must be one, as of SD 1.x and 2.x, or clip_l and"),
        (SDXL, {"clip_g": np.ones((3, 16))}, r"its tensors \(=\['clip_g'\]\) must be one"),
        (SD1, {"a": VECTORS, "b": VECTORS}, r"its tensors \(=\['a', 'b'\]\) must be one"),
        (
            SD1,
            {f"unet.{i}": VECTORS for i in range(99)},
            r"its tensors \(=.*\.\.\.\) must be one.*; give the",
        ),
        (SD1, {}, r"its tensors \(=\[\]\) must be one"),
        (
            SDXL,
            {"clip_l": VECTORS, "clip_g": np.ones((2, 16))},
            r"must have equally many vectors, not \[2, 3\]; give the",
        ),
        (
            SD1,
            {"emb_params": np.ones((3, 9))},
            r"'emb_params' has vectors of 9 numbers, must have 8 as the model's te",
        ),
        (
            SDXL,
            {"clip_l": VECTORS, "clip_g": np.ones((3, 8))},
            "'clip_g' has vectors of 8 numbers, must have 16",
        ),
        (SD1, {"emb_params": np.ones((2, 2, 8))}, r"'emb_params' has shape \(2, 2, 8\), must be \(n, 8\); give the"),
        (SD1, {"emb_params": np.ones(())}, r"has shape \(\), must be \(n, 8\)"),
        (SD1, {"emb_params": np.ones((0, 8))}, r"has shape \(0, 8\), must be \(n, 8\)"),
        (SD1, {"emb_params": np.ones((15, 8))}, "has 15 vectors, must have at most 14, the tokens of a prompt"),
        (SD1, {"emb_params": np.full((2, 8), np.nan)}, "has NaN or infinite values; the file is damaged, download it"),
        (SD1, {"emb_params": np.full((2, 8), -np.inf)}, "has NaN or infinite values"),
    ],
)
def test_refused_tensors(
    tmp_path: Path, encoders: dict[str, ClipTextConfig], tensors: dict[str, np.ndarray], message: str
) -> None:
    path = write(tmp_path / "file.safetensors", tensors)
    with pytest.raises(WeightsError, match=rf"file.safetensors: .*{message}"):
        read_embedding(path, encoders)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_not_a_number_in_half_precision(tmp_path: Path, dtype: str) -> None:
    with pytest.raises(WeightsError, match="has NaN or infinite values"):
        read_embedding(write(tmp_path / "x.safetensors", {"emb_params": np.full(8, np.nan)}, dtype), SD1)


@pytest.mark.parametrize(("dtype", "name"), [("i32", "I32"), ("f64", "F64")])
def test_refused_dtypes(tmp_path: Path, dtype: str, name: str) -> None:
    with pytest.raises(WeightsError, match=rf"'emb_params' has dtype {name}, must be of .*F16.*; convert the file"):
        read_embedding(write(tmp_path / "x.safetensors", {"emb_params": VECTORS}, dtype), SD1)


@pytest.mark.parametrize("name", ["style.pt", "style.PT", "learned_embeds.bin", "style.ckpt", "style.pth"])
def test_pickles_are_refused_unopened(tmp_path: Path, name: str) -> None:
    with pytest.raises(WeightsError, match=rf"{name}: pickle files can run code .* `safetensors.torch.save_file\("):
        read_embedding(tmp_path / name, SD1)  # there is no such file: it is not looked for


@pytest.mark.parametrize("data", [b"\x02", b"\0" * 9, b"\xff" * 9])
def test_damaged_files(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=r"not a whole safetensors file \(.*\); give the .safetensors file"):
        read_embedding(path, SD1)


def test_what_is_no_file(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "none.safetensors", "no such file; give the .safetensors file of a textual inversion"),
        (tmp_path, "must be a regular file; give the .safetensors file"),
        (Path("a\0b.safetensors"), "has a null character"),
        (Path("x" * 5000), r"cannot be read \(File name too long\)"),
    ):
        with pytest.raises(ModelError, match=message):
            read_embedding(path, SD1)


@pytest.mark.skipif(os.name == "nt", reason="there are no such pipes")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(ModelError, match="must be a regular file"):
        read_embedding(tmp_path / "pipe.safetensors", SD1)


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    """A checkpoint given in place of an embedding, or a file whose size alone is a lie."""
    path = tmp_path / "model.safetensors"
    path.touch()
    os.truncate(path, 10**11)
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match=r"must have at most 4,000,000 bytes; give the .safetensors file"):
            read_embedding(path, SD1)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 10_000_000


# ---- words


def test_ids_come_after_the_vocabulary(tokens: AddedTokens, style: Path, tmp_path: Path) -> None:
    assert tokens.load(style, None, TOKENIZERS) == "my_style"
    other = write(tmp_path / "x.safetensors", {"emb_params": VECTORS[:1]})
    assert tokens.load(str(other), "Other Style", TOKENIZERS) == "Other Style"
    pieces = list(tokens.teach("text_encoder", TOKENIZER).words.split("a MY_STYLE, other style"))
    assert [list(ids) for _, _, ids in pieces if ids] == [[714, 715, 716], [717]]


def test_each_text_encoder_counts_from_its_own_vocabulary(tmp_path: Path) -> None:
    tokens = AddedTokens(SDXL)
    path = write(tmp_path / "web.safetensors", {"clip_l": VECTORS, "clip_g": np.ones((3, 16))})
    tokens.load(path, None, TOKENIZERS)
    ids = {key: [list(ids) for _, _, ids in tokens.teach(key, TOKENIZER).words.split("web") if ids] for key in SDXL}
    assert ids == {"text_encoder": [[714, 715, 716]], "text_encoder_2": [[900, 901, 902]]}


@pytest.mark.parametrize("word", ["", "  ", "x" * 201, "\ud800", 5, ["a"]])
def test_what_is_no_word(tokens: AddedTokens, style: Path, word: Any) -> None:
    with pytest.raises(InputError, match=r"token \(=.*\) must be a word of 1 to 200 characters; give one by token="):
        tokens.load(style, word, TOKENIZERS)


def test_a_file_whose_name_is_no_word(tokens: AddedTokens, tmp_path: Path) -> None:
    for name in ("", " ", "y" * 1000):
        path = write(tmp_path / "x.safetensors", {name: VECTORS})
        with pytest.raises(InputError, match="must be a word of 1 to 200 characters"):
            tokens.load(path, None, TOKENIZERS)
        assert tokens.load(path, "<word>", TOKENIZERS) == "<word>"
        tokens.unload()


@pytest.mark.parametrize("word", ["fox", "Fox", " fox", "!", "<|endoftext|>", "<|StartOfText|>"])
def test_a_word_of_the_vocabulary(tokens: AddedTokens, style: Path, word: str) -> None:
    with pytest.raises(InputError, match=r"token \(=.*\) is in the model's vocabulary already; give"):
        tokens.load(style, word, TOKENIZERS)


@pytest.mark.parametrize("word", [None, "my_style", "MY_STYLE", " My_Style "])
def test_a_word_that_is_loaded(tokens: AddedTokens, style: Path, word: str | None) -> None:
    tokens.load(style, None, TOKENIZERS)
    with pytest.raises(InputError, match=r"is loaded already, as 'my_style'; unload that, or give another"):
        tokens.load(style, word, TOKENIZERS)


@pytest.mark.parametrize("path", [None, 5, ["a.safetensors"]])
def test_what_is_no_path(tokens: AddedTokens, path: Any) -> None:
    with pytest.raises(InputError, match=r"path \(=.*\) must be the path of a .safetensors file"):
        tokens.load(path, None, TOKENIZERS)


def test_what_is_refused_leaves_nothing_behind(tokens: AddedTokens, style: Path, tmp_path: Path) -> None:
    with pytest.raises(WeightsError):
        tokens.load(write(tmp_path / "bad.safetensors", {"emb_params": VECTORS * np.nan}), None, TOKENIZERS)
    with pytest.raises(InputError):
        tokens.load(style, "fox", TOKENIZERS)
    tokens.load(style, None, TOKENIZERS)
    assert set(tokens.vectors_of("text_encoder", np.array([0, 713, 714, 715, 716]))) == {714, 715, 716}


def test_unloading(tokens: AddedTokens, style: Path) -> None:
    for word in ("<a>", "<b>"):
        tokens.load(style, word, TOKENIZERS)
    with pytest.raises(InputError, match=r"token \(='<c>'\) must be a loaded one \('<a>', '<b>'\)"):
        tokens.unload("<c>")
    with pytest.raises(InputError, match=r"token \(=5\) must be a loaded one"):
        tokens.unload(5)  # type: ignore[arg-type]
    tokens.unload("<A>")
    assert [ids[0] for _, _, ids in tokens.teach("text_encoder", TOKENIZER).words.split("<a> <b>") if ids] == [717]
    tokens.unload()
    tokens.unload()  # none are left, which is what it asks for
    assert not [ids for _, _, ids in tokens.teach("text_encoder", TOKENIZER).words.split("<a> <b>") if ids]
    tokens.load(style, "<a>", TOKENIZERS)
    assert [list(ids) for _, _, ids in tokens.teach("text_encoder", TOKENIZER).words.split("<a>") if ids] == [
        [720, 721, 722]
    ]


# ---- the table


def test_rows_beyond_the_table_are_vectors(tokens: AddedTokens, style: Path) -> None:
    table = np.arange(VOCABULARY * 8.0).reshape(VOCABULARY, 8)
    source = ArraySource({"table": table, "other": np.ones((2, 2))})
    extended = tokens.extend("text_encoder", source)
    tokens.load(style, None, TOKENIZERS)  # also of a source that was opened before
    rows = np.array([[0, 715, 713], [714, 716, 715]])
    values = extended.read_rows("table", table.shape, rows).to_f32().reshape(2, 3, 8)
    np.testing.assert_array_equal(values, np.concatenate([table, VECTORS])[rows])
    np.testing.assert_array_equal(extended.read("other", (2, 2)).to_f32(), np.ones(4))
    assert extended.find("table", table.shape) == "table"
    with pytest.raises(WeightsError):
        extended.find("table", (VOCABULARY + 3, 8))
    with pytest.raises(ModelError, match=r"token id \(=717\) must be from 0 to text_encoder's vocab_size \(=714\) "):
        extended.read_rows("table", table.shape, np.array([717]))
    assert tokens.extend("unet", source) is source


def test_rows_of_the_table_alone_stay_as_they_are_stored(tokens: AddedTokens, style: Path, tmp_path: Path) -> None:
    tokens.load(style, None, TOKENIZERS)
    table = write(tmp_path / "table.safetensors", {"table": np.ones((VOCABULARY, 8))}, "f16")
    extended = tokens.extend("text_encoder", Checkpoint(table))
    assert extended.read_rows("table", (VOCABULARY, 8), np.array([0, 713])).dtype == "F16"
    assert extended.read_rows("table", (VOCABULARY, 8), np.array([0, 714])).dtype == "F32"


# ---- files that lie

NAMES = ["emb_params", "clip_l", "clip_g", "string_to_param.*", "<a>"]


def check_file(path: Path, file: HostileFile, word: str | None = None) -> None:
    """It is read to vectors of numbers that have a place in a prompt, or refused as all is; never with much memory."""
    file.write(path)
    messages = []
    for encoders in (SD1, SDXL):
        tokens = AddedTokens(encoders)
        try:
            loaded = tokens.load(path, word, TOKENIZERS)
        except ShaderfusionError as error:
            messages.append(str(error))
            continue
        for component, config in encoders.items():
            ids = [ids for _, _, ids in tokens.teach(component, TOKENIZER).words.split(loaded) if ids]
            vectors = tokens.vectors_of(component, np.array(ids[0]))
            assert len(ids) == 1
            assert all(vector.shape == (config.hidden_size,) for vector in vectors.values())
            assert np.isfinite(list(vectors.values())).all()
    assert all(len(message) < 1000 for message in messages)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lies") / "file_name.safetensors"


@settings(max_examples=100, derandomize=True, database=None)
@given(file=whole_files(NAMES), word=st.one_of(st.none(), st.text(max_size=8)))
def test_whole_files_of_anything(scratch: Path, file: HostileFile, word: str | None) -> None:
    check_file(scratch, file, word)


@settings(max_examples=100, derandomize=True, database=None)
@given(file=lying_files(NAMES))
def test_files_that_lie(scratch: Path, file: HostileFile) -> None:
    check_file(scratch, file)


@pytest.mark.parametrize("shape", [[2**40, 8], [2**62, 8], [3, 2**31], [2**32, 2**32], [2**63]])
@pytest.mark.parametrize("end", [32, 2**45])
def test_what_a_file_claims_is_not_allocated(scratch: Path, shape: list[int], end: int) -> None:
    text = json.dumps({"emb_params": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}).encode()
    tracemalloc.start()
    try:
        check_file(scratch, HostileFile(encode_header(text), bytes(32)))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 10_000_000


@pytest.mark.parametrize("body", [b'{"a":' * 600_000, b"[" * 3_900_000, b'{"__metadata__":{' + b'"":"",' * 600_000])
def test_headers_that_are_large(scratch: Path, body: bytes) -> None:
    check_file(scratch, HostileFile(encode_header(body)))
