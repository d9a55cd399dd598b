"""The kernel calls that whole models record, without a device."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cache

from golden.models import NAMES, model_folder

from shaderfusion.bench.subject import SD14_FOLDER
from shaderfusion.config import TinyVaeConfig
from shaderfusion.families import open_model
from shaderfusion.families.family import Family
from shaderfusion.graph.graph import Graph
from shaderfusion.kernels.select import Kernels
from shaderfusion.models.tiny_autoencoder import tiny_decoder_graph

__all__ = ["models", "recorded_graphs"]


@cache
def models() -> tuple[Family, ...]:
    """The golden ones and SD 1.4."""
    return tuple(open_model(folder) for folder in (*map(model_folder, NAMES), SD14_FOLDER))


def recorded_graphs(variants: Iterable[Kernels], guidance: Iterable[bool] = (False, True)) -> Iterator[Graph]:
    """The networks of each model, of its own size, TAESD's decoder, and a decoder in bands, by each variant."""
    *_, emoji, _ = models()
    combining = replace(emoji.run_size(), weighted_texts=2)
    for kernels in variants:
        yield tiny_decoder_graph(TinyVaeConfig(), kernels, batch=1, height=64, width=64)
        yield emoji.decoder_graph(kernels, emoji.run_size(width=32, height=32), max_bytes=1)
        yield from emoji.record(kernels, combining, "low").values()
        for model in models():
            for guided in guidance:
                yield from model.record(kernels, model.run_size(guidance=guided)).values()
