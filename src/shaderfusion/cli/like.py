"""`--like FILE`: the settings of a picture, for `generate`."""

import argparse
import re
import warnings
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from shaderfusion.errors import InputError
from shaderfusion.files import shown

if TYPE_CHECKING:
    from shaderfusion.families.family import Family
    from shaderfusion.metadata.recipe import Recipe

__all__ = ["Like", "add_like", "check_like", "met_by", "take_like"]

_MET_BY = {
    **dict.fromkeys(("Sampler", "Schedule type", "scheduler"), "scheduler"),
    **dict.fromkeys(("RNG", "Seed", "seed"), "seed"),
    **dict.fromkeys(("Lora", "Lora hashes", "Civitai resources", "Hashes", "loras"), "lora"),
    **dict.fromkeys(("TI", "TI hashes"), "embedding"),
    **dict.fromkeys(("VAE", "VAE hash", "vae"), "vae"),
    **dict.fromkeys(("CFG scale", "cfg_scale", "guidance_scale"), "guidance_scale"),
    **dict.fromkeys(("Steps", "steps"), "steps"),
    "prediction_type": "prediction_type",
    **dict.fromkeys(("image", "Init image hash", "init_image"), "image"),
    **dict.fromkeys(("Hires upscale", "Hires resize", "First pass size"), "hires"),
    "Hires steps": "hires_steps",
    "Denoising strength": "hires_strength",
    "mask": "mask",
    "Size": "width",
    "Clip skip": "clip_skip",
    "Emphasis": "emphasis",
}
"""Options that take the place of what a picture asks for."""

_SECOND_PASS = ("hires", "Hires upscale", "Hires resize", "First pass size")
"""Who ignores one of these wants none, and nothing of what the picture says of it."""


@dataclass(frozen=True)
class Like:
    """A picture's recipe, and what the command line says beside it."""

    path: Path
    recipe: "Recipe"
    given: Collection[str]
    """Options that the command line gives."""
    ignored: Collection[str]

    def compare(self, model_hash: str | None) -> None:
        """Warns where both models are known by their hashes, which differ."""
        own = self.recipe.facts.get("Model hash") or self.recipe.facts.get("model_hash")
        if own and model_hash and len(own) == len(model_hash) and own.lower() != model_hash:
            name = self.recipe.facts.get("Model") or self.recipe.facts.get("model") or "its model"
            warnings.warn(
                f"--like (={self.path}) was made by another model, {shown(name)} of hash {shown(own)}, not "
                f"{model_hash}; give it by --model",
                stacklevel=2,
            )


def add_like(parser: argparse.ArgumentParser) -> None:
    meaning = "a picture, of ours or of a web UI, whose settings are taken where no option gives another; not its model"
    parser.add_argument("--like", type=Path, metavar="FILE", help=meaning)
    meaning = (
        "a setting of that picture that need not be met, as its error names it, or all; may be given several times"
    )
    parser.add_argument("--ignore", action="append", default=[], metavar="NAME", help=meaning)


def take_like(args: argparse.Namespace) -> Like | None:
    """Fills in what the command line leaves out from the picture; InputError or ModelError where it says nothing."""
    if args.like is None:
        if args.ignore:
            raise InputError(f"--ignore (={args.ignore[0]}) must come with --like")
        return None
    from shaderfusion.metadata.image_files import read_texts
    from shaderfusion.metadata.recipe import COMFY_UI, read_recipes

    texts = read_texts(args.like)
    recipes = read_recipes(str(args.like), texts)
    if not recipes:
        what = "only a graph of ComfyUI, which is not read" if set(texts) & set(COMFY_UI) else "no settings"
        raise InputError(f"--like (={args.like}) must be a picture that holds its settings, and has {what}")
    given = [name for name, value in vars(args).items() if value is not None and value != []]
    left_out = {"strength"} if args.image is None else set[str]()  # a demand names the picture that it belongs to
    if args.prompt_syntax == "plain":
        left_out.add("emphasis")
    ignored = set(args.ignore)
    if ignored & set(_SECOND_PASS):
        left_out |= {"hires", "hires_steps", "hires_strength"}
        ignored |= {name for name in recipes[0].demands if name.startswith("Hires ") or name == "Denoising strength"}
    for name, value in recipes[0].options.items():
        if name not in given and name not in left_out:
            setattr(args, name, value)
    if recipes[0].tagged_prompt and "prompt" not in given and args.lora_dir and not ignored & {"Lora", "all"}:
        args.prompt = recipes[0].tagged_prompt
    demanded = {_MET_BY.get(name) for name in recipes[0].demands}
    not_said = [name for name in recipes[0].not_said if name not in given and name not in demanded]
    if not_said:
        warnings.warn(
            f"--like (={args.like}) does not say {', '.join(not_said)}; the defaults are taken, which may make another "
            "picture",
            stacklevel=2,
        )
    return Like(args.like, recipes[0], given, ignored)


def check_like(like: Like | None, args: argparse.Namespace, model: "Family") -> None:
    """InputError that names all that the picture asks for and this run would not do; fits settings to the model."""
    from shaderfusion.families.stable_diffusion_xl import StableDiffusionXL

    if like is None:
        return
    if like.recipe.is_web_uis and isinstance(model, StableDiffusionXL):
        if "clip_skip" not in like.given:
            args.clip_skip = None  # web UIs skip none of its layers
        if "scheduler" not in like.given and args.scheduler:
            args.scheduler = re.sub("_ays$", "_ays_xl", args.scheduler)
    if "all" in like.ignored:
        return
    missing = [(name, value) for name, value in like.recipe.demands.items() if not _is_met(name, value, like, model)]
    if missing:
        raise InputError(f"--like (={like.path}) asks for what is not done: {'; '.join(_remedies(missing))}")


def _remedies(missing: Iterable[tuple[str, str]]) -> Iterable[str]:
    for name, value in missing:
        yield f"{name}: {shown(value)[1:-1]} (give {met_by(name)}--ignore {name!r})"


def met_by(name: str) -> str:
    """The option that takes the place of what a picture asks for, and `or`; empty where there is none."""
    return f"--{_MET_BY[name].replace('_', '-')} or " if name in _MET_BY else ""


def _is_met(name: str, value: str, like: Like, model: "Family") -> bool:
    from shaderfusion.metadata.samplers import schedule_type
    from shaderfusion.schedulers import make_schedule

    if name in like.ignored or _MET_BY.get(name, name) in like.given:
        return True
    match name:
        case "Schedule type":
            scheduler = like.recipe.options.get("scheduler")
            return value == schedule_type(
                model.scheduler_config, make_schedule(model.scheduler_config, 1, scheduler).name
            )
        case "Lora":
            return like.recipe.tagged_prompt is not None and "lora_dir" in like.given and "prompt" not in like.given
    return False
