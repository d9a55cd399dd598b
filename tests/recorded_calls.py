"""The kernel calls that whole models and adapters record, without a device."""

import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from functools import cache

import numpy as np
from golden.models import FOLDER, NAMES, model_folder

from shaderfusion.bench.subject import SD14_FOLDER
from shaderfusion.config import TinyVaeConfig
from shaderfusion.families import open_model
from shaderfusion.families.family import Family
from shaderfusion.graph.graph import Graph
from shaderfusion.kernels.call import KernelCall
from shaderfusion.kernels.select import Kernels
from shaderfusion.models.tiny_autoencoder import tiny_decoder_graph
from shaderfusion.tensor import TensorSpec
from shaderfusion.weights.lora.file import Changes, read_adapter
from shaderfusion.weights.lora.merge import Merge, Patch, Scales
from shaderfusion.weights.lora.names import Targets

__all__ = ["adapter_calls", "merging_calls", "models", "recorded_graphs", "targets"]


@cache
def models() -> tuple[Family, ...]:
    """The golden ones and SD 1.4."""
    return tuple(open_model(folder) for folder in (*map(model_folder, NAMES), SD14_FOLDER))


def recorded_graphs(variants: Iterable[Kernels], guidance: Collection[bool] = (False, True)) -> Iterator[Graph]:
    """The networks of each model, of its own size, TAESD's decoder, and a decoder in bands, by each variant.

    A network that variants share, such as a decoder in f32, is recorded once.
    """
    *_, emoji, _ = models()
    combining = replace(emoji.run_size(), weighted_texts=2)
    known: set[object] = set()
    for kernels in variants:
        yield tiny_decoder_graph(TinyVaeConfig(), kernels, batch=1, height=64, width=64)
        yield emoji.decoder_graph(kernels, emoji.run_size(width=32, height=32), max_bytes=1)
        yield from emoji.record(kernels, combining, "low").values()
        for model in models():
            own = model.kernels(kernels)
            for size in (model.run_size(guidance=guided) for guided in guidance):
                for name, network in model.networks.items():
                    kind = (model, name, own[name], network.size_of(size))
                    if kind not in known:
                        known.add(kind)
                        yield network.record(own[name], size)


@cache
def targets(name: str) -> Targets:
    """What adapters of a golden model may change."""
    family = open_model(model_folder(name))
    side = 8 * family.scale_factor
    graphs = family.record(Kernels("f32"), family.run_size(width=side, height=side))
    return Targets({name: [graph] for name, graph in graphs.items()}, family.sources)


def adapter_calls(kernels: Kernels) -> Iterator[KernelCall]:
    """Those that merge all golden adapters of the model sd1."""
    for file in (FOLDER / "lora").glob("*.safetensors"):
        if file.stem != "xl":
            yield from merging_calls(read_adapter(file, targets("sd1")), targets("sd1"), kernels)


def merging_calls(changes: Changes, targets: Targets, kernels: Kernels) -> Iterator[KernelCall]:
    """Those that merge changes, each at two strengths."""
    for key, change in changes.items():
        M, *rest = targets.shapes[key]
        weight, patch = _place(np.empty((M, math.prod(rest)))), Patch(((change, 0.7), (change, -1e30)))
        merge = Merge(kernels, _place, weight, range(M))
        scales = {change: Scales.place(_place, change) for change in patch.by_input}
        for decomposed, own in scales.items():
            merge.measure(decomposed, own)
        merge.merge(patch, scales)
        yield from merge.calls


def _place(array: np.ndarray) -> TensorSpec:
    return TensorSpec("adapters", array.shape, "f32", "weight")
