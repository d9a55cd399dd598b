"""`shaderfusion batch`: a file of jobs -> a folder of pictures. The same command again makes what is missing."""

import argparse
import hashlib
import itertools
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shaderfusion.cli.generate import add_generating
from shaderfusion.cli.options import text, whole_number
from shaderfusion.errors import DeviceLostError, InputError, ShaderfusionError
from shaderfusion.making import (
    NO_SETTINGS,
    Hashes,
    fill_defaults,
    fill_model_defaults,
    find_adapters,
    make_job_request,
    make_settings,
    open_model_and_device,
    slug,
)
from shaderfusion.output import progress_line, require_writable, say, show, write_whole
from shaderfusion.progress import JobProgress, Stage

if TYPE_CHECKING:
    from shaderfusion.batch.interrupts import Interrupts
    from shaderfusion.families.family import Family
    from shaderfusion.pipeline import StableDiffusionPipeline
    from shaderfusion.request import Request

__all__ = ["add_parser"]

PER_JOB = ("prompt", "negative_prompt", "steps", "guidance_scale", "seed", "scheduler", "width", "height")
PER_JOB += ("eta", "rng")
"""Options of `generate` that each job may give; others are of the whole command."""

_ROUNDING = ("runtime", "dtype", "optimizations", "tuning", "memory")
"""Options that change pictures by rounding alone."""

_NO_MATTER = {*NO_SETTINGS, *_ROUNDING} - {"lora_dir"}
"""Options that names do not depend on. The folder of adapters is not said in a picture, which names those it has."""

_REPORT, _CONTACT = "report.jsonl", "contact.png"
_MOST_COLUMNS = 20
_INTERRUPTED = 130


@dataclass(frozen=True)
class _Task:
    """A job as options of `generate`, and the file that it makes."""

    args: argparse.Namespace
    path: Path
    label: str


_Ready = tuple[_Task, "Request"]


def add_parser(commands: Any) -> None:
    """`shaderfusion batch`, for the parser of commands."""
    batch = commands.add_parser("batch", help="make the pictures of a file of jobs", allow_abbrev=False)
    batch.set_defaults(command=_run)
    meaning = "a prompt a line (.txt), a column for each setting (.csv), or an object a line (.jsonl); settings are "
    batch.add_argument("jobs", type=Path, metavar="JOBS", help=meaning + ", ".join(PER_JOB))
    meaning = "where pictures, report.jsonl and contact.png go; is made; pictures that are there are not made again"
    batch.add_argument("--output-dir", type=Path, required=True, metavar="FOLDER", help=meaning)
    meaning = "every job with each of the values, such as seed=1..4 guidance=5,7"
    batch.add_argument("--vary", nargs="+", action="extend", default=[], metavar="NAME=VALUES", help=meaning)
    meaning = "pictures made at once where they differ in prompts and seeds alone, which rounds otherwise; default: 1"
    batch.add_argument("--at-once", type=whole_number(1, 4, 1000), default=1, metavar="N", help=meaning)
    add_generating(batch, "a number that follows from the job's settings")


def _run(args: argparse.Namespace) -> int:
    """0, 1 where a job failed, 130 after Ctrl-C."""
    tasks, num_failed = _plan(args)
    missing = [task for task in tasks if not task.path.exists()]
    if missing:
        from shaderfusion.batch.interrupts import Interrupts

        with Interrupts() as interrupts:
            num_failed += _make(args, missing, interrupts)
        if interrupts.asked:
            there = sum(task.path.exists() for task in tasks)
            say(f"interrupted; {there} of {len(tasks)} pictures are there, and the same command makes the others")
            return _INTERRUPTED
    if tasks:
        _write_contact_sheet(args, tasks)
    return 1 if num_failed else 0


def _plan(args: argparse.Namespace) -> tuple[list[_Task], int]:
    """The jobs of the file, each once, and how many are none; InputError for what no job could go on with."""
    from shaderfusion.batch.jobs import read_jobs, read_variation, vary

    variations = [read_variation(text, PER_JOB) for text in args.vary]
    jobs = vary(read_jobs(args.jobs, PER_JOB), variations)
    try:
        args.output_dir.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise InputError(f"--output-dir (={args.output_dir}) cannot be a folder ({error}); choose another") from None
    require_writable("--output-dir", args.output_dir / _REPORT, ".jsonl", _REPORT)
    parser = _job_parser()
    differing = [name for name in PER_JOB if len({job.settings.get(name) for job in jobs}) > 1] or ["prompt"]
    tasks: dict[Path, _Task] = {}
    num_failed = 0
    for job in jobs:
        shown = {name: job.settings[name] for name in differing if name in job.settings}
        label = ", ".join(value if name == "prompt" else f"{name} {value}" for name, value in shown.items())
        options = [f"--{name.replace('_', '-')}={value}" for name, value in job.settings.items()]
        try:
            task = _task(parser.parse_args(options, argparse.Namespace(**vars(args))), label)
            tasks.setdefault(task.path, task)
        except argparse.ArgumentError as error:
            _fail(args, {"prompt": job.settings["prompt"]}, f"{job.place}: {error}")
            num_failed += 1
    return list(tasks.values()), num_failed


def _job_parser() -> argparse.ArgumentParser:
    """Of the options of one job, by the rules that `generate` has for them."""
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    add_generating(parser)
    parser.add_argument("--prompt", type=text)
    return parser


def _task(args: argparse.Namespace, label: str) -> _Task:
    """With a name, and a seed where none is given, that follow from all that the picture depends on."""
    fill_defaults(args)
    given = {key: value for key, value in vars(args).items() if value is not None and value != []}
    depends = {key: value for key, value in given.items() if key not in _NO_MATTER}
    digest = hashlib.sha256(json.dumps(depends, sort_keys=True, default=str).encode()).hexdigest()
    if args.seed is None:
        args.seed = int(digest[:8], 16)
    return _Task(args, args.output_dir / f"{slug(args.prompt)}-{digest[:12]}.png", label)


def _fail(args: argparse.Namespace, entry: Mapping[str, Any], error: str) -> None:
    from shaderfusion.batch.report import append_line

    say(error)
    append_line(args.output_dir / _REPORT, {**entry, "status": "failed", "error": error})


def _make(args: argparse.Namespace, tasks: Sequence[_Task], interrupts: "Interrupts") -> int:
    """Makes the tasks' pictures, as far as no interrupt comes between; returns how many failed."""

    def check(model: "Family") -> "tuple[Family, list[_Ready]]":
        ready = list(_requests(args, model, tasks))
        args.lora = find_adapters(args, [request for _, request in ready])
        return model, ready

    (model, ready), load = open_model_and_device(args, check)
    num_failed = len(tasks) - len(ready)
    if not ready:
        return num_failed
    groups = list(_groups(ready, args.at_once))
    job = JobProgress([_stage(group) for group in groups])
    with progress_line(job):
        pipe = load(ready[0][1].size)
        hashes = Hashes(args, model)
        for index, group in enumerate(groups):
            if interrupts.asked:
                break
            job.start(index)
            num_failed += _make_group(args, group, pipe, hashes, interrupts, job)
    return num_failed


def _stage(group: "Sequence[_Ready]") -> Stage:
    """The run that makes the group's pictures."""
    _, request = group[0]
    return Stage(request.num_steps, work=len(group) * request.size.pixels)


def _groups(ready: "Sequence[_Ready]", at_once: int) -> "Iterator[list[_Ready]]":
    """Neighbours that can be one run: equal in all but their texts and seeds, whose noise is drawn before it."""

    def key(entry: "_Ready") -> Any:
        task, request = entry
        is_noisy = any(update.c_noise for update in request.schedule.updates)
        one_run = [getattr(task.args, name) for name in PER_JOB if name not in ("prompt", "negative_prompt", "seed")]
        return (one_run, task.args.negative_prompt is None, request.adapters, task.path if is_noisy else None)

    for _, same in itertools.groupby(ready, key):
        entries = list(same)
        yield from (entries[first : first + at_once] for first in range(0, len(entries), at_once))


def _make_group(
    args: argparse.Namespace,
    group: "Sequence[_Ready]",
    pipe: "StableDiffusionPipeline",
    hashes: Hashes,
    interrupts: "Interrupts",
    job: JobProgress,
) -> int:
    """The pictures of one run; returns how many failed. Where a run of several fails, each has one of its own."""
    try:
        _make_pictures(group, pipe, hashes, interrupts, job)
        return 0
    except DeviceLostError:
        raise
    except ShaderfusionError as error:
        if len(group) > 1:
            missing = [entry for entry in group if not entry[0].path.exists()]
            num_failed = 0
            for entry in missing:
                job.restart()
                num_failed += _make_group(args, [entry], pipe, hashes, interrupts, job)
            return num_failed
        ((task, _),) = group
        _fail(args, _entry(task), f"{task.path.name}: {error}")
        return 1


def _requests(args: argparse.Namespace, model: "Family", tasks: Sequence[_Task]) -> "Iterator[_Ready]":
    """Of the tasks that the model can do; the others fail."""
    for task in tasks:
        fill_model_defaults(task.args, model)
        try:
            request = make_job_request(model, task.args)
            find_adapters(args, [request])
            yield task, request
        except ShaderfusionError as error:
            _fail(args, _entry(task), f"{task.path.name}: {error}")


def _make_pictures(
    group: "Sequence[_Ready]",
    pipe: "StableDiffusionPipeline",
    hashes: Hashes,
    interrupts: "Interrupts",
    job: JobProgress,
) -> None:
    """One run, whose pictures are written as soon as they are done; none where an interrupt comes first."""
    from shaderfusion.batch.report import append_line
    from shaderfusion.metadata.image_files import encode
    from shaderfusion.metadata.settings import make_texts

    started = time.perf_counter()
    _, request = group[0]
    run = pipe.run(request if len(group) == 1 else _one_request(group, pipe.model))
    run.watch = job.begin
    for progress in run:
        job.advance()
        if interrupts.asked and not progress.images:
            return
        for (task, own), image in zip(group, progress.images or (), strict=progress.images is not None):
            texts = make_texts(make_settings(task.args, pipe, own, hashes))
            write_whole("--output-dir", task.path, encode(image, task.path.suffix, texts))
            seconds = (time.perf_counter() - started) / len(group)
            append_line(task.args.output_dir / _REPORT, {**_entry(task), "status": "made", "seconds": seconds})
            show(str(task.path))


def _one_request(group: "Sequence[_Ready]", model: "Family") -> "Request":
    """Of several tasks, each with the noise of its own seed."""
    import numpy as np

    from shaderfusion.seeds import PictureNoise

    first, size = group[0][0].args, group[0][1].size
    _, H, W, C = model.latents_shape(size)
    noise = [PictureNoise(request.seed, 1, request.rng).draw((C, H, W)) for _, request in group]
    together = argparse.Namespace(**vars(first))
    together.prompt = [task.args.prompt for task, _ in group]
    if first.negative_prompt is not None:
        together.negative_prompt = [task.args.negative_prompt for task, _ in group]
    return make_job_request(model, together, latents=np.concatenate(noise))


def _entry(task: _Task) -> dict[str, Any]:
    """What the report says of a task in any case."""
    return {"file": task.path.name, **{name: getattr(task.args, name) for name in PER_JOB}}


def _write_contact_sheet(args: argparse.Namespace, tasks: Sequence[_Task]) -> None:
    from shaderfusion.batch.contact_sheet import MOST_PICTURES, make_contact_sheet
    from shaderfusion.batch.jobs import read_variation
    from shaderfusion.metadata.image_files import encode

    if len(tasks) > MOST_PICTURES:
        say(f"{_CONTACT} is not made for over {MOST_PICTURES} pictures")
        return
    columns = len(read_variation(args.vary[-1], PER_JOB)[1]) if args.vary else 1
    if not 1 < columns <= _MOST_COLUMNS or len(tasks) % columns:
        columns = min(_MOST_COLUMNS, round(len(tasks) ** 0.5))
    sheet = make_contact_sheet([(task.path, task.label) for task in tasks], columns)
    write_whole("--output-dir", args.output_dir / _CONTACT, encode(sheet, ".png", {}))
