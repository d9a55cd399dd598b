"""Seconds from the command to the picture: a model folder of Stable Diffusion 1.4's size, and the embedded model.

    .venv/bin/python -m benchmarks.startup [--model sd14|emoji] [--src FOLDER] [--json rows.json]

The folder holds random f16 weights and the embedded model's tokenizer. Every measurement is a process of its own, with
the model's files in the page cache: `from_pretrained` alone, and `shaderfusion generate` from start to end, first with
empty shader caches and then with those that the first run filled. --src times another checkout's package.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
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
from shaderfusion.bench.subject import SD14_FOLDER, RandomFolder
from shaderfusion.families import find_model
from shaderfusion.families.stable_diffusion import StableDiffusion
from shaderfusion.gpu.device import open_device
from shaderfusion.kernels.select import Kernels

__all__ = ["main"]

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
    parser.add_argument("--model", choices=("sd14", "emoji"), default="sd14")
    parser.add_argument("--src", type=Path, default=Path(__file__).parents[1] / "src", help="default: this checkout's")
    parser.add_argument("--json", type=Path, help="file of the rows")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        model = "emoji"
        if args.model == "sd14":
            model = str(Path(temporary) / "model")
            save_model(Path(model))
        for name, seconds in measure(model, args.src, Path(temporary)).items():
            rows.append({"benchmark": "startup", "model": args.model, "name": name, "seconds": seconds})
            print(f"{name:36} {min(seconds):6.2f} s   ({', '.join(f'{s:.2f}' for s in seconds)})", flush=True)
    if args.json:
        where = environment(open_device())
        args.json.write_text(json.dumps([row | where for row in rows], indent=1), encoding="utf-8")


def save_model(folder: Path) -> None:
    """A whole folder in diffusers' format with random weights in f16."""
    shutil.copytree(SD14_FOLDER, folder)
    model = StableDiffusion(RandomFolder(folder))
    for name, graph in model.record(Kernels("f16"), model.run_size()).items():
        source = model.sources[name]
        weights = [*graph.weights.values(), *graph.tables.values()]
        shapes = {path: w.source_shape for w in weights for path in w.paths}
        stored = {path: source.read(path, shape).to_f32().reshape(shape) for path, shape in shapes.items()}
        file = "model.safetensors" if name == "text_encoder" else "diffusion_pytorch_model.safetensors"
        save_file({path: array.astype(np.float16) for path, array in stored.items()}, folder / name / file)
    embedded = find_model("emoji")
    shutil.copytree(embedded / "tokenizer", folder / "tokenizer")
    config = folder / "tokenizer" / "tokenizer_config.json"
    tokens, _ = model.embedding_shape
    config.write_text(json.dumps(json.loads(config.read_text("utf-8")) | {"model_max_length": tokens}), "utf-8")
    shutil.copytree(embedded / "scheduler", folder / "scheduler")
    shutil.copy(embedded / "model_index.json", folder)


def measure(model: str, src: Path, temporary: Path) -> Mapping[str, list[float]]:
    """Seconds of each run, by what was run."""

    def run(command: list[str], env: Mapping[str, str]) -> str:
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{' '.join(command)} failed: {done.stderr}")
        return done.stdout

    python = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    python["PYTHONPATH"] = os.pathsep.join((str(src), os.environ.get("PYTHONPATH", "")))
    python["PYTHONPYCACHEPREFIX"] = str(temporary / "bytecode")  # the package's modules are compiled once, as installed
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
