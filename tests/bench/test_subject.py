"""What is measured: sd14 without files, and random weights that keep activations in range."""

from dataclasses import replace

import numpy as np
import pytest
from golden.models import FAMILIES, model_folder

from shaderfusion.bench.runs import make_image, run_iteration
from shaderfusion.bench.subject import RandomCheckpoint, RandomFolder, default_model, open_subject
from shaderfusion.bench.values import normal
from shaderfusion.errors import InputError, ModelError
from shaderfusion.families.run_size import RunSize
from shaderfusion.families.stable_diffusion import StableDiffusion
from shaderfusion.gpu.device import Device


def test_sd14_is_the_published_model(device: Device) -> None:
    subject = open_subject("sd14", device=device)
    assert subject.size == RunSize(batch=1, height_px=512, width_px=512, guidance=True, num_tokens=77)
    assert subject.latents_shape == (1, 64, 64, 4)
    graphs = subject.graphs(subject.kernels())
    # Of CompVis/stable-diffusion-v1-4; the decoder with post_quant_conv, without the encoder.
    parameters = {"text_encoder": 123_060_480, "unet": 859_520_964, "vae": 49_490_199}
    assert {name: graph.num_parameters for name, graph in graphs.items()} == parameters


def values(path: str, *shape: int) -> np.ndarray:
    """A random tensor."""
    stored = RandomCheckpoint().read(path, shape)
    assert stored.dtype == "F32"
    return stored.to_f32().reshape(shape)


def test_random_weights_have_unit_gain() -> None:
    filters = values("conv1.weight", 64, 32, 3, 3)
    assert filters.std() == pytest.approx((32 * 9) ** -0.5, rel=0.02)
    assert values("to_q.weight", 320, 768).std() == pytest.approx(768**-0.5, rel=0.02)
    assert set(values("norm1.weight", 320)) == {1}
    assert 0 < np.abs(values("norm1.bias", 320)).max() < 0.2
    assert not np.array_equal(filters, values("conv2.weight", 64, 32, 3, 3))
    assert RandomCheckpoint().find("conv1.weight", (64, 32, 3, 3)) == "conv1.weight"


def test_random_tables_have_a_row_for_each_id() -> None:
    stored = RandomCheckpoint().read_rows("token_embedding.weight", (49408, 768), np.array([[5, 49407], [5, 0]]))
    rows = stored.to_f32().reshape(2, 2, 768)
    np.testing.assert_array_equal(rows[0, 0], rows[1, 0])
    assert not np.array_equal(rows[0, 0], rows[0, 1])


def test_random_weights_run_in_f16(device: Device) -> None:
    """A small image of the whole of a model's layers stays finite, in f16 where the device has it."""
    dtype = "f16" if device.info.has_f16 else "f32"
    subject = open_subject(str(model_folder("sd1")), device=device, dtype=dtype, width=32, height=32)
    model = StableDiffusion(RandomFolder(model_folder("sd1")))
    with replace(subject, model=model).make_engine() as engine:
        embeddings = engine.condition(np.zeros((2, subject.size.num_tokens), np.int64), subject.size)["embedding"]
        assert np.isfinite(embeddings).all()
        assert 0.1 < embeddings.std() < 10
        pixels = engine.decode(normal("latents", subject.latents_shape), subject.size)
    assert pixels.std() > 0.1
    assert engine.dtype_of("unet") == dtype


@pytest.mark.parametrize("name", FAMILIES)
def test_a_picture_of_any_family(device: Device, name: str) -> None:
    subject = open_subject(str(model_folder(name)), device=device, dtype="f32", width=16, height=16)
    with subject.make_engine() as engine:
        run_iteration(engine, subject)
        assert np.isfinite(engine.program(subject.model.denoiser, subject.size).read("model_output")).all()
        assert set(make_image(engine, subject)) == {"text_encoder", "denoising", "decoder"}


def test_default_model_is_small_on_a_cpu(device: Device) -> None:
    assert default_model(device) == ("emoji" if device.info.kind == "CPU" else "sd14")


def test_refuses(device: Device) -> None:
    with pytest.raises(ModelError, match="model"):
        open_subject("nowhere", device=device)
    with pytest.raises(InputError, match=r"width \(=100\) must be a positive multiple of 8"):
        open_subject("sd14", device=device, width=100)
