"""Texts in picture files: of a PNG its text chunks, of JPEG and WebP those of EXIF.

A PNG is walked chunk by chunk and no pixel is decoded; lengths are checked before anything is allocated.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from shaderfusion.errors import InputError, ModelError
from shaderfusion.files import load_bytes, shown

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["OWN", "PARAMETERS", "SUFFIXES", "encode", "parse_texts", "read_texts", "require_room"]

PARAMETERS, OWN = "parameters", "shaderfusion"
"""Keys of the texts that we write: the infotext, and our own JSON."""

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Of files that can be written."""

LARGEST_TEXT_BYTES = 8_000_000
"""Of all texts of a file, unpacked. ComfyUI's graphs, the longest that are usual, have 0.1 to 1 MB."""
LARGEST_FILE_BYTES = 200_000_000
LARGEST_EXIF_BYTES = 65_000
"""A segment of a JPEG has 64 KB."""
_MOST_CHUNKS = 100_000

_PNG = b"\x89PNG\r\n\x1a\n"
_EXIF_IFD, _USER_COMMENT, _MAKER_NOTE = 0x8769, 0x9286, 0x927C
_UNICODE, _ASCII = b"UNICODE\0", b"ASCII\0\0\0"
_QUALITY = 95
_REMEDY = "give a PNG, JPEG or WebP file"


def encode(image: Image, suffix: str, texts: Mapping[str, str], quality: int | None = None) -> memoryview:
    """The bytes of a file of that suffix with the texts, of which EXIF holds `parameters` and `shaderfusion` alone.

    There may be none. `quality`, to 100, is of JPEG and WebP.
    """
    data = io.BytesIO()
    if suffix.lower() == ".png":
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        for key, text in texts.items():
            info.add_text(key, text)  # as tEXt, or iTXt where a letter is not of Latin-1
        image.save(data, "png", pnginfo=info)
    else:
        kind = "webp" if suffix.lower() == ".webp" else "jpeg"
        image.save(data, kind, quality=_QUALITY if quality is None else quality, exif=_exif(texts) if texts else b"")
    return data.getbuffer()


def require_room(option: str, path: Path, texts: Mapping[str, str]) -> None:
    """InputError, naming the option, where a JPEG or WebP file cannot hold the texts."""
    if path.suffix.lower() != ".png" and len(_exif(texts)) > LARGEST_EXIF_BYTES:
        raise InputError(
            f"{option} (={path}) cannot hold the prompt and settings, which take over {LARGEST_EXIF_BYTES:,} bytes; "
            f"name a PNG, such as {path.with_suffix('.png')}"
        )


def _exif(texts: Mapping[str, str]) -> bytes:
    from PIL.Image import Exif

    exif = Exif()
    exif.get_ifd(_EXIF_IFD).update(
        {
            _USER_COMMENT: _UNICODE + texts[PARAMETERS].encode("utf-16-be"),  # as web UIs write it
            _MAKER_NOTE: f"{OWN}\0{texts[OWN]}".encode(),
        }
    )
    return exif.tobytes()


def read_texts(path: Path) -> dict[str, str]:
    """All texts of a picture file by key; ModelError for another file, a damaged one, and too long texts."""
    return parse_texts(path, load_bytes(path, _REMEDY, largest_bytes=LARGEST_FILE_BYTES, missing=_REMEDY))


def parse_texts(path: Path, data: bytes) -> dict[str, str]:
    """As `read_texts`, of the bytes of a file; errors name it as `path`."""
    texts: dict[str, str] = {}
    try:
        if data.startswith(_PNG):
            texts = _read_png(path, io.BytesIO(data))
        elif data.startswith(b"\xff\xd8") or (data[:4] == b"RIFF" and data[8:12] == b"WEBP"):
            texts = _read_exif(path, data)
        else:
            raise ModelError(f"{path}: begins with {shown(data[:8])}, which no PNG, JPEG or WebP does; {_REMEDY}")
    except zlib.error as error:
        raise ModelError(f"{path}: has a text that does not unpack ({error}); fetch the file again") from None
    return texts


def _read_png(path: Path, stream: BinaryIO) -> dict[str, str]:
    texts: dict[str, str] = {}
    left = LARGEST_TEXT_BYTES
    for kind, body in _chunks(path, stream):
        key, _, rest = body.partition(b"\0")
        raw, encoding = rest, "latin-1"
        if kind == b"zTXt":
            raw = _unpack(path, rest[1:], left)
        elif kind == b"iTXt":
            is_packed, (_, _, raw) = rest[:1] == b"\1", _split(rest[2:])
            raw, encoding = _unpack(path, raw, left) if is_packed else raw, "utf-8"
        left -= len(raw)
        if left < 0:
            raise _too_long(path)
        # A web UI's text may have been put into tEXt as UTF-8, against the format.
        text = _decode(raw, encoding)
        texts.setdefault(key.decode("latin-1"), text)
    return texts


def _split(rest: bytes) -> tuple[bytes, bytes, bytes]:
    """Language, translated key and text of iTXt."""
    language, _, rest = rest.partition(b"\0")
    translated, _, text = rest.partition(b"\0")
    return language, translated, text


def _chunks(path: Path, stream: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Kinds and bodies of the text chunks; the others are passed over. A file may end early, as cut ones do."""
    stream.seek(len(_PNG))
    for _ in range(_MOST_CHUNKS):
        head = stream.read(8)
        kind = head[4:]
        if len(head) < 8 or kind == b"IEND":
            return
        length = int.from_bytes(head[:4], "big")
        if kind not in (b"tEXt", b"zTXt", b"iTXt"):
            stream.seek(length + 4, io.SEEK_CUR)
            continue
        if length > LARGEST_TEXT_BYTES:
            raise _too_long(path)
        body, crc = stream.read(length), stream.read(4)
        if zlib.crc32(kind + body) != int.from_bytes(crc, "big") or len(crc) < 4:
            raise ModelError(f"{path}: a {kind.decode()} chunk is damaged or cut; fetch the file again")
        yield kind, body
    raise ModelError(f"{path}: must have at most {_MOST_CHUNKS:,} chunks; {_REMEDY}")


def _unpack(path: Path, packed: bytes, most_bytes: int) -> bytes:
    unpacker = zlib.decompressobj()
    data = unpacker.decompress(packed, most_bytes + 1)
    if len(data) > most_bytes:
        raise _too_long(path)
    if not unpacker.eof:
        raise ModelError(f"{path}: has a packed text that is cut; fetch the file again")
    return data


def _too_long(path: Path) -> ModelError:
    return ModelError(f"{path}: its texts must have at most {LARGEST_TEXT_BYTES:,} bytes in all; {_REMEDY}")


def _decode(raw: bytes, encoding: str) -> str:
    """UTF-8 where it is that, else as the format says; letters that are none become U+FFFD."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode(encoding, "replace")


def _read_exif(path: Path, data: bytes) -> dict[str, str]:
    from PIL.Image import Exif

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged EXIF, of which what can be read is read
            exif = Exif()
            exif.load(_exif_segment(data))
            tags = exif.get_ifd(_EXIF_IFD)
    except (OSError, ValueError, SyntaxError, ArithmeticError, LookupError, TypeError, struct.error) as error:
        raise ModelError(f"{path}: its EXIF cannot be read ({shown(str(error))}); fetch the file again") from None
    texts: dict[str, str] = {}
    comment, note = tags.get(_USER_COMMENT), tags.get(_MAKER_NOTE)
    if isinstance(comment, str):
        comment = comment.encode("utf-8", "replace")
    if isinstance(comment, bytes) and comment.strip(b"\0 "):
        texts[PARAMETERS] = _decode_comment(comment)
    if isinstance(note, bytes) and note.startswith(OWN.encode() + b"\0"):
        texts[OWN] = _decode(note[len(OWN) + 1 :], "utf-8")
    return texts


def _exif_segment(data: bytes) -> bytes:
    """Of a JPEG or WebP file; nothing where there is none. A file may end early."""
    at = 12 if data.startswith(b"RIFF") else 2
    while at + 8 <= len(data):
        if data.startswith(b"RIFF"):
            kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
            if kind == b"EXIF":
                return data[at + 8 : at + 8 + size]
            at += 8 + size + size % 2
        else:
            marker, size = data[at : at + 2], int.from_bytes(data[at + 2 : at + 4], "big")
            if marker == b"\xff\xe1" and data[at + 4 : at + 10] == b"Exif\0\0":
                return data[at + 4 : at + 2 + size]
            if marker[0] != 0xFF or marker == b"\xff\xda":  # then come pixels
                break
            at += 2 + max(size, 2)
    return b""


def _decode_comment(comment: bytes) -> str:
    """A UserComment: EXIF says how it is encoded, but not the order of UTF-16's bytes, which programs differ in."""
    if comment.startswith(_UNICODE):
        raw = comment[len(_UNICODE) :]
        if b"\0" not in raw:  # UTF-8, as some programs write it all the same: of UTF-16 each space would have one
            return _decode(raw, "latin-1")
        # Nearly all letters of a prompt are below U+0100, so that the half with more zeros is the upper one.
        encoding = "utf-16-be" if raw[::2].count(0) >= raw[1::2].count(0) else "utf-16-le"
        return raw.decode(encoding, "replace").lstrip("\ufeff")
    return _decode(comment.removeprefix(_ASCII).lstrip(b"\0").rstrip(b"\0"), "latin-1")
