"""The command: from a model to its cases, a report to paste into an issue, and a verdict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from shaderfusion import __version__
from shaderfusion.engine import Engine
from shaderfusion.errors import InputError
from shaderfusion.families import open_model
from shaderfusion.families.family import Family
from shaderfusion.families.run_size import RunSize
from shaderfusion.gpu.device import open_device
from shaderfusion.kernels.optimizations import Optimizations
from shaderfusion.kernels.select import Kernels
from shaderfusion.output import progress_bar, say, show
from shaderfusion.pipeline import choose_dtype
from shaderfusion.tensor import DType
from shaderfusion.tuning_file import find_tuning
from shaderfusion.verify.cases import PUBLISHED, Case
from shaderfusion.verify.compare import Outcome, compare, request_of
from shaderfusion.weights.hub import download, is_hub_id

__all__ = ["run_verify"]


def run_verify(
    model: str,
    *,
    cases: str | None = None,
    device: str | None = None,
    runtime: str = "auto",
    dtype: DType = "f32",
    optimizations: str = "all",
    tuning: str | Path = "auto",
    as_json: bool = False,
    published: Sequence[Case] = PUBLISHED,
) -> int:
    """Runs cases, by their names with commas between, or all that the model's configuration fits, and prints each.

    Returns the exit code: 0 where all cases of one checkpoint passed, and 1 else. Configurations do not tell SD 1.1,
    1.4 and 1.5 apart, so that by default cases of other checkpoints are run too, and fail. A model of the hub is
    fetched in f32, as most values were made. InputError where there is no case.
    """

    def choose(path: str | Path) -> tuple[Family, list[Case]]:
        opened = open_model(path)
        return opened, _choose(cases, opened, published)

    found, chosen = choose(download(model, dtype="f32", check=choose) if is_hub_id(model) else model)
    requests = [request_of(case, found) for case in chosen]
    opened = open_device(device, runtime=runtime)
    own_dtype = choose_dtype(opened, dtype)
    choices = find_tuning(tuning, opened.info, own_dtype)
    kernels = Kernels(own_dtype, opened.capabilities, Optimizations.parse(optimizations), choices)
    outcomes: list[Outcome] = []
    with Engine(opened, found, kernels) as engine:
        engine.load(requests[0].size)
        facts = {
            "model": model,
            "version": __version__,
            "device": opened.info.name,
            "driver": opened.info.driver,
            "runtime": opened.info.runtime,
            "dtype": own_dtype,
            "optimizations": optimizations,
            "tuning": choices.source,
            "weights": _stored_dtypes(engine, found, requests[0].size),
            "scheduler_config": _scheduler_options(found),
        }
        if not as_json:
            show("\n".join(_line(name, _shown(value)) for name, value in facts.items()))
        for case, request in zip(chosen, requests, strict=True):
            with progress_bar(request.num_steps) as draw:
                outcome = compare(engine, case, request, draw)
            outcomes.append(outcome)
            if not as_json:
                show(_block(outcome, own_dtype))

    whole, other = _checkpoints(outcomes)
    if as_json:
        rows = [outcome.as_dict() for outcome in outcomes]
        show(json.dumps(facts | {"cases": rows, "passed": bool(whole), "checkpoints_passed": whole}))
    if whole:
        say(f"the model gives what diffusers publishes for {' and '.join(whole)}")
    else:
        say(
            f"the model does not give what diffusers publishes for {' or '.join(other)}; that is a fault where it is "
            "one of them, with its own weights, in f32"
        )
    return 0 if whole else 1


def _choose(names: str | None, model: Family, published: Sequence[Case]) -> list[Case]:
    """The cases to run; InputError where there are none."""
    by_name = {case.name: case for case in published}
    if names is not None:
        wanted = list(dict.fromkeys(name.strip() for name in names.split(",")))
        for name in wanted:
            if name not in by_name:
                raise InputError(f"cases (={names!r}) must be of {', '.join(by_name)}, with commas between")
        return [by_name[name] for name in wanted]
    fitting = [case for case in published if case.fits(model)]
    if not fitting:
        checkpoints = ", ".join(dict.fromkeys(case.checkpoint for case in published))
        raise InputError(f"model (={model.files.path}) must be one that diffusers publishes values of: {checkpoints}")
    return fitting


def _checkpoints(outcomes: Sequence[Outcome]) -> tuple[list[str], list[str]]:
    """Those of which all cases passed, and the others."""
    names = dict.fromkeys(outcome.case.checkpoint for outcome in outcomes)
    failed = {outcome.case.checkpoint for outcome in outcomes if not outcome.passed}
    return [name for name in names if name not in failed], [name for name in names if name in failed]


def _stored_dtypes(engine: Engine, model: Family, size: RunSize) -> dict[str, str]:
    """By network, that of its first weight in the file: f16 files hold other numbers than f32 files."""
    dtypes = {}
    for name, network in model.networks.items():
        weight = next(iter(engine.program(name, size).graph.weights.values()))
        dtypes[name] = model.sources[network.source].read(weight.paths[0], weight.source_shape).dtype
    return dtypes


def _scheduler_options(model: Family) -> dict[str, Any]:
    """Those of the model's scheduler_config.json that are not diffusers' defaults."""
    config = model.scheduler_config
    values = {field.name: (getattr(config, field.name), field.default) for field in fields(config)}
    return {name: value for name, (value, default) in values.items() if value != default}


def _block(outcome: Outcome, dtype: DType) -> str:
    case = outcome.case
    options = "".join(f", {name} {value}" for name, value in case.scheduler_options.items())
    noise = "numpy.random.RandomState" if case.noise == "numpy" else "torch.Generator on the CPU"
    ends = [f"{at}:{at + 3 if at + 3 else ''}" for at in case.corner]
    of = "" if dtype == case.dtype else f", of {case.dtype}, where this run is in {dtype}"
    lines = {
        "published for": case.checkpoint,
        "source": case.source,
        "prompt": f"{case.prompt!r}, without a negative one",
        "picture": f"{case.size_px}x{case.size_px} px, {case.steps} steps, guidance {case.guidance_scale:g}",
        "scheduler": outcome.scheduler + options,
        "noise": f"{noise}, seed {case.seed}",
        "values": f"image[0, {ends[0]}, {ends[1]}, -1], in 0..1",
        "expected": _numbers(case.expected),
        "actual": _numbers(outcome.actual),
        "difference": f"{outcome.difference:.2g} at most; tolerance {case.tolerance:g}{of}",
        "seconds": f"{outcome.seconds:.1f}",
    }
    heading = f"\n{case.name}: {'passed' if outcome.passed else 'FAILED'}"
    return "\n".join([heading, *(_line(f"  {name}", text) for name, text in lines.items())])


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.5f}" for value in values)


def _shown(value: str | dict[str, Any]) -> str:
    return value if isinstance(value, str) else ", ".join(f"{name} {item}" for name, item in value.items())


def _line(name: str, text: str) -> str:
    return f"{name:18}{text}"
