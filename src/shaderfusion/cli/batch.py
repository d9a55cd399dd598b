"""`shaderfusion batch`: a file of jobs -> a folder of pictures. The same command again makes what is missing."""

import argparse
import hashlib
import itertools
import json
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shaderfusion.cli.generate import add_generating, make_field_parser
from shaderfusion.cli.options import not_jobs, whole_number
from shaderfusion.errors import DeviceLostError, InputError, ShaderfusionError
from shaderfusion.making import (
    NO_SETTINGS,
    Hashes,
    fill_defaults,
    fill_model_defaults,
    find_adapters,
    make_job_request,
    make_settings,
    open_given_model,
    open_model_and_device,
    slug,
)
from shaderfusion.output import (
    keep_stdout,
    progress_line,
    remove_parts,
    require_writable,
    say,
    show,
    write_whole,
)
from shaderfusion.progress import DENOISE, JobProgress, Stage

if TYPE_CHECKING:
    from shaderfusion.batch.interrupts import Interrupts
    from shaderfusion.families.family import Family
    from shaderfusion.families.run_size import RunSize
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
_AT_ONCE_ON_GPU = 4


@dataclass(frozen=True)
class _Task:
    """A job as options of `generate`, and the file that it makes."""

    args: argparse.Namespace
    path: Path


_Cell = tuple[Path | None, str]
"""Of the contact sheet: a picture's file, if it can have one, and its label."""
_Ready = tuple[_Task, "Request"]
_Outcome = tuple[_Task, bytes | str, float]
"""A task with its picture's file, or why there is none, and the seconds that it took."""
_Load = Callable[["RunSize"], "StableDiffusionPipeline"]
_Maker = Callable[[Sequence[_Ready], "Interrupts", JobProgress], Iterator[_Outcome]]


def add_parser(commands: Any) -> None:
    """`shaderfusion batch`, for the parser of commands."""
    batch = commands.add_parser("batch", help="make the pictures of a file of jobs", allow_abbrev=False)
    batch.set_defaults(command=_run)
    meaning = "a prompt a line (.txt), a column for each setting (.csv), or an object a line (.jsonl); settings are "
    batch.add_argument("jobs", type=Path, metavar="JOBS", help=meaning + ", ".join(PER_JOB))
    meaning = "where pictures, report.jsonl and contact.png go; is made; pictures that are there are not made again"
    batch.add_argument("--output-dir", type=Path, required=True, metavar="FOLDER", help=meaning)
    meaning = "every job with each of the values, such as seed=1..4 guidance=5,7"
    batch.add_argument(
        "--vary", nargs="+", action="extend", type=not_jobs, default=[], metavar="NAME=VALUES", help=meaning
    )
    meaning = "pictures made at once where they differ in prompts and seeds alone, which rounds otherwise; default: "
    meaning += f"{_AT_ONCE_ON_GPU} on a GPU, where that is faster, else and with --ray 1"
    batch.add_argument("--at-once", type=whole_number(1, 4, 1000), metavar="N", help=meaning)
    meaning = "make pictures on all GPUs of a Ray cluster, by its HOST:PORT or auto; without one, of this machine"
    batch.add_argument("--ray", nargs="?", const="local", type=not_jobs, metavar="ADDRESS", help=meaning)
    meaning = "with --ray; default: one for each GPU, or where Ray has none, one for each machine, on one of its CPUs"
    batch.add_argument("--workers", type=whole_number(1, 2, 100_000), metavar="N", help=meaning)
    add_generating(batch, "a number that follows from the job's settings")


def _run(args: argparse.Namespace) -> int:
    """0, 1 where a job failed, 130 after Ctrl-C."""
    if args.workers is not None and args.ray is None:
        raise InputError(f"--workers (={args.workers}) must come with --ray")
    if args.device is not None and args.ray is not None:
        raise InputError(f"--device (={args.device}) must not come with --ray, which gives each worker a device")
    tasks, cells, num_failed = _plan(args)
    missing = [task for task in tasks if not task.path.exists()]
    if missing:
        from shaderfusion.batch.interrupts import Interrupts

        with Interrupts() as interrupts:
            num_failed += _make(args, missing, interrupts)
        if interrupts.asked:
            there = sum(task.path.exists() for task in tasks)
            say(f"interrupted; {there} of {len(tasks)} pictures are there, and the same command makes the others")
            return _INTERRUPTED
    elif tasks and not num_failed:
        say(f"no picture is missing: {len(tasks)} of {len(tasks)} are there")
    if tasks:
        _write_contact_sheet(args, cells)
    return 1 if num_failed else 0


def _plan(args: argparse.Namespace) -> tuple[list[_Task], list[_Cell], int]:
    """The jobs of the file, each once, and how many are none; InputError for what no job could go on with.

    The contact sheet's cells have the places of those that are none too, so that it stays a grid.
    """
    from shaderfusion.batch.jobs import read_jobs, read_variation, vary

    variations = [read_variation(text, PER_JOB) for text in args.vary]
    jobs = vary(read_jobs(args.jobs, PER_JOB), variations)
    try:
        args.output_dir.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise InputError(f"--output-dir (={args.output_dir}) cannot be a folder ({error}); choose another") from None
    require_writable("--output-dir", args.output_dir / _REPORT, ".jsonl", _REPORT)
    remove_parts(args.output_dir)
    parser = make_field_parser()
    differing = [name for name in PER_JOB if len({job.settings.get(name) for job in jobs}) > 1] or ["prompt"]
    tasks: dict[Path, _Task] = {}
    cells: dict[Path | int, _Cell] = {}
    num_failed = 0
    for index, job in enumerate(jobs):
        shown = {name: job.settings[name] for name in differing if name in job.settings}
        label = ", ".join(value if name == "prompt" else f"{name} {value}" for name, value in shown.items())
        options = [f"--{name.replace('_', '-')}={value}" for name, value in job.settings.items()]
        try:
            task = _task(parser.parse_args(options, argparse.Namespace(**vars(args))))
            tasks.setdefault(task.path, task)
            cells.setdefault(task.path, (task.path, label))
        except argparse.ArgumentError as error:
            _fail(args, {"prompt": job.settings["prompt"]}, f"{job.place}: {error}")
            cells[index] = (None, label)
            num_failed += 1
    return list(tasks.values()), list(cells.values()), num_failed


def _task(args: argparse.Namespace) -> _Task:
    """With a name, and a seed where none is given, that follow from all that the picture depends on."""
    fill_defaults(args)
    given = {key: value for key, value in vars(args).items() if value is not None and value != []}
    depends = {key: value for key, value in given.items() if key not in _NO_MATTER}
    digest = hashlib.sha256(json.dumps(depends, sort_keys=True, default=str).encode()).hexdigest()
    if args.seed is None:
        args.seed = int(digest[:8], 16)
    return _Task(args, args.output_dir / f"{slug(args.prompt)}-{digest[:12]}.png")


def _fail(args: argparse.Namespace, entry: Mapping[str, Any], error: str) -> None:
    from shaderfusion.batch.report import append_line

    say(error)
    append_line(args.output_dir / _REPORT, {**entry, "status": "failed", "error": error})


def _make(args: argparse.Namespace, tasks: Sequence[_Task], interrupts: "Interrupts") -> int:
    """Makes the tasks' pictures, as far as no interrupt comes between; returns how many failed."""

    def check(model: "Family") -> "list[_Ready]":
        ready = list(_requests(args, model, tasks))
        args.lora = find_adapters(args, [request for _, request in ready])
        return ready

    if args.ray is None:
        ready, device, load = open_model_and_device(args, check)
        make = partial(_make_here, load)
        is_faster = device.info.kind != "CPU" and args.memory != "low"  # low memory takes row by row
    else:
        ready, make, is_faster = check(open_given_model(args)), _make_by_ray, False
    at_once = args.at_once or (_AT_ONCE_ON_GPU if is_faster else 1)
    num_failed = len(tasks) - len(ready)
    if ready:
        with closing(make(args, list(_groups(ready, at_once)), interrupts)) as outcomes:
            num_failed += sum(not _keep(args, outcome) for outcome in outcomes)
    return num_failed


def _make_here(
    load: "_Load", args: argparse.Namespace, groups: "Sequence[list[_Ready]]", interrupts: "Interrupts"
) -> "Generator[_Outcome]":
    """One run after the other, on this process's device."""
    job = JobProgress([_stage(group) for group in groups])
    with progress_line(job):
        make = _maker(args, load, groups[0][0][1].size)
        for index, group in enumerate(groups):
            if interrupts.asked:
                break
            job.start(index)
            yield from make(group, interrupts, job)


def _make_by_ray(
    args: argparse.Namespace, groups: "Sequence[list[_Ready]]", interrupts: "Interrupts"
) -> "Generator[_Outcome]":
    """The same runs on the GPUs of a Ray cluster, in whatever order. An interrupt waits for those that have begun."""
    from shaderfusion.batch.ray_pool import spread

    job = JobProgress([Stage(sum(map(len, groups)), "pictures")])
    with progress_line(job), keep_stdout():
        for tasks, outcomes in spread(
            partial(_open_on_worker, args, groups[0][0][1].size),
            [[task for task, _ in group] for group in groups],
            address=args.ray,
            num_workers=args.workers,
            is_over=lambda: interrupts.asked,
        ):
            job.begin(DENOISE)
            for outcome in outcomes if isinstance(outcomes, list) else [(task, str(outcomes), 0.0) for task in tasks]:
                job.advance()
                yield outcome


def _open_on_worker(
    args: argparse.Namespace, size: "RunSize", device: str | None
) -> "Callable[[Sequence[_Task]], list[_Outcome]]":
    """What makes the pictures of one run in a process that has none of the command's objects yet."""
    from shaderfusion.batch.interrupts import Interrupts

    args.device = device
    model, _, load = open_model_and_device(args, lambda model: model)
    make = _maker(args, load, size)

    def make_tasks(tasks: Sequence[_Task]) -> list[_Outcome]:
        group = [(task, make_job_request(model, task.args)) for task in tasks]
        return list(make(group, Interrupts(), JobProgress([_stage(group)])))

    return make_tasks


def _maker(args: argparse.Namespace, load: "_Load", size: "RunSize") -> "_Maker":
    """Loads the weights for runs of that size, as `_make_group` needs them."""
    pipe = load(size)
    return partial(_make_group, pipe, Hashes(args, pipe.model))


def _stage(group: "Sequence[_Ready]") -> Stage:
    """The run that makes the group's pictures."""
    _, request = group[0]
    return Stage(request.num_steps, work=len(group) * request.size.pixels)


def _groups(ready: "Sequence[_Ready]", at_once: int) -> "Iterator[list[_Ready]]":
    """Neighbours that can be one run: equal in all but the words of texts, and seeds, whose noise is drawn before."""

    def key(entry: "_Ready") -> Any:
        task, request = entry
        is_noisy = any(update.c_noise for update in request.schedule.updates)
        one_run = [getattr(task.args, name) for name in PER_JOB if name not in ("prompt", "negative_prompt", "seed")]
        texts = (task.args.negative_prompt is None, request.num_chunks, request.adapters)
        return (one_run, texts, task.path if is_noisy else None)

    for _, same in itertools.groupby(ready, key):
        entries = list(same)
        yield from (entries[first : first + at_once] for first in range(0, len(entries), at_once))


def _make_group(
    pipe: "StableDiffusionPipeline",
    hashes: Hashes,
    group: "Sequence[_Ready]",
    interrupts: "Interrupts",
    job: JobProgress,
) -> "Iterator[_Outcome]":
    """The pictures of one run. Where a run of several fails, each has one of its own."""
    try:
        yield from _make_pictures(pipe, hashes, group, interrupts, job)
    except DeviceLostError:
        raise
    except ShaderfusionError as error:
        if len(group) > 1:
            for entry in group:
                job.restart()
                yield from _make_group(pipe, hashes, [entry], interrupts, job)
        else:
            yield group[0][0], str(error), 0.0


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
    pipe: "StableDiffusionPipeline",
    hashes: Hashes,
    group: "Sequence[_Ready]",
    interrupts: "Interrupts",
    job: JobProgress,
) -> "list[_Outcome]":
    """One run; no pictures where an interrupt comes first."""
    from shaderfusion.metadata.image_files import encode
    from shaderfusion.metadata.settings import make_texts

    started = time.perf_counter()
    _, request = group[0]
    images = []
    run = pipe.run(request if len(group) == 1 else _one_request(group, pipe.model))
    run.watch = job.begin
    for progress in run:
        job.advance()
        images = progress.images or []
        if interrupts.asked and not images:
            return []
    texts = [make_texts(make_settings(task.args, pipe, own, hashes)) for task, own in group]
    files = [
        bytes(encode(image, task.path.suffix, held))
        for (task, _), image, held in zip(group, images, texts, strict=True)
    ]
    seconds = (time.perf_counter() - started) / len(group)
    return [(task, data, seconds) for (task, _), data in zip(group, files, strict=True)]


def _keep(args: argparse.Namespace, outcome: _Outcome) -> bool:
    """Writes a picture and says so, in the report too, or why there is none; returns whether there is."""
    from shaderfusion.batch.report import append_line

    task, made, seconds = outcome
    if not isinstance(made, str):
        try:
            write_whole("--output-dir", task.path, made)
        except ShaderfusionError as error:
            made = str(error)
    if isinstance(made, str):
        _fail(args, _entry(task), f"{task.path.name}: {made}")
        return False
    append_line(args.output_dir / _REPORT, {**_entry(task), "status": "made", "seconds": seconds})
    show(str(task.path))
    return True


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


def _write_contact_sheet(args: argparse.Namespace, cells: Sequence[_Cell]) -> None:
    from shaderfusion.batch.contact_sheet import MOST_PICTURES, make_contact_sheet
    from shaderfusion.batch.jobs import read_variation
    from shaderfusion.metadata.image_files import encode

    if len(cells) > MOST_PICTURES:
        say(f"{_CONTACT} is not made for over {MOST_PICTURES} pictures")
        return
    columns = len(read_variation(args.vary[-1], PER_JOB)[1]) if args.vary else 1
    if not 1 < columns <= _MOST_COLUMNS or len(cells) % columns:
        columns = min(_MOST_COLUMNS, round(len(cells) ** 0.5))
    sheet = make_contact_sheet(cells, columns)
    write_whole("--output-dir", args.output_dir / _CONTACT, encode(sheet, ".png", {}))
