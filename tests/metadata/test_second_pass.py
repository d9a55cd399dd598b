"""What web UIs say of runs that begin with a picture, by our options and back."""

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shaderfusion.metadata.recipe import read_recipes
from shaderfusion.metadata.second_pass import read_second_pass, read_strength, write_second_pass
from shaderfusion.metadata.settings import make_texts

FIRST = {"Steps": "20", "Size": "512x768", "Denoising strength": "0.5"}


def sides_of(width: int, height: int, scale: float) -> list[int]:
    """As hires.SecondPass has them, of a model whose cells are 8 px."""
    return [round(side * scale / 8) * 8 for side in (width, height)]


@pytest.mark.parametrize(
    ("fields", "sides", "steps"),
    [  # steps: those that are run, and of how many
        ({"Hires upscale": "2"}, [1024, 1536], (20, 40)),
        ({"Hires upscale": "2", "Hires steps": "0"}, [1024, 1536], (20, 40)),
        ({"Hires upscale": "1.5", "Hires steps": "7", "Denoising strength": "0.7"}, [768, 1152], (7, 10)),
        ({"Hires upscale": "1.5", "Hires steps": "20", "Denoising strength": "0.7"}, [768, 1152], (20, 28)),
        ({"Hires upscale": "1.5", "Denoising strength": "1"}, [768, 1152], (20, 20)),
        (
            {"Hires upscale": "1.15"},
            [584, 880],
            (20, 40),
        ),  # 588.8 and 883.2, cut
        ({"Hires resize": "1024x1536"}, [1024, 1536], (20, 40)),
        ({"Hires resize": "1024x0"}, [1024, 1536], (20, 40)),
        ({"Hires resize": "0x1200"}, [800, 1200], (20, 40)),
    ],
    ids=str,
)
def test_reading(fields: dict[str, str], sides: list[int], steps: tuple[int, int]) -> None:
    found = read_second_pass(FIRST | fields)
    assert found is not None
    assert sides_of(512, 768, found["hires"]) == sides
    assert (int(found["hires_steps"] * found["hires_strength"]), found["hires_steps"]) == steps


@pytest.mark.parametrize(
    "fields",
    [
        {"Hires resize": "1024x1024"},  # which is cut out of 1024x1536
        {"Hires upscale": "0.5"},
        {"Hires upscale": "17"},
        {"Hires upscale": "nan"},
        {"Hires upscale": "1e999"},
        {"Hires upscale": "2", "Hires steps": "many"},
        {"Hires upscale": "2", "Hires steps": "9" * 5000},
        {"Hires upscale": "2", "Denoising strength": "0"},
        {"Hires upscale": "2", "Denoising strength": "1.1"},
        {"Hires upscale": "2", "Denoising strength": "1e-300"},
        {"Hires upscale": "2", "Size": "big"},
        {"Hires upscale": "2", "Size": "0x8"},
        {"Hires upscale": "2", "Size": f"{'9' * 400}x8"},
        {"Hires resize": "0x0"},
    ],
    ids=lambda fields: str(fields)[:40],
)
def test_what_is_another_size_or_no_number(fields: dict[str, str]) -> None:
    assert read_second_pass(FIRST | fields) is None


@given(
    st.integers(8, 200),
    st.integers(8, 200),
    st.floats(1, 4),
    st.integers(1, 150),
    st.floats(0.01, 1),
)
def test_what_is_written_is_read(width: int, height: int, scale: float, steps: int, strength: float) -> None:
    """As a pass of that size that runs as many steps, but where a web UI would cut the size out of a larger picture."""
    width, height, num_steps = 8 * width, 8 * height, max(1, int(steps * strength))
    strength = strength if int(steps * strength) else min(1, 1.001 / steps)
    settings = {"width": width, "height": height, "hires": scale, "hires_steps": steps, "hires_strength": strength}
    fields = {"Steps": "9", "Size": f"{width}x{height}", "Denoising strength": str(strength)}
    found = read_second_pass(fields | write_second_pass(settings))
    sides = sides_of(width, height, scale)
    cover = max(Fraction(sides[0], width), Fraction(sides[1], height))
    is_cut = [int(side * cover) // 8 * 8 for side in (width, height)] != sides
    if is_cut:
        assert found is None or "Hires upscale" in write_second_pass(settings)
        return
    assert found is not None
    assert sides_of(width, height, found["hires"]) == sides
    assert int(found["hires_steps"] * found["hires_strength"]) == num_steps


@pytest.mark.parametrize(
    ("steps", "strength", "expected"),
    [(20, 0.75, 16), (20, 1.0, 20), (20, 0.01, 1), (50, 0.33, 17), (7, 0.999, 7), (20, 0, None), (20, 1.5, None)],
)
def test_strength_of_a_web_ui(steps: int, strength: float, expected: int | None) -> None:
    own = read_strength(steps, strength)
    assert (None if own is None else int(steps * own)) == expected


def recipe(fields: str) -> tuple[dict[str, Any], dict[str, str]]:
    """Options of passes, and demands, of a web UI's text."""
    (found,) = read_recipes("a.png", {"parameters": f"a\nSteps: 20, Size: 512x512, {fields}, Version: v1.10.1"})
    passes = {name: value for name, value in found.options.items() if name.startswith(("hires", "strength"))}
    return passes, found.demands


SECOND = {"hires": 2.0, "hires_steps": 40, "hires_strength": 0.5}
IMAGE = {"image": "the picture that it began with, which the text does not name"}


@pytest.mark.parametrize(
    ("fields", "options", "demands"),
    [
        ("Denoising strength: 0.5, Hires upscale: 2, Hires upscaler: Lanczos", SECOND, {}),
        ("Denoising strength: 0.5, Hires upscale: 2, Hires upscaler: Latent", SECOND, {"Hires upscaler": "Latent"}),
        ("Denoising strength: 0.5, Hires upscale: 2", SECOND, {"Hires upscaler": "Latent, as none is named"}),
        (
            "Sampler: Euler a, CFG scale: 7, Denoising strength: 0.5, Hires sampler: Euler a, Hires CFG Scale: 7, "
            "Hires Module 1: Use same choices, Hires upscale: 2, Hires upscaler: Lanczos, Hires prompt: a cat",
            SECOND,
            {"Hires prompt": "a cat"},
        ),
        (
            "Sampler: Euler a, CFG scale: 7, Denoising strength: 0.5, Hires sampler: DDIM, Hires CFG Scale: 1, "
            "Hires resize: 1024x768, Hires steps: 4",
            {},
            {
                "Denoising strength": "0.5",
                "Hires resize": "1024x768",
                "Hires steps": "4",
                "Hires upscaler": "Latent, as none is named",
                "Hires sampler": "DDIM",
                "Hires CFG Scale": "1",
            },
        ),
        ("Denoising strength: 0.75", {"strength": 0.8}, IMAGE),
        ("Denoising strength: 0", {}, {}),
        ("Denoising strength: 2", {}, {"Denoising strength": "2", **IMAGE}),
        ("Denoising strength: much", {}, {"Denoising strength": "much"}),
        (
            "Denoising strength: 0.7, First pass size: 0x0",
            {},
            {"Denoising strength": "0.7", "First pass size": "0x0"},
        ),
    ],
)
def test_recipes(fields: str, options: dict[str, Any], demands: dict[str, str]) -> None:
    assert recipe(fields) == (options, demands)


def test_ours_come_back() -> None:
    settings = {"prompt": "a", "steps": 9, "scheduler": "euler", "guidance_scale": 7.5, "seed": 1, "width": 512}
    settings |= {"height": 512, "model": "m", "version": "1", "hires": 1.15, "hires_steps": 20, "hires_strength": 0.5}
    texts = make_texts(settings)
    assert (
        "Denoising strength: 0.5, RNG: CPU, Hires resize: 592x592, Hires steps: 10, Hires upscaler: Lanczos, Ver"
        in (texts["parameters"])
    )
    exact, infotext = read_recipes("a.png", texts)
    for found in (exact, infotext):
        assert {name: found.options[name] for name in ("hires_steps", "hires_strength")} == {
            "hires_steps": 20,
            "hires_strength": 0.5,
        }
        assert sides_of(512, 512, found.options["hires"]) == [592, 592]
        assert found.demands == {}
    begun = make_texts({**settings, "hires": None, "hires_steps": None, "hires_strength": None, "strength": 0.8})
    assert read_recipes("a.png", begun)[1].options["strength"] == 0.8
