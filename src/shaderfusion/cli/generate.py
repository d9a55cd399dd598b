"""`shaderfusion generate`: a prompt -> PNG files."""

import argparse
import json
import re
import secrets
import sys
import time
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import shaderfusion
from shaderfusion.arguments import LARGEST_SEED
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
from shaderfusion.errors import InputError
from shaderfusion.output import progress_bar, require_writable, show, write_whole

if TYPE_CHECKING:
    from PIL.Image import Image


__all__ = ["add_parser"]

MAX_IMAGES = 1000
"""Of one command: more than any device makes at once."""


def add_parser(commands: Any) -> None:
    """`shaderfusion generate`, for the parser of commands."""
    generate = commands.add_parser("generate", help="make pictures from a prompt", allow_abbrev=False)
    generate.set_defaults(command=_run)
    generate.add_argument("prompt", type=text, metavar="PROMPT", help="what to show")
    generate.add_argument("--negative-prompt", type=text, metavar="TEXT", help="what to avoid")
    add_model(generate, "--model", default=DEFAULT_MODEL)
    add_model_options(generate)
    meaning = "an adapter (LoRA, LoHa, LoKr, DoRA), merged at that strength, by default 1; may be given several times"
    generate.add_argument("--lora", type=adapter, action="append", default=[], metavar="FILE[:SCALE]", help=meaning)
    meaning = "a textual inversion, which its file's name stands for in prompts; may be given several times"
    generate.add_argument("--embedding", type=Path, action="append", default=[], metavar="FILE", help=meaning)
    generate.add_argument("--steps", type=whole_number(1, 20), default=20, metavar="N", help="default: 20")
    generate.add_argument("--guidance-scale", type=guidance_scale, default=7.5, metavar="X", help="default: 7.5")
    generate.add_argument("--seed", type=whole_number(0, 42, LARGEST_SEED), metavar="N", help="default: random")
    _add_pictures(generate)
    meaning = "one of %(choices)s; most take a spacing, such as dpmpp_2m_karras; names of diffusers and of the web UIs"
    meaning += ' do too, such as "DPM++ 2M Karras"; default: the model\'s own'
    names = Names(schedulers, has_other_names=True)
    generate.add_argument("--scheduler", type=scheduler, choices=names, metavar="NAME", help=meaning)
    meaning = "how much noise the steps of ddim and tcd add, from 0 to 1; default: 0"
    generate.add_argument("--eta", type=float, default=0.0, metavar="X", help=meaning)
    meaning = "whose noise a seed gives, %(choices)s: torch's on a CPU (the default) or on an NVIDIA GPU"
    generate.add_argument("--rng", choices=Names(rngs), default="cpu", metavar="NAME", help=meaning)
    meaning = "joint (the default): one generator for all images, as diffusers; each: image i has seed + i, as web UIs"
    generate.add_argument("--seeds", choices=("joint", "each"), default="joint", metavar="NAME", help=meaning)
    add_size(generate)
    generate.add_argument(
        "--num-images", type=whole_number(1, 1, MAX_IMAGES), default=1, metavar="N", help="default: 1"
    )
    generate.add_argument(
        "--output",
        metavar="FILE.png",
        help="default: PROMPT-SEED.png; replaces a file of that name; several images are numbered: -1.png, -2.png",
    )
    add_device(generate)
    add_dtype(generate, DTYPE_OF_DEVICE)
    add_optimizations(generate)
    add_tuning(generate, "auto")
    add_memory(generate)
    add_json(generate)


def _add_pictures(generate: argparse.ArgumentParser) -> None:
    """What a run may begin with, and what may follow."""
    meaning = "a picture to begin with, resized to width and height; what is transparent in it is white"
    generate.add_argument("--image", type=Path, metavar="FILE", help=meaning)
    meaning = "how much of the picture is made anew: that part of the steps is run; default: 0.8"
    generate.add_argument("--strength", type=strength, metavar="X", help=meaning)
    meaning = "a picture that is white where to paint, and black where the image is kept"
    generate.add_argument("--mask", type=Path, metavar="FILE", help=meaning)
    meaning = "make pictures so many times larger in a second run, which begins with those of the first"
    generate.add_argument("--hires", type=scale, metavar="SCALE", help=meaning)
    meaning = "of the second run, of which it runs the strength's part; default: as --steps"
    generate.add_argument("--hires-steps", type=whole_number(1, 20), metavar="N", help=meaning)
    meaning = "how much of the enlarged picture is made anew; default: 0.5"
    generate.add_argument("--hires-strength", type=strength, metavar="X", help=meaning)


def _run(args: argparse.Namespace) -> None:
    """Everything that can be refused is refused before weights load."""
    seed = secrets.randbelow(2**32) if args.seed is None else args.seed
    paths = _output_paths(args.output, args.prompt, seed, args.num_images)
    for option, value in (("--hires-steps", args.hires_steps), ("--hires-strength", args.hires_strength)):
        if value is not None and args.hires is None:
            raise InputError(f"{option} (={value:g}) must come with --hires, the second run's scale")
    hires_strength = 0.5 if args.hires_strength is None else args.hires_strength
    from concurrent.futures import ThreadPoolExecutor

    from shaderfusion.gpu.backend import runtimes
    from shaderfusion.gpu.device import open_device

    started = time.perf_counter()
    runtimes(args.runtime)[0].load()  # alone: beside other imports it would take longer, and the driver begin later
    with ThreadPoolExecutor(1) as beside:
        # The driver takes a while, and what follows does not need it yet.
        opening = beside.submit(open_device, args.device, runtime=args.runtime)
        from shaderfusion.families import open_model
        from shaderfusion.hires import SecondPass
        from shaderfusion.kernels.optimizations import Optimizations
        from shaderfusion.pipeline import StableDiffusionPipeline
        from shaderfusion.run import make_request

        optimizations = Optimizations.parse(args.optimizations)
        model = open_model(args.model, vae=args.vae, prediction_type=args.prediction_type, revision=args.revision)
        for path in args.embedding:
            model.added_tokens.load(path, None, model.tokenizers)
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
            image=args.image,
            mask_image=args.mask,
            strength=args.strength,
            scheduler=args.scheduler,
            eta=args.eta,
            rng=args.rng,
            seeds=args.seeds,
        )
        second = args.hires and SecondPass(
            model,
            request,
            scale=args.hires,
            num_inference_steps=args.steps if args.hires_steps is None else args.hires_steps,
            strength=hires_strength,
            mask_image=args.mask,
            scheduler=args.scheduler,
            eta=args.eta,
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
        loras=args.lora,
        memory=args.memory,
    )
    loaded = time.perf_counter()
    images: list[Image] = []
    with progress_bar(request.num_steps + (second.num_steps if second else 0)) as draw:
        for progress in pipe.run(request):
            draw(progress.step)
            images = progress.images or []
        for progress in pipe.run(second.request(images)) if second else ():
            draw(request.num_steps + progress.step)
            images = progress.images or []
    generated = time.perf_counter()
    info = pipe.device.info
    settings = {
        "prompt": args.prompt,
        "negative_prompt": args.negative_prompt or "",
        "seed": seed,
        "steps": args.steps,
        "guidance_scale": args.guidance_scale,
        "scheduler": request.schedule.name,
        "eta": args.eta,
        "rng": args.rng,
        "seeds": args.seeds,
        "model": args.model,
        "runtime": info.runtime,
        "software": f"shaderfusion {shaderfusion.__version__}",
    }
    if request.source:
        settings |= {"strength": request.source.strength}
    if args.hires:
        settings |= {"hires": args.hires, "hires_strength": hires_strength}
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
