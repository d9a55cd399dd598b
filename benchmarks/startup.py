"""Seconds from the command to the picture: one file of Stable Diffusion 1.4's or XL's size, and the embedded model.

    .venv/bin/python -m benchmarks.startup [--model sd14|sdxl|emoji] [--src FOLDER] [--json rows.json]

The file holds random f16 weights in the original layout. Every measurement is a process of its own, with the file in
the page cache: `from_pretrained` alone, and `shaderfusion generate` from start to end, first with
empty shader caches and then with those that the first run filled. --src times another checkout's package.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from shaderfusion.bench.measure import environment
from shaderfusion.bench.subject import RANDOM_MODELS, RandomFolder
from shaderfusion.families import family_of
from shaderfusion.families.stable_diffusion import StableDiffusion
from shaderfusion.gpu.device import open_device
from shaderfusion.kernels.select import Kernels
from shaderfusion.models.clip import text_encoder_graph
from shaderfusion.weights.ldm_names import (
    UNET_PREFIX,
    VAE_PREFIX,
    StoredAs,
    UNetBlocks,
    open_clip_name,
    unet_name,
    vae_name,
)

__all__ = ["NUM_RUNS", "as_installed", "main", "save_file_of"]

NUM_STEPS = 20
NUM_RUNS = 3

FROM_PRETRAINED = """
import sys, time
from shaderfusion import StableDiffusionPipeline
started = time.perf_counter()
StableDiffusionPipeline.from_pretrained(sys.argv[1])
print(time.perf_counter() - started)
"""


def main() -> None:
    """Prints and writes one row a measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", choices=("sd14", "sdxl", "emoji"), default="sd14")
    parser.add_argument("--src", type=Path, default=Path(__file__).parents[1] / "src", help="default: this checkout's")
    parser.add_argument("--json", type=Path, help="file of the rows")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        model = "emoji"
        if args.model != "emoji":
            model = str(Path(temporary) / "model.safetensors")
            save_file_of(args.model, Path(model))
        for name, seconds in measure(model, args.src, Path(temporary)).items():
            rows.append({"benchmark": "startup", "model": args.model, "name": name, "seconds": seconds})
            print(f"{name:36} {min(seconds):6.2f} s   ({', '.join(f'{s:.2f}' for s in seconds)})", flush=True)
    if args.json:
        where = environment(open_device())
        args.json.write_text(json.dumps([row | where for row in rows], indent=1), encoding="utf-8")


def save_file_of(name: str, path: Path) -> None:
    """A model in one .safetensors file, in the original layout, with random weights in f16."""
    model = family_of(RandomFolder(RANDOM_MODELS[name]))
    if not isinstance(model, StableDiffusion):
        raise TypeError(f"{name} must be a model with a UNet")
    unet, vae = model.config.unet, model.config.vae
    blocks = UNetBlocks(
        layers=tuple(len(block.transformers) for block in unet.down_blocks),
        up_attention=tuple(block.transformers[0] is not None for block in unet.up_blocks),
    )
    tensors: dict[str, np.ndarray] = {}
    graphs = model.record(Kernels("f16"), model.run_size())
    for component, config in model.text_encoders.items():  # with layers that are in files and are not read
        pooled = "projection" if component == "text_encoder_2" else "state"
        graphs[component] = text_encoder_graph(config, Kernels("f16"), pooled=pooled)
    for network, graph in graphs.items():
        source = model.sources[network]
        for weight in [*graph.weights.values(), *graph.tables.values()]:
            for own in weight.paths:
                array = source.read(own, weight.source_shape).to_f32().reshape(weight.source_shape).astype(np.float16)
                match network:
                    case "unet":
                        stored = StoredAs(UNET_PREFIX + unet_name(own, blocks))
                    case "vae":
                        stored = StoredAs(VAE_PREFIX + vae_name(own, len(vae.block_out_channels)))
                    case "text_encoder" if name != "sdxl":
                        stored = StoredAs(f"cond_stage_model.transformer.{own}")
                    case "text_encoder":
                        stored = StoredAs(f"conditioner.embedders.0.transformer.{own}")
                    case _:
                        stored = open_clip_name(own)
                        stored = stored._replace(name=f"conditioner.embedders.1.model.{stored.name}")
                array = array.T if stored.transposed else array
                before = [tensors[stored.name]] if stored.part else []  # q, k and v come in this order
                tensors[stored.name] = np.concatenate([*before, array]) if stored.part is not None else array
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path)


def as_installed(folder: Path) -> dict[str, str]:
    """Variables of processes that compile modules once, as where they are installed: the first writes to `folder`."""
    others = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return others | {"PYTHONPYCACHEPREFIX": str(folder / "bytecode")}


def measure(model: str, src: Path, temporary: Path) -> Mapping[str, list[float]]:
    """Seconds of each run, by what was run."""

    def run(command: list[str], env: Mapping[str, str]) -> str:
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed: {done.stderr}")
        return done.stdout

    python = as_installed(temporary)
    python["PYTHONPATH"] = os.pathsep.join((str(src), os.environ.get("PYTHONPATH", "")))
    generate = [sys.executable, "-m", "shaderfusion", "generate", "a red heart", "--model", model, "--seed", "42"]
    generate += ["--steps", str(NUM_STEPS), "--output", str(temporary / "picture.png")]
    load = [sys.executable, "-c", FROM_PRETRAINED, model]
    names = ("generate, nothing cached", "generate, shaders cached", "from_pretrained")
    found: dict[str, list[float]] = {name: [] for name in names}
    for index in range(NUM_RUNS):
        caches = {name: str(temporary / f"caches-{index}") for name in ("XDG_CACHE_HOME", "MESA_SHADER_CACHE_DIR")}
        caches["SHADERFUSION_CACHE"] = caches["XDG_CACHE_HOME"]  # no tuning
        caches["__GL_SHADER_DISK_CACHE_PATH"] = caches["XDG_CACHE_HOME"]
        Path(caches["XDG_CACHE_HOME"]).mkdir()
        for name in names[:2]:
            started = time.perf_counter()
            run(generate, python | caches)
            found[name].append(time.perf_counter() - started)
        found["from_pretrained"].append(float(run(load, python | caches)))
    return found


if __name__ == "__main__":
    main()
