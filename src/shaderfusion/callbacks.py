"""diffusers' callback_on_step_end: what it is given after each step, and what it may change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from shaderfusion.errors import InputError
from shaderfusion.files import shown
from shaderfusion.request import Request, read_latents
from shaderfusion.run import Change

__all__ = ["TENSOR_INPUTS", "StepCallback", "make_change"]

TENSOR_INPUTS = ("latents",)
"""Of diffusers' names. What was made of the prompts lies on the device, and is not made anew from step to step."""

StepCallback = Callable[[Any, int, float, dict[str, Any]], Mapping[str, Any] | None]


def make_change(pipe: Any, callback: StepCallback, tensor_inputs: Sequence[str], request: Request) -> Change:
    """What a run does after each step; InputError for tensors that are not TENSOR_INPUTS.

    callback(pipe, step from 0, timestep, {"latents": (B, C, H, W) f32}) returns a dict, or None. Its latents, or those
    that it changed in place, are those of the next step. InputError for others than such an array.
    """
    if not callable(callback):
        raise InputError(f"callback_on_step_end (={shown(callback)}) must be a function")
    for name in [tensor_inputs] if isinstance(tensor_inputs, str) else tensor_inputs:
        if name not in TENSOR_INPUTS:
            raise InputError(
                f"callback_on_step_end_tensor_inputs (={shown(tensor_inputs)}) must have no other names than "
                f"{', '.join(TENSOR_INPUTS)}: the rest of a run does not change"
            )

    def change(step: int, latents: np.ndarray) -> np.ndarray | None:
        own = np.array(latents.transpose(0, 3, 1, 2), order="C")
        given = {"latents": own} if "latents" in tensor_inputs else {}
        returned = callback(pipe, step, request.schedule.timesteps[step], given)
        if returned is None:
            returned = {}
        if not isinstance(returned, Mapping) or set(returned) - set(TENSOR_INPUTS):
            raise InputError(
                f"callback_on_step_end returned {shown(returned)}, and must return a dict with nothing but latents, or "
                "None"
            )
        changed = read_latents(returned.get("latents", own), latents.shape)
        return None if np.array_equal(changed, latents) else np.ascontiguousarray(changed)

    return change
