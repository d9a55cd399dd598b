"""Guidance and the scheduler's update against their reference."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from kernel_runner import rounded, run_calls, tensor_in, tensor_out

from shaderfusion.errors import ShapeError
from shaderfusion.gpu.device import Device
from shaderfusion.kernels import reference
from shaderfusion.kernels.common.denoise_step import COEFFICIENTS, denoise_step
from shaderfusion.tensor import DType, TensorSpec

STATE_BOUND = 1e-5  # of x_t, x_saved and history, which are f32 in both
INPUT_BOUNDS: dict[DType, float] = {"f32": 1e-5, "f16": 2e-3}  # of model_input, whose values reach 4

EVERY_TERM = {
    "guidance_scale": 7.5,
    "p_x": 1.1,
    "p_m": -0.3,
    "c_x": 0.4,
    "c_saved": -0.2,
    "c_m": 0.15,
    "c_h1": -0.3,
    "c_h2": 0.2,
    "c_h3": -0.1,
    "c_x0": 0.25,
    "c_noise": 0.35,
    "clip_range": 1.0,  # cuts most x0
    "next_input_scale": 0.7,
    "h_x": -0.6,
    "h_m": 0.8,
    "save_sample": 1.0,
}


def row(coefficients: dict[str, float]) -> np.ndarray:
    """A row for the kernel; what is not named is 0."""
    assert coefficients.keys() <= set(COEFFICIENTS)
    return np.array([coefficients.get(name, 0.0) for name in COEFFICIENTS])


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("guidance", [False, True], ids=["plain", "guidance"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 5, 7, 4), (2, 16, 16, 4)], ids=str)
def test_every_term(any_device: Device, shape: tuple[int, int, int, int], guidance: bool, dtype: DType) -> None:
    state = np.random.default_rng(0).standard_normal((6, *shape))
    _check(any_device, row(EVERY_TERM), state[0], state[1], state[2:5], guidance, dtype, noise=state[5])


@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize(
    ("shape", "weights"),
    [
        ((1, 3, 3, 4), [[-0.7]]),  # one text, with a weight
        ((3, 5, 7, 4), [[1, 0.3, -0.5], [0, 1.2, 2.0]]),  # several pictures, each with its own weights
        ((2, 3, 5, 4), [[0.5, 1], [0.25, -1], [0.125, 0], [1, 0]]),
    ],
    ids=str,
)
def test_weighted_texts(any_device: Device, shape: tuple[int, ...], weights: list[list[float]], dtype: DType) -> None:
    state = np.random.default_rng(7).standard_normal((6, *shape))
    arrays = (row(EVERY_TERM), state[0], state[1], state[2:5])
    _check(any_device, *arrays, True, dtype, 9, noise=state[5], weights=np.array(weights))


@pytest.mark.parametrize("guidance", [False, True], ids=["plain", "guidance"])
@pytest.mark.parametrize("input_channels", [4, 5, 9, 12])  # 9: inpainting, which adds a mask and an image
def test_further_channels_of_the_input_stay(any_device: Device, input_channels: int, guidance: bool) -> None:
    state = np.random.default_rng(5).standard_normal((5, 2, 3, 5, 4))
    _check(
        any_device, row(EVERY_TERM | {"c_noise": 0.0}), state[0], state[1], state[2:], guidance, "f32", input_channels
    )


@pytest.mark.parametrize(("h_x", "h_m"), [(0.5, 0.0), (0.0, -2.0)])
def test_history_of_either_term(any_device: Device, h_x: float, h_m: float) -> None:
    x_t = np.random.default_rng(6).standard_normal((1, 3, 3, 4))
    nan = np.full((3, *x_t.shape), np.nan)
    coefficients = row({"c_x": 1.0, "h_x": h_x, "h_m": h_m, "next_input_scale": 1.0})
    _, _, history = _check(any_device, coefficients, x_t, nan[0], nan, False, "f32")
    assert np.isfinite(history[0]).all()


@pytest.mark.parametrize("guidance", [False, True], ids=["plain", "guidance"])
def test_state_before_its_first_use_may_be_nan(any_device: Device, guidance: bool) -> None:
    # Euler's and DDIM's only step: no history is read or written, x_saved neither, and x0 has no coefficients.
    x_t = np.random.default_rng(1).standard_normal((1, 3, 3, 4))
    nan = np.full((3, *x_t.shape), np.nan)
    coefficients = row({"guidance_scale": 0.0, "c_x": 0.5, "c_m": -0.25, "next_input_scale": 1.0})
    _check(any_device, coefficients, x_t, nan[0], nan, guidance, "f32")


def test_first_pndm_step_fills_the_state(any_device: Device) -> None:
    x_t = np.random.default_rng(2).standard_normal((1, 3, 3, 4))
    nan = np.full((3, *x_t.shape), np.nan)
    coefficients = {"guidance_scale": 7.5, "c_x": 1.02, "c_m": -0.1, "next_input_scale": 1.0}
    coefficients |= {"h_m": 1.0, "save_sample": 1.0}
    _, x_saved, history = _check(any_device, row(coefficients), x_t, nan[0], nan, True, "f32")
    np.testing.assert_array_equal(x_saved, rounded(x_t, "f32"))
    assert np.isfinite(history[0]).all()
    assert np.isnan(history[1:]).all()


def test_sample_that_c_x_leaves_out_may_be_nan(any_device: Device) -> None:
    state = np.random.default_rng(3).standard_normal((5, 1, 3, 3, 4))
    coefficients = row({"c_saved": 1.02, "c_m": -0.05, "c_h1": -0.05, "next_input_scale": 1.0})
    _check(any_device, coefficients, np.full(state[0].shape, np.nan), state[1], state[2:], False, "f32")


def _check(
    device: Device,
    coefficients: np.ndarray,
    x_t: np.ndarray,
    x_saved: np.ndarray,
    history: np.ndarray,
    guidance: bool,
    dtype: DType,
    input_channels: int | None = None,
    noise: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> list[np.ndarray]:
    """Compares the four outputs with the reference and returns the state: x_t, x_saved, history."""
    noise = np.full(x_t.shape, np.nan) if noise is None else noise
    num_texts = int(guidance) if weights is None else len(weights)
    pixels = ((1 + num_texts) * x_t.shape[0], *x_t.shape[1:3])
    rng = np.random.default_rng(4)
    model_output = rng.standard_normal((*pixels, x_t.shape[3]))
    model_input = rng.standard_normal((*pixels, input_channels or x_t.shape[3]))
    inputs = {
        tensor_in("model_output", model_output, dtype): model_output,
        tensor_in("coefficients", coefficients): coefficients,
        tensor_in("noise", noise): noise,
        tensor_in("x_t", x_t): x_t,
        tensor_in("x_saved", x_saved): x_saved,
        tensor_in("history", history): history,
        tensor_in("model_input", model_input, dtype): model_input,
    }
    specs = list(inputs)
    arrays = [rounded(array, spec.dtype) for spec, array in inputs.items()]
    weights_spec = None if weights is None else tensor_in("weights", weights)
    call = denoise_step(*specs, guidance=guidance, weights=weights_spec)
    if weights_spec is not None and weights is not None:
        inputs[weights_spec] = weights
    *state, new_input = run_calls(device, call, inputs, *specs[3:])

    *expected, expected_input = reference.denoise_step(*arrays, guidance=guidance, weights=weights)
    for actual, array in zip(state, expected, strict=True):
        np.testing.assert_allclose(actual, array, rtol=0, atol=STATE_BOUND)  # NaN equals NaN only
    np.testing.assert_allclose(new_input, expected_input, rtol=0, atol=INPUT_BOUNDS[dtype])
    return state


def test_shape_errors() -> None:
    def specs(**changes: TensorSpec) -> dict[str, Any]:
        given = {"model_output": tensor_out("model_output", 2, 5, 7, 4), "coefficients": tensor_out("coefficients", 16)}
        given |= {name: tensor_out(name, 1, 5, 7, 4) for name in ("noise", "x_t", "x_saved")}
        given |= {"history": tensor_out("history", 3, 1, 5, 7, 4), "model_input": tensor_out("in", 2, 5, 7, 4)}
        return {**given, **changes}

    with pytest.raises(ShapeError, match=r"x_t\[5, 7, 4\]:f32 must be \(B, H, W, C\)"):
        denoise_step(**specs(x_t=tensor_out("x_t", 5, 7, 4)), guidance=True)
    state = ("noise", (1, 5, 7, 4)), ("x_saved", (1, 5, 7, 4)), ("history", (3, 1, 5, 7, 4))
    for name, shape in [("coefficients", (16,)), *state]:
        with pytest.raises(ShapeError, match=rf"{name}\[2, 5\]:f32 must have shape \({', '.join(map(str, shape))},?\)"):
            denoise_step(**specs(**{name: tensor_out(name, 2, 5)}), guidance=True)
        with pytest.raises(ShapeError, match=rf"{name}.* must be f32"):
            denoise_step(**specs(**{name: tensor_out(name, *shape, dtype="f16")}), guidance=True)
    with pytest.raises(ShapeError, match=r"model_output.* must have shape \(1, 5, 7, 4\) with guidance=False"):
        denoise_step(**specs(), guidance=False)
    with pytest.raises(ShapeError, match=r"in\[2, 5, 7, 3\]:f32 must have shape \(2, 5, 7\) and at least 4 channels"):
        denoise_step(**specs(model_input=tensor_out("in", 2, 5, 7, 3)), guidance=True)
    for weights, guidance in ((tensor_out("weights", 1, 2), True), (tensor_out("weights", 1, 1), False)):
        with pytest.raises(ShapeError, match=r"weights.* must be \(K, 1\) f32, and come with guidance"):
            denoise_step(**specs(), guidance=guidance, weights=weights)
    padded = {name: replace(spec, padding=1) for name, spec in specs().items() if name in ("x_t", "model_input")}
    denoise_step(**specs(**padded), guidance=True)
    with pytest.raises(ShapeError, match=r"in\[2, 5, 7, 4\]:f32 must have the 3 channels of x_t.*, which is padded"):
        denoise_step(**specs(x_t=padded["x_t"]), guidance=True)
    with pytest.raises(ShapeError, match=r"in\[2, 5, 7, 4\]:f16 must have the dtype of model_output"):
        denoise_step(**specs(model_input=tensor_out("in", 2, 5, 7, 4, dtype="f16")), guidance=True)
