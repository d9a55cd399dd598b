"""What a person waits for with a checkpoint of their own: loading, adapters, and the device's memory.

    .venv/bin/python -m benchmarks.checkpoints [--model sd14|sdxl] [--json rows.json]

The model is one file in the original layout with random f16 weights, and the LoRA one of rank 16 for all linear layers
of the UNet's transformers. Files are in the page cache. Memory is what `nvidia-smi` counts while a picture of 4 steps
is made, less what it counts before, where there is an NVIDIA GPU; beside it stands what `shaderfusion info` says.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from benchmarks.startup import NUM_RUNS, as_installed, save_file_of
from shaderfusion.bench.measure import environment
from shaderfusion.bench.values import normal
from shaderfusion.families import open_model
from shaderfusion.families.run_size import MEMORIES
from shaderfusion.gpu.device import open_device
from shaderfusion.info import describe
from shaderfusion.kernels.select import Kernels
from shaderfusion.pipeline import StableDiffusionPipeline

__all__ = ["main"]

RANK = 16
NUM_STEPS = 4

LOAD = """
import sys, time
from shaderfusion import StableDiffusionPipeline
started = time.perf_counter()
StableDiffusionPipeline.from_single_file(sys.argv[1], runtime=sys.argv[2])
print(time.perf_counter() - started)
"""


def main() -> None:
    """Prints and writes one row a measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", choices=("sd14", "sdxl"), default="sd14")
    parser.add_argument("--runtime", default="auto", help="auto, wgpu or dawn")
    parser.add_argument("--json", type=Path, help="file of the rows")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []

    def add(name: str, **values: float) -> None:
        rows.append({"benchmark": "checkpoints", "model": args.model, "name": name, **values})
        print(f"{name:40}", ", ".join(f"{key} {value:,.2f}" for key, value in values.items()), flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        model, lora = Path(temporary) / "model.safetensors", Path(temporary) / "lora.safetensors"
        save_file_of(args.model, model)
        save_lora(model, lora)
        add("model in its file", mb=model.stat().st_size / 1e6)
        add("from_single_file", seconds=min(load_seconds(model, args.runtime) for _ in range(NUM_RUNS)))
        measure_adapters(model, lora, args.runtime, add)
        for info in describe(model).memory:
            add(f"info, memory {info.memory}", mb=info.peak_bytes / 1e6)
        if shutil.which("nvidia-smi"):
            for memory in MEMORIES:
                seconds, mb = generate(model, args.runtime, memory)
                add(f"generate, memory {memory}", seconds=seconds, mb=mb)
    if args.json:
        where = environment(open_device(runtime=args.runtime))
        args.json.write_text(json.dumps([row | where for row in rows], indent=1), encoding="utf-8")


def save_lora(model: Path, path: Path) -> None:
    """In kohya's spelling, f16."""
    opened = open_model(model)
    graph = opened.networks["unet"].record(Kernels("f16"), opened.run_size())
    tensors: dict[str, np.ndarray] = {}
    for weight in graph.weights.values():
        for own in weight.paths:
            if ".transformer_blocks." in own and len(weight.source_shape) == 2:
                stem = f"lora_unet_{own.removesuffix('.weight').replace('.', '_')}"
                out_channels, in_channels = weight.source_shape
                tensors[f"{stem}.lora_down.weight"] = normal(f"{stem}.down", (RANK, in_channels)).astype(np.float16)
                up = normal(f"{stem}.up", (out_channels, RANK)) * np.float32(0.001)
                tensors[f"{stem}.lora_up.weight"] = up.astype(np.float16)
                tensors[f"{stem}.alpha"] = np.array(RANK, np.float16)
    save_file(tensors, path)


def load_seconds(model: Path, runtime: str) -> float:
    """Of a process that has imported the package; only then does it import what opens the device."""
    command = [sys.executable, "-c", LOAD, str(model), runtime]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=as_installed(model.parent))
    return float(done.stdout)


def measure_adapters(model: Path, lora: Path, runtime: str, add: Callable[..., None]) -> None:
    """Loading one, changing its strength, and forgetting it."""
    pipe = StableDiffusionPipeline.from_single_file(model, runtime=runtime)
    with pipe:
        calls: dict[str, Callable[[], None]] = {
            "load_lora_weights": lambda: pipe.load_lora_weights(lora, adapter_name="lora"),
            "set_adapters": lambda: pipe.set_adapters("lora", 0.5),
            "unload_lora_weights": pipe.unload_lora_weights,
        }
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            pipe.device.wait()
            add(name, seconds=time.perf_counter() - started)


def generate(model: Path, runtime: str, memory: str) -> tuple[float, float]:
    """Seconds of the command, and the most MB of the device that it took."""
    command = [sys.executable, "-m", "shaderfusion", "generate", "a red heart", "--model", str(model), "--seed", "1"]
    command += ["--steps", str(NUM_STEPS), "--memory", memory, "--runtime", runtime]
    command += ["--output", str(model.with_name("picture.png"))]
    with used_mb() as used:
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, env=as_installed(model.parent))
        seconds = time.perf_counter() - started
    return seconds, max(used) - used[0]


@contextlib.contextmanager
def used_mb() -> Iterator[list[float]]:
    """Memory of the first GPU by its driver, again and again; whole when the context ends."""
    query = ["nvidia-smi", "--id=0", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--loop-ms=50"]
    found: list[float] = []
    with subprocess.Popen(query, stdout=subprocess.PIPE, text=True) as process:
        time.sleep(1)
        yield found
        process.terminate()
        lines = process.stdout.read().split() if process.stdout else []
    found += [float(line) * (1 << 20) / 1e6 for line in lines if line.isdecimal()]


if __name__ == "__main__":
    main()
