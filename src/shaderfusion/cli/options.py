"""Options that commands share: what each takes, and what it says of a value outside its rule."""

import argparse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from shaderfusion.arguments import LARGEST_F32, LARGEST_SCALE, require_guidance_scale, require_strength
from shaderfusion.files import shown

__all__ = [
    "DEFAULT_MODEL",
    "DTYPE_OF_DEVICE",
    "Names",
    "adapter",
    "add_batch",
    "add_device",
    "add_dtype",
    "add_json",
    "add_memory",
    "add_memory_at_once",
    "add_model",
    "add_model_options",
    "add_optimizations",
    "add_size",
    "add_tuning",
    "guidance_scale",
    "not_empty",
    "not_jobs",
    "rngs",
    "scale",
    "scheduler",
    "schedulers",
    "strength",
    "text",
    "whole_number",
]

DEFAULT_MODEL = "emoji"
DTYPE_OF_DEVICE = "f16 where the GPU has it, f32 on a CPU"


def add_model(parser: argparse.ArgumentParser, name: str, **options: Any) -> None:
    meaning = f"`{DEFAULT_MODEL}`, which is embedded, a folder in diffusers' format, a .safetensors file, or owner/name"
    meaning += " on the Hugging Face Hub"
    parser.add_argument(name, metavar="MODEL", type=not_empty, help=meaning, **options)


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """What `families.open_model` takes beside the model's name."""
    meaning = "a file or folder whose autoencoder takes the place of the model's own"
    parser.add_argument("--vae", type=Path, metavar="FILE|FOLDER", help=meaning)
    meaning = "epsilon or v_prediction: what a .safetensors file was trained to predict, where it does not say"
    parser.add_argument("--prediction-type", choices=("epsilon", "v_prediction"), metavar="NAME", help=meaning)
    parser.add_argument(
        "--revision", type=not_empty, metavar="NAME", help="branch, tag or commit of a model of the hub"
    )


def add_size(parser: argparse.ArgumentParser) -> None:
    for name in ("--width", "--height"):
        parser.add_argument(name, type=whole_number(1, 512), metavar="PX", help="default: the model's own")


def add_batch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=whole_number(1, 1), default=1, metavar="N", help="images at once; default: 1")


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", metavar="INDEX|NAME", help="see `shaderfusion devices`; default: the first")
    meaning = "%(choices)s; auto, the default, takes Dawn where it is installed and reaches the device's matrix units"
    parser.add_argument("--runtime", choices=Names(_runtimes), default="auto", metavar="NAME", help=meaning)


def add_dtype(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--dtype", choices=("f16", "f32"), help=f"default: {default}")


def add_memory(
    parser: argparse.ArgumentParser, said: str = "high where Dawn says that the device has 20 GiB or more, else normal"
) -> None:
    meaning = (
        "normal; low: networks take turns on the device, and pictures go through them one by one; high: weights of "
        f"convolutions are kept in a form that is larger, and faster; default: {said}"
    )
    parser.add_argument("--memory", choices=Names(_memories), metavar="NAME", help=meaning)


def add_memory_at_once(parser: argparse.ArgumentParser, default: str | None = "normal") -> None:
    meaning = (
        f"normal or high, as for `shaderfusion generate`; default: {default or 'what generate uses on this device'}"
    )
    parser.add_argument("--memory", choices=("normal", "high"), default=default, metavar="NAME", help=meaning)


def add_optimizations(parser: argparse.ArgumentParser) -> None:
    meaning = "all (the default), none, or some of gn,geglu,pfs,flash,winograd, with commas between"
    parser.add_argument("--optimizations", default="all", metavar="NAMES", help=meaning)


def add_tuning(parser: argparse.ArgumentParser, default: str) -> None:
    meaning = f"a file of `shaderfusion tune`, `auto` (this device's own, if there is one) or `off`; default: {default}"
    parser.add_argument("--tuning", default=default, metavar="auto|off|FILE", help=meaning)


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


class Names:
    """The choices of an option, looked up where they are needed: their modules import others, which takes time.

    Where the option's type refuses what is not one, `has_other_names` leaves that to it.
    """

    def __init__(self, load: Callable[[], Iterable[str]], *, has_other_names: bool = False) -> None:
        self._load = load
        self._has_other_names = has_other_names

    def __contains__(self, name: object) -> bool:
        return self._has_other_names or name in tuple(self)

    def __iter__(self) -> Iterator[str]:
        return iter(self._load())


def schedulers() -> Iterable[str]:
    from shaderfusion.schedulers import SCHEDULERS

    return SCHEDULERS


def scheduler(text: str) -> str:
    """The short name of a scheduler."""
    from shaderfusion.errors import InputError
    from shaderfusion.schedulers import find_scheduler

    try:
        return str(find_scheduler(text))
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def rngs() -> Iterable[str]:
    from shaderfusion.seeds import RNGS

    return RNGS


def _memories() -> Iterable[str]:
    from shaderfusion.families.run_size import MEMORIES

    return MEMORIES


def _runtimes() -> Iterable[str]:
    from shaderfusion.gpu.backend import RUNTIMES

    return ("auto", *RUNTIMES)


def whole_number(minimum: int, example: int, maximum: int = 1_000_000) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = minimum - 1
        if not minimum <= number <= maximum:
            raise argparse.ArgumentTypeError(
                f"{shown(text)} must be a whole number from {minimum} to {maximum}, such as {example}"
            )
        return number

    return parse


def guidance_scale(text: str) -> float:
    try:
        return require_guidance_scale(float(text))
    except ValueError:  # InputError is one
        raise argparse.ArgumentTypeError(
            f"{shown(text)} must be a number from 0 to {LARGEST_F32:.2g}, such as 7.5"
        ) from None


def strength(text: str) -> float:
    try:
        return require_strength(float(text))
    except ValueError:  # also of no number; InputError is one
        raise argparse.ArgumentTypeError(f"{shown(text)} must be a number above 0 and at most 1") from None


def scale(text: str) -> float:
    try:
        if 1 <= float(text) <= LARGEST_SCALE:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{shown(text)} must be a number from 1 to {LARGEST_SCALE}, such as 2")


def adapter(text: str) -> tuple[Path, float]:
    """A path, and a number after its last colon, by default 1."""
    path, colon, strength = text.rpartition(":")
    try:
        return (Path(path), float(strength)) if colon and path else (Path(text), 1.0)
    except ValueError:  # a colon of the path
        return Path(text), 1.0


def not_jobs(text: str) -> str:
    """Any value but a file of jobs, which an option that need not have one, or may have several, would take."""
    from shaderfusion.batch.jobs import READERS

    if "=" not in text and Path(text).suffix.lower() in READERS:
        raise argparse.ArgumentTypeError(f"{shown(text)} is no value of it; name the file of jobs before this option")
    return text


def text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(
            f"{shown(text)} must be valid Unicode; check the terminal's encoding"
        ) from None
    return text


def not_empty(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} must name a model: `{DEFAULT_MODEL}`, a path or owner/name")
    return text
