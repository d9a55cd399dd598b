"""Texts of picture files: written and read back by a second reader, and files that mean harm."""

import contextlib
import io
import json
import struct
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from metadata.picture_files import PNG, chunk, png, png_texts, user_comment
from PIL import Image

from shaderfusion.errors import InputError, ModelError
from shaderfusion.metadata.image_files import LARGEST_TEXT_BYTES, encode, read_texts, require_room

TEXTS = {"parameters": "ein Füchschen, 狐 🦊\nSteps: 1", "shaderfusion": json.dumps({"prompt": "狐\udcff"})}
PICTURE = Image.new("RGB", (16, 8), "red")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".JPEG", ".webp"])
def test_what_is_written_is_read(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(encode(PICTURE, suffix, TEXTS))
    assert read_texts(path) == TEXTS
    second = png_texts(path.read_bytes()) if suffix == ".png" else {"parameters": user_comment(path.read_bytes())}
    assert second["parameters"] == TEXTS["parameters"]
    with Image.open(path) as image:
        assert image.size == PICTURE.size


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_texts_that_fit_no_jpeg_are_refused_first(suffix: str, tmp_path: Path) -> None:
    texts = {"parameters": "x" * 40_000, "shaderfusion": "{}"}
    path = tmp_path / f"a{suffix}"
    if suffix == ".png":
        require_room("--output", path, texts)
    else:
        with pytest.raises(InputError, match=r"--output \(=.*a.jpg\) cannot hold .* such as .*a.png"):
            require_room("--output", path, texts)


@pytest.mark.parametrize(
    ("comment", "text"),
    [
        (b"UNICODE\0" + "Größe".encode("utf-16-be"), "Größe"),
        (b"UNICODE\0" + "Größe".encode("utf-16-le"), "Größe"),
        (b"UNICODE\0" + "\ufeffa".encode("utf-16-le"), "a"),
        (b"UNICODE\0" + "Größe".encode(), "Größe"),  # against the format
        (b"UNICODE\0" + b"\0a\0", "a\ufffd"),  # cut in the middle of a letter
        (b"ASCII\0\0\0plain", "plain"),
        (b"\0\0\0\0\0\0\0\0none", "none"),
        (b"ASCII\0\0\0" + "Größe".encode(), "Größe"),
        (b"ASCII\0\0\0\xff", "ÿ"),
    ],
)
def test_user_comments_of_other_programs(comment: bytes, text: str, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = comment
    data = io.BytesIO()
    PICTURE.save(data, "jpeg", exif=exif)
    (tmp_path / "a.jpg").write_bytes(data.getvalue())
    assert read_texts(tmp_path / "a.jpg") == {"parameters": text}


def test_kinds_of_png_texts(tmp_path: Path) -> None:
    chunks = [
        chunk(b"tEXt", b"latin\0" + "é".encode("latin-1")),
        chunk(b"tEXt", b"wrong\0" + "é狐".encode()),
        chunk(b"zTXt", b"packed\0\0" + zlib.compress(b"x" * 1000)),
        chunk(b"iTXt", b"plain\0\0\0de\0key\0" + "狐".encode()),
        chunk(b"iTXt", b"both\0\1\0\0\0" + zlib.compress("狐".encode())),
        chunk(b"tEXt", b"no value"),
        chunk(b"tEXt", b"latin\0the second is not read"),
    ]
    path = tmp_path / "a.png"
    path.write_bytes(png(chunks, width=2**31 - 1, height=2**31 - 1))  # whose pixels nobody asks for
    assert read_texts(path) == {
        "latin": "é",
        "wrong": "é狐",
        "packed": "x" * 1000,
        "plain": "狐",
        "both": "狐",
        "no value": "",
    }


def bomb(size: int) -> bytes:
    return zlib.compress(bytes(size), 9)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "which no PNG, JPEG or WebP does"),
        (b"GIF89a", "which no PNG, JPEG or WebP does"),
        (b"\xff\xd8\xff\xe1\0\x10Exif\0\0not TIFF", "its EXIF cannot be read"),
        (b"RIFF\0\0\0\0WEBPEXIF\x08\0\0\0not TIFF", "its EXIF cannot be read"),
        (png([chunk(b"zTXt", b"a\0\0" + bomb(LARGEST_TEXT_BYTES + 1))]), "must have at most 8,000,000 bytes in all"),
        (png([chunk(b"iTXt", b"a\0\1\0\0\0" + bomb(5_000_000))] * 2), "must have at most 8,000,000 bytes in all"),
        (png([chunk(b"zTXt", b"a\0\0no zlib")]), "has a text that does not unpack"),
        (png([chunk(b"zTXt", b"a\0\0" + zlib.compress(b"abc")[:-5])]), "has a packed text that is cut"),
        (png([chunk(b"tEXt", b"a\0b")[:-1] + b"x"]), "a tEXt chunk is damaged or cut"),
        (PNG + struct.pack(">I", 2**32 - 1) + b"tEXt", "must have at most 8,000,000 bytes in all"),
        (PNG + struct.pack(">I", 100) + b"tEXtab", "a tEXt chunk is damaged or cut"),
        (PNG + struct.pack(">I4sI", 0, b"abCd", 0) * 100_001, "must have at most 100,000 chunks"),
    ],
)
def test_hostile_files(data: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(data)
    with pytest.raises(ModelError, match=sentence):
        read_texts(tmp_path / "a")


def test_a_jpeg_of_too_many_pixels_is_read_without_them(tmp_path: Path) -> None:
    data = bytearray(encode(PICTURE, ".jpg", TEXTS))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = b"\xff" * 4
    (tmp_path / "a.jpg").write_bytes(data)
    assert read_texts(tmp_path / "a.jpg") == TEXTS


@pytest.mark.parametrize("data", [b"\xff\xd8", b"\xff\xd8\xff\xe0\0\0" * 9, b"RIFF\0\0\0\0WEBPVP8 \xff\xff\xff\xff"])
def test_files_without_texts(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(data)
    assert read_texts(tmp_path / "a") == {}


JPEG, WEBP, WHOLE_PNG = (bytes(encode(PICTURE, suffix, TEXTS)) for suffix in (".jpg", ".webp", ".png"))


@given(
    st.sampled_from([JPEG, WEBP, WHOLE_PNG]),
    st.lists(st.tuples(st.integers(12, 700), st.integers(0, 255)), max_size=4),
    st.integers(12, 2000),
)
def test_damaged_files_end_in_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, changes: list[tuple[int, int]], length: int
) -> None:
    data = bytearray(whole)
    for at, value in changes:
        data[min(at, len(data) - 1)] = value
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(data[:length])
    with contextlib.suppress(ModelError):
        read_texts(path)
