"""The rules that fields of a configuration obey, as annotations, and the reading of JSON into a frozen dataclass."""

import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from shaderfusion.errors import ModelError
from shaderfusion.files import is_folder, load_json, shown

__all__ = [
    "Config",
    "Count",
    "Depth",
    "DepthPerBlock",
    "DepthPerLayer",
    "Fixed",
    "Fraction",
    "Fractions",
    "Indices",
    "Number",
    "Offset",
    "PerSide",
    "Positive",
    "Width",
    "WidthPerBlock",
    "Widths",
]


@dataclass(frozen=True)
class _Rule:
    """What a field may hold, as a test and as words that complete "must be"."""

    accepts: Callable[[Any], bool]
    words: str


def _is_int(value: object, minimum: int, maximum: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum


def _is_number(value: object, minimum: float, maximum: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and minimum <= value <= maximum


def _is_tuple(value: object, accepts: Callable[[Any], bool]) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and all(accepts(item) for item in value)


def _whole(minimum: int, maximum: int) -> _Rule:
    return _Rule(lambda v: _is_int(v, minimum, maximum), f"a whole number from {minimum} to {maximum}")


def _per_block(item: _Rule) -> _Rule:
    return _Rule(lambda v: item.accepts(v) or _is_tuple(v, item.accepts), f"{item.words}, or a list of them")


def _is_fraction(value: Any) -> bool:
    return _is_number(value, 0, 1) and 0 < value < 1


# The bounds are far beyond any model of these kinds; they keep absurd numbers from being recorded for hours.
_WIDTH = _whole(1, 32768)
_DEPTH = _whole(1, 64)
_OPTIONAL_DEPTH = _whole(0, 64)
_MAX_BLOCKS = 8

Width = Annotated[int, _WIDTH]
Depth = Annotated[int, _DEPTH]
Count = Annotated[int, _whole(1, 1_000_000)]
Offset = Annotated[int, _whole(0, 1_000_000)]
Positive = Annotated[float, _Rule(lambda v: _is_number(v, 1e-30, 1e30), "a number from 1e-30 to 1e30")]  # finite in f32
Number = Annotated[float, _Rule(lambda v: _is_number(v, -math.inf, math.inf), "a number")]
Fraction = Annotated[float, _Rule(_is_fraction, "a number between 0 and 1")]
Fractions = Annotated[
    tuple[float, ...], _Rule(lambda v: _is_tuple(v, _is_fraction), "a list of numbers between 0 and 1")
]
Indices = Annotated[
    tuple[int, ...],
    _Rule(lambda v: v == () or _is_tuple(v, _whole(0, 1_000_000).accepts), "a list of whole numbers, or an empty one"),
]
Widths = Annotated[
    tuple[int, ...],
    _Rule(
        lambda v: _is_tuple(v, _WIDTH.accepts) and len(v) <= _MAX_BLOCKS,
        f"a list of 1 to {_MAX_BLOCKS}, each {_WIDTH.words}",
    ),
]
WidthPerBlock = Annotated[int | tuple[int, ...], _per_block(_WIDTH)]
DepthPerBlock = Annotated[int | tuple[int, ...], _per_block(_DEPTH)]
DepthPerLayer = Annotated[
    int | tuple[int | tuple[int, ...], ...],
    _Rule(
        _per_block(_per_block(_OPTIONAL_DEPTH)).accepts, f"{_OPTIONAL_DEPTH.words}, or a list of them or their lists"
    ),
]
PerSide = Annotated[
    int | tuple[int, int],
    _Rule(
        lambda v: _WIDTH.accepts(v) or (_is_tuple(v, _WIDTH.accepts) and len(v) == 2),
        f"{_WIDTH.words}, or a list of two: height and width",
    ),
]
_BUILT_IN = {
    bool: _Rule(lambda v: isinstance(v, bool), "true or false"),
    str: _Rule(lambda v: isinstance(v, str), "a string"),
}

Fixed = Mapping[str, tuple[object, ...]]  # JSON key -> the values that are implemented


def _rule(annotation: Any) -> _Rule:
    """The rule of a field's annotation: a built-in type, a Literal, one of the aliases above, or any of them | None."""
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in _BUILT_IN:
        return _BUILT_IN[annotation]
    if origin is Literal:
        return _Rule(lambda v: isinstance(v, str) and v in args, "one of " + ", ".join(map(repr, args)))
    if origin is tuple:
        item = _rule(args[0])
        return _Rule(lambda v: _is_tuple(v, item.accepts), f"a list, each {item.words}")
    if origin is Annotated:
        return annotation.__metadata__[0]
    if origin in (typing.Union, types.UnionType) and args[1:] == (types.NoneType,):
        value = _rule(args[0])
        return _Rule(lambda v: v is None or value.accepts(v), f"{value.words}, or null")
    raise TypeError(f"no rule for the annotation {annotation}")


@dataclass(frozen=True)
class Config:
    """Reading and checking, shared by all configurations."""

    _FILE: ClassVar[str] = "config.json"
    _FIXED: ClassVar[Fixed] = {}
    _FIELD_OF_KEY: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def from_json(cls, path: Path | str) -> Self:
        """Read the JSON file at `path`, or the one of the usual name when `path` is the component's folder.

        Raises ModelError: no such file, not JSON, an option that is not implemented, a value outside its rule.
        """
        file = Path(path)
        if is_folder(file):
            file = file / cls._FILE
        return cls.from_options(load_json(file), str(file))

    @classmethod
    def from_options(cls, options: Mapping[str, Any], source: str) -> Self:
        """From what such a JSON file holds; errors name the source."""
        for key, supported in cls._FIXED.items():
            if key in options and _without_repeats(options[key]) not in supported:
                choices = " or ".join(json.dumps(value) for value in supported)
                raise ModelError(
                    f"{source}: {key} (={shown(options[key])}) is not supported: only {choices} is implemented; "
                    "choose another model"
                )
        names = {field.name for field in fields(cls)}
        renamed = {cls._FIELD_OF_KEY.get(key, key): _frozen(value) for key, value in options.items()}
        try:
            return cls(**{name: value for name, value in renamed.items() if name in names})
        except ModelError as error:
            raise ModelError(f"{source}: {error}") from None

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self), include_extras=True)
        for field in fields(self):
            value, rule = getattr(self, field.name), _rule(hints[field.name])
            if not rule.accepts(value):
                raise ModelError(f"{type(self).__name__}: {field.name} (={shown(value)}) must be {rule.words}")
        self._check_relations()

    def _check_relations(self) -> None:
        """Rules between two fields; each value alone is already known to be right."""

    def _require(self, holds: bool, key: str, rule: str) -> None:
        if not holds:
            raise ModelError(f"{type(self).__name__}: {key} (={shown(getattr(self, key))}) must {rule}")

    def _require_divisible(self, key: str, divisor: str) -> None:
        """Each number of field `key` is a multiple of field `divisor`."""
        number = getattr(self, divisor)
        numbers = getattr(self, key)
        numbers = numbers if isinstance(numbers, tuple) else (numbers,)
        self._require(all(n % number == 0 for n in numbers), key, f"be divisible by {divisor} (={number})")


def _without_repeats(value: Any) -> Any:
    """A list of one repeated value (an option given per block) as that value."""
    return value[0] if isinstance(value, list) and value and value == value[:1] * len(value) else value


def _frozen(value: Any) -> Any:
    """JSON lists as tuples, so that a frozen dataclass is hashable."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
