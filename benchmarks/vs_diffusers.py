"""SD 1.4's networks with random weights, through shaderfusion and through diffusers, on one GPU in one run.

    .venv/bin/python -m benchmarks.vs_diffusers [--dtype f16] [--output rows.json]     (needs extra `golden`, CUDA)

First the results are compared with diffusers in f32; then each network is timed and its memory taken: one UNet
iteration at batch 2 and 64x64 latents, the decoder for one 512x512 image, the text encoder for one prompt.
"""

# pyright: reportMissingImports=false, reportPrivateImportUsage=false
from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import environment, measure
from benchmarks.sd14 import save_random_model
from shaderfusion.engine import Engine, load_all_weights
from shaderfusion.gpu.device import open_device
from shaderfusion.graph.program import Program
from shaderfusion.kernels.common.denoise_step import COEFFICIENTS, NUM_COEFFICIENTS
from shaderfusion.models.stable_diffusion import ModelConfig, build_graphs
from shaderfusion.pipeline import make_kernels
from shaderfusion.schedulers import Update

__all__ = ["main"]

BATCH, SIDE = 2, 64
TIMESTEP = 981.0
VOCABULARY = 49408


def main() -> None:
    """Prints one row a network and engine, and writes all rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--dtype", choices=("f16", "f32"), default="f16")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary, torch.inference_mode():
        folder = Path(temporary)
        modules = save_random_model(folder, device="cuda")
        inputs = make_inputs()
        expected = {name: forward(modules[name], name, inputs[name], torch.float32) for name in modules}
        ours = run_ours(folder, args.dtype, inputs, expected, rows)
        for name, module in modules.items():
            rows.append(time_diffusers(module.half(), name, inputs[name], expected[name]))
            modules[name].cpu()
    for row in rows:
        row |= ours
        print({key: row[key] for key in ("engine", "network", "relative_error", "p50_ms")})
    if args.output:
        args.output.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def make_inputs() -> dict[str, dict[str, np.ndarray]]:
    """Standard normal latents and embeddings, random token ids; channels last."""
    rng = np.random.default_rng(0)
    return {
        "unet": {
            "latents": rng.standard_normal((BATCH, SIDE, SIDE, 4), np.float32),
            "embedding": rng.standard_normal((BATCH, 77, 768), np.float32),
            "timestep": np.array([TIMESTEP], np.float32),
            # A step that leaves x_t as it is, so that no timed run works on zeros.
            "x_t": rng.standard_normal((1, SIDE, SIDE, 4), np.float32),
            "coefficients": coefficients(c_x=1, next_input_scale=1),
        },
        "vae": {"latents": rng.standard_normal((1, SIDE, SIDE, 4), np.float32)},
        "text_encoder": {"token_ids": rng.integers(0, VOCABULARY, (1, 77))},
    }


def coefficients(**values: float) -> np.ndarray:
    """A row for denoise_step."""
    row = np.zeros(NUM_COEFFICIENTS, np.float32)
    for name, value in values.items():
        row[COEFFICIENTS.index(name)] = value
    return row


def forward(module: Any, name: str, inputs: dict[str, np.ndarray], dtype: torch.dtype) -> np.ndarray:
    """diffusers' result, channels last."""
    return call(module, name, to_torch(inputs, dtype))().float().cpu().numpy()


def to_torch(inputs: dict[str, np.ndarray], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """On the GPU, images channels first."""
    tensors = {}
    for name, array in inputs.items():
        tensor = torch.from_numpy(array).cuda()
        tensor = tensor.permute(0, 3, 1, 2).contiguous() if tensor.ndim == 4 else tensor
        tensors[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return tensors


def call(module: Any, name: str, tensors: dict[str, torch.Tensor]) -> Any:
    """A function without arguments that runs the network."""
    match name:
        case "unet":
            latents, embedding = tensors["latents"], tensors["embedding"]
            return lambda: module(latents, TIMESTEP, embedding).sample.permute(0, 2, 3, 1)
        case "vae":
            latents = tensors["latents"] / module.config.scaling_factor
            return lambda: module.decode(latents).sample.permute(0, 2, 3, 1)
        case _:
            return lambda: module(tensors["token_ids"]).last_hidden_state


def time_diffusers(module: Any, name: str, inputs: dict[str, np.ndarray], expected: np.ndarray) -> dict[str, Any]:
    """Eager diffusers in f16, timed with CUDA events."""
    run = call(module, name, to_torch(inputs, torch.float16))
    error = relative_error(run().float().cpu().numpy(), expected)
    torch.cuda.reset_peak_memory_stats()
    times_ms = []
    for _ in range(15):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times_ms.append(start.elapsed_time(end))
    weights = sum(parameter.nbytes for parameter in module.parameters())
    p20, p50, p80 = np.percentile(times_ms[5:], (20, 50, 80))
    return {
        "engine": "diffusers eager f16",
        "network": name,
        "relative_error": error,
        "p20_ms": p20,
        "p50_ms": p50,
        "p80_ms": p80,
        "weights_bytes": weights,
        "peak_bytes": torch.cuda.max_memory_allocated(),
    }


def run_ours(
    folder: Path,
    dtype: Any,
    inputs: dict[str, dict[str, np.ndarray]],
    expected: dict[str, np.ndarray],
    rows: list[dict[str, Any]],
) -> dict[str, str]:
    """Our three programs: error, GPU time, wall time, memory. Returns the environment."""
    device = open_device()
    config = ModelConfig.from_folder(folder)
    kernels = make_kernels(device, dtype)
    started = time.perf_counter()
    weights = load_all_weights(device, config, kernels, folder)
    print(f"loaded weights in {time.perf_counter() - started:.1f} s")
    size = dict.fromkeys(("height_px", "width_px"), SIDE * config.vae.scale_factor)
    graphs = build_graphs(config, kernels, batch=1, guidance=True, **size)
    memory: list[Any] = []
    for name in ("vae", "unet", "text_encoder"):
        graph = graphs[name]
        external = weights.load(graph)
        started = time.perf_counter()
        program = Program(device, graph, external, memory)
        for key, array in inputs[name].items():
            program.write(key, array)
        program.run()
        (output,) = graph.outputs
        result = program.read(output)
        first_s = time.perf_counter() - started
        error = relative_error(result[..., : expected[name].shape[-1]].astype(np.float32), expected[name])
        timed = measure(name, program, num_runs=10)
        started = time.perf_counter()
        for _ in range(5):
            program.run()
        program.read(output)
        rows.append(
            {
                "engine": f"shaderfusion {dtype}",
                "network": name,
                "relative_error": error,
                **timed.as_dict(),
                "wall_ms": (time.perf_counter() - started) / 5 * 1e3,
                "first_run_s": first_s,
                "weights_bytes": graph.weights_bytes,
                "tensors_bytes": program.plan.total_bytes,
                "dispatches": len(graph.calls),
                "profile": summarize(program),
            }
        )
        print(rows[-1])
        del program
    rows.append(end_to_end(Engine(device, config, kernels, weights, batch=1, guidance=True, **size)))
    return environment(device)


def end_to_end(engine: Engine, num_steps: int = 20) -> dict[str, Any]:
    """Seconds of two prompts, 20 steps and one 512x512 picture, in the second run."""
    rng = np.random.default_rng(0)
    seconds: dict[str, float] = {}
    for _ in range(2):
        started = time.perf_counter()
        embeddings = engine.encode(rng.integers(0, VOCABULARY, (2, 77)))
        encoded = time.perf_counter()
        engine.start(embeddings, rng.standard_normal((1, SIDE, SIDE, 4), np.float32), 1.0)
        for step in range(num_steps):
            update = Update(c_x=1.0, c_m=-0.02)  # about what a step of DDIM does
            engine.step(980.0 - 49 * step, update, guidance_scale=7.5, next_input_scale=1.0)
        denoised = time.perf_counter()
        engine.decode()
        decoded = time.perf_counter()
        seconds = {"text_encoder": encoded - started, "denoising": denoised - encoded, "decoder": decoded - denoised}
    row = {"engine": "shaderfusion", "network": f"end to end, {num_steps} steps", "relative_error": None}
    return {**row, "seconds": seconds, "p50_ms": 1e3 * sum(seconds.values())}


def summarize(program: Program) -> list[tuple[str, float]]:
    """Milliseconds by kernel, largest first."""
    totals: dict[str, float] = {}
    for label, ms in program.profile_ms():
        kernel = label.rsplit("/", 1)[1]
        totals[kernel] = totals.get(kernel, 0.0) + ms
    return sorted(totals.items(), key=lambda item: -item[1])


def relative_error(actual: np.ndarray, expected: np.ndarray) -> float:
    """Norm of the difference over the norm of the expected array."""
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


if __name__ == "__main__":
    main()
