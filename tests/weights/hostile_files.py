"""Safetensors files that lie, as strategies of hypothesis, for the tests of all that reads such files."""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from hypothesis import strategies as st

from shaderfusion.errors import ShaderfusionError

__all__ = [
    "HostileFile",
    "Tensor",
    "encode_header",
    "file_of",
    "lying_files",
    "mutated_files",
    "read_tensors",
    "require_refused_or_used",
    "whole_files",
]

SIZES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1, "BOOL": 1}
LARGEST_BYTES = 1 << 26
"""Of data that is written, of zeros that take no space on the disk: a file that claims more is cut there."""
NUMBERS = st.one_of(st.integers(-2, 40), st.sampled_from([2**31, 2**63, 2**64, 2**70, 8, 16, 1.5, "8", None]))
PARTS = ["0", "1", "3", "63", "64", "999", "007", "\u0663", "9" * 30, "9" * 5000, "", "weight", "bias", "conv", "0.0"]
"""Of names, between dots: numbers of layers, for the most part."""
NAMES = [
    "lora_unet_down_blocks_0_attentions_0_proj_in.lora_up.weight",
    "lora_te2_text_model_encoder_layers_0_mlp_fc1.alpha",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.hada_w1_a",
    "control_model.input_blocks.0.0.weight",
    "emb_params",
    "clip_g",
    "string_to_param.*",
    "<a>",
    "double_blocks.0.img_attn.norm.key_norm.scale",
    "model.diffusion_model.label_emb.0.0.weight",
    "model.diffusion_model.time_embedding.cond_proj.weight",
    "model.diffusion_model.up_blocks.0.attentions.0.norm.weight",
    "model.diffusion_model.input_blocks.1.1.transformer_blocks.63.norm1.weight",
    "conditioner.embedders.0.model.token_embedding.weight",
    "conditioner.embedders.0.transformer.text_model.embeddings.position_embedding.weight",
    "first_stage_model.decoder.up.7.block.0.conv2.weight",
    "decoder.mid_block.resnets.0.conv1.weight",
    f"decoder.mid_block.resnets.{'9' * 5000}.conv1.weight",
    "decoder.layers.0.weight",
    "3.conv.0.weight",
    ".lora_up.weight",
    "v_pred",
    "0." * 3000,
    "a.mid_block.attentions.0." * 2000 + "-",
    "x" * 10_000,
    "two\nlines\x1b[31m",
    "__metadata__",
]
"""Of other layouts, families and kinds of files, and of none."""


class Tensor(NamedTuple):
    """As a header has it, but for its place."""

    name: str
    dtype: str
    shape: list[int]


@dataclass(frozen=True)
class HostileFile:
    """What a file holds: the header with its length, and data with zeros after it."""

    header: bytes
    data: bytes = b""
    num_zeros: int = 0

    def write(self, path: Path) -> Path:
        with path.open("wb") as file:
            file.write(self.header + self.data)
            file.truncate(len(self.header) + len(self.data) + self.num_zeros)
        return path


def encode_header(text: bytes, length: int | None = None) -> bytes:
    """The 8 bytes of its length, or those of another one, and the header."""
    return (len(text) if length is None else length).to_bytes(8, "little") + text


def read_tensors(path: Path) -> list[Tensor]:
    """Of a file that is whole."""
    header = json.loads(path.read_bytes()[8:][: int.from_bytes(path.read_bytes()[:8], "little")])
    return [Tensor(name, each["dtype"], each["shape"]) for name, each in header.items() if name != "__metadata__"]


def file_of(tensors: Sequence[Tensor]) -> HostileFile:
    """A file that is as it says, of zeros."""
    text, size = _header(tensors)
    return HostileFile(encode_header(text), b"", size)


def require_refused_or_used(use: Callable[[], object], *, most_s: float = 2.0) -> None:
    """It works, or raises what people can read: one line, not long. It takes no more than that of the CPU's time."""
    message = ""
    started = time.process_time()
    try:
        use()
    except ShaderfusionError as error:
        message = str(error)
    assert time.process_time() - started < most_s
    assert len(message) < 1000
    assert not message or message.isprintable()


def _names(names: Sequence[str]) -> st.SearchStrategy[str]:
    return st.one_of(st.sampled_from(names or NAMES), st.sampled_from(NAMES), st.text(max_size=9))


def lying_files(names: Sequence[str] = ()) -> st.SearchStrategy[HostileFile]:
    """Headers that may say anything, of these names and others, at times not even JSON or of another length, before
    any data."""
    tensor = st.fixed_dictionaries(
        {
            "dtype": st.sampled_from([*SIZES, "F4", "C64", "", 3]),
            "shape": st.one_of(st.lists(NUMBERS, max_size=4), NUMBERS),
            "data_offsets": st.one_of(st.tuples(NUMBERS, NUMBERS), st.lists(NUMBERS, max_size=3), NUMBERS),
        }
    )
    headers = st.one_of(st.dictionaries(_names(names), tensor, max_size=3), st.recursive(NUMBERS, st.lists))
    texts = st.one_of(headers.map(lambda header: json.dumps(header).encode()), st.binary(max_size=40))
    lengths = st.one_of(st.none(), st.sampled_from([0, 1, 2**20, 2**40, 2**64 - 1]))
    files = st.builds(HostileFile, st.builds(encode_header, texts, lengths), st.binary(max_size=64))
    return st.one_of(files, st.builds(HostileFile, st.binary(max_size=99)))


@st.composite
def whole_files(draw: st.DrawFn, names: Sequence[str] = ()) -> HostileFile:
    """Files that are as they say, of these names and others, and whatever dtypes, shapes and values."""
    shapes = st.lists(st.sampled_from([0, 1, 2, 3, 8, 16]), max_size=3)
    tensors = draw(st.dictionaries(_names(names), st.tuples(st.sampled_from(list(SIZES)), shapes), max_size=3))
    text, size = _header([Tensor(name, *tensor) for name, tensor in tensors.items() if name != "__metadata__"])
    return HostileFile(encode_header(text), draw(st.sampled_from([b"\0", b"\x3c", b"\xff", b"\x7c"])) * size)


@st.composite
def mutated_files(draw: st.DrawFn, tensors: Sequence[Tensor], data: bytes = b"", most_changes: int = 3) -> HostileFile:
    """A file with those tensors, a little changed: some are missing, of other names, shapes and dtypes, or there twice.

    One in a few is damaged as well: cut, with bytes that are others, of another length than it says, or with tensors
    elsewhere than it says.
    """
    tensors = list(tensors)
    for _ in range(draw(st.integers(0, most_changes))):
        tensors = draw(_changed(tensors))
    damage = draw(st.sampled_from([""] * 20 + ["bytes", "length", "cut", "offsets", "metadata"]))
    lies = draw(_offsets(tensors)) if damage == "offsets" else {}
    metadata = draw(st.recursive(NUMBERS, st.lists) if damage == "metadata" else _metadata())
    text, size = _header(tensors, metadata, lies)
    if damage == "bytes":
        place = draw(st.integers(0, len(text) - 1))
        text = text[:place] + draw(st.binary(min_size=1, max_size=1)) + text[place + 1 :]
    length = draw(st.sampled_from([0, len(text) - 1, len(text) + 1, 2**40])) if damage == "length" else len(text)
    if data and draw(st.integers(0, 9)) == 0:  # NaN, and what is nearly infinite
        data = draw(st.sampled_from([b"\xff", b"\x7c\x7f"])) * len(data)
    cut = draw(st.sampled_from([1, size // 2])) if damage == "cut" else 0
    num_bytes = min(size, LARGEST_BYTES) - cut
    return HostileFile(encode_header(text, length), data[:num_bytes], max(0, num_bytes - len(data)))


@st.composite
def _changed(draw: st.DrawFn, tensors: Sequence[Tensor]) -> list[Tensor]:
    """One of them otherwise, or all of a layer."""
    if not tensors:
        return []
    index = draw(st.integers(0, len(tensors) - 1))
    name, dtype, shape = tensors[index]
    before, after = list(tensors[:index]), list(tensors[index + 1 :])
    match draw(st.sampled_from(["drop", "repeat", "retype", "rename", "reshape", "drop all", "rename all"])):
        case "drop":
            return before + after
        case "repeat":  # the last one counts, and where the first one was is nothing
            return [*before, Tensor(name, dtype, [0]), *after, tensors[index]]
        case "retype":
            return [*before, Tensor(name, draw(st.sampled_from([*SIZES])), shape), *after]
        case "rename":
            return [*before, Tensor(draw(st.one_of(_renamed(name), _names(NAMES))), dtype, shape), *after]
        case "reshape":
            return [*before, Tensor(name, dtype, draw(_reshaped(shape))), *after]
        case way:
            parts = name.split(".")
            stem = ".".join(parts[: draw(st.integers(1, len(parts)))])
            if way == "drop all":
                return [tensor for tensor in tensors if not tensor.name.startswith(stem)]
            new = draw(st.one_of(_renamed(stem), _names(NAMES)))
            return [
                tensor._replace(name=new + tensor.name.removeprefix(stem)) if tensor.name.startswith(stem) else tensor
                for tensor in tensors
            ]


@st.composite
def _renamed(draw: st.DrawFn, name: str) -> str:
    """With another part, one more or one less."""
    parts = name.split(".")
    place = draw(st.integers(0, len(parts) - 1))
    return ".".join([*parts[:place], draw(st.sampled_from(PARTS)), *parts[place + draw(st.integers(0, 2)) :]])


@st.composite
def _reshaped(draw: st.DrawFn, shape: Sequence[int]) -> list[int]:
    """With another size, one more or one less, or in another order."""
    if draw(st.booleans()):
        return list(draw(st.permutations(shape)))
    place = draw(st.integers(0, len(shape)))
    sizes = draw(st.lists(st.sampled_from([0, 1, 2, 3, 5, 7, 16, 32, 64, 2**15, 2**40]), max_size=2))
    return [*shape[:place], *sizes, *shape[place + draw(st.integers(0, 2)) :]]


def _metadata() -> st.SearchStrategy[dict[str, str] | None]:
    texts = ["v", "epsilon", "{}", "[", "3", '{"unet.lora_alpha": 1e999}', '{"unet.alpha_pattern": {"to_q": 2}}']
    keys = st.sampled_from(["modelspec.prediction_type", "modelspec.architecture", "lora_adapter_metadata", "x"])
    values = st.one_of(st.text(max_size=9), st.sampled_from([*texts, "9" * 5000, "[" * 5000]))
    return st.one_of(st.none(), st.dictionaries(keys, values, max_size=2))


def _offsets(tensors: Sequence[Tensor]) -> st.SearchStrategy[dict[int, tuple[int, int]]]:
    """What of the tensors lies about its place, and how."""
    if not tensors:
        return st.just({})
    number = st.one_of(st.integers(0, 999), st.sampled_from([2**31, 2**40, 2**63, 2**64 - 1]))
    return st.dictionaries(st.integers(0, len(tensors) - 1), st.tuples(number, number), min_size=1, max_size=1)


def _header(
    tensors: Sequence[Tensor], metadata: object = None, lies: dict[int, tuple[int, int]] | None = None
) -> tuple[bytes, int]:
    """JSON, with names that are there twice where they are, and how many bytes of data there are."""
    texts, end = [], 0
    if metadata is not None:
        texts.append(f'"__metadata__": {json.dumps(metadata)}')
    for index, (name, dtype, shape) in enumerate(tensors):
        begin, end = end, end + SIZES.get(dtype, 1) * math.prod(shape)
        tensor = {"dtype": dtype, "shape": shape, "data_offsets": (lies or {}).get(index, (begin, end))}
        texts.append(f"{json.dumps(name)}: {json.dumps(tensor)}")
    return f"{{{', '.join(texts)}}}".encode(), end
