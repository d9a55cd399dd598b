"""Files of adapters that cannot be used: each is named, with what is wrong and what to do."""

import json
import os
from pathlib import Path
from typing import Any

import lora_reference
import numpy as np
import pytest
from golden.models import FOLDER, model_folder
from safetensors.numpy import load_file, save_file
from safetensors_file import write_safetensors
from weights.hostile_files import Tensor, file_of

from shaderfusion.engine import Engine
from shaderfusion.errors import InputError, WeightsError
from shaderfusion.families.stable_diffusion import StableDiffusion
from shaderfusion.gpu.device import Device
from shaderfusion.kernels.select import Kernels
from shaderfusion.weights.lora.file import find_file, read_adapter
from shaderfusion.weights.lora.names import Targets

Q = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"  # (16, 16)
K = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"  # (16, 32)
CONV = "lora_unet_down_blocks_0_resnets_0_conv1"  # (16, 16, 3, 3)


@pytest.fixture(scope="module")
def targets(device: Device) -> Targets:
    """Of the golden model sd1, whose prompts have 32 channels."""
    with Engine(device, StableDiffusion.from_folder(model_folder("sd1")), Kernels("f32")) as engine:
        return engine.adapter_targets


def ones(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.ones(shape, dtype)


def lora(name: str, M: int, N: int, rank: int = 2, **more: Any) -> dict[str, np.ndarray]:
    """Tensors of a layer's LoRA, and others."""
    tensors = {"lora_up.weight": ones(M, rank), "lora_down.weight": ones(rank, N)} | more
    return {f"{name}.{key}": value for key, value in tensors.items()}


GOOD = lora(Q, 16, 16)
FAMILY = "; take .*family"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "and it has none" + FAMILY),
        (lora(K, 16, 2048), "is a LoRA for SDXL, which the model is not" + FAMILY),
        (lora(K, 16, 768), "is a LoRA for Stable Diffusion 1.x, which the model is not" + FAMILY),
        ({f"{K}.hada_w1_a": ones(16, 2), f"{K}.hada_w1_b": ones(2, 2048), f"{K}.hada_w2_a": ones(16, 2)}
         | {f"{K}.hada_w2_b": ones(2, 2048)}, "is a LoRA for SDXL"),
        ({f"{K}.lokr_w1": ones(4, 32), f"{K}.lokr_w2": ones(4, 64)}, "is a LoRA for SDXL"),
        (lora("lora_te2_text_model_encoder_layers_0_mlp_fc1", 16, 16), "is a LoRA for SDXL"),
        (lora("lora_unet_double_blocks_0_img_mod_lin", 16, 16), "is a LoRA for Flux"),
        (GOOD | {f"x{i}.lora_up.weight": ones(2, 2) for i in range(5)},
         r"5 names in it are not \('x0 \(up\)', 'x1 \(up\)', 'x2 \(up\)', ...\)" + FAMILY),
        (GOOD | {f"{Q}.oft_blocks": ones(2, 2)}, "has OFT or BOFT, which is not read; take one"),
        (GOOD | {"emb_params": ones(2, 2)}, "is a textual inversion; give it as an embedding"),
        ({f"{Q}.lokr_w1": ones(2, 2)}, "lacks lokr_w2_a, lokr_w2_b; take"),
        (lora(Q, 16, 12), rf"{Q}: it changes a weight of size \(16, 12\), and the model's is of size \(16, 16\)"),
        (lora(CONV, 16, 16), r"size \(16, 16\), and the model's is of size \(16, 144\)"),
        (lora("lora_unet_conv_in", 16, 36) | {"lora_unet_conv_in.diff_b": ones(5)}, r"bias of size \(5, 1\), and"),
        ({f"{Q}.diff_b": ones(16)}, "changes a bias, and the model's layer has none"),
        ({f"{Q}.lora_up.weight": ones(16, 2)}, "has up, and lacks down"),
        ({f"{Q}.alpha": ones()}, r"its tensors do not go together \(alpha\)"),
        ({f"{Q}.dora_scale": ones(16, 1)}, r"its tensors do not go together \(dora_scale\)"),
        (GOOD | {f"{Q}.diff": ones(16, 16)}, r"do not go together \(diff, down, up\)"),
        ({f"{Q}.lora_up.weight": ones(16, 3), f"{Q}.lora_down.weight": ones(2, 16)}, r"\(16, 3\), \(2, 16\) have no"),
        ({f"{Q}.lora_up.weight": ones(16), f"{Q}.lora_down.weight": ones(2, 16)}, "a factor has one dimension only"),
        ({f"{Q}.hada_w1_a": ones(16, 2), f"{Q}.hada_w1_b": ones(2, 16), f"{Q}.hada_w2_a": ones(16, 2)}
         | {f"{Q}.hada_w2_b": ones(2, 8)}, r"products are of sizes \(16, 16\) and \(16, 8\)"),
        (lora(Q, 16, 16, dora_scale=ones(1, 8)), r"its magnitude has shape \(1, 8\)"),
        (lora(Q, 16, 16, 5000), r"rank \(=5000\) must be from 1 to 4096"),
        (lora(Q, 16, 16, alpha=ones(3)), r"alpha' has shape \(3,\), must be one number"),
        (lora(Q, 16, 16, alpha=np.float32(np.inf)), r"alpha \(=inf\) must be a number"),
        ({**GOOD, f"{Q}.lora_mid.weight": ones(2, 2, 3, 3)}, r"size \(16, 144\)"),
        (GOOD | {f"{Q}.lora_up.weight": np.full((16, 2), np.nan, np.float32)}, f"{Q}.lora_up.weight: has NaN or"),
        ({key: value.astype(np.int32) for key, value in GOOD.items()}, "has dtype I32, must be one of F32, F16, BF16"),
        (GOOD | {"x\n" * 99: ones(2)}, r"1 names in it are not \('x\\nx\\n.*\.\.\.\)" + FAMILY),
        (GOOD | {f"{Q}.lora_up.weight": ones(16, 0)}, "must be 1 to 4 dimensions of at least 1"),
        (GOOD | {f"{Q.replace('lora_unet', 'unet')}.lora_A.weight": ones(2, 16),
                 f"{Q.replace('lora_unet', 'unet')}.lora_B.weight": ones(16, 2)}, "its layer is there twice"),
    ],
)  # fmt: skip
def test_refused(targets: Targets, tmp_path: Path, tensors: dict[str, np.ndarray], message: str) -> None:
    file = tmp_path / "adapter.safetensors"
    save_file({key: np.asarray(value) for key, value in tensors.items()}, file)
    with pytest.raises(WeightsError, match=rf"(?s)^{file}: .*{message}"):
        read_adapter(file, targets)


@pytest.mark.parametrize(
    "alpha", [np.float32(3), np.float16(3), np.float64(3), np.int64(3), np.full((1,), 3, np.float32)], ids=repr
)
def test_alpha_of_any_dtype(targets: Targets, tmp_path: Path, alpha: np.ndarray) -> None:
    file = tmp_path / "adapter.safetensors"
    save_file({key: np.asarray(value) for key, value in lora(Q, 16, 16, alpha=alpha).items()}, file)
    (change,) = read_adapter(file, targets).values()
    np.testing.assert_array_equal(lora_reference.difference(change, np.zeros((16, 16))), np.full((16, 16), 2 * 3 / 2))


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_factors_of_any_dtype(targets: Targets, tmp_path: Path, dtype: str) -> None:
    file = tmp_path / "adapter.safetensors"
    write_safetensors(file, GOOD, dtype)
    (change,) = read_adapter(file, targets).values()
    file.unlink()  # all is in memory
    np.testing.assert_array_equal(lora_reference.difference(change, np.zeros((16, 16))), np.full((16, 16), 2))


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("[", "Expecting value"),
        ("[]" * 3, "Extra data"),
        ('{"unet.alpha_pattern": {"(a*)*b": 2}}', r"alpha_pattern '\(a\*\)\*b' must be the end of a layer's path"),
        ('{"unet.alpha_pattern": 3}', "not iterable"),
        ('{"unet.alpha_pattern": ["attn1.to_q"]}', "dictionary update sequence"),
        ('{"unet.lora_alpha": "many"}', r"alpha \(='many'\) must be a number"),
        ('{"unet.lora_alpha": [1]}', r"alpha \(=\[1\]\) must be a number"),
        ('{"unet.lora_alpha": 1' + 400 * "0" + "}", "alpha .* must be a number"),
        ('{"unet.lora_alpha": NaN}', "alpha .* must be a number"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_metadata_that_is_not_pefts(targets: Targets, tmp_path: Path, metadata: str, message: str) -> None:
    file = tmp_path / "adapter.safetensors"
    save_file(GOOD, file, {"lora_adapter_metadata": metadata})
    with pytest.raises(WeightsError, match=rf"^{file}: .*{message}.*; (save|take)"):
        read_adapter(file, targets)


def test_a_damaged_file(targets: Targets, tmp_path: Path) -> None:
    file = tmp_path / "adapter.safetensors"
    data = (FOLDER / "lora" / "kohya.safetensors").read_bytes()
    for damaged in (data[:-1], data[:100], b"\xff" * 8 + data[8:]):
        file.write_bytes(damaged)
        with pytest.raises(WeightsError, match=rf"^{file}: not a whole safetensors file"):
            read_adapter(file, targets)


def test_a_large_core_is_refused_before_it_is_multiplied(targets: Targets, tmp_path: Path) -> None:
    file = tmp_path / "adapter.safetensors"
    for R, S in ((20_000, 1), (1, 20_000)):
        tensors = {f"{CONV}.lora_up.weight": ones(16, R), f"{CONV}.lora_down.weight": ones(S, 16)}
        save_file(tensors | {f"{CONV}.lora_mid.weight": ones(R, S, 3, 3)}, file)
        with pytest.raises(WeightsError, match=r"rank \(=20000\) must be from 1 to 4096"):
            read_adapter(file, targets)


def test_a_file_larger_than_the_model_is_refused_before_it_is_read(targets: Targets, tmp_path: Path) -> None:
    file = tmp_path / "adapter.safetensors"
    factors = [
        Tensor(f"{component}.{path.removesuffix('weight')}{kind}.weight", "F32", shape)
        for (component, path), (M, *rest) in targets.shapes.items()
        if rest and "embed" not in path
        for kind, shape in {"lora_B": [M, 4096], "lora_A": [4096, *rest]}.items()
    ]
    file_of(factors).write(file)  # of zeros, which take no space on the disk
    with pytest.raises(WeightsError, match=rf"^{file}: has \d+ MB, must have at most \d+ MB, as many as all weights"):
        read_adapter(file, targets)


def test_a_magnitude_for_a_norm(targets: Targets, tmp_path: Path) -> None:
    file = tmp_path / "adapter.safetensors"
    save_file(lora("lora_unet_conv_norm_out", 16, 1, dora_scale=ones(1, 16)), file)
    ((key, change),) = read_adapter(file, targets).items()
    assert key == ("unet", "conv_norm_out.weight")
    np.testing.assert_allclose(
        lora_reference.difference(change, np.full((16, 1), -4.0)), np.full((16, 1), 3)
    )  # m (W + d) / |W + d|


def test_which_file(tmp_path: Path) -> None:
    assert find_file(FOLDER / "lora" / "kohya.safetensors").name == "kohya.safetensors"
    assert find_file(FOLDER / "lora", "peft.safetensors").name == "peft.safetensors"
    with pytest.raises(InputError, match=r"\d+ .safetensors files; say which by weight_name"):
        find_file(FOLDER / "lora")
    with pytest.raises(InputError, match=r"has no .safetensors file"):
        find_file(tmp_path)
    for name in ("a.safetensors", "pytorch_lora_weights.safetensors"):
        save_file(load_file(FOLDER / "lora" / "core.safetensors"), tmp_path / name)
        assert find_file(tmp_path).name == name
    with pytest.raises(InputError, match=r"b\.safetensors: there is no such file"):
        find_file(tmp_path, "b.safetensors")
    with pytest.raises(InputError, match="must be of a file in a folder"):
        find_file(tmp_path / "a.safetensors", "b.safetensors")
    with pytest.raises(InputError, match="there is no such file"):
        find_file(tmp_path / "none")
    with pytest.raises(InputError, match="there is no such file"):
        find_file("x" * 5000)
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(InputError, match="there is no such file"):
        find_file(tmp_path / "pipe.safetensors")
    (tmp_path / "lora.bin").write_bytes(b"")
    with pytest.raises(InputError, match=r"lora.bin: .*safetensors"):
        find_file(tmp_path / "lora.bin")


def test_peft_names_its_alpha_in_the_metadata(targets: Targets, tmp_path: Path) -> None:
    file = tmp_path / "adapter.safetensors"
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {f"unet.{path}.lora_A.weight": ones(4, 16), f"unet.{path}.lora_B.weight": ones(16, 4)}
    options = {"unet.lora_alpha": 8}
    patterns = {"no_such": 1, "1.to_q": 1, "attn1.to_q": 2, "to_q": 3}  # the first that fits counts
    for more, scale in (({}, 2.0), ({"unet.use_rslora": True}, 4.0), ({"unet.alpha_pattern": patterns}, 0.5)):
        save_file(tensors, file, {"lora_adapter_metadata": json.dumps(options | more)})
        (change,) = read_adapter(file, targets).values()
        np.testing.assert_array_equal(
            lora_reference.difference(change, np.zeros((16, 16))), np.full((16, 16), 4 * scale)
        )
