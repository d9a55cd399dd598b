"""What `generate`, `batch` and `serve` share: a model opened beside its device, and settings that go into a picture."""

import argparse
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import shaderfusion
from shaderfusion.errors import InputError

if TYPE_CHECKING:
    from shaderfusion.families.family import Family
    from shaderfusion.families.run_size import RunSize
    from shaderfusion.gpu.device import Device
    from shaderfusion.hires import SecondPass
    from shaderfusion.pipeline import StableDiffusionPipeline
    from shaderfusion.request import Request
    from shaderfusion.weights.lora.adapters import Strength

__all__ = [
    "DEFAULTS",
    "NO_SETTINGS",
    "Hashes",
    "fill_defaults",
    "fill_model_defaults",
    "find_adapters",
    "make_job_request",
    "make_second_pass",
    "make_settings",
    "number_of",
    "open_given_model",
    "open_model_and_device",
    "require_second_pass",
    "slug",
]

T = TypeVar("T")

DEFAULTS = {
    "num_images": 1,
    "eta": 0.0,
    "rng": "cpu",
    "seeds": "joint",
    "prompt_syntax": "webui",
}
"""Of options that a picture or a job may give, where nobody gives them."""

NO_SETTINGS = ("command", "device", "json", "output", "like", "ignore", "jobs", "output_dir", "vary")
NO_SETTINGS += ("at_once", "lora_dir", "preview_every", "preview_vae", "ray", "workers")
"""Options that no picture depends on."""


def fill_defaults(args: argparse.Namespace) -> None:
    for name, value in DEFAULTS.items():
        if getattr(args, name, None) is None:
            setattr(args, name, value)


def fill_model_defaults(args: argparse.Namespace, model: "Family") -> None:
    if args.steps is None:
        args.steps = model.defaults.command_line_steps
    if args.guidance_scale is None:
        args.guidance_scale = model.defaults.guidance_scale


def open_model_and_device(
    args: argparse.Namespace, check: "Callable[[Family], T]"
) -> "tuple[T, Device, Callable[[RunSize], StableDiffusionPipeline]]":
    """What `check` makes of the model, the device, and a function that loads the weights for runs of a size.

    Everything that can be refused is refused before weights load, and the driver is opened meanwhile.
    """
    from concurrent.futures import ThreadPoolExecutor

    from shaderfusion.gpu.backend import runtimes
    from shaderfusion.gpu.device import open_device

    runtimes(args.runtime)[0].load()  # alone: beside other imports it would take longer, and the driver begin later
    with ThreadPoolExecutor(1) as beside:
        # The driver takes a while, and what follows does not need it yet.
        opening = beside.submit(open_device, args.device, runtime=args.runtime)
        from shaderfusion.kernels.optimizations import Optimizations
        from shaderfusion.pipeline import StableDiffusionPipeline

        optimizations = Optimizations.parse(args.optimizations)
        model = open_given_model(args)
        checked = check(model)
        device = opening.result()

    def load(size: "RunSize") -> StableDiffusionPipeline:
        return StableDiffusionPipeline.from_pretrained(
            model,
            device=device,
            dtype=args.dtype,
            scheduler=args.scheduler,
            optimizations=optimizations,
            size=size,
            tuning=args.tuning,
            loras=args.lora,
            memory=args.memory,
        )

    return checked, device, load


def open_given_model(args: argparse.Namespace) -> "Family":
    """The model that the options name, with their textual inversions."""
    from shaderfusion.families import open_model

    model = open_model(
        args.model,
        vae=args.vae,
        preview_vae=getattr(args, "preview_vae", None),
        prediction_type=args.prediction_type,
        revision=args.revision,
    )
    for path in args.embedding:
        model.added_tokens.load(path, None, model.tokenizers)
    return model


def make_job_request(model: "Family", args: argparse.Namespace, **others: Any) -> "Request":
    """What the options ask for, and other arguments of `request.make_request`, checked against the model."""
    from shaderfusion.request import make_request

    return make_request(
        model,
        args.prompt,
        negative_prompt=args.negative_prompt,
        num_inference_steps=args.steps,
        guidance_scale=args.guidance_scale,
        width=args.width,
        height=args.height,
        num_images_per_prompt=args.num_images,
        seed=args.seed,
        scheduler=args.scheduler,
        eta=args.eta,
        rng=args.rng,
        seeds=args.seeds,
        prompt_syntax=args.prompt_syntax,
        clip_skip=args.clip_skip,
        emphasis=args.emphasis,
        **others,
    )


def require_second_pass(args: argparse.Namespace) -> None:
    """InputError for options of a second run where there is none."""
    for option, value in (("--hires-steps", args.hires_steps), ("--hires-strength", args.hires_strength)):
        if value is not None and args.hires is None:
            raise InputError(f"{option} (={value:g}) must come with --hires, the second run's scale")


def make_second_pass(model: "Family", args: argparse.Namespace, first: "Request") -> "SecondPass | None":
    """The run that --hires asks for."""
    if args.hires is None:
        return None
    from shaderfusion.hires import SecondPass

    args.hires_steps = args.steps if args.hires_steps is None else args.hires_steps
    args.hires_strength = 0.5 if args.hires_strength is None else args.hires_strength
    return SecondPass(
        model,
        first,
        scale=args.hires,
        num_inference_steps=args.hires_steps,
        strength=args.hires_strength,
        mask_image=args.mask,
        scheduler=args.scheduler,
        eta=args.eta,
    )


def find_adapters(args: argparse.Namespace, requests: "Sequence[Request]") -> "list[tuple[Path, Strength]]":
    """Files of all adapters of some runs, those of --lora and those that prompts name in the folder of --lora-dir.

    Each is to be loaded at the strength of the first run if prompts of all name it, else at that of --lora, or 0.
    InputError for a name that no file has, or two.
    """
    from shaderfusion.prompts.adapters import find_adapter_file
    from shaderfusion.weights.lora.adapters import name_files

    found = name_files(args.lora)
    for request in requests:
        for name in request.adapters:
            if name not in found:
                found[name] = (find_adapter_file(name, found, args.lora_dir), 0.0)
    for name, (path, _) in found.items():
        if requests and all(name in request.adapters for request in requests):
            found[name] = (path, requests[0].adapters[name])
    return list(found.values())


class Hashes:
    """Of the files that a command names, by the keys that settings have for them."""

    def __init__(self, args: argparse.Namespace, model: "Family") -> None:
        from shaderfusion.metadata.hashes import embedding_hash, file_hash, lora_hash
        from shaderfusion.weights.lora.adapters import name_files

        self.model = file_hash(model.files.path)
        self._adapters = {
            name: {"file": str(path), "strength": strength, "hash": lora_hash(path)}
            for name, (path, strength) in name_files(args.lora).items()
        }
        self._settings = {
            "model_hash": self.model,
            "vae_hash": file_hash(args.vae) if args.vae else None,
            "embedding": [{"file": str(path), "hash": embedding_hash(path)} for path in args.embedding],
        }

    def settings(self, request: "Request") -> dict[str, Any]:
        """For a run's pictures: of the adapters those that it used, at its strengths."""
        strengths = {name: each["strength"] for name, each in self._adapters.items()} | dict(request.adapters)
        used = [each | {"strength": strengths[name]} for name, each in self._adapters.items() if strengths[name]]
        return {**self._settings, "lora": used}


def make_settings(
    args: argparse.Namespace, pipe: "StableDiffusionPipeline", request: "Request", hashes: Hashes
) -> dict[str, Any]:
    """All that a picture depends on, and what it was made by, as its file holds it (`metadata.settings`)."""
    from shaderfusion.metadata.samplers import schedule_type

    info = pipe.device.info
    name = request.schedule.name
    given = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    made_by = {
        "scheduler": name,
        "schedule_type": schedule_type(pipe.model.scheduler_config, name),
        "width": request.size.width_px,
        "height": request.size.height_px,
        "seed": request.seed,
        "device": info.name,
        "driver": info.driver,
        "runtime": info.runtime,
        "dtype": pipe.dtype,
        "tuning": pipe.tuning,
        "memory": pipe.memory,
        "version": shaderfusion.__version__,
    }
    settings = {key: value for key, value in given.items() if key not in NO_SETTINGS}
    settings |= hashes.settings(request) | made_by
    return {key: value for key, value in settings.items() if value is not None and value != []}


def number_of(index: int, num_images: int) -> dict[str, int]:
    """The setting that says which picture of several one is, counted from 1."""
    return {"number": index} if num_images > 1 else {}


def slug(prompt: str) -> str:
    """The prompt's first words, as part of a file name."""
    return re.sub(r"\W+", "-", prompt.lower())[:40].strip("-") or "image"
