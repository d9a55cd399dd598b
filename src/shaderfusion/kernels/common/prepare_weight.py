"""A weight as a safetensors file stores it to the kernels' layout and dtype, padded with zeros, and checked."""

from dataclasses import dataclass
from typing import Literal

from shaderfusion.errors import ShapeError
from shaderfusion.kernels.call import MAX_WORKGROUPS_PER_DIMENSION, Binding, KernelCall, ceil_div, read, write
from shaderfusion.tensor import TensorSpec

__all__ = [
    "F16_OVERFLOW",
    "MAX_PLACES",
    "NOT_FINITE",
    "OVER_F16",
    "STORED_SIZE_BYTES",
    "Places",
    "StoredDType",
    "prepare_weight",
]

StoredDType = Literal["F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"]
"""A tensor's dtype, as safetensors names it."""

STORED_SIZE_BYTES: dict[StoredDType, int] = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}

NOT_FINITE = 1
"""Flag of a weight that has a stored value that is NaN or infinite."""
OVER_F16 = 2
"""Flag of a weight that has a finite stored value which f16 rounds to infinity."""
F16_OVERFLOW = 65520
"""The least value that it rounds to infinity."""

_OUT_LANES, _IN_LANES = 32, 8

MAX_PLACES = 4 * _OUT_LANES * MAX_WORKGROUPS_PER_DIMENSION
"""Of output channels, in one call."""


@dataclass(frozen=True)
class Places:
    """Where channels go: of `parts` equal parts, each to the first of as many equal parts of the places."""

    channels: int
    places: int
    parts: int = 1

    def __post_init__(self) -> None:
        if self.channels % self.parts or self.places % self.parts or self.channels > self.places:
            raise ShapeError(f"{self.parts} equal parts of {self.channels} channels do not fit {self.places} places")

    @property
    def part_channels(self) -> int:
        """Channels of one part."""
        return self.channels // self.parts

    @property
    def part_places(self) -> int:
        """Places of one part."""
        return self.places // self.parts

    def channels_before(self, place: int) -> int:
        """How many channels go to places before that one."""
        part, d = divmod(place, self.part_places)
        return part * self.part_channels + min(d, self.part_channels)


def prepare_weight(
    words: TensorSpec,
    out: TensorSpec,
    flags: TensorSpec,
    *,
    stored: StoredDType,
    in_channels: Places,
    out_channels: Places,
    out_slice: range | None = None,
    weight: int = 0,
) -> KernelCall:
    """words: (n,) u32 with the source (O, I, T), out: (T, I', O'), flags: (weights,) u32.

    With `out_slice` the words hold only the channels of O that go to those places of O', and only those are written;
    out may be (T, I', len(out_slice)). Adds NOT_FINITE and OVER_F16 to flags[weight]. Where out has more than one row,
    places of output channels must be multiples of 4; where they are padded by parts, those of a part.
    """
    T, I_places, columns = out.shape
    places = range(out_channels.places) if out_slice is None else out_slice
    first_channel, end_channel = map(out_channels.channels_before, (places.start, places.stop))
    num_stored = (end_channel - first_channel) * in_channels.channels * T
    if words.dtype != "u32" or words.size * 4 < num_stored * STORED_SIZE_BYTES[stored]:
        raise ShapeError(f"prepare_weight: {words} must be the u32 words of {num_stored} values of {stored}")
    if I_places != in_channels.places or columns not in (out_channels.places, len(places)):
        raise ShapeError(f"prepare_weight: {out} must have {in_channels} and {out_channels}, or {places} of them")
    if flags.dtype != "u32" or not 0 <= weight < flags.size:
        raise ShapeError(f"prepare_weight: weight (={weight}) must be one of the flags {flags}")
    one_row = T * I_places == 1
    for name, value, needed in (
        ("first place", places.start, True),
        ("places of a slice", len(places), places.stop != out_channels.places),
        ("places of output channels", columns, not one_row),
        ("places of a part", out_channels.part_places, out_channels.parts > 1),
    ):
        if needed and value % 4:
            raise ShapeError(f"prepare_weight: {name} (={value}) of {out} must be a multiple of 4")
    per_word = 4 // STORED_SIZE_BYTES[stored]
    packed = in_channels.part_channels % per_word == in_channels.part_places % per_word == 0
    channels = per_word if packed else 1
    out_lanes, in_lanes = (_OUT_LANES * _IN_LANES, 1) if I_places == 1 else (_OUT_LANES, _IN_LANES)
    params = {
        "in_places": I_places,
        "in_channels": in_channels.channels,
        "in_part_places": in_channels.part_places,
        "in_part_channels": in_channels.part_channels,
        "out_part_places": out_channels.part_places,
        "out_part_channels": out_channels.part_channels,
        "out_row": ceil_div(columns, 4),
        "out_first": 0 if columns == len(places) else places.start,
        "first_place": places.start,
        "end_place": places.stop,
        "first_channel": first_channel,
        "taps": T,
        "weight": weight,
    }
    return KernelCall(
        source="common/prepare_weight.wgsl",
        entry_point="prepare_weight",
        dtype=out.dtype,
        bindings=(*read(words), *write(out), Binding(flags, "read_write")),
        constants={
            "OUT_LANES": out_lanes,
            "IN_LANES": in_lanes,
            "STORED": stored,
            "PER_WORD": per_word,
            "CHANNELS": channels,
        },
        params=params,
        workgroups=(ceil_div(len(places), 4 * out_lanes), ceil_div(I_places, channels * in_lanes), 1),
    )
