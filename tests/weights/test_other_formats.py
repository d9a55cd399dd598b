"""Files that are no safetensors files, wherever one is asked for: the error says what they are."""

import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from golden.models import model_folder
from recorded_calls import targets

from shaderfusion.config import ClipTextConfig
from shaderfusion.errors import ShaderfusionError
from shaderfusion.families import open_model
from shaderfusion.weights.embeddings import read_embedding
from shaderfusion.weights.lora.file import find_file, read_adapter
from shaderfusion.weights.model_files import ModelFolder
from shaderfusion.weights.other_formats import other_format


def zip_of(name: str) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr(name, "x" * 99)
    return data.getvalue()


FILES = {
    "empty": (b"", "is empty; download it again"),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4265146304\n",
        "is a pointer of Git LFS in place of the file; fetch it with `git lfs pull`",
    ),
    "html": (b"\n<!DOCTYPE html><html><title>Sign in</title></html>", "is a page of a web site"),
    "xml": (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "is a page of a web site"),
    "json": (b'{"error": "unauthorized"}', "is JSON in place of the file"),
    "text": (b"Access to this model is restricted.", "is a text in place of the file"),
    "pickle_2": (pickle.dumps({"state_dict": [1.0] * 9}, 2), "is a pickle file, which can run code when opened"),
    "pickle_5": (pickle.dumps({"state_dict": [1.0] * 9}, 5), "is a pickle file, which can run code when opened"),
    "torch": (zip_of("archive/data.pkl"), "is a pickle file of PyTorch, which can run code when opened"),
    "zip": (zip_of("model.safetensors"), "is an archive; unpack it"),
    "gzip": (b"\x1f\x8b\x08\0\0\0\0\0\0\x03" + bytes(99), "is an archive; unpack it"),
    "gguf": (b"GGUF\x03\0\0\0" + bytes(99), "is a GGUF file"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(99), "is a picture"),
}


def embedding(path: Path) -> object:
    folder = model_folder("sd1")
    return read_embedding(path, {"text_encoder": ModelFolder(folder).config("text_encoder", ClipTextConfig)})


USES: dict[str, Callable[[Path], object]] = {
    "model": open_model,
    "vae": lambda path: open_model(model_folder("sd1"), vae=path),
    "lora": lambda path: read_adapter(find_file(path), targets("sd1")),
    "embedding": embedding,
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("name", FILES)
def test_other_formats(tmp_path: Path, name: str, use: str) -> None:
    data, what = FILES[name]
    path = tmp_path / "file.SafeTensors"
    path.write_bytes(data)
    with pytest.raises(ShaderfusionError) as caught:
        USES[use](path)
    assert str(caught.value).startswith(f"{path}: {what}")


@pytest.mark.parametrize("length", [b"{\n", b"<", b"\x80\x02", b"\x1f\x8b", b"  < ", b"GGUF"])
def test_a_cut_file_is_not_taken_for_another_format(length: bytes) -> None:
    assert other_format(length.ljust(8, b"\0") + b'{"conv.weight":{"dtype":"F16","sha') is None
