"""Partially fused softmax against its reference and its baseline."""

import numpy as np
import pytest
from kernel_runner import relative_error, rounded, run_calls, tensor_in, tensor_out

from shaderfusion.errors import ShapeError
from shaderfusion.gpu.device import Device
from shaderfusion.graph.memory_plan import plan_memory
from shaderfusion.kernels import reference
from shaderfusion.kernels.baseline.softmax_unfused import softmax_unfused
from shaderfusion.kernels.common.matmul import attention_values
from shaderfusion.kernels.optimized.partially_fused_softmax import partially_fused_softmax
from shaderfusion.kernels.tiles import LaneTile, Tile
from shaderfusion.tensor import DType, TensorSpec

CAPS: dict[DType, float] = {"f32": 2e-6, "f16": 2e-3}
SMALL = Tile(16, 16, thread_m=4, thread_n4=1)

# (B, heads, N, M, D): minimal; ragged with padded keys, as for a prompt of 77 tokens; more keys than a tile
CASES = [(1, 1, 1, 1, 4), (2, 3, 21, 77, 8), (1, 2, 33, 132, 40)]


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_partially_fused_softmax(
    any_device: Device, case: tuple[int, int, int, int, int], causal: bool, dtype: DType
) -> None:
    fused, unfused = _errors(any_device, case, causal, dtype, SMALL, scale=3.0)
    assert fused < CAPS[dtype]
    assert fused <= 2 * unfused + 1e-7


def test_lanes(device: Device) -> None:
    if not device.capabilities.has_subgroups:
        pytest.skip("LaneTile needs subgroups, which this device lacks")
    assert _errors(device, CASES[1], True, "f32", LaneTile(), scale=3.0)[0] < CAPS["f32"]


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
def test_large_logits_in_f16(any_device: Device, causal: bool) -> None:
    # Deviation 1e3: exp overflows without the subtracted maximum, and underflows in most columns. NaN passes no bound.
    fused, unfused = _errors(any_device, CASES[1], causal, "f16", SMALL, scale=1e3)
    assert fused < CAPS["f16"]
    assert unfused < CAPS["f16"]


def test_only_the_statistics_are_stored() -> None:
    scores, v, out = tensor_out("scores", 2, 8, 64, 80), tensor_out("v", 2, 77, 320), tensor_out("out", 2, 64, 320)
    calls = partially_fused_softmax(scores, v, out, num_heads=8)
    assert len(calls) == 2
    assert plan_memory(calls).total_bytes == 2 * 8 * 64 * 2 * 4  # L and S of each row, f32
    with pytest.raises(ShapeError, match=r"must be \(B, heads, N, M\)"):
        partially_fused_softmax(v, v, out, num_heads=8)


def _errors(
    device: Device,
    case: tuple[int, int, int, int, int],
    causal: bool,
    dtype: DType,
    tile: Tile | LaneTile,
    *,
    scale: float,
) -> tuple[float, float]:
    """Of the fused path, and of softmax in a dispatch of its own."""
    B, heads, N, M, D = case
    rng = np.random.default_rng(0)
    padded = -(-M // 4) * 4
    scores, v = scale * rng.standard_normal((B, heads, N, padded)), rng.standard_normal((B, M, heads * D))
    scores[..., M:] = np.nan  # padding must not matter, whatever it holds
    inputs = {tensor_in("scores", scores, dtype): scores, tensor_in("v", v, dtype): v}
    a, b = inputs
    out = tensor_out("out", B, N, heads * D, dtype=dtype)
    probs = TensorSpec("probs", scores.shape, dtype)
    fused = partially_fused_softmax(a, b, out, num_heads=heads, causal=causal, tile=tile)
    unfused = (
        softmax_unfused(a, probs, num_columns=M, causal=causal),
        *attention_values(probs, b, out, num_heads=heads, tile=tile),
    )
    expected = reference.partially_fused_softmax(
        rounded(np.nan_to_num(scores), dtype), rounded(v, dtype), num_heads=heads, causal=causal
    )
    errors = [relative_error(run_calls(device, calls, inputs, out)[0], expected) for calls in (fused, unfused)]
    return errors[0], errors[1]
