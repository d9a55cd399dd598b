"""Picture files made and read by hand, chunk by chunk, for comparison."""

import struct
import zlib
from collections.abc import Iterable
from pathlib import Path

PNG = b"\x89PNG\r\n\x1a\n"


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(chunks: Iterable[bytes], *, width: int = 1, height: int = 1) -> bytes:
    """A picture of one black pixel that says any size, with those chunks before its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return PNG + header + b"".join(chunks) + chunk(b"IDAT", zlib.compress(bytes(4))) + chunk(b"IEND", b"")


def png_with(folder: Path, **texts: str) -> Path:
    """A file in the folder with these texts, as tEXt in UTF-8."""
    path = folder / "picture.png"
    path.write_bytes(png(chunk(b"tEXt", f"{key}\0{text}".encode()) for key, text in texts.items()))
    return path


def png_texts(data: bytes) -> dict[str, str]:
    """tEXt and unpacked iTXt of a file that is whole."""
    texts, at = {}, len(PNG)
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        if kind == b"tEXt":
            key, text = body.split(b"\0", 1)
            texts[key.decode()] = text.decode("latin-1")
        elif kind == b"iTXt":
            key, rest = body.split(b"\0", 1)
            texts[key.decode()] = rest[2:].split(b"\0", 2)[2].decode("utf-8")
        at += 12 + length
    return texts


def user_comment(data: bytes) -> str:
    """EXIF's comment in UTF-16, of a JPEG or WebP file, by the directories of its TIFF header."""
    tiff = data[data.index(b"Exif\0\0") + 6 :] if b"Exif\0\0" in data else data[data.index(b"EXIF") + 8 :]
    order = "<" if tiff[:2] == b"II" else ">"

    def entries(at: int) -> dict[int, tuple[int, int]]:
        (count,) = struct.unpack_from(f"{order}H", tiff, at)
        rows = (struct.unpack_from(f"{order}HHII", tiff, at + 2 + 12 * index) for index in range(count))
        return {tag: (size, value) for tag, _, size, value in rows}

    (first,) = struct.unpack_from(f"{order}I", tiff, 4)
    size, at = entries(entries(first)[0x8769][1])[0x9286]
    comment = tiff[at : at + size]
    assert comment.startswith(b"UNICODE\0")
    return comment[8:].decode("utf-16-be")
