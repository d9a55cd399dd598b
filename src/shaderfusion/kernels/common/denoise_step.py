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
    "c_noise",
    "clip_range",
    "next_input_scale",
    "h_x",
    "h_m",
    "save_sample",
)
"""The order of a row of coefficients; schedulers.schedule.Update says what they mean."""

NUM_COEFFICIENTS = len(COEFFICIENTS)

_WORKGROUP_SIZE = 64


def denoise_step(
    model_output: TensorSpec,
    coefficients: TensorSpec,
    noise: TensorSpec,
    x_t: TensorSpec,
    x_saved: TensorSpec,
    history: TensorSpec,
    model_input: TensorSpec,
    *,
    guidance: bool,
    weights: TensorSpec | None = None,
) -> KernelCall:
    """x_t becomes x_prev, x_saved and history move on, and model_input becomes next_input_scale x_prev.

    model_output: (B, H, W, C), or with guidance (2 B, H, W, C): the unconditional half, then the text's. model_input:
    the same with C channels or more, such as an inpainting model's mask, of which only the first C are written.
    coefficients: (16) f32, noise, x_t, x_saved: (B, H, W, C) f32, history: (3, B, H, W, C) f32, newest first.

    With weights (K, B) f32 guidance is towards the weighted sum of K texts: model_output is then ((1 + K) B, H, W, C).
    """
    if len(x_t.shape) != 4:
        raise ShapeError(f"denoise_step: {x_t} must be (B, H, W, C)")
    shapes = [(coefficients, (NUM_COEFFICIENTS,)), (noise, x_t.shape), (x_saved, x_t.shape), (history, (3, *x_t.shape))]
    for tensor, shape in shapes:
        if tensor.shape != shape:
            raise ShapeError(f"denoise_step: {tensor} must have shape {shape}")
    for tensor in (coefficients, noise, x_t, x_saved, history):
        if tensor.dtype != "f32":
            raise ShapeError(f"denoise_step: {tensor} must be f32")
    B, *sides, C = x_t.shape
    if weights is not None and (not guidance or weights.shape[1:] != (B,) or weights.dtype != "f32"):
        raise ShapeError(f"denoise_step: {weights} must be (K, {B}) f32, and come with guidance")
    num_texts = weights.shape[0] if weights is not None else int(guidance)
    pixels = ((1 + num_texts) * B, *sides)
    if model_output.shape != (*pixels, C):
        raise ShapeError(f"denoise_step: {model_output} must have shape {(*pixels, C)} with guidance={guidance}")
    if model_input.shape[:-1] != pixels or model_input.shape[-1] < C:
        raise ShapeError(f"denoise_step: {model_input} must have shape {pixels} and at least {C} channels")
    if x_t.padding and model_input.channels != x_t.channels:
        raise ShapeError(f"denoise_step: {model_input} must have the {x_t.channels} channels of {x_t}, which is padded")
    if model_input.dtype != model_output.dtype:
        raise ShapeError(f"denoise_step: {model_input} must have the dtype of {model_output}")
    indices = {name.upper(): index for index, name in enumerate(COEFFICIENTS)}
    state = tuple(Binding(tensor, "read_write") for tensor in (x_t, x_saved, history))
    bindings = read(model_output, coefficients, noise) + state + write(model_input)
    constants: dict[str, int | bool] = {"WORKGROUP_SIZE": _WORKGROUP_SIZE, "GUIDANCE": guidance, **indices}
    params = {"size": x_t.size, "channels": C, "input_channels": model_input.shape[-1]}
    if weights is not None:
        bindings += read(weights)
        constants["WEIGHTED"] = True
        params |= {"num_texts": num_texts, "batch": B}
    return KernelCall(
        source="common/denoise_step.wgsl",
        entry_point="denoise_step",
        dtype=model_output.dtype,
        bindings=bindings,
        constants=constants,
        params=params,
        workgroups=spread_workgroups(ceil_div(x_t.size, _WORKGROUP_SIZE)),
    )
