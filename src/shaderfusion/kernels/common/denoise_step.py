"""Classifier-free guidance and the scheduler's update of the latents, in one dispatch."""

from shaderfusion.errors import ShapeError
from shaderfusion.kernels.call import Binding, KernelCall, ceil_div, read, spread_workgroups, write
from shaderfusion.tensor import TensorSpec

__all__ = ["COEFFICIENTS", "NUM_COEFFICIENTS", "denoise_step"]

COEFFICIENTS = (
    "guidance_scale",
    "p_x",
    "p_m",
    "c_x",
    "c_saved",
    "c_m",
    "c_h1",
    "c_h2",
    "c_h3",
    "c_x0",
    "clip_range",
    "next_input_scale",
    "push_history",
    "save_sample",
)
"""The order of a row of coefficients, whose unnamed rest is 0; schedulers.schedule.Update says what they mean."""

NUM_COEFFICIENTS = 16

_WORKGROUP_SIZE = 64


def denoise_step(
    model_output: TensorSpec,
    coefficients: TensorSpec,
    x_t: TensorSpec,
    x_saved: TensorSpec,
    history: TensorSpec,
    model_input: TensorSpec,
    *,
    guidance: bool,
) -> KernelCall:
    """x_t becomes x_prev, x_saved and history move on, and model_input becomes next_input_scale x_prev.

    model_output, model_input: (B, H, W, C), or with guidance (2 B, H, W, C): the unconditional half, then the
    text's. coefficients: (16) f32, x_t, x_saved: (B, H, W, C) f32, history: (3, B, H, W, C) f32, newest first.
    """
    if len(x_t.shape) != 4:
        raise ShapeError(f"denoise_step: {x_t} must be (B, H, W, C)")
    for tensor, shape in [(coefficients, (NUM_COEFFICIENTS,)), (x_saved, x_t.shape), (history, (3, *x_t.shape))]:
        if tensor.shape != shape:
            raise ShapeError(f"denoise_step: {tensor} must have shape {shape}")
    for tensor in (coefficients, x_t, x_saved, history):
        if tensor.dtype != "f32":
            raise ShapeError(f"denoise_step: {tensor} must be f32")
    B, *rest = x_t.shape
    model_shape = (2 * B if guidance else B, *rest)
    for tensor in (model_output, model_input):
        if tensor.shape != model_shape:
            raise ShapeError(f"denoise_step: {tensor} must have shape {model_shape} with guidance={guidance}")
    if model_input.dtype != model_output.dtype:
        raise ShapeError(f"denoise_step: {model_input} must have the dtype of {model_output}")
    indices = {name.upper(): index for index, name in enumerate(COEFFICIENTS)}
    state = tuple(Binding(tensor, "read_write") for tensor in (x_t, x_saved, history))
    return KernelCall(
        source="common/denoise_step.wgsl",
        entry_point="denoise_step",
        dtype=model_output.dtype,
        bindings=read(model_output, coefficients) + state + write(model_input),
        constants={"WORKGROUP_SIZE": _WORKGROUP_SIZE, "GUIDANCE": guidance, **indices},
        params={"size": x_t.size},
        workgroups=spread_workgroups(ceil_div(x_t.size, _WORKGROUP_SIZE)),
    )
