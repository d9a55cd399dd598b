"""Input pictures: every mode at the run's size, and what is refused."""

import os
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.models import FOLDER
from PIL import Image

from shaderfusion import images
from shaderfusion.errors import InputError
from shaderfusion.images import read_source

PICTURES = FOLDER / "pictures"
GOLDEN = np.load(FOLDER / "pictures.npz")
SIZE = {"width_px": 24, "height_px": 16}


def levels_of(image: Any, **size: int) -> np.ndarray:
    """(height, width, 3), of 255."""
    source = read_source(image, None, 1.0, **(size or SIZE), batch=1)
    assert source.pixels.dtype == np.float32
    return np.round(source.pixels[0] * 127.5 + 127.5)


def mask_of(mask: Any, **size: int) -> np.ndarray:
    """(height, width)"""
    source = read_source(PICTURES / "photo.png", mask, 1.0, **(size or SIZE), batch=1)
    assert source.mask is not None
    return source.mask[0, :, :, 0]


@pytest.mark.parametrize("name", ["photo.png", "grey.png", "palette.png", "rotated.jpg"])
def test_as_diffusers(name: str) -> None:
    """diffusers resizes before it converts, so that grey differs by rounding."""
    expected = GOLDEN[f"levels_{name}"]
    assert np.abs(levels_of(PICTURES / name) - expected).max() <= 1
    assert np.abs(levels_of(Image.open(PICTURES / name)) - expected).max() <= 1  # what is opened is the same
    assert np.abs(levels_of(str(PICTURES / name)) - expected).max() <= 1


def test_mask_as_diffusers() -> None:
    expected = GOLDEN["mask_mask.png"]
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(mask_of(PICTURES / "mask.png"), expected)


def test_transparent_is_white() -> None:
    """alpha x + (1 - alpha) 255, by hand; a palette's one transparent colour too."""
    with Image.open(PICTURES / "clear.png") as image:
        rgba = np.asarray(image, float)
    alpha = rgba[..., 3:] / 255
    assert (alpha.min(), alpha.max()) == (0, 1)
    expected = alpha * rgba[..., :3] + (1 - alpha) * 255
    assert np.abs(levels_of(PICTURES / "clear.png", width_px=37, height_px=29) - expected).max() <= 1
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    stream = BytesIO()
    palette.save(stream, "png", transparency=1)
    levels = levels_of(Image.open(stream), width_px=2, height_px=1)
    np.testing.assert_array_equal(levels[0], [[10, 20, 30], [255, 255, 255]])


def test_16_bits_become_8() -> None:
    expected = np.round(1771 * np.arange(37) / 257)
    levels = levels_of(PICTURES / "deep.png", width_px=37, height_px=29)
    np.testing.assert_array_equal(levels, np.broadcast_to(expected[:, None], (29, 37, 3)))


def test_fractions_become_8_bits(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 0.2, 1, np.nan]], np.float32)).save(tmp_path / "a.tiff")
    levels = levels_of(tmp_path / "a.tiff", width_px=4, height_px=1)
    np.testing.assert_array_equal(levels[0, :, 0], [0, 51, 255, 0])


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I", "I;16", "F"])
def test_every_mode(mode: str) -> None:
    image = Image.new("L", (5, 3), 255)
    white = Image.fromarray(np.full((3, 5), 65535, np.uint16)) if mode.startswith("I") else image.convert(mode)
    assert np.all(levels_of(white.convert(mode)) >= 254)


def test_a_mask_is_black_where_it_is_transparent() -> None:
    mask = Image.new("RGBA", (4, 2), (255, 255, 255, 0))
    mask.paste((255, 255, 255, 255), (2, 0, 4, 2))
    np.testing.assert_array_equal(mask_of(mask, width_px=4, height_px=2), [[0, 0, 1, 1]] * 2)


def test_a_picture_for_each() -> None:
    pictures = [Image.new("RGB", (3, 3), colour) for colour in ("black", "white")]
    assert read_source(pictures, None, 1.0, **SIZE, batch=2).pixels[:, 0, 0, 0].tolist() == [-1, 1]
    with pytest.raises(InputError, match=r"image \(of 2\) must be one picture, or one for each of 3 to be made"):
        read_source(pictures, None, 1.0, **SIZE, batch=3)


def png_of_size(width: int, height: int) -> bytes:
    """That claims to be so large, and has hardly any pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(9))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("width", "height"), [(8193, 8192), (12_000, 10_000), (30_000, 30_000), (2**31 - 1, 1)])
def test_bombs(tmp_path: Path, width: int, height: int) -> None:
    """Refused by their headers: below the size that Pillow warns of, where it warns, and where it refuses."""
    file = tmp_path / "bomb.png"
    file.write_bytes(png_of_size(width, height))
    with pytest.raises(
        InputError, match=r"image \(='.*bomb.png'\) must have at most 67,108,864 pixels; make it smaller"
    ):
        levels_of(file)


def test_a_large_image_that_is_open(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "LARGEST_PICTURE", 14)
    with pytest.raises(InputError, match=r"mask_image \(of 5x3\) must have at most 14 pixels"):
        images._read("mask_image", Image.new("L", (5, 3)), "black")


@pytest.mark.parametrize("content", [b"", b"not a picture", png_of_size(40, 40), b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_not_a_whole_picture(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file.png"
    file.write_bytes(content)
    with pytest.raises(
        InputError, match=r"image \(='.*file.png'\) must be a whole picture, such as a PNG or JPEG file \("
    ):
        levels_of(file)


def test_cut_short(tmp_path: Path) -> None:
    """Wherever a file ends, it is refused, unless only what comes after the pixels is missing."""
    for name in ("photo.png", "rotated.jpg"):
        whole, content = levels_of(PICTURES / name), (PICTURES / name).read_bytes()
        num_refused = 0
        for end in range(0, len(content), 7):
            file = tmp_path / name
            file.write_bytes(content[:end])
            try:
                np.testing.assert_array_equal(levels_of(file), whole)
            except InputError:
                num_refused = num_refused + 1
        assert num_refused > 0.9 * len(content) / 7


def test_no_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)  # opening it would wait
    for path in (tmp_path / "none.png", tmp_path, pipe, "a\0b.png"):
        with pytest.raises(InputError, match="must be a picture's file, and there is no file of that name"):
            levels_of(path)


@pytest.mark.parametrize("value", [3, np.zeros((2, 2, 3)), b"photo.png"])
def test_not_a_picture(value: Any) -> None:
    with pytest.raises(InputError, match=r"^mask_image \(of type \w+\) must be a PIL.Image.Image or the path of one"):
        mask_of(value)
