"""A model's networks with random weights, through shaderfusion and through diffusers, on one GPU in one run.

    .venv/bin/python -m benchmarks.vs_diffusers [--model sd14] [--dtype f16] [--json rows.json]
                                                                              (needs extra `golden`, CUDA)

Every result is first compared with diffusers in f32. Then each network is timed at the model's own size: one UNet
iteration, the decoder, and the text encoders for one prompt. Of sd14 also the UNet for eight pictures and for one of
1024x1024, the decoder for 1024x1024, and a whole picture of 20 steps. shaderfusion runs through each runtime that is
installed, with memory normal and high; diffusers in f16 (the decoder of sdxl in f32, as it has to), eager, as a CUDA
graph and, of sd14, through torch.compile with channels last. A mode that fails says so and the rest go on.
"""

# pyright: reportMissingImports=false, reportPrivateImportUsage=false
from __future__ import annotations

import argparse
import gc
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from benchmarks.random_models import configs, save_random_model
from shaderfusion.bench.measure import environment, measure, relative_error
from shaderfusion.bench.runs import (
    GUIDANCE_SCALE,
    NUM_STEPS,
    SCHEDULER,
    TIMESTEP,
    make_image,
    make_token_ids,
    run_iteration,
)
from shaderfusion.bench.subject import RANDOM_MODELS, Subject, open_subject
from shaderfusion.bench.values import normal
from shaderfusion.config import NUM_TIME_IDS
from shaderfusion.engine import Engine
from shaderfusion.families.run_size import Memory
from shaderfusion.gpu.backend import runtimes
from shaderfusion.gpu.device import Device, open_device
from shaderfusion.models.clip import TOKEN_TABLE

__all__ = ["main"]

Tensors = dict[str, torch.Tensor]
Network = Callable[[Tensors], torch.Tensor]

NUM_RUNS, NUM_WARM_UP = 20, 5

NUM_TOKENS, VOCABULARY = 77, 49408
MEMORIES: tuple[Memory, ...] = ("normal", "high")
TOKEN_IDS = make_token_ids(VOCABULARY, NUM_TOKENS)


class Workload(NamedTuple):
    """A network, and for how many pictures of which side in latent cells."""

    network: str
    batch: int
    side: int


def workloads_of(model: str) -> dict[str, Workload]:
    """By name."""
    side = configs(model)["unet"]["sample_size"]
    workloads = {name: Workload(name, 1, side) for name in ("unet", "vae", "text_encoder", "text_encoder_2")}
    if model != "sdxl":
        del workloads["text_encoder_2"]
    if model == "sd14":
        workloads["unet, 8 pictures"] = Workload("unet", 8, side)
        workloads["unet, 1024x1024"] = Workload("unet", 1, 2 * side)
        workloads["vae, 1024x1024"] = Workload("vae", 1, 2 * side)
    return workloads


class Rows:
    """Rows, printed and written as they come."""

    def __init__(self, path: Path | None, where: dict[str, str]) -> None:
        self._path, self._where = path, where
        self._rows: list[dict[str, Any]] = []

    def add(self, engine: str, network: str, **values: Any) -> None:
        """One network, or the whole picture, through one engine."""
        self._rows.append({"benchmark": "vs_diffusers", "engine": engine, "network": network, **values, **self._where})
        print(engine, network, values, flush=True)
        if self._path:
            self._path.write_text(json.dumps(self._rows, indent=1), encoding="utf-8")

    def attempt(self, engine: str, network: str, work: Callable[[], dict[str, Any]]) -> bool:
        """A row of what `work` returns, or of the error that it raises; whether it worked."""
        try:
            values = work()
        except Exception as error:  # whatever a compiler or a driver raises: the other modes go on
            values = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
        self.add(engine, network, **values)
        return "error" not in values


def main() -> None:
    """Prints and writes one row a network and engine."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", choices=tuple(RANDOM_MODELS), default="sd14")
    parser.add_argument("--dtype", choices=("f16", "f32"), default="f16", help="of shaderfusion")
    parser.add_argument("--runtime", choices=("wgpu", "dawn"), help="of shaderfusion; by default all installed ones")
    parser.add_argument("--json", type=Path, help="file of the rows, written after each")
    args = parser.parse_args()
    names = [args.runtime] if args.runtime else [runtime.name for runtime in runtimes()]
    devices = [open_device(runtime=name) for name in names]
    rows = Rows(args.json, environment(devices[0]) | {"model": args.model})
    workloads = workloads_of(args.model)
    with tempfile.TemporaryDirectory() as temporary, torch.inference_mode():
        modules = save_random_model(args.model, Path(temporary), device="cuda")
        inputs = {name: make_inputs(args.model, workload) for name, workload in workloads.items()}
        expected = {
            name: to_numpy(forward(workload.network, modules[workload.network], to_torch(inputs[name], torch.float32)))
            for name, workload in workloads.items()
        }
        for name, module in modules.items():
            module.cpu()  # leaves the GPU to shaderfusion
            if name != "vae" or not module.config.force_upcast:
                module.half()
        free_memory()
        for device, memory in product(devices, MEMORIES):
            measure_ours(rows, Path(temporary), device, memory, args.dtype, workloads, expected)
        for module in modules.values():
            module.cuda()
        for mode, accelerate in MODES.items():
            if args.model == "sd14" or accelerate is not compiled:
                measure_diffusers(rows, f"diffusers f16, {mode}", accelerate, modules, workloads, inputs, expected)
            free_memory()


# ---------------------------------------------------------------------------------------------- shaderfusion


def measure_ours(
    rows: Rows,
    folder: Path,
    device: Device,
    memory: Memory,
    dtype: Any,
    workloads: dict[str, Workload],
    expected: dict[str, np.ndarray],
) -> None:
    """Each network, and the picture: GPU time, and memory as the device reports it."""
    free_before, _ = torch.cuda.mem_get_info()
    name = f"shaderfusion {dtype}, {device.info.runtime}"
    name = name if memory == "normal" else f"{name}, memory {memory}"
    own = open_subject(str(folder), device=device, dtype=dtype, memory=memory)
    with own.make_engine() as engine:
        started = time.perf_counter()
        engine.load(own.size)
        print(f"loaded weights and compiled in {time.perf_counter() - started:.1f} s", flush=True)
        seconds: dict[str, float] = {}
        if has_picture(workloads):
            *_, seconds = (make_image(engine, own) for _ in range(3))

        def measure_workload(name: str) -> dict[str, Any]:
            network, batch, side = workloads[name]
            run_size = own.model.run_size(batch=batch, width=8 * side, height=8 * side)
            result = run_network(engine, replace(own, size=run_size), network)
            program = engine.program(network, run_size)
            return {
                "relative_error": relative_error(result.astype(np.float32), expected[name]),
                **asdict(measure(program, num_runs=NUM_RUNS, num_warm_up=NUM_WARM_UP)),
                "weights_bytes": program.graph.weights_bytes,
                "tensors_bytes": program.plan.total_bytes,
                "dispatches": len(program.graph.calls),
            }

        own_size = [name for name, workload in workloads.items() if name == workload.network]
        for workload in own_size:
            rows.attempt(name, workload, partial(measure_workload, workload))
        free_after, _ = torch.cuda.mem_get_info()
        add_picture(rows, name, seconds, free_before - free_after)
        for workload in (name for name in workloads if name not in own_size):
            rows.attempt(name, workload, partial(measure_workload, workload))
    free_closed, _ = torch.cuda.mem_get_info()
    print(f"after close {(free_before - free_closed) / 1e6:.0f} MB are taken", flush=True)


def run_network(engine: Engine, subject: Subject, network: str) -> np.ndarray:
    """Its result on the same values as diffusers'."""
    match network:
        case "unet":
            run_iteration(engine, subject)
            return engine.program("unet", subject.size).read("model_output")
        case "vae":
            latents = {"latents": normal("latents", (1, *subject.latents_shape[1:]))}
            return engine.run("vae", subject.size, latents, ["image"])["image"][..., :3]
        case _:
            return engine.run(network, subject.size, {TOKEN_TABLE: TOKEN_IDS[:1]}, ["embedding"])["embedding"]


# ---------------------------------------------------------------------------------------------- diffusers


def measure_diffusers(
    rows: Rows,
    engine: str,
    accelerate: Callable[[Network, Tensors], Network],
    modules: dict[str, Any],
    workloads: dict[str, Workload],
    inputs: dict[str, dict[str, np.ndarray]],
    expected: dict[str, np.ndarray],
) -> None:
    """The UNet and the decoder accelerated, the text encoder as it is, and the picture where both worked."""
    torch.cuda.reset_peak_memory_stats()
    networks: dict[str, Network] = {name: partial(forward, name, module) for name, module in modules.items()}

    def measure_network(name: str) -> dict[str, Any]:
        module = modules[workloads[name].network]
        tensors = to_torch(inputs[name], module.dtype)
        started = time.perf_counter()
        networks[name] = accelerate(networks[name], tensors)
        error = relative_error(to_numpy(networks[name](tensors)), expected[name])
        first_s = time.perf_counter() - started
        times = time_ms(partial(networks[name], tensors))
        weights_bytes = sum(parameter.nbytes for parameter in module.parameters())
        return {"relative_error": error, **times, "first_run_s": first_s, "weights_bytes": weights_bytes}

    worked = [rows.attempt(engine, name, partial(measure_network, name)) for name in ("unet", "vae")]
    if accelerate is eager:
        for name in (name for name in modules if name not in ("unet", "vae")):
            rows.attempt(engine, name, partial(measure_network, name))

    if all(worked):
        seconds: dict[str, float] = {}
        if has_picture(workloads):
            make_diffusers_image(networks, inputs)
            seconds = make_diffusers_image(networks, inputs)
        add_picture(rows, engine, seconds, torch.cuda.max_memory_reserved())
    if accelerate is not compiled:
        for name, (network, *_) in workloads.items():
            if name != network:
                networks[name] = partial(forward, network, modules[network])
                rows.attempt(engine, name, partial(measure_network, name))
                del networks[name]


def eager(network: Network, tensors: Tensors) -> Network:
    """As it is."""
    return network


def cuda_graph(network: Network, tensors: Tensors) -> Network:
    """Captured once on inputs of its own; a run copies its inputs there and replays."""
    inputs = {name: tensor.clone() for name, tensor in tensors.items()}
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # warm-up outside of the capture, as torch asks
        for _ in range(3):
            network(inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = network(inputs)

    def replay(tensors: Tensors) -> torch.Tensor:
        for name, tensor in tensors.items():
            inputs[name].copy_(tensor)
        graph.replay()
        return out

    return replay


def compiled(network: Network, tensors: Tensors) -> Network:
    """By torch.compile, for these shapes only, as CUDA graphs and with channels last."""
    for module in modules_of(network):
        module.to(memory_format=torch.channels_last)
    tensors_last = torch.compile(network, dynamic=False, mode="reduce-overhead")

    def run(tensors: Tensors) -> torch.Tensor:
        torch.compiler.cudagraph_mark_step_begin()
        return tensors_last(tensors)

    return run


def modules_of(network: Any) -> list[torch.nn.Module]:
    """Those that a network made by `partial(forward, name, module)` runs."""
    return [module for module in network.args if isinstance(module, torch.nn.Module)]


MODES: dict[str, Callable[[Network, Tensors], Network]] = {
    "eager": eager,
    "CUDA graph": cuda_graph,
    "torch.compile": compiled,
}
"""The cheap ones first."""


def make_inputs(model: str, workload: Workload) -> dict[str, np.ndarray]:
    """What bench.runs gives our programs; channels last."""
    network, batch, side = workload
    unet = configs(model)["unet"]
    latents_shape = (batch, side, side, unet["in_channels"])
    match network:
        case "unet":
            inputs = {
                "latents": np.tile(normal("x_t", latents_shape), (2, 1, 1, 1)),
                "timestep": np.array([TIMESTEP], np.float32),
                "embedding": normal("embedding", (2 * batch, NUM_TOKENS, unet["cross_attention_dim"])),
            }
            if "addition_embed_type" in unet:
                time_ids = NUM_TIME_IDS * unet["addition_time_embed_dim"]
                pooled_dim = unet["projection_class_embeddings_input_dim"] - time_ids
                inputs["pooled"] = normal("pooled", (2 * batch, pooled_dim))
                px = float(8 * side)
                inputs["time_ids"] = np.tile(np.array([px, px, 0, 0, px, px], np.float32), (2 * batch, 1))
            return inputs
        case "vae":
            return {"latents": normal("latents", latents_shape)}
        case _:
            return {"token_ids": TOKEN_IDS[:1]}


def add_picture(rows: Rows, engine: str, seconds: dict[str, float], peak_bytes: int) -> None:
    """Seconds of each part where a whole picture was made, and the most memory."""
    timed = {"seconds": seconds, "total_s": sum(seconds.values())} if seconds else {}
    rows.add(engine, "picture", **timed, peak_bytes=peak_bytes)


def has_picture(workloads: dict[str, Workload]) -> bool:
    """Whether there are whole pictures to compare: of models with one text encoder."""
    return "text_encoder_2" not in workloads


def to_torch(inputs: dict[str, np.ndarray], dtype: torch.dtype) -> Tensors:
    """On the GPU, images channels first."""
    tensors: Tensors = {}
    for name, array in inputs.items():
        tensor = torch.from_numpy(array).cuda()
        tensor = tensor.permute(0, 3, 1, 2).contiguous() if tensor.ndim == 4 else tensor
        tensors[name] = tensor.to(dtype) if tensor.is_floating_point() and name != "timestep" else tensor
    return tensors


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """f32, images channels last."""
    tensor = tensor.permute(0, 2, 3, 1) if tensor.ndim == 4 else tensor
    return tensor.float().cpu().numpy()


def forward(name: str, module: Any, tensors: Tensors) -> torch.Tensor:
    """The network's result."""
    match name:
        case "unet":
            added = {"text_embeds": tensors["pooled"], "time_ids": tensors["time_ids"]} if "pooled" in tensors else None
            given = (tensors["latents"], tensors["timestep"], tensors["embedding"])
            return module(*given, added_cond_kwargs=added, return_dict=False)[0]
        case "vae":
            return module.decode(tensors["latents"] / module.config.scaling_factor, return_dict=False)[0]
        case _ if module.config.projection_dim == module.config.hidden_size:  # SDXL's hand on the state before the last
            return module(tensors["token_ids"], output_hidden_states=True).hidden_states[-2]
        case _:
            return module(tensors["token_ids"]).last_hidden_state


def time_ms(run: Callable[[], object]) -> dict[str, Any]:
    """On the GPU's clock, by CUDA events."""
    for _ in range(NUM_WARM_UP):
        run()
    times = []
    for _ in range(NUM_RUNS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    p20, p50, p80 = (float(p) for p in np.percentile(times, (20, 50, 80)))
    return {"p20_ms": p20, "p50_ms": p50, "p80_ms": p80, "num_runs": NUM_RUNS, "clock": "GPU"}


def make_diffusers_image(networks: dict[str, Network], inputs: dict[str, dict[str, np.ndarray]]) -> dict[str, float]:
    """bench.runs.make_image's picture: two prompts, DDIM with guidance, the decoder; seconds of each part."""
    from diffusers import DDIMScheduler

    betas = {name: getattr(SCHEDULER, name) for name in ("beta_start", "beta_end", "beta_schedule")}
    scheduler: Any = DDIMScheduler(**betas, clip_sample=False, set_alpha_to_one=False)
    scheduler.set_timesteps(NUM_STEPS, device="cuda")
    token_ids = torch.from_numpy(TOKEN_IDS).cuda()
    noise = normal("noise", inputs["vae"]["latents"].shape)
    latents = to_torch({"noise": noise}, torch.float16)["noise"]
    torch.cuda.synchronize()

    started = time.perf_counter()
    embedding = networks["text_encoder"]({"token_ids": token_ids})
    torch.cuda.synchronize()
    encoded = time.perf_counter()
    for timestep in scheduler.timesteps:
        doubled = torch.cat([latents, latents])
        at = timestep.reshape(1).float()
        eps_uncond, eps_text = networks["unet"]({"latents": doubled, "timestep": at, "embedding": embedding}).chunk(2)
        eps = eps_uncond + GUIDANCE_SCALE * (eps_text - eps_uncond)
        latents = scheduler.step(eps, timestep, latents, return_dict=False)[0]
    torch.cuda.synchronize()
    denoised = time.perf_counter()
    networks["vae"]({"latents": latents}).cpu()
    decoded = time.perf_counter()
    return {"text_encoder": encoded - started, "denoising": denoised - encoded, "decoder": decoded - denoised}


def free_memory() -> None:
    """Gives back what nothing uses any more."""
    gc.collect()
    torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
