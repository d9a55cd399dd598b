"""Embeddings against their reference."""

import numpy as np
import pytest
from kernel_runner import relative_error, rounded, run_calls, tensor_in, tensor_out

from shaderfusion.errors import ShapeError
from shaderfusion.gpu.device import Device
from shaderfusion.kernels import reference
from shaderfusion.kernels.common.embedding import embedding
from shaderfusion.tensor import DType

BOUNDS: dict[DType, float] = {"f32": 1e-6, "f16": 5e-4}

SHAPES = [
    (1, 1, 1, 1, 1),  # minimal
    (3, 5, 7, 11, 9),  # odd: one channel a load, more positions than tokens
    (2, 77, 768, 1000, 77),  # CLIP, with a smaller vocabulary
]


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize(("B", "L", "C", "V", "L_max"), SHAPES, ids=str)
def test_embedding(any_device: Device, B: int, L: int, C: int, V: int, L_max: int, dtype: DType) -> None:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, V, (B, L))
    ids[-1, -1] = V - 1  # the table's last row
    tokens, positions = rng.standard_normal((V, C)), rng.standard_normal((L_max, C))
    assert _error(any_device, ids, ids, tokens, positions, dtype) < BOUNDS[dtype]


def test_ids_past_the_table_take_its_last_row(any_device: Device) -> None:
    rng = np.random.default_rng(1)
    ids = np.array([[0, 10, 11, 2**32 - 1]])
    tokens, positions = rng.standard_normal((11, 8)), rng.standard_normal((4, 8))
    assert _error(any_device, ids, np.minimum(ids, 10), tokens, positions, "f32") < BOUNDS["f32"]


def _error(
    device: Device, ids: np.ndarray, rows: np.ndarray, tokens: np.ndarray, positions: np.ndarray, dtype: DType
) -> float:
    tids, ttokens = tensor_in("ids", ids, "u32"), tensor_in("tokens", tokens, dtype)
    tpositions, out = (
        tensor_in("positions", positions, dtype),
        tensor_out("out", *ids.shape, tokens.shape[1], dtype=dtype),
    )
    call = embedding(tids, ttokens, tpositions, out)
    (actual,) = run_calls(device, call, {tids: ids, ttokens: tokens, tpositions: positions}, out)
    return relative_error(actual, reference.embedding(rows, rounded(tokens, dtype), rounded(positions, dtype)))


def test_shape_errors() -> None:
    ids, out = tensor_out("ids", 2, 7, dtype="u32"), tensor_out("out", 2, 7, 8)
    tokens, positions = tensor_out("tokens", 11, 8), tensor_out("positions", 7, 8)
    with pytest.raises(ShapeError, match=r"ids\[2, 7\]:f32 must be \(B, L\) u32"):
        embedding(tensor_out("ids", 2, 7), tokens, positions, out)
    with pytest.raises(ShapeError, match=r"must be \(rows, C\)"):
        embedding(ids, tensor_out("tokens", 88), positions, out)
    with pytest.raises(ShapeError, match="must have 8 channels"):
        embedding(ids, tokens, tensor_out("positions", 7, 4), out)
    with pytest.raises(ShapeError, match="must have a row for each of the 7 tokens"):
        embedding(ids, tokens, tensor_out("positions", 6, 8), out)
    with pytest.raises(ShapeError, match=r"must have shape \(2, 7, 8\)"):
        embedding(ids, tokens, positions, tensor_out("out", 2, 7, 4))
    with pytest.raises(ShapeError, match=r"out\[2, 7, 8\]:f16 must have the dtype of tokens"):
        embedding(ids, tokens, positions, tensor_out("out", 2, 7, 8, dtype="f16"))
