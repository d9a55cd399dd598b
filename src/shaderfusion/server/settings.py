"""A request's JSON -> settings of pictures, by the rules that the command line has for its options."""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection, Mapping
from typing import Any

from shaderfusion.errors import InputError
from shaderfusion.files import shown
from shaderfusion.making import fill_defaults, require_second_pass
from shaderfusion.server.refusal import RefusedError, field_name, field_of
from shaderfusion.server.setup import Limits, Setup

__all__ = ["KINDS", "PICTURES", "Fields", "require_known"]

KINDS: Mapping[str, str] = {
    "prompt": "string",
    "negative_prompt": "string",
    "model": "string",
    "width": "integer",
    "height": "integer",
    "steps": "integer",
    "guidance_scale": "number",
    "scheduler": "string",
    "seed": "integer",
    "num_images": "integer",
    "strength": "number",
    "eta": "number",
    "rng": "string",
    "seeds": "string",
    "clip_skip": "integer",
    "emphasis": "string",
    "prompt_syntax": "string",
    "hires": "number",
    "hires_steps": "integer",
    "hires_strength": "number",
    "optimizations": "string",
}
"""The options of `generate` that a client may give, and what each is in JSON. Files are not among them."""

PICTURES = ("image", "mask")
"""Fields that hold a picture, as a data URL."""

LONGEST_TEXT = 5000
"""Characters of a field."""

_BOUNDED = {
    "width": "max_side",
    "height": "max_side",
    "steps": "max_steps",
    "hires_steps": "max_steps",
    "num_images": "max_images",
}
"""Fields with a bound of the server's own."""


class Fields:
    """The fields of a request. `parser` has an option for each of KINDS, whose type, choices and help are its rules."""

    def __init__(self, parser: argparse.ArgumentParser, setup: Setup) -> None:
        self._parser = parser
        self._common = setup.common
        self._limits = setup.limits
        self._options = {action.dest: action for action in parser._actions}

    def about(self, name: str) -> str:
        """What the command line says of a field's option."""
        option = self._options[name]
        return (option.help or "") % {"choices": ", ".join(map(str, option.choices or ()))}

    def bound(self, name: str) -> str | None:
        """The name of the limit that bounds a field."""
        return _BOUNDED.get(name)

    def read(self, body: Mapping[str, Any], models: Collection[str], default_model: str) -> argparse.Namespace:
        """Settings of all options, but not pictures; RefusedError where a value is against its rule."""
        args = self._parser.parse_args([])
        vars(args).update(self._common)
        for name, value in body.items():
            if name in KINDS and value is not None:
                self._read(args, name, value)
        if args.prompt is None:
            raise RefusedError(400, "prompt must be given: what to show", "prompt")
        args.model = default_model if body.get("model") is None else args.model
        if args.model not in models:
            known = ", ".join(models)
            raise RefusedError(
                400, f"model (={shown(args.model)}) must be one of {known}; /api/models has them", "model"
            )
        fill_defaults(args)
        self._require_bounds(args, self._limits)
        try:
            require_second_pass(args)
        except InputError as error:
            raise RefusedError(400, str(error).replace("--", ""), field_of(error, KINDS)) from None
        return args

    def _read(self, args: argparse.Namespace, name: str, value: Any) -> None:
        """One field, as the option of its name would take the text."""
        if not _is_kind(value, KINDS[name]):
            raise RefusedError(400, f"{name} (={shown(value)}) must be {_WORDS[KINDS[name]]}", name)
        if isinstance(value, str) and len(value) > LONGEST_TEXT:
            raise RefusedError(400, f"{name} (={shown(value)}) must have at most {LONGEST_TEXT:,} characters", name)
        try:
            self._parser.parse_args([f"--{name.replace('_', '-')}={value}"], args)
        except argparse.ArgumentError as error:
            raise RefusedError(400, f"{name}: {error.message}", name) from None

    def _require_bounds(self, args: argparse.Namespace, limits: Limits) -> None:
        for name, limit in _BOUNDED.items():
            value, most = getattr(args, name), getattr(limits, limit)
            if value is not None and value > most:
                raise RefusedError(400, f"{name} (={value}) must be at most {most}, as this server is set", name)
        for side in ("width", "height"):
            value = getattr(args, side)
            if args.hires is not None and value is not None and value * args.hires > limits.max_side:
                sentence = f"hires (={args.hires:g}) times {side} (={value}) must be at most {limits.max_side}"
                raise RefusedError(400, f"{sentence}, as this server is set", "hires")


_WORDS = {"string": "a text", "integer": "a whole number", "number": "a finite number"}


def _is_kind(value: Any, kind: str) -> bool:
    match kind:
        case "string":
            return isinstance(value, str)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**64
        case _:
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            return is_number and abs(value) < 2**64 and math.isfinite(value)


def require_known(body: Mapping[str, Any], known: Collection[str]) -> None:
    """RefusedError of a field that there is not."""
    for name in body:
        if name not in known:
            raise RefusedError(400, f"{shown(name)} must be one of {', '.join(known)}", field_name(name))
