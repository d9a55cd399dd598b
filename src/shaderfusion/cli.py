"""The command line: arguments -> StableDiffusionPipeline -> PNG files.

Paths, tables and JSON go to stdout, everything else to stderr.
"""

import argparse
import io
import json
import re
import secrets
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import shaderfusion
from shaderfusion.arguments import LARGEST_F32, LARGEST_SEED, require_guidance_scale
from shaderfusion.errors import DeviceError, InputError, ShaderfusionError
from shaderfusion.files import shown
from shaderfusion.output import Table, discard, progress_bar, require_writable, say, show, write_whole

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["main"]

DEFAULT_MODEL = "emoji"

BENCHMARKS = {
    "ablation": "the five optimizations, one after the other: time, memory, seconds of a picture",
    "winograd": "Winograd's tile sizes beside the direct convolution: time and error by layer",
    "kernels": "every distinct dispatch alone: time, rates, share of what the device can do",
    "profile": "where the time of each network goes, by kernel",
}
DTYPE_OF_DEVICE = "f16 where the GPU has it, f32 on a CPU"
CHARTED = ("ablation", "winograd")
MAX_IMAGES = 1000
"""Of one command: more than any device makes at once."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Returns 0, 2 after an error of ours, 130 after Ctrl-C, 141 where nobody reads the output."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may lack a letter of a file's name
    try:
        return _run(argv)
    except BrokenPipeError:  # `| head` has seen enough: nobody is left to tell
        for stream in (sys.stdout, sys.stderr):
            discard(stream)
        return 128 + 13  # of a process that SIGPIPE ends, as it ends other programs here


def _run(argv: Sequence[str] | None) -> int:
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            args = _parser().parse_args(argv)
            args.command(args)
        except ShaderfusionError as error:
            say(str(error))
            return 2
        except KeyboardInterrupt:
            say("interrupted")
            return 130
    return 0


# ---------------------------------------------------------------------------------------------- commands


def _generate(args: argparse.Namespace) -> None:
    """Everything that can be refused is refused before weights load."""
    seed = secrets.randbelow(2**32) if args.seed is None else args.seed
    paths = _output_paths(args.output, args.prompt, seed, args.num_images)
    from concurrent.futures import ThreadPoolExecutor

    from shaderfusion.gpu.backend import runtimes
    from shaderfusion.gpu.device import open_device

    started = time.perf_counter()
    runtimes(args.runtime)[0].load()  # alone: beside other imports it would take longer, and the driver begin later
    with ThreadPoolExecutor(1) as beside:
        # The driver takes a while, and what follows does not need it yet.
        opening = beside.submit(open_device, args.device, runtime=args.runtime)
        from shaderfusion.families import open_model
        from shaderfusion.kernels.optimizations import Optimizations
        from shaderfusion.pipeline import StableDiffusionPipeline
        from shaderfusion.run import make_request

        optimizations = Optimizations.parse(args.optimizations)
        model = open_model(args.model)
        request = make_request(
            model,
            args.prompt,
            negative_prompt=args.negative_prompt,
            num_inference_steps=args.steps,
            guidance_scale=args.guidance_scale,
            width=args.width,
            height=args.height,
            num_images_per_prompt=args.num_images,
            seed=seed,
            scheduler=args.scheduler,
        )
        device = opening.result()
    pipe = StableDiffusionPipeline.from_pretrained(
        model,
        device=device,
        dtype=args.dtype,
        scheduler=args.scheduler,
        optimizations=optimizations,
        size=request.size,
        tuning=args.tuning,
    )
    loaded = time.perf_counter()
    images: list[Image] = []
    with progress_bar(request.num_steps) as draw:
        for progress in pipe.run(request):
            draw(progress.step)
            images = progress.images or []
    generated = time.perf_counter()
    info = pipe.device.info
    settings = {
        "prompt": args.prompt,
        "negative_prompt": args.negative_prompt,
        "seed": seed,
        "steps": args.steps,
        "guidance_scale": args.guidance_scale,
        "scheduler": request.schedule.name,
        "model": args.model,
        "runtime": info.runtime,
        "software": f"shaderfusion {shaderfusion.__version__}",
    }
    for index, (path, image) in enumerate(zip(paths, images, strict=True), start=1):
        _save_png(image, path, settings | ({"image": f"{index} of {len(paths)}"} if len(paths) > 1 else {}))
    saved = time.perf_counter()

    if args.json:
        report = {
            "paths": [str(path) for path in paths],
            "seed": seed,
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
        print(f"seed {seed}, {seconds} on {info.name} by {info.runtime} in {pipe.dtype}", file=sys.stderr)
    show("\n".join(map(str, paths)))


def _devices(args: argparse.Namespace) -> None:
    from shaderfusion.gpu.device import INSTALL_HINT, list_devices

    devices = list_devices()
    if not devices:
        raise DeviceError(INSTALL_HINT)
    if args.json:
        show(json.dumps([device.as_dict() for device in devices]))
        return
    heading = ("runtime", "index", "name", "kind", "backend", "driver", "dtype", "matrix units")
    rows = []
    for d in devices:
        has_matrix_units = "yes" if d.has_matrix_units else "no"
        rows.append((d.runtime, str(d.index), d.name, d.kind, d.backend, d.driver, d.default_dtype, has_matrix_units))
    show(Table(heading, rows, "<" * len(heading)).text())


def _info(args: argparse.Namespace) -> None:
    from shaderfusion.info import describe
    from shaderfusion.kernels.optimizations import Optimizations

    info = describe(
        args.model,
        width=args.width,
        height=args.height,
        batch=args.batch,
        dtype=args.dtype,
        optimizations=Optimizations.parse(args.optimizations),
    )
    if args.json:
        show(json.dumps(info.as_dict()))
        return
    show(f"{info.model}: {info.batch} of {info.width}x{info.height} px with guidance, in {info.dtype}")
    rows = []
    for c in info.components:
        weights, tensors = (f"{size / 1e6:.1f}" for size in (c.weights_bytes, c.tensors_bytes))
        rows.append((c.name, f"{c.parameters:,}", weights, tensors, str(c.dispatches)))
    show(Table(("component", "parameters", "weights MB", "tensors MB", "dispatches"), rows, "<>>>>").text())


def _tune(args: argparse.Namespace) -> None:
    from shaderfusion.tune.command import run_tune

    run_tune(
        args.model,
        device=args.device,
        runtime=args.runtime,
        dtype=args.dtype,
        width=args.width,
        height=args.height,
        batch=args.batch,
        budget_s=args.budget,
        output=args.output,
    )


def _bench(args: argparse.Namespace) -> None:
    from shaderfusion.bench.command import run_benchmark

    run_benchmark(
        args.benchmark,
        model=args.model,
        device=args.device,
        runtime=args.runtime,
        dtype=args.dtype,
        width=args.width,
        height=args.height,
        batch=args.batch,
        tuning=args.tuning,
        json_path=args.json,
        markdown_path=args.markdown,
        plot_path=args.plot,
    )


# ---------------------------------------------------------------------------------------------- arguments


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, and help, through the same way out as everything else."""

    def _print_message(self, message: str, file: Any = None) -> None:
        show(message.rstrip("\n"))

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (`{self.prog} --help` shows what there is)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="shaderfusion", description="Stable Diffusion as GPU compute shaders.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"shaderfusion {shaderfusion.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    generate = commands.add_parser("generate", help="make pictures from a prompt", allow_abbrev=False)
    generate.set_defaults(command=_generate)
    generate.add_argument("prompt", type=_text, metavar="PROMPT", help="what to show")
    generate.add_argument("--negative-prompt", type=_text, default="", metavar="TEXT", help="what to avoid")
    _add_model(generate, "--model", default=DEFAULT_MODEL)
    generate.add_argument("--steps", type=_whole_number(1, 20), default=20, metavar="N", help="default: 20")
    generate.add_argument("--guidance-scale", type=_guidance_scale, default=7.5, metavar="X", help="default: 7.5")
    generate.add_argument("--seed", type=_whole_number(0, 42, LARGEST_SEED), metavar="N", help="default: random")
    meaning = "one of %(choices)s; default: the model's own"
    generate.add_argument("--scheduler", choices=_Names(_schedulers), metavar="NAME", help=meaning)
    _add_size(generate)
    generate.add_argument(
        "--num-images", type=_whole_number(1, 1, MAX_IMAGES), default=1, metavar="N", help="default: 1"
    )
    generate.add_argument(
        "--output",
        metavar="FILE.png",
        help="default: PROMPT-SEED.png; replaces a file of that name; several images are numbered: -1.png, -2.png",
    )
    _add_device(generate)
    _add_dtype(generate, DTYPE_OF_DEVICE)
    _add_optimizations(generate)
    _add_tuning(generate, "auto")
    _add_json(generate)

    devices = commands.add_parser("devices", help="list the GPU adapters of this machine", allow_abbrev=False)
    devices.set_defaults(command=_devices)
    _add_json(devices)

    info = commands.add_parser(
        "info", help="a model's size, memory and dispatches, without running it", allow_abbrev=False
    )
    info.set_defaults(command=_info)
    _add_model(info, "model")
    _add_size(info)
    _add_batch(info)
    _add_dtype(info, "f16")
    _add_optimizations(info)
    _add_json(info)

    tune = commands.add_parser("tune", help="find the fastest kernels for this device", allow_abbrev=False)
    tune.set_defaults(command=_tune)
    _add_model(tune, "model")
    _add_size(tune)
    _add_batch(tune)
    _add_device(tune)
    _add_dtype(tune, DTYPE_OF_DEVICE)
    meaning = "of the search; default: 40, on a CPU 120"
    tune.add_argument("--budget", type=_whole_number(1, 60), metavar="SECONDS", help=meaning)
    meaning = "default: the user's cache folder, where the other commands find it"
    tune.add_argument("--output", type=Path, metavar="FILE.json", help=meaning)

    bench = commands.add_parser("bench", help="measure this device", allow_abbrev=False)
    benchmarks = bench.add_subparsers(title="benchmarks", metavar="BENCHMARK", required=True)
    for name, meaning in BENCHMARKS.items():
        benchmark = benchmarks.add_parser(name, help=meaning, allow_abbrev=False)
        benchmark.set_defaults(command=_bench, benchmark=name, plot=None)
        meaning = "`sd14`, with random weights, `emoji`, or a folder; default: sd14, and emoji on a CPU"
        benchmark.add_argument("--model", type=_not_empty, metavar="MODEL", help=meaning)
        _add_size(benchmark)
        _add_batch(benchmark)
        _add_device(benchmark)
        _add_dtype(benchmark, DTYPE_OF_DEVICE)
        _add_tuning(benchmark, "off")
        benchmark.add_argument(
            "--json", type=Path, metavar="FILE.json", help="write all rows, each when it is measured"
        )
        benchmark.add_argument("--markdown", type=Path, metavar="FILE.md", help="write the tables")
        if name in CHARTED:
            benchmark.add_argument("--plot", type=Path, metavar="FILE.png", help="write a chart (needs matplotlib)")
    return parser


def _add_model(parser: argparse.ArgumentParser, name: str, **options: Any) -> None:
    meaning = f"`{DEFAULT_MODEL}`, which is embedded, or a folder in diffusers' format"
    parser.add_argument(name, metavar="MODEL", type=_not_empty, help=meaning, **options)


def _add_size(parser: argparse.ArgumentParser) -> None:
    for name in ("--width", "--height"):
        parser.add_argument(name, type=_whole_number(1, 512), metavar="PX", help="default: the model's own")


def _add_batch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=_whole_number(1, 1), default=1, metavar="N", help="images at once; default: 1")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", metavar="INDEX|NAME", help="see `shaderfusion devices`; default: the first")
    meaning = "%(choices)s; auto, the default, takes Dawn where it is installed and reaches the device's matrix units"
    parser.add_argument("--runtime", choices=_Names(_runtimes), default="auto", metavar="NAME", help=meaning)


def _add_dtype(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--dtype", choices=("f16", "f32"), help=f"default: {default}")


def _add_optimizations(parser: argparse.ArgumentParser) -> None:
    meaning = "all (the default), none, or some of gn,geglu,pfs,flash,winograd, with commas between"
    parser.add_argument("--optimizations", default="all", metavar="NAMES", help=meaning)


def _add_tuning(parser: argparse.ArgumentParser, default: str) -> None:
    meaning = f"a file of `shaderfusion tune`, `auto` (this device's own, if there is one) or `off`; default: {default}"
    parser.add_argument("--tuning", default=default, metavar="auto|off|FILE", help=meaning)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


class _Names:
    """The choices of an option, looked up where they are needed: their modules import others, which takes time."""

    def __init__(self, load: Callable[[], Iterable[str]]) -> None:
        self._load = load

    def __iter__(self) -> Iterator[str]:
        return iter(self._load())


def _schedulers() -> Iterable[str]:
    from shaderfusion.schedulers import SCHEDULERS

    return SCHEDULERS


def _runtimes() -> Iterable[str]:
    from shaderfusion.gpu.backend import RUNTIMES

    return ("auto", *RUNTIMES)


def _whole_number(minimum: int, example: int, maximum: int = 1_000_000) -> Callable[[str], int]:
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


def _guidance_scale(text: str) -> float:
    try:
        return require_guidance_scale(float(text))
    except ValueError:  # InputError is one
        raise argparse.ArgumentTypeError(
            f"{shown(text)} must be a number from 0 to {LARGEST_F32:.2g}, such as 7.5"
        ) from None


def _text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(
            f"{shown(text)} must be valid Unicode; check the terminal's encoding"
        ) from None
    return text


def _not_empty(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError(f"{text!r} must name a model: `{DEFAULT_MODEL}` or a folder")
    return text


# ---------------------------------------------------------------------------------------------- output


def _output_paths(output: str | None, prompt: str, seed: int, num_images: int) -> list[Path]:
    """Where the images will go; InputError where they cannot."""
    default = f"{_slug(prompt)}-{seed}.png"
    path = Path(default if output is None else output)
    paths = [path]
    if num_images > 1 and path.suffix:
        paths = [path.with_stem(f"{path.stem}-{index}") for index in range(1, num_images + 1)]
    for path in paths:
        require_writable("--output", path, ".png", default)
    return paths


def _slug(prompt: str) -> str:
    """The prompt's first words, as part of a file name."""
    return re.sub(r"\W+", "-", prompt.lower())[:40].strip("-") or "image"


def _save_png(image: "Image", path: Path, settings: dict[str, Any]) -> None:
    """Writes the image with its settings as PNG text."""
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    for key, value in settings.items():
        text.add_text(key, str(value).encode(errors="backslashreplace").decode())  # a folder's name may be no Unicode
    png = BytesIO()
    image.save(png, "png", pnginfo=text)
    write_whole("--output", path, png.getbuffer())


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    say(f"warning: {message}")
