"""Decoders in bands: the pictures of whole ones, from less memory."""

from itertools import pairwise

import numpy as np
import pytest
from golden.models import model_folder
from recorded_calls import models

from shaderfusion.errors import DeviceLimitError
from shaderfusion.families import open_model
from shaderfusion.families.family import _MAX_WHOLE_BYTES, Family
from shaderfusion.gpu.device import Device
from shaderfusion.graph.graph import Graph
from shaderfusion.graph.memory_plan import plan_memory
from shaderfusion.graph.program import Program
from shaderfusion.kernels.capabilities import DESKTOP_GPU
from shaderfusion.kernels.optimizations import Optimizations
from shaderfusion.kernels.select import Kernels
from shaderfusion.models.bands import Band, Banded
from shaderfusion.tensor import DType, TensorSpec, dtype_size_bytes
from shaderfusion.weights.store import WeightStore

ROUNDING: dict[DType, float] = {"f32": 2e-6, "f16": 3e-3}
"""Of a picture, relative to its largest value: only the sums of statistics are ordered otherwise."""


def decode(device: Device, model: Family, graph: Graph, latents: np.ndarray) -> np.ndarray:
    """The picture that a decoder makes."""
    store = WeightStore(device)
    sources = {graph: model.sources["vae"]}
    store.claim(sources)
    (weights,) = store.load(sources)
    program = Program(device, graph, weights)
    program.write("latents", latents)
    program.run()
    image = program.read("image").astype(np.float64)
    program.close()
    store.close()
    return image


def num_merged(graph: Graph) -> int:
    """Bands whose statistics were merged with those of others."""
    return sum(call.entry_point == "merge_statistics" for call in graph.calls)


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize(
    ("name", "max_bytes", "optimizations"),
    [(name, 1, "all") for name in ("sd1", "odd", "thirds", "ragged")]  # nothing but what must be is whole
    + [("ragged", 60_000, "all"), ("odd", 10_000, "none"), ("emoji", 300_000, "all")],  # some levels, or resnets
)
def test_pictures_are_those_of_whole_decoders(
    device: Device, name: str, max_bytes: int, optimizations: str, dtype: DType
) -> None:
    if dtype == "f16" and not device.info.has_f16:
        pytest.skip("the device has no f16")
    model = open_model(model_folder(name))
    kernels = Kernels(dtype, device.capabilities, Optimizations.parse(optimizations))
    size = model.run_size(width=7 * model.scale_factor, height=11 * model.scale_factor)
    latents = np.random.default_rng(0).standard_normal(model.latents_shape(size))
    whole = model.decoder_graph(kernels, size)
    banded = model.decoder_graph(kernels, size, max_bytes=max_bytes * dtype_size_bytes(dtype) // 4)
    assert num_merged(whole) == 0 < num_merged(banded)
    expected = decode(device, model, whole, latents)
    difference = np.abs(decode(device, model, banded, latents) - expected).max()
    assert difference <= ROUNDING[dtype] * np.abs(expected).max()


@pytest.mark.parametrize("fold", [False, True])
def test_folded_norms(device: Device, fold: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The convolution normalizes what it loads of a band, or the band is normalized before."""
    monkeypatch.setattr("shaderfusion.kernels.select._FOLDED_GROUP_SIZE", 0 if fold else 1 << 30)
    model = open_model(model_folder("emoji"))
    kernels = Kernels("f32", device.capabilities)
    size = model.run_size(width=40, height=52)
    latents = np.random.default_rng(1).standard_normal(model.latents_shape(size))
    whole, banded = (model.decoder_graph(kernels, size, max_bytes=most) for most in (None, 1))
    assert any(call.constants.get("NORM") for call in banded.calls) is fold
    expected = decode(device, model, whole, latents)
    difference = np.abs(decode(device, model, banded, latents) - expected).max()
    assert difference <= ROUNDING["f32"] * np.abs(expected).max()


def test_memory() -> None:
    *_, sd14 = models()
    kernels = Kernels("f32", DESKTOP_GPU)

    def planned(px: int, max_bytes: int | None) -> int:
        graph = sd14.decoder_graph(kernels, sd14.run_size(width=px, height=px), max_bytes=max_bytes)
        return plan_memory(graph.calls).total_bytes

    assert planned(512, _MAX_WHOLE_BYTES) == planned(512, None)
    assert planned(1024, _MAX_WHOLE_BYTES) < 1.1 * _MAX_WHOLE_BYTES < 1.5 * _MAX_WHOLE_BYTES < planned(1024, None)
    assert planned(512, 1 << 27) < 0.5 * planned(512, None)


def test_larger_pictures_fit() -> None:
    *_, sd14 = models()
    size = sd14.run_size(width=2048, height=2048)
    with pytest.raises(DeviceLimitError, match=r"2048x2048.* needs a tensor of 2,147 MB in vae"):
        sd14.require_fits(size, DESKTOP_GPU, "f16")
    sd14.require_fits(size.one_row, DESKTOP_GPU, "f16", "low")


def test_bands_cover_the_image() -> None:
    spec = TensorSpec("x", (1, 50, 8, 4), "f16")
    x = Banded(spec, lambda span, out: Band(spec, 0), step=4, source=spec, most_row_bytes=64, halo=5)
    for band_bytes in (0, 64, 1000, 10_000):
        spans = x.spans(band_bytes, 1 << 20)
        assert [y for span in spans for y in span] == list(range(50))
        assert all(span.start % 4 == 0 for span in spans)
        assert all(len(a) == len(spans[0]) for a, _ in pairwise(spans))
    assert [len(x.spans(band_bytes, 1 << 20)) for band_bytes in (0, 1000, 10_000)] == [13, 7, 1]
    assert len(x.spans(10_000, 1000)) == 7
