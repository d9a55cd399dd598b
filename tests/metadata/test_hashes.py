"""Hashes of files, and where they are kept."""

import hashlib
import json
import os
import struct
from pathlib import Path

import pytest

from shaderfusion.errors import ModelError
from shaderfusion.metadata import hashes
from shaderfusion.metadata.hashes import embedding_hash, file_hash, lora_hash

HEADER = b'{"a": 1}'
DATA = struct.pack("<Q", len(HEADER)) + HEADER + b"tensors"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHADERFUSION_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a.safetensors"
    path.write_bytes(DATA)
    return path


def test_parts(file: Path) -> None:
    whole = hashlib.sha256(DATA).hexdigest()
    assert (file_hash(file), embedding_hash(file)) == (whole[:10], whole[:12])
    assert lora_hash(file) == hashlib.sha256(b"tensors").hexdigest()[:12]
    assert file_hash(file.parent) is None
    with pytest.raises(ModelError, match="cannot be read"):
        file_hash(file.parent / "none")


def test_a_header_longer_than_its_file(file: Path) -> None:
    file.write_bytes(struct.pack("<Q", 2**64 - 1))
    assert lora_hash(file) == hashlib.sha256(b"").hexdigest()[:12]


def test_computed_once_until_the_file_changes(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = file_hash(file)
    with monkeypatch.context() as patch:
        patch.setattr(hashes, "_compute", None)
        assert file_hash(file) == first
    file.write_bytes(DATA + b"!")
    changed = file_hash(file)
    assert changed != first
    os.utime(file, ns=(0, 0))
    file.write_bytes(DATA + b"?")
    assert file_hash(file) not in (first, changed)


@pytest.mark.parametrize("damage", ["{", "[]", '{"a": 5, "b": "short"}'])
def test_a_damaged_cache_is_made_again(damage: str, file: Path, cache: Path) -> None:
    cache.mkdir()
    (cache / "hashes.json").write_text(damage)
    assert file_hash(file) == hashlib.sha256(DATA).hexdigest()[:10]
    assert len(json.loads((cache / "hashes.json").read_text())) == 1


def test_a_cache_that_cannot_be(file: Path, cache: Path) -> None:
    cache.write_text("a file")
    assert file_hash(file) == hashlib.sha256(DATA).hexdigest()[:10]
