"""Files of jobs: a prompt a line, a table with a column for each setting, or a JSON object a line."""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shaderfusion.errors import InputError, ModelError
from shaderfusion.files import load_text, parse_json, shown

__all__ = ["ALIASES", "READERS", "Job", "read_jobs", "read_variation", "vary"]

ALIASES: Mapping[str, str] = {"guidance": "guidance_scale", "negative": "negative_prompt"}
"""Short names of settings."""

MOST_JOBS = 100_000
_REMEDY = "correct the file"


@dataclass(frozen=True)
class Job:
    """Settings of one picture by the names of options, as texts, and where they stand, which errors name."""

    settings: Mapping[str, str]
    place: str


def read_jobs(path: Path, known: Collection[str]) -> list[Job]:
    """The jobs of a .txt, .csv or .jsonl file; `known` are the settings that a job may have.

    InputError for another suffix or setting, a line without a prompt, no jobs, or over 100,000; ModelError for a file
    that cannot be read.
    """
    if path.suffix.lower() not in READERS:
        raise InputError(f"jobs (={path}) must be a file that ends in {', '.join(READERS)}")
    jobs = []
    text = load_text(path, _REMEDY, missing="check its name").removeprefix("\ufeff")
    for line, given in READERS[path.suffix.lower()](path, text):
        place = f"{path}, line {line}"
        settings: dict[str, str] = {}
        for key, value in given.items():
            option = _option(key, known, place)
            if option in settings:
                raise InputError(f"{place}: must have {option} once, also by another name; {_REMEDY}")
            settings[option] = value
        if "prompt" not in settings:
            raise InputError(f"{place}: must have a prompt; {_REMEDY}")
        jobs.append(Job(settings, place))
        _require_few(len(jobs), str(path))
    if not jobs:
        raise InputError(f"jobs (={path}) must have at least one job")
    return jobs


def _read_lines(path: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    for line, prompt in enumerate(io.StringIO(text, newline=None), start=1):  # not at U+2028, as splitlines would
        if prompt.strip():
            yield line, {"prompt": prompt.strip()}


def _read_table(path: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Empty cells are settings that are not given. Cells lie between commas, or semicolons, as some programs write."""
    heading = re.split("[\r\n]", text, maxsplit=1)[0]
    delimiter = ";" if ";" in heading and "," not in heading else ","
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = [name for name in rows.fieldnames or () if name]
        if len(set(names)) < len(names):
            raise InputError(f"{path}, line 1: must have each column once, not {', '.join(names)}; {_REMEDY}")
        for row in rows:
            if None in row or None in row.values():
                raise InputError(f"{path}, line {rows.line_num}: must have as many cells as the first line; {_REMEDY}")
            yield rows.line_num, {key: value for key, value in row.items() if value}
    except csv.Error as error:
        raise InputError(f"{path}, line {rows.line_num}: is not CSV ({error}); {_REMEDY}") from None


def _read_objects(path: Path, text: str) -> Iterator[tuple[int, dict[str, str]]]:
    """null is a setting that is not given."""
    for line, entry in enumerate(text.split("\n"), start=1):
        if entry.strip():
            place = f"{path}, line {line}"
            try:
                settings = parse_json(place, entry, _REMEDY)
            except ModelError as error:
                raise InputError(str(error)) from None
            for key, value in settings.items():
                if isinstance(value, (bool, dict, list)):
                    raise InputError(f"{place}: {shown(key)} (={shown(value)}) must be a text or a number; {_REMEDY}")
            yield line, {key: str(value) for key, value in settings.items() if value is not None}


READERS = {".txt": _read_lines, ".csv": _read_table, ".jsonl": _read_objects}
"""By the suffix of a file of jobs."""


def _option(name: str, known: Collection[str], place: str) -> str:
    """The option that a name of a setting stands for."""
    plain = name.strip().lower().replace("-", "_").replace(" ", "_")
    option = ALIASES.get(plain, plain)
    if option not in known:
        raise InputError(f"{place}: {shown(name)} must be one of {', '.join(known)}")
    return option


def read_variation(text: str, known: Collection[str]) -> tuple[str, list[str]]:
    """A setting and its values, of `seed=1..4` or `guidance=5,7`; InputError for another text."""
    name, equals, values = text.partition("=")
    if not equals or not values:
        raise InputError(f"--vary (={shown(text)}) must be NAME=VALUE,VALUE,... or NAME=FIRST..LAST, such as seed=1..4")
    option = _option(name, known, "--vary")
    ends = re.fullmatch(r"(\d{1,20})\.\.(\d{1,20})", values)
    if not ends:
        return option, values.split(",")
    first, last = int(ends[1]), int(ends[2])
    _require_few(last - first + 1, f"--vary (={text})")
    if last < first:
        raise InputError(f"--vary (={text}) must have its smaller number first")
    return option, [str(number) for number in range(first, last + 1)]


def vary(jobs: Sequence[Job], variations: Sequence[tuple[str, list[str]]]) -> list[Job]:
    """Each job once for each combination of the values, the last of which changes fastest.

    InputError for a setting that is given twice, and for over 100,000 jobs.
    """
    _require_few(len(jobs) * math.prod(len(values) for _, values in variations), "--vary")
    names = [name for name, _ in variations]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"--vary must have {name} once, with all of its values, such as {name}=A,B")
    return [
        Job({**job.settings, **dict(zip(names, values, strict=True))}, job.place)
        for job in jobs
        for values in itertools.product(*(values for _, values in variations))
    ]


def _require_few(number: int, what: str) -> None:
    if number > MOST_JOBS:
        raise InputError(f"{what} must make at most {MOST_JOBS:,} jobs, not {number:,}; use several files")
