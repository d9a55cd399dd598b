"""What a client is told when it is refused: a status, a sentence, and the field that caused it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from shaderfusion.errors import ShaderfusionError

__all__ = ["RefusedError", "field_name", "field_of"]

_LONGEST_NAME = 100

_BEGINNING = re.compile(r"(?:--)?([\w-]+)")
_OTHER_NAMES = {
    "num_inference_steps": "steps",
    "num_images_per_prompt": "num_images",
    "mask_image": "mask",
    "scale": "hires",
}
"""What the pipeline calls fields."""


class RefusedError(ShaderfusionError):
    """A request that is not done."""

    def __init__(
        self, status: int, sentence: str, field: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(sentence)
        self.status = status
        self.field = field
        self.headers = headers

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"error": str(self), "field": self.field}


def field_name(name: str) -> str | None:
    """A client's field as an answer may name it; None where it is too long, or no text."""
    return name if len(name) < _LONGEST_NAME and name.isprintable() else None


def field_of(error: ShaderfusionError, fields: Iterable[str]) -> str | None:
    """The field that an error's sentence begins with, as errors of arguments do; None where it names none."""
    if isinstance(error, RefusedError):
        return error.field
    found = _BEGINNING.match(str(error))
    name = found[1].replace("-", "_") if found else ""
    name = _OTHER_NAMES.get(name, name)
    return name if name in fields else None
