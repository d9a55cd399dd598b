"""Finding, checking and reading a component's safetensors files."""

import json
import os
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from safetensors_file import to_bytes, write_safetensors

from shaderfusion.errors import ModelError, WeightsError
from shaderfusion.kernels.common.prepare_weight import StoredDType
from shaderfusion.kernels.reference import prepare_weight
from shaderfusion.weights.checkpoint import Checkpoint, StoredTensor, find_weights

NAME = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    """Two tensors whose values all dtypes hold exactly."""
    return {"conv.weight": (np.arange(24.0) % 16 - 8).reshape(2, 3, 2, 2), "conv.bias": np.array([-0.5, 4.0])}


def values(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor in f32."""
    return checkpoint.read(name, shape).to_f32().reshape(shape)


@pytest.mark.parametrize("name", [NAME, "model.safetensors", "diffusion_pytorch_model.fp16.safetensors"])
def test_single_file(tmp_path: Path, tensors: dict[str, np.ndarray], name: str) -> None:
    write_safetensors(tmp_path / name, tensors)
    for checkpoint in (Checkpoint(tmp_path), Checkpoint(tmp_path / name)):
        for key, array in tensors.items():
            np.testing.assert_array_equal(values(checkpoint, key, array.shape), array)


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32", "f8_e4m3", "f8_e5m2"])
def test_dtypes_hold_the_same_values(tmp_path: Path, tensors: dict[str, np.ndarray], dtype: str) -> None:
    # Behind an odd number of bytes, so that no value begins where NumPy would have it.
    write_safetensors(tmp_path / NAME, tensors, dtype)
    whole = (tmp_path / NAME).read_bytes()
    size = int.from_bytes(whole[:8], "little")
    (tmp_path / NAME).write_bytes((size + 1).to_bytes(8, "little") + whole[8 : 8 + size] + b" " + whole[8 + size :])
    for key, array in tensors.items():
        stored = Checkpoint(tmp_path).read(key, array.shape)
        assert stored.dtype == dtype.upper()
        assert stored.data.tobytes() == to_bytes(array, dtype)
        np.testing.assert_array_equal(stored.to_f32(), array.reshape(-1))


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_every_f8(dtype: StoredDType) -> None:
    bits = np.arange(256, dtype=np.uint8)
    values, _ = prepare_weight(bits.view(np.uint32), stored=dtype, shape=(256, 1, 1), in_places=1, out_places=256)
    actual = StoredTensor(dtype, bits).to_f32()
    np.testing.assert_array_equal(actual, values.reshape(-1))
    np.testing.assert_array_equal(np.signbit(actual), np.signbit(values.reshape(-1)))


def test_transposed() -> None:
    stored = StoredTensor("F16", np.arange(6, dtype=np.float16).view(np.uint8))
    np.testing.assert_array_equal(stored.transposed(2).to_f32(), [0, 3, 1, 4, 2, 5])


def test_a_tensor_is_a_view_of_the_file(tmp_path: Path) -> None:
    write_safetensors(tmp_path / NAME, {"large": np.zeros(1_000_000)})
    checkpoint = Checkpoint(tmp_path)
    tracemalloc.start()
    try:
        stored = checkpoint.read("large", (1_000_000,))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert stored.data.nbytes == 4_000_000
    assert peak_bytes < 100_000
    assert not stored.data.flags.writeable


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
def test_rows(tmp_path: Path, dtype: str) -> None:
    table = np.arange(44.0).reshape(11, 4)
    write_safetensors(tmp_path / NAME, {"table": table, "other": np.full(4, np.nan)}, dtype)
    checkpoint = Checkpoint(tmp_path)
    rows = np.array([[10, 3, 3], [0, 10, 7]])
    stored = checkpoint.read_rows("table", (11, 4), rows)
    assert stored.data.nbytes == rows.size * 4 * (4 if dtype == "f32" else 2)
    np.testing.assert_array_equal(stored.to_f32().reshape(2, 3, 4), table[rows])
    with pytest.raises(WeightsError, match=r"table has shape \(11, 4\), must be \(12, 4\)"):
        checkpoint.read_rows("table", (12, 4), rows)


@pytest.mark.skipif(os.name == "nt", reason="Windows does not cut a file that is mapped")
def test_a_file_that_is_cut_while_it_is_open(tmp_path: Path) -> None:
    write_safetensors(tmp_path / NAME, {"large": np.ones(100_000)})
    checkpoint = Checkpoint(tmp_path)
    os.truncate(tmp_path / NAME, 1000)
    message = rf"{NAME}: has become shorter since it was opened; download it again"
    with pytest.raises(WeightsError, match=message):
        checkpoint.read("large", (100_000,))
    with pytest.raises(WeightsError, match=message):
        checkpoint.read_rows("large", (100_000,), np.array([99_999]))


def test_a_file_that_is_replaced_while_it_is_open(tmp_path: Path) -> None:
    write_safetensors(tmp_path / NAME, {"w": np.ones(4)})
    checkpoint = Checkpoint(tmp_path)
    write_safetensors(tmp_path / "other", {"w": np.zeros(4)})
    os.replace(tmp_path / "other", tmp_path / NAME)
    assert values(checkpoint, "w", (4,)).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(("dtype", "name"), [("i32", "I32"), ("f64", "F64"), ("i8", "I8")])
def test_other_dtypes_are_refused(tmp_path: Path, dtype: str, name: str) -> None:
    write_safetensors(tmp_path / NAME, {"conv.bias": np.ones(2)}, dtype)
    checkpoint = Checkpoint(tmp_path)
    for method in (checkpoint.find, checkpoint.read):  # find, so that it shows before the first tensor is read
        with pytest.raises(WeightsError, match=rf"{NAME}: conv.bias has dtype {name}, must be one of F32, F16"):
            method("conv.bias", (2,))


def test_plain_name_before_variants(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    write_safetensors(tmp_path / NAME, tensors)
    write_safetensors(tmp_path / "diffusion_pytorch_model.fp16.safetensors", {"conv.bias": np.zeros(2)}, "f16")
    assert values(Checkpoint(tmp_path), "conv.bias", (2,))[1] == 4


def test_two_candidates(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    for name in ("unet.ema.safetensors", "unet.fp16.safetensors"):
        write_safetensors(tmp_path / name, tensors)
    message = r"which weights to use is unclear \(unet.ema.safetensors, unet.fp16.safetensors\); name one diffusion_pyt"
    with pytest.raises(ModelError, match=message):
        Checkpoint(tmp_path)


# ---- shards


def write_shards(folder: Path, tensors: dict[str, np.ndarray], variant: str = "") -> Path:
    """One file a tensor, and the index; returns the index."""
    stem = f"diffusion_pytorch_model{variant}"
    shards = {key: f"{stem}-{i:05}-of-00002.safetensors" for i, key in enumerate(tensors, start=1)}
    for key, name in shards.items():
        write_safetensors(folder / name, {key: tensors[key]})
    index = folder / f"{NAME}.index{variant}.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": shards}))
    return index


def test_shards(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    write_shards(tmp_path, tensors)
    checkpoint = Checkpoint(tmp_path)
    for key, array in tensors.items():
        np.testing.assert_array_equal(values(checkpoint, key, array.shape), array)


def test_shards_of_a_variant(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    write_shards(tmp_path, tensors, ".fp16")
    (tmp_path / "diffusion_pytorch_model.non_ema.safetensors").write_bytes(b"never opened")
    checkpoint = Checkpoint(tmp_path)
    for key, array in tensors.items():
        np.testing.assert_array_equal(values(checkpoint, key, array.shape), array)
    write_safetensors(tmp_path / NAME, {"conv.bias": np.zeros(2)})
    assert values(Checkpoint(tmp_path), "conv.bias", (2,)).sum() == 0


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["model.safetensors", "model.fp16.safetensors"], "model.fp16.safetensors"),
        (["model.bf16.safetensors", "model.safetensors", "pytorch_model.bin"], "model.safetensors"),
        (["model.safetensors.index.fp16.json", "model.safetensors"], "model.safetensors.index.fp16.json"),
        (["model.bf16.safetensors", "model.ema.safetensors"], "model.bf16.safetensors"),
        (["unet.ema.safetensors"], "unet.ema.safetensors"),
        (["unet.a.safetensors", "unet.b.safetensors"], None),
        (["model.bin"], None),
    ],
)
def test_variants_in_the_order_that_is_asked_for(names: list[str], found: str | None) -> None:
    assert find_weights(names, ("fp16", "", "bf16")) == found


def test_missing_shard(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    write_shards(tmp_path, tensors)
    missing = tmp_path / "diffusion_pytorch_model-00002-of-00002.safetensors"
    missing.unlink()
    with pytest.raises(WeightsError, match=rf"{missing.name}: this shard is missing; download it, {NAME}.index.json"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"weight_map": 3}', '{"weight_map": ["a"]}', "\udcff"], ids=lambda text: ascii(text)
)
def test_broken_index(tmp_path: Path, text: str) -> None:
    index = tmp_path / f"{NAME}.index.json"
    index.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(WeightsError, match=r"index.json: .*; (fetch the file|download it) again"):
        Checkpoint(tmp_path)


def test_index_of_odd_names(tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.index.json").write_text('{"weight_map": {"a": 3, "b": ["x"]}}')
    with pytest.raises(WeightsError, match=r"this shard is missing"):
        Checkpoint(tmp_path)


# ---- damage


@pytest.mark.parametrize("keep", [5, 8, 40, -1])
def test_truncated_file(tmp_path: Path, tensors: dict[str, np.ndarray], keep: int) -> None:
    write_safetensors(tmp_path / NAME, tensors)
    (tmp_path / NAME).write_bytes((tmp_path / NAME).read_bytes()[:keep])
    with pytest.raises(WeightsError, match=rf"{NAME}: not a whole safetensors file \(.*\); download it again"):
        Checkpoint(tmp_path)


def test_a_header_larger_than_any_models(tmp_path: Path) -> None:
    with (tmp_path / NAME).open("wb") as file:
        file.write((16_000_001).to_bytes(8, "little") + b"{")
        file.truncate(17_000_000)
    with pytest.raises(WeightsError, match=rf"{NAME}: not .*its header must have at most 16,000,000 bytes.*; download"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("names", [map(str, range(20_001)), ["x" * 257]])
def test_more_names_than_any_model_has_and_longer_ones(tmp_path: Path, names: Iterable[str]) -> None:
    write_safetensors(tmp_path / NAME, {name: np.zeros(0) for name in names})
    with pytest.raises(WeightsError, match=rf"{NAME}: must hold at most 20,000 tensors, with names of at most 256"):
        Checkpoint(tmp_path)


def test_a_pipe_in_place_of_a_file_or_shard(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.safetensors"
    os.mkfifo(pipe)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "pipe.safetensors"}}))
    for path in (pipe, tmp_path):
        with pytest.raises(WeightsError, match=r"pipe.safetensors: not .*it is no regular file.*; download it again"):
            Checkpoint(path)


def test_missing_tensor(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    write_safetensors(tmp_path / NAME, tensors)
    message = r"the weights lack the tensor conv2.bias, which the model's configuration asks for"
    with pytest.raises(WeightsError, match=message) as caught:
        Checkpoint(tmp_path).find("conv2.bias", (2,))
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize("shape", [(3, 2, 2, 2), (2, 12), (2, 3, 2), (24,)])
def test_wrong_shape(tmp_path: Path, tensors: dict[str, np.ndarray], shape: tuple[int, ...]) -> None:
    write_safetensors(tmp_path / NAME, tensors)
    message = rf"{NAME}: conv.weight has shape \(2, 3, 2, 2\), must be \({', '.join(map(str, shape))},?\) by the model"
    for method in (Checkpoint(tmp_path).find, Checkpoint(tmp_path).read):
        with pytest.raises(WeightsError, match=message):
            method("conv.weight", shape)


# ---- other names and forms of the same tensor


def test_convolution_of_one_pixel_is_a_linear_layer(tmp_path: Path) -> None:
    array = np.arange(6.0).reshape(2, 3, 1, 1)
    write_safetensors(tmp_path / NAME, {"proj_in.weight": array})
    np.testing.assert_array_equal(values(Checkpoint(tmp_path), "proj_in.weight", (2, 3)), array[..., 0, 0])


@pytest.mark.parametrize(
    ("stored", "asked"),
    [
        ("embeddings.token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
        ("decoder.mid_block.attentions.0.query.weight", "decoder.mid_block.attentions.0.to_q.weight"),
        ("decoder.mid_block.attentions.0.key.bias", "decoder.mid_block.attentions.0.to_k.bias"),
        ("decoder.mid_block.attentions.0.value.bias", "decoder.mid_block.attentions.0.to_v.bias"),
        ("decoder.mid_block.attentions.0.proj_attn.weight", "decoder.mid_block.attentions.0.to_out.0.weight"),
    ],
)
def test_older_names(tmp_path: Path, stored: str, asked: str) -> None:
    write_safetensors(tmp_path / NAME, {stored: np.ones((2, 2))})
    checkpoint = Checkpoint(tmp_path)
    assert checkpoint.find(asked, (2, 2)) == stored
    assert values(checkpoint, asked, (2, 2)).sum() == 4
    with pytest.raises(WeightsError, match=r"has shape \(2, 2\), must be \(2, 3\)"):
        checkpoint.find(asked, (2, 3))


def test_our_own_name_first(tmp_path: Path) -> None:
    write_safetensors(tmp_path / NAME, {"text_model.x": np.ones(2), "x": np.zeros(2)})
    assert values(Checkpoint(tmp_path), "text_model.x", (2,)).sum() == 2


def test_other_attention_layers_have_no_older_names(tmp_path: Path) -> None:
    write_safetensors(tmp_path / NAME, {"down_blocks.0.attentions.0.query.weight": np.ones((2, 2))})
    with pytest.raises(WeightsError, match=r"lack the tensor down_blocks.0.attentions.0.to_q.weight"):
        Checkpoint(tmp_path).find("down_blocks.0.attentions.0.to_q.weight", (2, 2))


# ---- nothing to read


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.bin", "model.ckpt", "weights.pt", "weights.pth"])
def test_pickles_are_refused_unopened(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    opened: list[str] = []
    monkeypatch.setattr("builtins.open", lambda path, *_, **__: opened.append(str(path)))
    monkeypatch.setattr(Path, "open", lambda self, *_, **__: opened.append(str(self)))
    with pytest.raises(ModelError, match=r"pickle files can run code when opened.*save_pretrained\(") as caught:
        Checkpoint(tmp_path)
    monkeypatch.undo()
    assert name in str(caught.value)
    assert opened == []


def test_pickle_beside_safetensors_is_ignored(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"garbage")
    write_safetensors(tmp_path / NAME, tensors)
    assert values(Checkpoint(tmp_path), "conv.bias", (2,))[1] == 4


def test_no_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no .safetensors file here; download the model's weights in that format"):
        Checkpoint(tmp_path)
    with pytest.raises(ModelError, match=r"unet: the model has no such component folder; it must be a diffusers model"):
        Checkpoint(tmp_path / "unet")
