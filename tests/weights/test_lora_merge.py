"""What the device holds of weights with adapters, against float64."""

from collections.abc import Sequence

import numpy as np
import pytest
from array_source import ArraySource
from safetensors_file import to_bytes

from shaderfusion.errors import WeightsError
from shaderfusion.gpu.buffers import download
from shaderfusion.gpu.device import Device
from shaderfusion.graph.graph import Graph, WeightLayout
from shaderfusion.kernels import reference
from shaderfusion.kernels.common.prepare_weight import StoredDType
from shaderfusion.kernels.select import Kernels
from shaderfusion.tensor import DType
from shaderfusion.weights import footprint
from shaderfusion.weights.checkpoint import StoredTensor
from shaderfusion.weights.lora.kinds import AdapterTensor, Change, Decomposed, Hadamard, LowRank, Scaled, Whole
from shaderfusion.weights.lora.merge import Patch, Patches
from shaderfusion.weights.prepare import WeightLoader
from shaderfusion.weights.store import WeightStore

RNG = np.random.default_rng(0)
STORED: dict[str, StoredDType] = {"f32": "F32", "f16": "F16", "bf16": "BF16"}


class Source(ArraySource):
    """Tensors by path, stored in a dtype."""

    def __init__(self, arrays: dict[str, np.ndarray], dtype: str = "f32") -> None:
        super().__init__(arrays)
        self.dtype = dtype

    def read(self, path: str, shape: tuple[int, ...]) -> StoredTensor:
        self.read_paths.append(self.find(path, shape))
        data = np.frombuffer(to_bytes(self.arrays[path], self.dtype), np.uint8)
        return StoredTensor(STORED[self.dtype], data)


def stored(*shape: int) -> AdapterTensor:
    """A random tensor of an adapter."""
    return as_stored(RNG.standard_normal(shape) / 2)


def as_stored(array: np.ndarray) -> AdapterTensor:
    """Of an adapter."""
    data = array.astype(np.float32)
    return AdapterTensor(array.shape, StoredTensor("F32", data.reshape(-1).view(np.uint8)))


def lora(M: int, N: int, rank: int, scale: float = 0.5) -> Scaled:
    """A random adapter."""
    return Scaled(LowRank(stored(M, rank), stored(rank, N)), scale)


def loha(M: int, N: int) -> Hadamard:
    """Of rank 2 times 2."""
    first, second = (LowRank(stored(M, 2), stored(2, N)) for _ in range(2))
    return Hadamard(first, second, 0.7)


def expected(array: np.ndarray, changes: Sequence[tuple[Change, float]]) -> np.ndarray:
    """The tensor with all of them, in float64."""
    weight = array.astype(np.float64).reshape(len(array), -1)
    total = weight.copy()
    for change, strength in changes:
        total += strength * change.difference(weight).astype(np.float64)
    return total.reshape(array.shape)


def transform(array: np.ndarray, layout: WeightLayout) -> np.ndarray:
    """To the kernels' layout, in float64."""
    if layout == "linear":
        return array.T
    filters = array.transpose(2, 3, 1, 0)
    return filters if layout == "conv2d" else reference.winograd_filters(filters, m=int(layout[-1]))


def require_equal(actual: np.ndarray, wanted: np.ndarray, dtype: DType) -> None:
    """Up to one rounding to the dtype, of transformed filters to a few."""
    bound = {"f32": 1e-6, "f16": 1e-3}[dtype] * np.abs(wanted).max()
    np.testing.assert_allclose(actual, wanted, atol=bound)


SHAPES = {
    "linear": (40, 24),  # 24 values a row: the product is the device's
    "odd": (7, 10),  # no vectors of 4: all on the host
    "conv2d": (12, 8, 3, 3),
    "winograd_2": (12, 8, 3, 3),
    "winograd_4": (8, 12, 3, 3),
}


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("stored_dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("kind", SHAPES)
def test_merged(device: Device, kind: str, stored_dtype: str, dtype: DType) -> None:
    """Two LoRAs and a LoHa are one product; a difference and a DoRA come before it."""
    shape, layout = SHAPES[kind], "linear" if kind == "odd" else kind
    M, N = shape[0], int(np.prod(shape[1:]))
    array = RNG.standard_normal(shape).astype(np.float16 if stored_dtype == "f16" else np.float32)
    if stored_dtype == "bf16":
        array = (array.view(np.uint32) & 0xFFFF0000).view(np.float32)
    dora = Decomposed(lora(M, N, 3), as_stored(1 + RNG.random(M)), by_input=False)
    by_input = Decomposed(lora(M, N, 3), as_stored(1 + RNG.random(shape[1])), by_input=True)
    changes: list[tuple[Change, float]] = [(lora(M, N, 3), 1.0), (lora(M, N, 6), -0.5), (loha(M, N), 2.0)]
    for more in ([], [(Scaled(Whole(stored(M, N))), 0.3), (dora, 0.6), (by_input, -1.2)]):
        patch = Patch((*changes, *more))
        g = Graph("unet", Kernels(dtype))
        padding = {"padded_to": M + -M % 4, "in_padded_to": shape[1] + -shape[1] % 4}
        tensor = g.weight("w", *shape, layout=layout, **padding)  # type: ignore[arg-type]
        source = Source({"w": array}, stored_dtype)
        buffers = WeightLoader(device).load(dict.fromkeys(g.weights.values(), source), {source: {"w": patch}})
        wanted = transform(expected(array, patch.changes), layout)  # type: ignore[arg-type]
        actual = download(device, buffers[tensor], tensor)[..., : wanted.shape[-2], : wanted.shape[-1]]
        require_equal(actual, wanted, dtype)


def test_of_which_kinds_the_device_makes_the_product() -> None:
    array = RNG.standard_normal((40, 24)).astype(np.float32)
    tensor = StoredTensor("F32", array.reshape(-1).view(np.uint8))
    _, factors = Patch(((lora(40, 24, 3), 1.0), (lora(40, 24, 6), 1.0), (loha(40, 24), 1.0))).merge(
        tensor, keep_factors=True
    )
    assert factors is not None
    assert (factors.up.shape, factors.down.shape) == ((40, 16), (16, 24))  # 3 + 6 + 4, and zeros
    first, second = (LowRank(stored(40, 5), stored(5, 24)) for _ in range(2))
    for change in (Hadamard(first, second, 1.0), Scaled(Whole(stored(40, 24)))):  # 25 (40 + 24) values > 40 times 24
        merged, factors = Patch(((change, 1.0),)).merge(tensor, keep_factors=True)
        assert factors is None
        np.testing.assert_allclose(merged.to_f32().reshape(40, 24), expected(array, [(change, 1.0)]), atol=1e-5)


# Heads that are padded, side by side, one of them without an adapter; in slices of 1 KB, and in one.
@pytest.mark.parametrize("batch_bytes", [1024, 8 << 20])
def test_several_tensors_side_by_side(device: Device, batch_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "_BATCH_BYTES", batch_bytes)
    monkeypatch.setattr(footprint, "_SMALL_BYTES", 0)
    arrays = {name: RNG.standard_normal((36, 64)).astype(np.float32) for name in "qkv"}
    source = Source(arrays, "f32")
    changes = {name: [(lora(36, 64, rank), 1.0)] for name, rank in (("q", 5), ("v", 8))}
    g = Graph("unet", Kernels("f32"))
    tensor = g.weight(tuple("qkv"), 36, 64, layout="linear", padded_to=48, out_parts=3)
    patches: Patches = {source: {name: Patch(tuple(own)) for name, own in changes.items()}}
    buffers = WeightLoader(device).load(dict.fromkeys(g.weights.values(), source), patches)
    actual = download(device, buffers[tensor], tensor).reshape(64, 3, 3, 16)
    for index, name in enumerate("qkv"):
        wanted = expected(arrays[name], changes.get(name, [])).T.reshape(64, 3, 12)
        require_equal(actual[:, index, :, :12], wanted, "f32")
        assert not actual[:, index, :, 12:].any()


def test_a_bias_is_merged_on_the_host(device: Device) -> None:
    array = RNG.standard_normal(10).astype(np.float32)
    g = Graph("unet", Kernels("f16"))
    tensor = g.weight("b", 10, padded_to=12)
    source = Source({"b": array}, "f16")
    change = Scaled(Whole(stored(10)), 0.5)
    buffers = WeightLoader(device).load(
        dict.fromkeys(g.weights.values(), source), {source: {"b": Patch(((change, 2.0),))}}
    )
    wanted = array.astype(np.float16) + 2 * change.difference(array)[:, 0]
    require_equal(download(device, buffers[tensor], tensor)[:10], wanted, "f16")


class TestStore:
    """Changes of what is loaded."""

    @pytest.fixture
    def source(self) -> Source:
        """Two linear layers."""
        return Source({name: RNG.standard_normal((8, 16)).astype(np.float32) for name in ("a", "b")}, "f32")

    @pytest.fixture
    def graph(self) -> Graph:
        """That reads them, in f16."""
        g = Graph("unet", Kernels("f16"))
        for name in ("a", "b"):
            g.weight(name, 8, 16, layout="linear")
        return g

    def read(self, device: Device, store: WeightStore, graph: Graph, source: Source) -> dict[str, np.ndarray]:
        """What the device holds of each."""
        (buffers,) = store.load({graph: source})
        return {path: download(device, buffers[weight.tensor], weight.tensor) for path, weight in graph.weights.items()}

    def test_in_place(self, device: Device, source: Source, graph: Graph) -> None:
        store = WeightStore(device)
        (buffers,) = store.load({graph: source})
        base = self.read(device, store, graph, source)
        assert source.read_paths == ["a", "b"]
        change = lora(8, 16, 2)
        for strength in (1.0, -0.25):
            store.set_patches({source: {"b": Patch(((change, strength),))}})
            adapted = self.read(device, store, graph, source)
            np.testing.assert_array_equal(adapted["a"], base["a"])
            require_equal(adapted["b"], expected(source.arrays["b"], [(change, strength)]).T, "f16")
        store.set_patches({source: {"b": Patch(((change, -0.25),))}})
        assert source.read_paths == ["a", "b", "b", "b"]  # only what differs is read again
        store.set_patches({})
        restored = self.read(device, store, graph, source)
        assert all(np.array_equal(restored[name], base[name]) for name in base)
        (again,) = store.load({graph: source})
        assert again == buffers

    def test_graphs_that_are_loaded_later(self, device: Device, source: Source, graph: Graph) -> None:
        store = WeightStore(device)
        change = lora(8, 16, 2)
        store.set_patches({source: {"a": Patch(((change, 1.0),))}})
        adapted = self.read(device, store, graph, source)
        require_equal(adapted["a"], expected(source.arrays["a"], [(change, 1.0)]).T, "f16")

    def test_over_the_range_all_is_as_it_was(self, device: Device, source: Source, graph: Graph) -> None:
        store = WeightStore(device)
        patch = Patch(((lora(8, 16, 2), 1.0),))
        store.set_patches({source: {"a": patch}})
        before = self.read(device, store, graph, source)
        message = r"unet.b: with its adapters has NaN or values over the range of f16; use .* smaller strengths"
        with pytest.raises(WeightsError, match=message):
            store.set_patches({source: {"b": Patch(((lora(8, 16, 2), 1e6),))}})
        after = self.read(device, store, graph, source)
        assert all(np.array_equal(after[name], before[name]) for name in before)
        store.set_patches({source: {"a": patch}})
        assert source.read_paths.count("a") == 3  # once for the attempt, once to restore it
