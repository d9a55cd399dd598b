"""LoRAs of a pipeline: loaded, set, combined, forgotten, and what that leaves of weights, pictures and runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.models import FOLDER, model_folder
from safetensors.numpy import load_file, save_file

from shaderfusion.engine import Engine
from shaderfusion.errors import DeviceError, InputError, WeightsError
from shaderfusion.gpu.buffers import download
from shaderfusion.gpu.device import Device
from shaderfusion.pipeline import StableDiffusionPipeline
from shaderfusion.tensor import DType

KOHYA, PEFT, LOKR, DORA = (FOLDER / "lora" / f"{name}.safetensors" for name in ("kohya", "peft", "lokr", "dora"))
RUN: dict[str, Any] = {"prompt": "a fox", "num_inference_steps": 3, "seed": 5, "width": 32, "height": 16}

Open = Callable[..., StableDiffusionPipeline]


@pytest.fixture
def open_pipe(device: Device) -> Open:
    """The golden model sd1."""

    def open_it(dtype: DType = "f32", **options: Any) -> StableDiffusionPipeline:
        folder = model_folder("sd1")
        return StableDiffusionPipeline.from_pretrained(folder, device=device, dtype=dtype, tuning="off", **options)

    return open_it


@pytest.fixture
def pipe(open_pipe: Open) -> StableDiffusionPipeline:
    """In f32."""
    return open_pipe()


def weights(pipe: StableDiffusionPipeline) -> dict[str, np.ndarray]:
    """All that the device holds, by name."""
    loaded = pipe._engine._weights._loaded.values()
    return {
        f"{each.weight.tensor.name}, {each.weight.layout}": download(pipe.device, each.buffer, each.weight.tensor)
        for each in loaded
    }


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    """Bit for bit."""
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def picture(pipe: StableDiffusionPipeline) -> np.ndarray:
    """Of RUN."""
    return np.asarray(pipe(**RUN).images[0])


@pytest.mark.parametrize("dtype", ["f32", "f16"])
def test_strength_0_and_unloading_leave_the_model_as_it_was(device: Device, open_pipe: Open, dtype: DType) -> None:
    if dtype == "f16" and not device.info.has_f16:
        pytest.skip("this device lacks f16")
    pipe = open_pipe(dtype)
    base, plain = weights(pipe), picture(pipe)
    pipe.load_lora_weights(KOHYA, adapter_name="a")
    pipe.load_lora_weights(DORA, adapter_name="b")
    adapted = weights(pipe)
    assert not equal(adapted, base)
    pipe.set_adapters(["a", "b"], 0.0)
    assert equal(weights(pipe), base)
    pipe.set_adapters(["b"])
    assert equal(weights(pipe), adapted)
    pipe.set_adapters([])
    assert pipe.get_active_adapters() == []
    assert equal(weights(pipe), base)
    pipe.set_adapters(["b", "a"], [1.0, 0.5])
    pipe.unload_lora_weights()
    assert equal(weights(pipe), base)
    np.testing.assert_array_equal(picture(pipe), plain)
    with pytest.raises(InputError, match=r"adapter \(='a'\) must be one that is loaded \(none\)"):
        pipe.set_adapters("a")


def test_merged_while_loading_is_merged_afterwards(open_pipe: Open) -> None:
    at_once = open_pipe(loras=[(KOHYA, 0.75), (LOKR, {"unet": -0.5})])
    assert at_once.get_active_adapters() == ["kohya", "lokr"]
    pipe = open_pipe()
    for path in (KOHYA, LOKR):
        pipe.load_lora_weights(path)
    assert pipe.get_active_adapters() == ["default_1"]
    pipe.set_adapters(["default_0", "default_1"], [0.75, {"unet": -0.5}])
    assert equal(weights(pipe), weights(at_once))


def test_prompts_name_what_was_given_while_loading(open_pipe: Open) -> None:
    at_once, prompt = open_pipe(loras=[(KOHYA, 0.75), (LOKR, 0.0)]), "a fox <lora:lokr:0.5> <lora:kohya:0.25>"
    image = at_once(**{**RUN, "prompt": prompt, "prompt_syntax": "webui"}).images[0]
    again = open_pipe(loras=[(LOKR, 0.5), (KOHYA, 0.25)])
    expected = again(**{**RUN, "prompt": "a fox  ", "prompt_syntax": "webui"}).images[0]
    np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))


def test_names_of_what_is_given_while_loading(open_pipe: Open, tmp_path: Path) -> None:
    folder = tmp_path / "style v1.2"
    folder.mkdir()
    (folder / "pytorch_lora_weights.safetensors").write_bytes(KOHYA.read_bytes())
    (tmp_path / "lokr.safetensors").write_bytes(LOKR.read_bytes())
    pipe = open_pipe(loras=[(str(folder), 0.5), (LOKR, 0.0)])
    pipe.load_lora_weights(PEFT)
    pipe.set_adapters(["style v1.2", "lokr", "default_2"])
    with pytest.raises(InputError, match=r"^LoRAs \(.*lokr.safetensors, .*\) must have different names, by which"):
        open_pipe(loras=[(LOKR, 1.0), (tmp_path / "lokr.safetensors", 1.0)])


def test_the_order_of_adapters_does_not_matter(pipe: StableDiffusionPipeline) -> None:
    for path in (KOHYA, DORA):
        pipe.load_lora_weights(path, adapter_name=path.stem)
    pipe.set_adapters(["kohya", "dora"], [0.7, 0.4])
    first = weights(pipe)
    pipe.set_adapters(["dora", "kohya"], [0.4, 0.7])
    assert equal(weights(pipe), first)


def test_strengths_by_component(pipe: StableDiffusionPipeline) -> None:
    base = weights(pipe)
    pipe.load_lora_weights(KOHYA, adapter_name="a")
    pipe.set_adapters("a", {"unet": 0})
    adapted = weights(pipe)
    changed = {name.split(".")[0] for name, array in adapted.items() if not np.array_equal(array, base[name])}
    assert changed == {"text_encoder"}


def test_only_what_changes_is_loaded_and_nothing_is_compiled(
    pipe: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe.load_lora_weights(KOHYA, adapter_name="a")
    before = weights(pipe)
    programs = [program for of in pipe._engine._programs.values() for program in of.values()]
    read: list[int] = []
    refill = pipe._engine._weights._loader.refill
    monkeypatch.setattr(
        pipe._engine._weights._loader, "refill", lambda b, s, p: (read.append(len(s)), refill(b, s, p))[1]
    )
    pipe.set_adapters("a", 0.5)
    after = weights(pipe)
    assert read == [sum(not np.array_equal(after[name], before[name]) for name in before)]
    pipe.set_adapters("a", 0.5)
    assert read[1:] == [0]
    assert programs == [program for of in pipe._engine._programs.values() for program in of.values()]


def test_a_size_that_is_made_later_has_the_adapters(pipe: StableDiffusionPipeline, open_pipe: Open) -> None:
    pipe.load_lora_weights(PEFT)
    pipe(**{**RUN, "width": 48})
    other = open_pipe(loras=[(PEFT, 1.0)])
    np.testing.assert_array_equal(picture(pipe), picture(other))


def test_a_run_goes_on_with_the_new_weights(pipe: StableDiffusionPipeline, open_pipe: Open) -> None:
    """Its embedding stays; what its steps keep of it does not."""
    embedding = pipe._engine.condition(pipe.model.tokenize(["a fox"]), pipe.model.run_size())["embedding"]
    options = RUN | {"prompt": None, "prompt_embeds": embedding, "guidance_scale": 1.0}
    with pipe.generate(**options) as run:
        first = next(run).latents
        next(run)
    with pipe.generate(**options) as run:
        np.testing.assert_array_equal(next(run).latents, first)
        pipe.load_lora_weights(KOHYA, adapter_name="a")
        changed = next(run).latents
    pipe.unload_lora_weights()
    # The same from a run that is given the state, by a pipeline that has always had the adapter.
    other = open_pipe(loras=[(KOHYA, 1.0)])
    with pipe.generate(**options) as begun, other.generate(**options) as run:
        next(begun)
        next(run)
        run._state = begun._state
        np.testing.assert_array_equal(next(run).latents, changed)


REFUSED: list[tuple[Callable[[StableDiffusionPipeline], None], str]] = [
    (lambda pipe: pipe.set_adapters("b"), r"adapter \(='b'\) must be one that is loaded \(a\)"),
    (lambda pipe: pipe.set_adapters(["a", "a"]), "must each be named once"),
    (lambda pipe: pipe.set_adapters(["a"], [1, 2]), r"adapter_weights \(of 2\) must be one, or one for each of 1"),
    (lambda pipe: pipe.set_adapters("a", float("nan")), "adapter_weights has nan, must be finite numbers"),
    (lambda pipe: pipe.set_adapters("a", [True]), "adapter_weights has True, must be finite numbers"),
    (lambda pipe: pipe.set_adapters("a", {"vae": 1}), "names 'vae', must name unet or text_encoder or text_encoder_2"),
    (lambda pipe: pipe.load_lora_weights(PEFT, adapter_name="a"), r"adapter_name \(='a'\) must be a text that no"),
    (lambda pipe: pipe.load_lora_weights(FOLDER / "none"), "there is no such file"),
]


def test_what_is_refused_changes_nothing(pipe: StableDiffusionPipeline) -> None:
    pipe.load_lora_weights(KOHYA, adapter_name="a")
    before = weights(pipe)
    for call, message in REFUSED:
        with pytest.raises(InputError, match=message):
            call(pipe)
    assert pipe.get_active_adapters() == ["a"]
    assert equal(weights(pipe), before)


def test_weights_over_the_range(open_pipe: Open) -> None:
    pipe = open_pipe()
    before = weights(pipe)
    pipe.load_lora_weights(KOHYA, adapter_name="a")
    adapted = weights(pipe)
    with pytest.raises(WeightsError, match="with its adapters has NaN or values over the range of f32; use smaller"):
        pipe.set_adapters("a", 1e39)
    assert equal(weights(pipe), adapted)
    pipe.unload_lora_weights()
    assert equal(weights(pipe), before)


def test_refused_before_anything_is_loaded(open_pipe: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "other.safetensors"
    save_file({key.replace("down_blocks", "down_block"): value for key, value in load_file(KOHYA).items()}, file)
    loaded: list[object] = []
    monkeypatch.setattr(Engine, "load", lambda *_: loaded.append(None))
    with pytest.raises(WeightsError, match=rf"^{file}: every tensor must be .*; take a LoRA for the model's family"):
        open_pipe(loras=[(file, 1.0)])
    assert loaded == []


def test_closed(pipe: StableDiffusionPipeline) -> None:
    pipe.load_lora_weights(KOHYA)
    pipe.close()
    with pytest.raises(DeviceError, match="is closed"):
        pipe.unload_lora_weights()
