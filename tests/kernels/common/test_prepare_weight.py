"""Stored bytes to the kernels' layout and dtype: bit for bit, padded by parts, in slices, and what it finds."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from kernel_runner import tensor_out
from weights.safetensors_file import to_bytes

from shaderfusion.errors import ShapeError
from shaderfusion.gpu.device import Device
from shaderfusion.graph.graph import Graph
from shaderfusion.graph.program import Program
from shaderfusion.kernels import reference
from shaderfusion.kernels.call import KernelCall
from shaderfusion.kernels.common.prepare_weight import NOT_FINITE, OVER_F16, Places, StoredDType, prepare_weight
from shaderfusion.kernels.select import Kernels
from shaderfusion.tensor import DType, TensorSpec

STORED: tuple[StoredDType, ...] = ("F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")


def to_words(data: bytes) -> np.ndarray:
    """Whole words of bytes, the last filled up by ones, which must not matter."""
    return np.frombuffer(data + b"\xff" * (-len(data) % 4), np.uint32)


def words_in(name: str, words: np.ndarray) -> TensorSpec:
    """An input of words."""
    return TensorSpec(name, words.shape, "u32", "input")


def run(device: Device, calls: Sequence[KernelCall], words: dict[TensorSpec, np.ndarray]) -> tuple[np.ndarray, int]:
    """Runs calls with one output and flags for one weight, first NaN and 0: what they are then."""
    graph = Graph("test", Kernels("f32"))
    graph.calls = list(calls)
    out, flags = (binding.tensor.storage for binding in calls[0].bindings[1:])
    graph.inputs = {tensor.name: tensor for tensor in (*words, out, flags)}
    program = Program(device, graph, {})
    program.write(out.name, np.full(out.shape, np.nan))
    program.write(flags.name, np.zeros(1))
    for tensor, array in words.items():
        program.write(tensor.name, array)
    program.run()
    return program.read(out.name), int(program.read(flags.name)[0])


def prepare(
    device: Device,
    words: np.ndarray,
    stored: StoredDType,
    dtype: DType,
    taps: int,
    out_channels: Places,
    in_channels: Places,
) -> tuple[np.ndarray, int]:
    """The whole weight in one call."""
    out = tensor_out("out", taps, in_channels.places, out_channels.places, dtype=dtype)
    tensor, flags = words_in("words", words), TensorSpec("flags", (1,), "u32", "output")
    call = prepare_weight(tensor, out, flags, stored=stored, in_channels=in_channels, out_channels=out_channels)
    return run(device, [call], {tensor: words})


CASES = [  # taps, output channels, input channels
    (1, Places(4, 4), Places(1, 1)),  # the least
    (1, Places(5, 5), Places(1, 1)),  # a bias of no multiple of 4
    (1, Places(140, 140), Places(18, 18)),  # two workgroups each way, the second not full
    (9, Places(8, 8), Places(6, 6)),  # a filter, whose words hold two taps or two channels
    (9, Places(8, 8), Places(3, 3)),  # rows that begin within a word
    (1, Places(3, 8), Places(5, 8)),  # zeros at the end
    (4, Places(15, 24, 3), Places(6, 12, 3)),  # heads of 5 in 8, and of 2 in 4
    (1, Places(15, 24, 3), Places(9, 12, 3)),  # heads of 3 in 4: a part begins within a word
    (1, Places(12, 32, 2), Places(1, 1)),  # a vector and more of zeros
]


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize(("taps", "out_channels", "in_channels"), CASES, ids=str)
def test_prepare_weight(
    any_device: Device, stored: StoredDType, dtype: DType, taps: int, out_channels: Places, in_channels: Places
) -> None:
    shape = (out_channels.channels, in_channels.channels, taps)
    words = to_words(to_bytes(np.random.default_rng(0).standard_normal(shape), stored.lower()))
    actual, flags = prepare(any_device, words, stored, dtype, taps, out_channels, in_channels)
    expected, _ = reference.prepare_weight(
        words,
        stored=stored,
        shape=shape,
        in_places=in_channels.places,
        out_places=out_channels.places,
        in_parts=in_channels.parts,
        out_parts=out_channels.parts,
    )
    np.testing.assert_array_equal(actual, expected.astype(actual.dtype))
    assert flags == 0


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_every_f16(any_device: Device, dtype: DType) -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    bits = bits[np.isfinite(bits.view(np.float16))]
    channels = Places(bits.size, bits.size)
    actual, flags = prepare(any_device, bits.view(np.uint32), "F16", dtype, 1, channels, Places(1, 1))
    expected = bits.view(np.float16).astype(actual.dtype)
    view = f"u{actual.itemsize}"
    np.testing.assert_array_equal(actual.reshape(-1).view(view), expected.view(view))  # -0 is not 0
    assert flags == 0


@pytest.mark.parametrize("stored", ["F8_E4M3", "F8_E5M2"])
def test_every_f8(any_device: Device, stored: StoredDType) -> None:
    # NaN has its own test: which of its bits a device keeps is not said.
    bits = np.arange(256, dtype=np.uint8)
    values, _ = reference.prepare_weight(
        bits.view(np.uint32), stored=stored, shape=(256, 1, 1), in_places=1, out_places=256
    )
    finite = bits[np.isfinite(values.reshape(-1))]
    assert finite.size == {"F8_E4M3": 254, "F8_E5M2": 248}[stored]
    channels = Places(finite.size, finite.size)
    actual, flags = prepare(any_device, to_words(finite.tobytes()), stored, "f32", 1, channels, Places(1, 1))
    expected = values.reshape(-1)[finite].astype(np.float32)
    np.testing.assert_array_equal(actual.reshape(-1).view(np.uint32), expected.view(np.uint32))  # -0 is not 0
    assert flags == 0
    for other in set(bits) - set(finite):
        words = np.array([int(other) << 8, 0], np.uint32)
        assert prepare(any_device, words, stored, "f32", 1, Places(4, 4), Places(1, 1))[1] == NOT_FINITE


def test_every_normal_bf16(any_device: Device) -> None:
    bits = np.arange(2**16, dtype=np.uint16)
    bits = bits[(bits >> 7 & 0xFF > 0) & (bits >> 7 & 0xFF < 0xFF)]
    channels = Places(bits.size, bits.size)
    actual, _ = prepare(any_device, bits.view(np.uint32), "BF16", "f32", 1, channels, Places(1, 1))
    np.testing.assert_array_equal(actual.reshape(-1).view(np.uint32), bits.astype(np.uint32) << 16)


@pytest.mark.parametrize(
    ("value", "flags"),
    [
        (np.nan, NOT_FINITE),
        (-np.nan, NOT_FINITE),
        (np.inf, NOT_FINITE),
        (-np.inf, NOT_FINITE),
        (65536, OVER_F16),
        (-1e38, OVER_F16),
        (65280, 0),  # bf16's last below f16's largest
        (-1e-30, 0),
    ],
)
@pytest.mark.parametrize("stored", ["F32", "BF16"])
def test_flags(any_device: Device, stored: StoredDType, value: float, flags: int) -> None:
    source = np.ones((8, 6, 9), np.float32)
    source[6, 5, 7] = value
    words = to_words(to_bytes(source, stored.lower()))
    for dtype in ("f32", "f16"):
        assert prepare(any_device, words, stored, dtype, 9, Places(8, 8), Places(6, 6))[1] == flags
    with np.errstate(invalid="ignore"):
        assert reference.prepare_weight(words, stored=stored, shape=(8, 6, 9), in_places=6, out_places=8)[1] == flags


@pytest.mark.parametrize(
    ("bits", "flags"),
    [
        (0x477FEFFF, 0),  # just below 65520, rounds to 65504
        (0xC77FF000, OVER_F16),  # -65520
        (0x7F7FFFFF, OVER_F16),  # the largest
        (0x7F800001, NOT_FINITE),  # a signaling NaN
    ],
)
def test_flags_at_the_limits_of_f32(any_device: Device, bits: int, flags: int) -> None:
    words = np.array([0, bits, 0, 0], np.uint32)
    assert prepare(any_device, words, "F32", "f32", 1, Places(4, 4), Places(1, 1))[1] == flags


@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7C01, 0xFE00])
def test_flags_of_f16(any_device: Device, bits: int) -> None:
    words = np.array([bits << 16, 0], np.uint32)
    assert prepare(any_device, words, "F16", "f32", 1, Places(4, 4), Places(1, 1))[1] == NOT_FINITE
    assert reference.prepare_weight(words, stored="F16", shape=(4, 1, 1), in_places=1, out_places=4)[1] == NOT_FINITE


def test_flags_add_up(any_device: Device) -> None:
    words = np.array([1e9, 1, np.nan, 1], np.float32).view(np.uint32)
    assert prepare(any_device, words, "F32", "f16", 1, Places(4, 4), Places(1, 1))[1] == NOT_FINITE | OVER_F16


@pytest.mark.parametrize("stored", STORED)
def test_slices(any_device: Device, stored: StoredDType) -> None:
    # 3 heads of 5 channels in 8 places: slices end within a head, within its zeros, and hold no channel at all.
    out_channels, in_channels = Places(15, 48, 3), Places(6, 8)
    source = np.random.default_rng(0).standard_normal((15, 6, 9))
    out, flags = tensor_out("out", 9, 8, 48), TensorSpec("flags", (1,), "u32", "output")
    calls, inputs = [], {}
    for places in (range(4), range(4, 12), range(12, 16), range(16, 48)):
        first, end = map(out_channels.channels_before, (places.start, places.stop))
        words = to_words(to_bytes(source[first:end], stored.lower()) or b"\xff" * 4)
        tensor = words_in(f"words of {places}", words)
        inputs[tensor] = words
        options = {"stored": stored, "in_channels": in_channels, "out_channels": out_channels, "out_slice": places}
        calls.append(prepare_weight(tensor, out, flags, **options))
        alone = tensor_out("alone", 9, 8, len(places))
        sliced, _ = run(any_device, [prepare_weight(tensor, alone, flags, **options)], {tensor: words})
        expected = reference.prepare_weight(
            to_words(to_bytes(source, stored.lower())),
            stored=stored,
            shape=(15, 6, 9),
            in_places=8,
            out_places=48,
            out_parts=3,
        )[0]
        np.testing.assert_array_equal(sliced, expected[..., places.start : places.stop])
    actual, found = run(any_device, calls, inputs)
    np.testing.assert_array_equal(actual, expected)
    assert found == 0


def test_shape_errors() -> None:
    words, out = TensorSpec("words", (54,), "u32", "input"), tensor_out("out", 9, 4, 8)
    flags = TensorSpec("flags", (3,), "u32", "output")

    def call(words: TensorSpec = words, out: TensorSpec = out, weight: int = 2, **options: Any) -> KernelCall:
        places = {"in_channels": Places(4, 4), "out_channels": Places(3, 8), **options}
        return prepare_weight(words, out, flags, stored="F16", weight=weight, **places)

    call()
    with pytest.raises(ShapeError, match=r"words\[53\]:u32 must be the u32 words of 108 values of F16"):
        call(words=TensorSpec("words", (53,), "u32", "input"))
    with pytest.raises(ShapeError, match=r"words\[54\]:f32 must be the u32 words"):
        call(words=TensorSpec("words", (54,), "f32", "input"))
    with pytest.raises(ShapeError, match=r"out\[9, 8, 8\]:f32 must have"):
        call(out=tensor_out("out", 9, 8, 8))
    with pytest.raises(ShapeError, match=r"out\[9, 4, 12\]:f32 must have"):
        call(out=tensor_out("out", 9, 4, 12))
    with pytest.raises(ShapeError, match=r"weight \(=3\) must be one of the flags"):
        call(weight=3)
    with pytest.raises(ShapeError, match=r"places of output channels \(=3\) of .* must be a multiple of 4"):
        call(out=tensor_out("out", 9, 4, 3), out_channels=Places(3, 3))
    with pytest.raises(ShapeError, match=r"places of a part \(=2\) of"):
        call(out_channels=Places(4, 8, 4), words=TensorSpec("words", (72,), "u32", "input"))
    with pytest.raises(ShapeError, match=r"first place \(=2\) of"):
        call(out_slice=range(2, 8))
    with pytest.raises(ShapeError, match=r"places of a slice \(=6\) of"):
        call(out_slice=range(6))
    for channels, places, parts in ((5, 8, 2), (6, 8, 3), (9, 8, 1)):
        with pytest.raises(ShapeError, match=rf"{parts} equal parts of {channels} channels do not fit {places} places"):
            Places(channels, places, parts)
