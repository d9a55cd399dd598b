"""`shaderfusion generate`: a prompt -> picture files."""

import argparse
import json
import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shaderfusion.arguments import LARGEST_SEED
from shaderfusion.cli.like import add_like, check_like, take_like
from shaderfusion.cli.options import (
    DEFAULT_MODEL,
    DTYPE_OF_DEVICE,
    Names,
    adapter,
    add_device,
    add_dtype,
    add_json,
    add_memory,
    add_model,
    add_model_options,
    add_optimizations,
    add_size,
    add_tuning,
    guidance_scale,
    rngs,
    scale,
    scheduler,
    schedulers,
    strength,
    text,
    whole_number,
)
from shaderfusion.cli.preview import PreviewFile, add_preview
from shaderfusion.errors import InputError
from shaderfusion.making import (
    DEFAULTS,
    Hashes,
    fill_defaults,
    fill_model_defaults,
    find_adapters,
    make_job_request,
    make_second_pass,
    make_settings,
    number_of,
    open_model_and_device,
    require_second_pass,
    slug,
)
from shaderfusion.metadata.image_files import SUFFIXES, encode, require_room
from shaderfusion.output import progress_line, require_writable, show, write_whole
from shaderfusion.progress import JobProgress

if TYPE_CHECKING:
    from PIL.Image import Image

    from shaderfusion.families.family import Family
    from shaderfusion.hires import SecondPass
    from shaderfusion.request import Request

__all__ = ["MAX_IMAGES", "add_generating", "add_parser", "make_field_parser"]

MAX_IMAGES = 1000
"""Of one command: more than any device makes at once."""


def add_parser(commands: Any) -> None:
    """`shaderfusion generate`, for the parser of commands."""
    generate = commands.add_parser("generate", help="make pictures from a prompt", allow_abbrev=False)
    generate.set_defaults(command=_run)
    meaning = "what to show; may be left out with --like"
    generate.add_argument("prompt", type=text, nargs="?", metavar="PROMPT", help=meaning)
    add_like(generate)
    add_generating(generate)
    _add_pictures(generate)
    generate.add_argument(
        "--output",
        metavar="FILE",
        help=f"a file that ends in {', '.join(SUFFIXES)}; default: PROMPT-SEED.png; replaces a file of that name; "
        "several images are numbered: -1.png, -2.png",
    )
    add_preview(generate)
    add_json(generate)


def make_field_parser() -> argparse.ArgumentParser:
    """Of a job's or a request's fields, by the rules that `generate` has for its options; raises ArgumentError."""
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    add_generating(parser)
    _add_pictures(parser)
    parser.add_argument("--prompt", type=text, help="what to show")
    return parser


def _add_pictures(generate: argparse.ArgumentParser) -> None:
    """What a run may begin with, what may follow, and how many pictures."""
    meaning = (
        "a picture to begin with, of any mode and size: turned as its EXIF says, resized to width and height; what is "
    )
    meaning += "transparent in it is white"
    generate.add_argument("--image", type=Path, metavar="FILE", help=meaning)
    meaning = "how much of the picture is made anew: that part of the steps is run; default: 0.8"
    generate.add_argument("--strength", type=strength, metavar="X", help=meaning)
    meaning = "a picture that is white where to paint, and black, or transparent, where the image is kept; resized too"
    generate.add_argument("--mask", type=Path, metavar="FILE", help=meaning)
    meaning = "make pictures so many times larger in a second run, which begins with those of the first"
    generate.add_argument("--hires", type=scale, metavar="SCALE", help=meaning)
    meaning = "of the second run, of which it runs the strength's part; default: as --steps"
    generate.add_argument("--hires-steps", type=whole_number(1, 20), metavar="N", help=meaning)
    meaning = "how much of the enlarged picture is made anew; default: 0.5"
    generate.add_argument("--hires-strength", type=strength, metavar="X", help=meaning)
    meaning = f"default: {DEFAULTS['num_images']}"
    generate.add_argument("--num-images", type=whole_number(1, 1, MAX_IMAGES), metavar="N", help=meaning)


def add_generating(parser: argparse.ArgumentParser, default_seed: str = "random") -> None:
    """The options of how pictures are made, which `batch` has too."""
    parser.add_argument("--negative-prompt", type=text, metavar="TEXT", help="what to avoid")
    add_model(parser, "--model", default=DEFAULT_MODEL)
    add_model_options(parser)
    meaning = "an adapter (LoRA, LoHa, LoKr, DoRA), merged at that strength, by default 1; may be given several times"
    parser.add_argument("--lora", type=adapter, action="append", default=[], metavar="FILE[:SCALE]", help=meaning)
    meaning = "a folder of adapters that prompts may name, as <lora:NAME:SCALE>"
    parser.add_argument("--lora-dir", type=Path, metavar="DIR", help=meaning)
    meaning = "a textual inversion, which its file's name stands for in prompts; may be given several times"
    parser.add_argument("--embedding", type=Path, action="append", default=[], metavar="FILE", help=meaning)
    parser.add_argument("--steps", type=whole_number(1, 20), metavar="N", help="default: the model's own, mostly 20")
    meaning = "default: the model's own, mostly 7.5"
    parser.add_argument("--guidance-scale", type=guidance_scale, metavar="X", help=meaning)
    parser.add_argument("--seed", type=whole_number(0, 42, LARGEST_SEED), metavar="N", help=f"default: {default_seed}")
    meaning = "one of %(choices)s; most take a spacing, such as dpmpp_2m_karras; names of diffusers and of the web UIs"
    meaning += ' do too, such as "DPM++ 2M Karras"; default: the model\'s own'
    names = Names(schedulers, has_other_names=True)
    parser.add_argument("--scheduler", type=scheduler, choices=names, metavar="NAME", help=meaning)
    meaning = "how much noise the steps of ddim and tcd add, from 0 to 1; default: 0"
    parser.add_argument("--eta", type=float, metavar="X", help=meaning)
    meaning = "whose noise a seed gives, %(choices)s: torch's on a CPU (the default) or on an NVIDIA GPU"
    parser.add_argument("--rng", choices=Names(rngs), metavar="NAME", help=meaning)
    meaning = "joint (the default): one generator for all images, as diffusers; each: image i has seed + i, as web UIs"
    parser.add_argument("--seeds", choices=("joint", "each"), metavar="NAME", help=meaning)
    meaning = "webui (the default): weights, schedules and adapters, as in (red:1.2); plain: prompts as they stand"
    parser.add_argument("--prompt-syntax", choices=("webui", "plain"), metavar="NAME", help=meaning)
    meaning = "layers of the text encoders that are left out, as diffusers counts: 1 is 2 of web UIs; default: none"
    parser.add_argument("--clip-skip", type=whole_number(0, 1), metavar="N", help=meaning)
    meaning = "original or no_norm: whether weights leave an embedding's mean; default: the model's own"
    parser.add_argument("--emphasis", choices=("original", "no_norm"), metavar="NAME", help=meaning)
    add_size(parser)
    add_device(parser)
    add_dtype(parser, DTYPE_OF_DEVICE)
    add_optimizations(parser)
    add_tuning(parser, "auto")
    add_memory(parser)


def _run(args: argparse.Namespace) -> None:
    """Everything that can be refused is refused before weights load."""
    like = take_like(args)
    if args.prompt is None:
        raise InputError("the following arguments are required: PROMPT, or --like FILE with a picture that has one")
    fill_defaults(args)
    args.seed = secrets.randbelow(2**32) if args.seed is None else args.seed
    paths = _output_paths(args.output, args.prompt, args.seed, args.num_images)
    preview = PreviewFile(args)
    require_second_pass(args)
    from concurrent.futures import ThreadPoolExecutor

    from shaderfusion.metadata.settings import make_texts

    started = time.perf_counter()

    def check(model: "Family") -> "tuple[Family, Request, SecondPass | None]":
        check_like(like, args, model)
        fill_model_defaults(args, model)
        request = make_job_request(model, args, image=args.image, mask_image=args.mask, strength=args.strength)
        args.lora = find_adapters(args, [request])
        return model, request, make_second_pass(model, args, request)

    (model, request, second), _, load = open_model_and_device(args, check)
    from shaderfusion.hires import passes

    runs = passes(request, second)
    job = JobProgress([stage for stage, _ in runs])
    with progress_line(job):
        with ThreadPoolExecutor(1) as beside:
            hashing = beside.submit(Hashes, args, model)  # of large files, which takes as long as loading them
            pipe = load(request.size)
            hashes = hashing.result()
        if like:
            like.compare(hashes.model)
        settings = make_settings(args, pipe, request, hashes)
        if request.source:
            settings["strength"] = request.source.strength
        texts = [make_texts(settings | number_of(index, len(paths))) for index in range(1, len(paths) + 1)]
        require_room("--output", paths[0], texts[-1])
        loaded = time.perf_counter()
        images: list[Image] = []
        for index, (_, make_request) in enumerate(runs):
            job.start(index)
            run = pipe.run(make_request(images))
            run.watch = job.begin
            for progress in run:
                job.advance()
                preview.show(progress)
                images = progress.images or []
    generated = time.perf_counter()
    for path, image, held in zip(paths, images, texts, strict=True):
        write_whole("--output", path, encode(image, path.suffix, held))
    saved = time.perf_counter()

    info = pipe.device.info
    if args.json:
        report = {
            "paths": [str(path) for path in paths],
            "seed": args.seed,
            "device": info.name,
            "driver": info.driver,
            "runtime": info.runtime,
            "dtype": pipe.dtype,
            "tuning": pipe.tuning,
            "steps": args.steps,
            "seconds": {"load": loaded - started, "generate": generated - loaded, "save": saved - generated},
        }
        show(json.dumps(report))
        return
    if sys.stderr.isatty():
        seconds = f"{generated - loaded:.1f} s"
        print(f"seed {args.seed}, {seconds} on {info.name} by {info.runtime} in {pipe.dtype}", file=sys.stderr)
    show("\n".join(map(str, paths)))


def _output_paths(output: str | None, prompt: str, seed: int, num_images: int) -> list[Path]:
    """Where the images will go; InputError where they cannot."""
    default = f"{slug(prompt)}-{seed}.png"
    path = Path(default if output is None else output)
    paths = [path]
    if num_images > 1 and path.suffix:
        paths = [path.with_stem(f"{path.stem}-{index}") for index in range(1, num_images + 1)]
    for path in paths:
        require_writable("--output", path, SUFFIXES, default)
    return paths
