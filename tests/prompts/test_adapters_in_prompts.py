"""Adapters that a prompt names: what is taken out of it, and the files that they are."""

from pathlib import Path

import pytest

from shaderfusion.errors import InputError
from shaderfusion.prompts.adapters import find_adapter_file, take_adapters


def strength(te: float, unet: float) -> dict[str, float]:
    return {"unet": unet, "text_encoder": te, "text_encoder_2": te}


@pytest.mark.parametrize(
    ("text", "rest", "adapters"),
    [
        ("a <cat-toy> < lora:x>", "a <cat-toy> < lora:x>", {}),
        ("<lora:x", "<lora:x", {}),
        ("a<lora:my style v1.2>b", "ab", {"my style v1.2": strength(1, 1)}),
        ("<lora:x:.5> a <lyco:y:-1:2.>", " a ", {"x": strength(0.5, 0.5), "y": strength(-1, 2)}),
    ],
)
def test_take(text: str, rest: str, adapters: dict[str, dict[str, float]]) -> None:
    assert take_adapters(text) == (rest, adapters)


def test_files(tmp_path: Path) -> None:
    for name in ("a", "b.2"):
        (tmp_path / f"{name}.safetensors").touch()
    assert find_adapter_file("b.2", [], tmp_path) == tmp_path / "b.2.safetensors"
    with pytest.raises(InputError, match=r"adapter 'f' must be the name of a file .*--lora-dir \(a, b.2, c\)"):
        find_adapter_file("f", ["c", "a"], tmp_path)
    for name in ("../a", "a/../b.2", "a.safetensors", ""):
        with pytest.raises(InputError, match=r"must be the name of a file .*\(none\)"):
            find_adapter_file(name, [])
        with pytest.raises(InputError, match=r"must be the name of a file"):
            find_adapter_file(name, [], tmp_path)
