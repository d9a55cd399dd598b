"""Texts that people's pictures had, as they showed them in public issues: what is not done is named."""

import json

import pytest

from shaderfusion.metadata.recipe import read_recipes

# ruff: noqa: E501

TEXTS = {
    "forge": (  # lllyasviel/Fooocus #3224
        "woman portrait\nNegative prompt: sketch , drawing, cartoon\nSteps: 40, Sampler: DPM++ 2M Karras, CFG scale: 4.5, "
        "Seed: 3458746777, Size: 1024x1024, Model hash: 7873076e72, Model: SDXL_myown_Sevenof9_VAE, Denoising strength: "
        "0.6, Clip skip: 1, Hires upscale: 2, Hires steps: 20, Hires upscaler: R-ESRGAN 4x+, Extra noise: 0.1, Version: "
        "f0.0.17v1.8.0rc-latest-278-gbfee03d8"
    ),
    "adetailer": (  # Bing-su/adetailer #489, whose Markdown left a backtick in the quotes
        "`<lora:SomeLora-000004:1>`, main prompt\nNegative prompt: worse quality, bad quality, lowres\nSteps: 20, Sampler: "
        "DPM++ 2M Karras, CFG scale: 7, Seed: 4233913175, Size: 512x512, Model hash: 879db523c3, Model: dreamshaper_8, "
        "VAE hash: 735e4c3a44, VAE: vae-ft-mse-840000-ema-pruned.safetensors, ADetailer model: face_yolov8n.pt, ADetailer "
        'prompt: "`<lora:SomeLora-000002:1>`, adetailer prompt", ADetailer confidence: 0.3, ADetailer version: 24.1.2, '
        'Lora hashes: `"SomeLora-000004`: 8d6c29c789ee", Version: v1.7.0'
    ),
    "dynamic prompts": (  # adieyal/sd-dynamic-prompts #651
        "CGI Render of Cybernetic Man On a Digital Motorcycle Neon Lights, Computer Motif Facing the viewer\nSteps: 40, "
        "Sampler: DPM++ 2M Karras, CFG scale: 7, Seed: 4259953662, Size: 512x512, Model hash: ec41bd2a82, Model: "
        "photon_v1, Version: 1.6.0\nTemplate: CGI Render of Cybernetic Man On a Digital Motorcycle\nNeon Lights, Computer "
        "Motif  \nFacing the viewer"
    ),
    "templates": (  # zanllp/infinite-image-browsing #662
        "Silhouette Art, hyperrealistic art, __lighting__\nNegative prompt: low quality\nSteps: 25, CFG scale: 7, Seed: "
        '387840411, Template: "Silhouette Art, hyperrealistic art, __lighting__", Negative Template: "low quality"'
    ),
    "old": (  # AUTOMATIC1111/stable-diffusion-webui #1250
        "a tree with a bird\nNegative prompt: grass\nSteps: 40, Sampler: Euler a, CFG scale: 7, Seed: 968002204, "
        "Size: 512x512"
    ),
    "civitai": (
        "x\nNegative prompt:  y\nSteps: 22, Sampler: DPM++ 2M Karras, CFG scale: 3.8, Seed: 894409639, Size: 832x1216, "
        "Clip skip: 2, Created Date: 2024-09-23T06:17:42.9952795Z, Civitai resources: "
        + json.dumps(
            [
                {"type": "checkpoint", "modelVersionId": 128078, "modelName": "SD XL"},
                {"type": "lora", "weight": 0.85, "modelVersionId": 210432, "modelName": "a, b: c"},
                {"type": "embed", "modelVersionId": 250712},
            ]
        )
        + ", Civitai metadata: {}"
    ),
}
NOT_DONE = {
    "forge": {"Hires upscaler", "Extra noise"},
    "adetailer": {"ADetailer model", "ADetailer prompt", "ADetailer confidence", "ADetailer version"}
    | {"VAE", "VAE hash", "Lora"},
    "dynamic prompts": set[str](),
    "templates": set[str](),
    "old": set[str](),
    "civitai": {"Civitai resources"},
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_text(name: str) -> None:
    (recipe,) = read_recipes("a.png", {"parameters": TEXTS[name]})
    fields = TEXTS[name].split("\nSteps: ")[1]
    assert recipe.options["steps"] == int(fields.split(",")[0])
    assert recipe.options["seed"] == int(fields.split("Seed: ")[1].split(",")[0])
    assert "Steps" not in recipe.options["prompt"] + recipe.options.get("negative_prompt", "")
    assert set(recipe.demands) == NOT_DONE[name]


@pytest.mark.parametrize(
    ("fields", "demands"),
    [
        ('Lora hashes: "a: 0123, b: 4567"', {"Lora hashes": "a: 0123, b: 4567"}),
        ('Hashes: {"model": "0123", "lora:x y": "4567", "embed:z": "89ab"}', {"Hashes": "lora x y, embed z"}),
        ('Hashes: {"embed:z": "89ab"}, TI hashes: "z: 89ab"', {"TI hashes": "z: 89ab"}),
        (
            'Civitai resources: [{"type": "lora", "weight": 0.5, "air": "urn:x"}]',
            {"Civitai resources": "lora urn:x (0.5)"},
        ),
        ('Civitai resources: [1, {}, {"type": []}, {"type": "", "air": ""}]', {"Civitai resources": "? ?, [] ?,  "}),
        ("Civitai resources: {}", {}),
        ("Hashes: [", {}),
    ],
)
def test_adapters_without_tags(fields: str, demands: dict[str, str]) -> None:
    text = f"a\nSteps: 20, Seed: 5, {fields}, Model: m"
    (recipe,) = read_recipes("a.png", {"parameters": text})
    assert recipe.demands == demands
    (recipe,) = read_recipes("a.png", {"parameters": text.replace("a\n", "a <lora:x:1>\n", 1)})
    assert not any("lora" in value for name, value in recipe.demands.items() if name != "Lora")


def test_the_names_of_civitais_adapters() -> None:
    (recipe,) = read_recipes("a.png", {"parameters": TEXTS["civitai"]})
    assert recipe.demands["Civitai resources"] == "lora a, b: c (0.85), embed 250712"
