"""Functions that are called after each step, against diffusers in float32 (golden/make_callbacks.py)."""

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
from golden.models import FOLDER, load
from kernel_runner import relative_error

from shaderfusion.errors import InputError
from shaderfusion.gpu.device import Device
from shaderfusion.pipeline import StableDiffusionPipeline

BOUND = 1e-4
IMAGE_BOUND = 2  # of 255


@cache
def golden() -> dict[str, Any]:
    """What make_callbacks.py stored."""
    with np.load(FOLDER / "callbacks.npz") as arrays:
        return {**arrays, "facts": json.loads(str(arrays["facts"]))}


CASES = golden()["facts"]["cases"]


def pipeline_of(device: Device, case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> StableDiffusionPipeline:
    """A golden model with the case's scheduler."""
    pipe = load(device, case["model"], "f32")
    monkeypatch.setattr(pipe, "scheduler", case["scheduler"])
    return pipe


def change(step: int, latents: np.ndarray) -> np.ndarray:
    """As in make_callbacks.py."""
    if step == 1:
        return 0.8 * latents[..., ::-1]
    if step == 3:
        latents[:, :, 0] = 0
    return latents


@pytest.mark.parametrize("k", range(len(CASES)), ids=lambda k: f"{CASES[k]['model']}-{CASES[k]['scheduler']}")
def test_a_callback_changes_what_diffusers_changes(device: Device, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case, seen = CASES[k], []
    pipe = pipeline_of(device, case, monkeypatch)

    def callback(pipe: Any, step: int, timestep: float, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append((step, timestep, tensors["latents"].copy()))
        pipe._interrupt = step == case["interrupted_at"]
        return {"latents": change(step, tensors["latents"])}

    negative, prompt = golden()["facts"]["prompts"]
    made = pipe(prompt, negative_prompt=negative, callback_on_step_end=callback, **case["call"])
    steps, timesteps, latents = zip(*seen, strict=True)
    assert list(steps) == list(range(len(golden()[f"latents_{k}"])))
    np.testing.assert_allclose(timesteps, golden()[f"timesteps_{k}"], rtol=1e-5)
    for own, expected in zip(latents, golden()[f"latents_{k}"], strict=True):
        assert relative_error(own, expected) < BOUND
    images = np.stack([np.asarray(image) for image in made.images])
    assert np.abs(images.astype(int) - golden()[f"images_{k}"]).max() <= IMAGE_BOUND


@pytest.mark.parametrize(
    "k", [k for k in range(len(CASES)) if f"estimates_{k}" in golden()], ids=lambda k: CASES[k]["scheduler"]
)
def test_estimates_are_those_of_the_schedulers(device: Device, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[k]
    run = pipeline_of(device, case, monkeypatch).generate(
        golden()["facts"]["prompts"][1], negative_prompt=golden()["facts"]["prompts"][0], **case["call"]
    )
    for progress, expected in zip(run, golden()[f"estimates_{k}"][:2], strict=False):  # then the latents are changed
        assert relative_error(progress.estimate().transpose(0, 3, 1, 2), expected) < BOUND


def test_a_callback_that_changes_nothing(device: Device) -> None:
    pipe, seen = load(device, "sd2", "f32"), []
    options: dict[str, Any] = {"num_inference_steps": 3, "seed": 1}
    expected = pipe("a fox", **options).images[0].tobytes()

    def silent(*given: Any) -> None:
        seen.append(given[3])

    assert pipe("a fox", callback_on_step_end=silent, **options).images[0].tobytes() == expected
    assert [set(tensors) for tensors in seen] == [{"latents"}] * 3
    nothing = pipe(
        "a fox", callback_on_step_end=silent, callback_on_step_end_tensor_inputs=[], num_inference_steps=3, seed=1
    )
    assert nothing.images[0].tobytes() == expected
    assert seen[3:] == [{}] * 3


def test_what_a_callback_raises_ends_the_call(device: Device) -> None:
    pipe, steps = load(device, "sd2", "f32"), []

    def callback(pipe: Any, step: int, timestep: float, tensors: dict[str, Any]) -> None:
        steps.append(step)
        if step == 1:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        pipe("a fox", num_inference_steps=3, callback_on_step_end=callback)
    assert steps == [0, 1]


def test_an_interrupt_is_for_one_call(device: Device) -> None:
    pipe = load(device, "sd2", "f32")
    steps: list[int] = []

    def callback(pipe: Any, step: int, *_: Any) -> None:
        steps.append(step)
        pipe._interrupt = len(steps) == 1

    for _ in range(2):
        assert len(pipe("a fox", num_inference_steps=3, callback_on_step_end=callback).images) == 1
    assert steps == [0, 0, 1, 2]


@pytest.mark.parametrize(
    ("returned", "rule"),
    [
        (3, r"^callback_on_step_end returned 3, and must return a dict with nothing but latents, or None$"),
        ({"prompt_embeds": 1}, r"^callback_on_step_end returned .*, and must return a dict with nothing but latents"),
        ({"latents": np.zeros((1, 4, 8, 9))}, r"^latents of shape \(1, 4, 8, 9\) must be \(1, 4, 8, 8\)"),
        ({"latents": np.full((1, 4, 8, 8), np.nan)}, r"^latents must be finite"),
        ({"latents": "x"}, r"^latents must be an array of numbers"),
    ],
)
def test_bad_returns(device: Device, returned: Any, rule: str) -> None:
    with pytest.raises(InputError, match=rule):
        load(device, "sd2", "f32")("a fox", num_inference_steps=2, callback_on_step_end=lambda *_: returned)


def test_bad_callbacks_are_refused_at_once(device: Device) -> None:
    pipe: Any = load(device, "sd2", "f32")
    with pytest.raises(InputError, match=r"^callback_on_step_end \(=3\) must be a function"):
        pipe("a fox", callback_on_step_end=3)
    names = ["latents", "prompt_embeds"]
    with pytest.raises(InputError, match=r"^callback_on_step_end_tensor_inputs \(=.*\) must have no other names than"):
        pipe("a fox", callback_on_step_end=print, callback_on_step_end_tensor_inputs=names)
