"""What the device holds of weights with adapters, against float64."""

from collections.abc import Callable, Sequence
from typing import Any

import lora_reference
import numpy as np
import pytest
from array_source import ArraySource
from safetensors_file import to_bytes

from shaderfusion.errors import WeightsError
from shaderfusion.gpu.buffers import download
from shaderfusion.gpu.device import Device
from shaderfusion.graph.graph import Graph
from shaderfusion.graph.program import Buffers
from shaderfusion.kernels import reference
from shaderfusion.kernels.common.prepare_weight import StoredDType
from shaderfusion.kernels.select import Kernels
from shaderfusion.tensor import DType, TensorSpec
from shaderfusion.weights import footprint
from shaderfusion.weights import prepare as prepare_module
from shaderfusion.weights.checkpoint import StoredTensor
from shaderfusion.weights.lora.kinds import AdapterTensor, Change, Decomposed, LowRank, Product, Whole
from shaderfusion.weights.lora.merge import Patch, Patches
from shaderfusion.weights.prepare import WeightLoader
from shaderfusion.weights.store import WeightStore

Shape = tuple[int, ...]
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


def lora(M: int, N: int, rank: int, scale: float = 0.5) -> Product:
    """A random adapter."""
    return Product(LowRank(stored(M, rank), stored(rank, N)), scale)


def low_rank(shape: Shape, rank: int, *, core: bool) -> LowRank:
    """A random matrix for a weight, of filters with a core of one rank more inside."""
    M, C, *k = shape
    if core:
        return LowRank(stored(M, rank), stored(rank + 1, C), stored(rank, rank + 1, *(k or (1, 1))))
    return LowRank(stored(M, rank), stored(rank, C, *k))


def loha(shape: Shape, rank: int, *, core: bool = False) -> Product:
    """A random adapter, with factors of two ranks."""
    return Product(low_rank(shape, rank, core=core), 0.7, low_rank(shape, rank + 1, core=core))


def lokr(shape: Shape, *, left_rank: int | None, rank: int | None, core: bool = False, block: int = 2) -> Product:
    """A random adapter, of matrices that are whole or of a rank, the left one of the least size from `block` on."""
    M, C, *k = shape
    m, c = (next(size for size in range(block, n + 1) if n % size == 0) for n in (M, C))
    left = low_rank((m, c), left_rank, core=False) if left_rank else Whole(stored(m, c))
    inner = (M // m, C // c, *k)
    return Product(low_rank(inner, rank, core=core) if rank else Whole(stored(*inner)), 1.5, left, is_kronecker=True)


def dora(shape: Shape, product: Product, *, by_input: bool = False) -> Decomposed:
    """A product with random magnitudes."""
    return Decomposed(product, as_stored(1 + RNG.random(shape[1] if by_input else shape[0])), by_input)


KINDS: dict[str, Callable[[Shape], Change]] = {
    "LoRA of rank 1": lambda shape: Product(low_rank(shape, 1, core=False), 2.0),
    "LoRA of rank 5": lambda shape: Product(low_rank(shape, 5, core=False), 0.5),
    "LoCon with a core": lambda shape: Product(low_rank(shape, 3, core=True), 0.5),
    "LoHa": lambda shape: loha(shape, 2),
    "LoHa of large ranks": lambda shape: loha(shape, 9),
    "LoHa with cores": lambda shape: loha(shape, 3, core=True),
    "LoKr of whole matrices": lambda shape: lokr(shape, left_rank=None, rank=None),
    "LoKr of ranks": lambda shape: lokr(shape, left_rank=1, rank=3),
    "LoKr with a core": lambda shape: lokr(shape, left_rank=None, rank=2, core=True),
    "LoKr with one number": lambda shape: lokr(shape, left_rank=None, rank=3, block=1),
    "difference": lambda shape: Product(Whole(stored(*shape))),
    "DoRA": lambda shape: dora(shape, Product(low_rank(shape, 3, core=False), 0.5)),
    "DoRA by input": lambda shape: dora(shape, Product(low_rank(shape, 3, core=False), 0.5), by_input=True),
    "DoRA of LoHa": lambda shape: dora(shape, loha(shape, 2)),
    "DoRA of LoKr by input": lambda shape: dora(shape, lokr(shape, left_rank=None, rank=2), by_input=True),
}


def transform(array: np.ndarray, layout: str) -> np.ndarray:
    """To the kernels' layout, in float64."""
    layout, _, _ = layout.partition(",")
    if layout == "linear":
        return array.T
    filters = array.transpose(2, 3, 1, 0)
    return filters if layout == "conv2d" else reference.winograd_filters(filters, m=int(layout[-1]))


def require_equal(actual: np.ndarray, wanted: np.ndarray, dtype: DType) -> None:
    """Up to one rounding to the dtype, of transformed filters to a few."""
    bound = {"f32": 1e-6, "f16": 1e-3}[dtype] * np.abs(wanted).max()
    np.testing.assert_allclose(actual, wanted, atol=bound)


SHAPES: dict[str, Shape] = {
    "linear": (40, 24),
    "linear, odd": (7, 10),
    "linear, prime": (5, 7),  # of a 1x1 convolution too
    "conv2d": (12, 8, 3, 3),
    "conv2d, odd": (6, 9, 3, 3),  # 81 values a row, as of an inpainting model's first
    "winograd_2": (12, 8, 3, 3),
    "winograd_4": (8, 12, 3, 3),
}


def load(
    device: Device, source: Source, layout: str, changes: Sequence[tuple[Change, float]], dtype: DType
) -> np.ndarray:
    """What the device holds of the tensor "w" of a source, with all its changes, without padding."""
    shape = source.arrays["w"].shape
    layout, _, _ = layout.partition(",")
    g = Graph("unet", Kernels(dtype))
    padding = {"padded_to": shape[0] + -shape[0] % 4, "in_padded_to": shape[1] + -shape[1] % 4}
    tensor = g.weight("w", *shape, layout=layout, **padding)  # type: ignore[arg-type]
    patches: Patches = {source: {"w": Patch(tuple(changes))}} if changes else {}
    (buffer,) = WeightLoader(device).load(dict.fromkeys(g.weights.values(), source), patches).values()
    return download(device, buffer, tensor)[..., : shape[1], : shape[0]]


@pytest.mark.parametrize("stored_dtype", ["f32", "f16"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["linear, odd", "linear, prime", "conv2d", "conv2d, odd"])
def test_each_kind(device: Device, name: str, kind: str, stored_dtype: str) -> None:
    array = RNG.standard_normal(SHAPES[name]).astype(np.float16 if stored_dtype == "f16" else np.float32)
    changes = [(KINDS[kind](array.shape), -0.6)]
    actual = load(device, Source({"w": array}, stored_dtype), name, changes, "f32")
    require_equal(actual, transform(lora_reference.merged(array, changes), name), "f32")


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("stored_dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("name", SHAPES)
def test_all_kinds_together(device: Device, name: str, stored_dtype: str, dtype: DType) -> None:
    array = RNG.standard_normal(SHAPES[name]).astype(np.float16 if stored_dtype == "f16" else np.float32)
    if stored_dtype == "bf16":
        array = (array.view(np.uint32) & 0xFFFF0000).view(np.float32)
    changes = [(make(array.shape), (1.0, -0.5, 0.3)[i % 3]) for i, make in enumerate(KINDS.values())]
    actual = load(device, Source({"w": array}, stored_dtype), name, changes, dtype)
    require_equal(actual, transform(lora_reference.merged(array, changes), name), dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_strength_0_changes_nothing(device: Device, kind: str) -> None:
    source = Source({"w": RNG.standard_normal((6, 10)).astype(np.float32)})
    actual = load(device, source, "linear", [(KINDS[kind]((6, 10)), 0.0)], "f32")
    np.testing.assert_array_equal(actual, source.arrays["w"].T)


# Heads that are padded, side by side, one of them without an adapter; in slices of 1 KB, and in one.
@pytest.mark.parametrize("batch_bytes", [1024, 8 << 20])
def test_several_tensors_side_by_side(device: Device, batch_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "_BATCH_BYTES", batch_bytes)
    monkeypatch.setattr(footprint, "_SMALL_BYTES", 0)
    arrays = {name: RNG.standard_normal((36, 64)).astype(np.float32) for name in "qkv"}
    source = Source(arrays)
    changes = {"q": [(lora(36, 64, 5), 1.0)], "v": [(make((36, 64)), -0.4) for make in KINDS.values()]}
    g = Graph("unet", Kernels("f32"))
    tensor = g.weight(tuple("qkv"), 36, 64, layout="linear", padded_to=48, out_parts=3)
    patches: Patches = {source: {name: Patch(tuple(own)) for name, own in changes.items()}}
    buffers = WeightLoader(device).load(dict.fromkeys(g.weights.values(), source), patches)
    actual = download(device, buffers[tensor], tensor).reshape(64, 3, 3, 16)
    for index, name in enumerate("qkv"):
        wanted = lora_reference.merged(arrays[name], changes.get(name, [])).T.reshape(64, 3, 12)
        require_equal(actual[:, index, :, :12], wanted, "f32")
        assert not actual[:, index, :, 12:].any()


def test_what_adapters_take_on_the_device_does_not_grow(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "_SMALL_BYTES", 0)
    placed: list[int] = []
    place = prepare_module._Batch._place

    def spy(self: Any, buffers: Buffers, array: np.ndarray) -> TensorSpec:
        tensor = place(self, buffers, array)
        placed.append(sum(tensor.size_bytes for tensor in buffers))
        return tensor

    monkeypatch.setattr(prepare_module._Batch, "_place", spy)
    g = Graph("unet", Kernels("f32"))
    for i in range(8):
        g.weight(f"{i}", 8, 8, layout="linear")
    source = Source({f"{i}": RNG.standard_normal((8, 8)).astype(np.float32) for i in range(8)})
    changes = {name: Patch(((lora(8, 8, 400), 1.0),)) for name in source.arrays}
    WeightLoader(device).load(dict.fromkeys(g.weights.values(), source), {source: changes})
    assert len(placed) == 16
    assert max(placed) == 2 * 8 * 400 * 4  # factors larger than the weights: of one at a time


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("kind", ["difference", "DoRA"])
def test_a_bias(device: Device, kind: str, dtype: DType) -> None:
    array = RNG.standard_normal(10).astype(np.float16)
    changes: list[tuple[Change, float]] = [(Product(Whole(stored(10)), 0.5), 2.0)]
    if kind == "DoRA":
        changes.append((dora((10,), lora(10, 1, 2)), 0.5))
    source = Source({"b": array}, "f16")
    g = Graph("unet", Kernels(dtype))
    tensor = g.weight("b", 10, padded_to=12)
    buffers = WeightLoader(device).load(dict.fromkeys(g.weights.values(), source), {source: {"b": Patch((*changes,))}})
    actual = download(device, buffers[tensor], tensor)
    require_equal(actual[:10], lora_reference.merged(array, changes), dtype)
    assert not actual[10:].any()


@pytest.mark.parametrize("batch_bytes", [64, 8 << 20])  # in slices of 4 rows, and in one
def test_a_table(device: Device, batch_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as of positions, whose rows are padded."""
    monkeypatch.setattr(footprint, "_BATCH_BYTES", batch_bytes)
    monkeypatch.setattr(footprint, "_SMALL_BYTES", 0)
    array = RNG.standard_normal((11, 5)).astype(np.float32)
    changes = [(make((11, 5)), 0.5) for make in KINDS.values()]
    source = Source({"w": array})
    g = Graph("unet", Kernels("f32"))
    tensor = g.weight("w", 11, 5, padded_to=8)
    patches: Patches = {source: {"w": Patch((*changes,))}}
    buffers = WeightLoader(device).load(dict.fromkeys(g.weights.values(), source), patches)
    actual = download(device, buffers[tensor], tensor)
    require_equal(actual[:, :5], lora_reference.merged(array, changes), "f32")
    assert not actual[:, 5:].any()


def test_strengths_over_the_range_of_f32(device: Device) -> None:
    source = Source({"w": RNG.standard_normal((8, 8)).astype(np.float32)})
    for kind in ("LoRA of rank 1", "DoRA", "DoRA by input"):
        with pytest.raises(WeightsError, match="with its adapters has NaN or values over the range of f32"):
            load(device, source, "linear", [(KINDS[kind]((8, 8)), 1e300)], "f32")


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
            require_equal(adapted["b"], lora_reference.merged(source.arrays["b"], [(change, strength)]).T, "f16")
        store.set_patches({source: {"b": Patch(((change, -0.25),))}})
        assert source.read_paths == ["a", "b", "b", "b"]  # only what differs is read again
        store.set_patches({})
        restored = self.read(device, store, graph, source)
        assert all(np.array_equal(restored[name], base[name]) for name in base)
        (again,) = store.load({graph: source})
        assert again == buffers

    def test_another_strength_compiles_nothing(self, device: Device, source: Source, graph: Graph) -> None:
        store = WeightStore(device)
        store.load({graph: source})
        changes = [make((8, 16)) for make in KINDS.values()]
        store.set_patches({source: {"b": Patch(tuple((change, 1.0) for change in changes))}})
        before = len(device.pipelines)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(device.pipelines, "_compile", None)
            store.set_patches({source: {"b": Patch(tuple((change, -0.25) for change in changes))}})
        assert len(device.pipelines) == before
        wanted = lora_reference.merged(source.arrays["b"], [(change, -0.25) for change in changes])
        require_equal(self.read(device, store, graph, source)["b"], wanted.T, "f16")

    def test_graphs_that_are_loaded_later(self, device: Device, source: Source, graph: Graph) -> None:
        store = WeightStore(device)
        change = lora(8, 16, 2)
        store.set_patches({source: {"a": Patch(((change, 1.0),))}})
        adapted = self.read(device, store, graph, source)
        require_equal(adapted["a"], lora_reference.merged(source.arrays["a"], [(change, 1.0)]).T, "f16")

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
