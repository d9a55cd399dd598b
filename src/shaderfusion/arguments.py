"""Rules of arguments, and errors, that the command line and the pipeline share. Imports nothing that takes time."""

from shaderfusion.errors import InputError

__all__ = [
    "LARGEST_COUNT",
    "LARGEST_F32",
    "LARGEST_SCALE",
    "LARGEST_SEED",
    "missing_extra",
    "require_guidance_scale",
    "require_strength",
]

LARGEST_COUNT = 2**31 - 1
"""Of pixels on a side, and of pictures."""
LARGEST_F32 = (2 - 2**-23) * 2.0**127
LARGEST_SCALE = 16
"""Of a second pass's sides to the first one's."""
LARGEST_SEED = 2**64 - 1
"""Torch's."""


def require_guidance_scale(value: object) -> float:
    """The number; InputError unless it is one from 0 to the largest of f32, in which the GPU computes."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= LARGEST_F32:
        raise InputError(
            f"guidance_scale (={value!r}) must be a number from 0 to {LARGEST_F32:.2g}, f32's largest; "
            "1 or less turns guidance off"
        )
    return float(value)


def require_strength(value: object) -> float:
    """The number; InputError unless it is one above 0 and at most 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
        raise InputError(f"strength (={value!r}) must be a number above 0 and at most 1, the part of the steps to run")
    return float(value)


def missing_extra(what: str, extra: str) -> InputError:
    """The error of what needs an extra that is not installed, with the command that README has for it."""
    return InputError(
        f'{what} needs the extra {extra}, which is not installed; run `pip install -e ".[{extra}]"` in the folder of '
        "shaderfusion's source"
    )
