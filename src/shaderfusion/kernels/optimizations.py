"""Which of the paper's five optimizations are on."""

from dataclasses import dataclass
from typing import ClassVar

from shaderfusion.errors import InputError

__all__ = ["ALL_OPTIMIZATIONS", "Optimizations"]


@dataclass(frozen=True)
class Optimizations:
    """Which of the paper's five are allowed (Chen et al. 2023, arXiv 2304.11267); each has its baseline."""

    group_norm: bool = True
    geglu: bool = True
    partially_fused_softmax: bool = True
    flash_attention: bool = True
    winograd_conv: bool = True

    SHORT_NAMES: ClassVar[dict[str, str]] = {
        "gn": "group_norm",
        "geglu": "geglu",
        "pfs": "partially_fused_softmax",
        "flash": "flash_attention",
        "winograd": "winograd_conv",
    }
    ABOUT: ClassVar[dict[str, str]] = {
        "gn": "Group norm in one dispatch",
        "geglu": "GELU/GEGLU inside the projection",
        "pfs": "Partially fused softmax",
        "flash": "FlashAttention",
        "winograd": "Winograd convolution",
    }

    @classmethod
    def parse(cls, text: str) -> "Optimizations":
        """From `all`, `none`, or short names such as `gn,pfs`; InputError for another name."""
        chosen = {"all": set(cls.SHORT_NAMES), "none": set()}.get(text, {name.strip() for name in text.split(",")})
        for name in chosen - set(cls.SHORT_NAMES):
            names = ", ".join(cls.SHORT_NAMES)
            raise InputError(f"optimizations (={name!r}) must be all, none, or some of {names}, with commas between")
        return cls(**{field: short in chosen for short, field in cls.SHORT_NAMES.items()})


ALL_OPTIMIZATIONS = Optimizations()
