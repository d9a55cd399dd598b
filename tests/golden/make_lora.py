"""Makes adapters of the golden models sd1 and sdxl in lora/, and in lora.npz what diffusers and PEFT make of them.

Each adapter is a small file in one spelling and of one kind. For each case in CASES, some of these adapters with their
strengths, the arrays are:

* `<case>_embedding`: (L, C) of PROMPT_IDS, `<case>_pooled`: (P,) in SDXL, `<case>_output`: (C, H, W) of the UNet, which
  reads them;
* `<case>/<component>/<path>`: the merged tensor W (M, N) times the vector `probe(N)`: (M,).

PEFT merges (`merge_adapter`) LoRA, DoRA, LoHa and LoKr; diffusers reads the files in the spellings that it knows, and
what it then computes is compared here with PEFT's own layers. What neither has, LoCon with a core, DoRA by input
channels and differences, is computed in float64 from its definition.

Run: python tests/golden/make_lora.py
"""

# pyright: reportMissingImports=false, reportPrivateImportUsage=false

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import peft
import torch
from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file

FOLDER = Path(__file__).parent
FILES = FOLDER / "lora"
PROMPT_IDS = [712, 5, 300, 44, 101, *[713] * 11]
XL_PROMPT_IDS = PROMPT_IDS[:12]
TIMESTEP = 381
LATENT_SIDE = 8

UNET_LAYERS = [
    "down_blocks.0.attentions.0.proj_in",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_v",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0",
    "down_blocks.0.attentions.0.transformer_blocks.0.ff.net.0.proj",
    "up_blocks.1.attentions.1.transformer_blocks.0.ff.net.2",
    "mid_block.attentions.0.transformer_blocks.0.attn1.to_k",
]
CONVOLUTIONS = [
    "conv_in",
    "down_blocks.0.resnets.0.conv1",
    "down_blocks.0.resnets.0.time_emb_proj",
    "down_blocks.0.downsamplers.0.conv",
    "down_blocks.1.resnets.0.conv_shortcut",
    "up_blocks.0.upsamplers.0.conv",
]
TEXT_LAYERS = [f"encoder.layers.0.{name}" for name in ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc1")]

XL_UNET_LAYERS = [
    "add_embedding.linear_1",
    "time_embedding.linear_2",
    "conv_out",
    "down_blocks.0.downsamplers.0.conv",
    "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k",
    "down_blocks.2.attentions.0.proj_in",
    "down_blocks.2.resnets.0.conv1",
    "mid_block.attentions.0.transformer_blocks.2.ff.net.0.proj",
    "mid_block.resnets.1.conv2",
    "up_blocks.0.upsamplers.0.conv",
    "up_blocks.1.attentions.1.transformer_blocks.0.attn1.to_out.0",
    "up_blocks.2.resnets.1.conv_shortcut",
]
XL_TEXT_LAYERS = [
    f"encoder.layers.{i}.{name}" for i in range(3) for name in ("self_attn.q_proj", "self_attn.out_proj", "mlp.fc2")
]
XL_TEXT_LAYERS_2 = [f"text_model.{name}" for name in XL_TEXT_LAYERS[:6]] + ["text_projection"]

LDM = {  # of sd1, whose blocks have one layer each
    "down_blocks.0.resnets.0": "input_blocks.1.0",
    "down_blocks.0.attentions.0": "input_blocks.1.1",
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.resnets.0": "input_blocks.3.0",
    "mid_block.attentions.0": "middle_block.1",
    "up_blocks.1.attentions.1": "output_blocks.3.1",
    ".conv1": ".in_layers.2",
    ".time_emb_proj": ".emb_layers.1",
    ".conv_shortcut": ".skip_connection",
    "conv_in": "input_blocks.0.0",
}

XL_LDM = {
    "down_blocks.0.downsamplers.0.conv": "input_blocks.2.0.op",
    "down_blocks.1.attentions.0": "input_blocks.3.1",
    "down_blocks.2.attentions.0": "input_blocks.5.1",
    "down_blocks.2.resnets.0": "input_blocks.5.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
    "up_blocks.0.upsamplers.0": "output_blocks.1.2",
    "up_blocks.1.attentions.1": "output_blocks.3.1",
    "up_blocks.2.resnets.1": "output_blocks.5.0",
    ".conv1": ".in_layers.2",
    ".conv2": ".out_layers.3",
    ".conv_shortcut": ".skip_connection",
    "add_embedding.linear_1": "label_emb.0.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_out": "out.2",
}

Tensors = dict[str, torch.Tensor]


def probe(N: int) -> np.ndarray:
    """The vector that merged tensors are multiplied by, as tests/weights/test_lora_golden.py makes it."""
    return np.cos(1 + np.arange(N) ** 2 % 97)


class Model:
    """The text encoders and the UNet of a golden model, to be adapted."""

    def __init__(self, name: str = "sd1") -> None:
        self.is_xl = name == "sdxl"
        kind = diffusers.StableDiffusionXLPipeline if self.is_xl else diffusers.StableDiffusionPipeline
        self.pipe = kind.from_pretrained(FOLDER / "models" / name, dtype=torch.float32)
        self.unet, self.text_encoder = self.pipe.unet, self.pipe.text_encoder

    @property
    def components(self) -> dict[str, torch.nn.Module]:
        """By name."""
        names = ("unet", "text_encoder", "text_encoder_2") if self.is_xl else ("unet", "text_encoder")
        return {name: getattr(self.pipe, name) for name in names}

    @torch.no_grad()
    def run(self, embedding: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """`embedding`, unless it is given, and `pooled` in SDXL; `output`."""
        added, made = None, {}
        ids = torch.tensor([XL_PROMPT_IDS if self.is_xl else PROMPT_IDS])
        if self.is_xl:
            states = [
                encoder(ids, output_hidden_states=True) for encoder in (self.text_encoder, self.pipe.text_encoder_2)
            ]
            text = torch.cat([state.hidden_states[-2] for state in states], dim=-1)
            pooled = states[1].text_embeds
            added = {"text_embeds": pooled, "time_ids": torch.tensor([[16.0, 16.0, 0.0, 0.0, 16.0, 16.0]])}
            made["pooled"] = pooled[0].numpy()
        else:
            text = self.text_encoder(ids)[0] if embedding is None else torch.tensor(embedding[None])
        latents = torch.randn((1, 4, LATENT_SIDE, LATENT_SIDE), generator=torch.Generator().manual_seed(1))
        output = self.unet(latents, TIMESTEP, text, added_cond_kwargs=added).sample
        return made | {"embedding": text[0].numpy(), "output": output[0].numpy()}

    def weights(self) -> dict[str, torch.Tensor]:
        """Of both, by component and path, without what PEFT adds to paths."""
        return {
            f"{component}/{name.replace('base_layer.', '')}": parameter.detach()
            for component, module in self.components.items()
            for name, parameter in module.named_parameters()
            if not any(part.startswith(("lora_", "hada_", "lokr_")) for part in name.split("."))
        }


def adapt(model: Model, *configs: Any, seed: int) -> tuple[Tensors, dict[str, np.ndarray]]:
    """Random adapters by PEFT, of a configuration for each component: its tensors, by component and name, and what the
    model makes of them merged."""
    tensors: Tensors = {}
    torch.manual_seed(seed)
    for (component, module), config in zip(model.components.items(), configs, strict=False):
        peft.inject_adapter_in_model(config, module)
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and (".default" in name):
                scale = (
                    1 + 0.3 * torch.randn(parameter.shape)
                    if "magnitude" in name
                    else 0.4 * torch.randn(parameter.shape)
                )
                parameter.data = parameter.data * scale if "magnitude" in name else scale
        tensors |= {f"{component}.{key}": value for key, value in peft.get_peft_model_state_dict(module).items()}
    unmerged = model.run()
    for module in model.components.values():
        for layer in module.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.merge()
    merged = model.run()
    for key, value in merged.items():
        np.testing.assert_allclose(value, unmerged[key], atol=1e-4 * np.abs(value).max())
    return tensors, merged


class Goldens:
    """What is written."""

    def __init__(self) -> None:
        shutil.rmtree(FILES, ignore_errors=True)
        FILES.mkdir()
        models = {name: Model(name) for name in ("sd1", "sdxl")}
        self.base = {model.is_xl: model.weights() for model in models.values()}
        self.plain = {model.is_xl: model.run() for model in models.values()}
        self.arrays: dict[str, np.ndarray] = {f"none_{key}": value for key, value in self.plain[False].items()}
        self.cases: dict[str, dict[str, Any]] = {}

    def write(self, name: str, tensors: Tensors, metadata: dict[str, str] | None = None) -> None:
        """An adapter's file."""
        tensors = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
        save_file(tensors, FILES / f"{name}.safetensors", metadata)

    def case(self, name: str, strengths: dict[str, Any], model: Model, merged: bool = True) -> None:
        """What a model computes that has these adapters; and its weights, where it has them merged."""
        made = model.run()
        for key, value in made.items():
            assert np.abs(value).max() < 30, (name, key)
        plain = self.plain[model.is_xl]["output"]
        change = np.linalg.norm(made["output"] - plain) / np.linalg.norm(plain)
        print(f"{name}: the output changes by {change:.2f}")
        assert change > 0.1
        self.cases[name] = strengths
        self.arrays |= {f"{name}_{key}": value for key, value in made.items()}
        for key, weight in model.weights().items() if merged else ():
            if not torch.equal(weight, self.base[model.is_xl][key]):
                rows = weight.double().reshape(len(weight), -1).numpy()
                self.arrays[f"{name}/{key}"] = (rows @ probe(rows.shape[1])).astype(np.float32)


def kohya(tensors: Tensors, alpha: float | None, text: str = "lora_te", ldm: dict[str, str] | None = None) -> Tensors:
    """PEFT's names as kohya's scripts and LyCORIS write them, the UNet's in LDM's words; alpha for each layer."""
    endings = {"lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight"}
    endings["lora_magnitude_vector"] = "dora_scale"
    prefixes = {"unet": "lora_unet", "text_encoder": f"{text}_text_model", "text_encoder_2": "lora_te2"}
    found: Tensors = {}
    for key, value in tensors.items():
        component, _, path = key.partition(".")
        for old, new in endings.items():
            path = path.replace(old, new)
        parameter = ".".join(path.split(".")[-2:]) if path.endswith(".weight") else path.split(".")[-1]
        layer = path.removesuffix(f".{parameter}")
        for ours, theirs in (ldm or {}).items() if component == "unet" else ():
            layer = layer.replace(ours, theirs)
        name = f"{prefixes[component]}_{layer.replace('.', '_')}"
        found[f"{name}.{parameter}"] = value
        if alpha is not None:
            found[f"{name}.alpha"] = torch.tensor(float(alpha))
    return found


def old_diffusers(tensors: Tensors) -> Tensors:
    """PEFT's names as diffusers before 0.17 wrote those of attention."""
    found: Tensors = {}
    for key, value in tensors.items():
        for new in ("to_q", "to_k", "to_v", "to_out.0"):
            key = key.replace(f".{new}.lora_", f".processor.{new.removesuffix('.0')}_lora.")
        for new, old in (("q_proj", "to_q"), ("out_proj", "to_out")):
            key = key.replace(f".self_attn.{new}.lora_", f".self_attn.{old}_lora.")
        found[key.replace("_lora.A.", "_lora.down.").replace("_lora.B.", "_lora.up.")] = value
    return found


def require_reads_back(
    model: Model, merged: dict[str, np.ndarray], what: str, embedding: np.ndarray | None = None
) -> None:
    """diffusers, having read a file, makes the same of it; the UNet alone where its embedding is given."""
    for key, value in model.run(embedding).items():
        np.testing.assert_allclose(value, merged[key], atol=1e-4 * np.abs(value).max(), err_msg=what)


def lora(layers: list[str], **options: Any) -> peft.LoraConfig:
    return peft.LoraConfig(init_lora_weights=False, target_modules=layers, **options)


def write_lora(goldens: Goldens) -> None:
    """LoRA on linear layers and convolutions, in every spelling; and DoRA."""
    options = {"r": 3, "lora_alpha": 2}
    model = Model()
    tensors, merged = adapt(model, lora(UNET_LAYERS + CONVOLUTIONS, **options), lora(TEXT_LAYERS, **options), seed=1)
    spellings = {"kohya": kohya(tensors, 2.0), "kohya_te1": kohya(tensors, 2.0, text="lora_te1")}
    for name, spelled in spellings.items():
        goldens.write(name, spelled)
        goldens.case(name, {name: 1.0}, model)
        back = Model()
        back.pipe.load_lora_weights(FILES / f"{name}.safetensors")
        require_reads_back(back, merged, name)

    # diffusers takes the upsampler of a block without attention, which SDXL has not, for an attention.
    model = Model()
    layers = [layer for layer in UNET_LAYERS + CONVOLUTIONS if "upsampler" not in layer]
    tensors, merged = adapt(model, lora(layers, **options), lora(TEXT_LAYERS, **options), seed=6)
    goldens.write("ldm", kohya(tensors, 2.0, text="lora_te1", ldm=LDM))
    goldens.case("ldm", {"ldm": 1.0}, model)
    read, alphas = StableDiffusionXLLoraLoaderMixin.lora_state_dict(
        FILES / "ldm.safetensors", unet_config=Model().unet.config
    )[:2]
    back = Model()
    back.pipe.load_lora_into_unet(read, alphas, back.unet)
    back.pipe.load_lora_into_text_encoder(read, alphas, back.text_encoder)
    require_reads_back(back, merged, "ldm")

    model = Model()
    patterns = {"rank_pattern": {"conv_in": 5}, "alpha_pattern": {"attn1.to_q": 7}, "use_rslora": True}
    unet, text = lora(UNET_LAYERS + CONVOLUTIONS, r=4, lora_alpha=3, **patterns), lora(TEXT_LAYERS, r=2, lora_alpha=1)
    tensors, merged = adapt(model, unet, text, seed=2)
    split = {
        c: {k.removeprefix(f"{c}."): v for k, v in tensors.items() if k.startswith(f"{c}.")} for c in model.components
    }
    configs = {component: module.peft_config["default"].to_dict() for component, module in model.components.items()}
    for config in configs.values():
        config["target_modules"] = sorted(config["target_modules"])  # else in any order
    model.pipe.save_lora_weights(
        FILES,
        unet_lora_layers=split["unet"],
        text_encoder_lora_layers=split["text_encoder"],
        weight_name="peft.safetensors",
        unet_lora_adapter_metadata=configs["unet"],
        text_encoder_lora_adapter_metadata=configs["text_encoder"],
    )
    goldens.case("peft", {"peft": 1.0}, model)
    back = Model()
    back.pipe.load_lora_weights(FILES / "peft.safetensors")
    require_reads_back(back, merged, "peft")

    for strengths in ([0.7, -0.4], [1.5, 0.25]):
        both = Model()
        for name in ("kohya", "peft"):
            both.pipe.load_lora_weights(FILES / f"{name}.safetensors", adapter_name=name)
        weights = [strengths[0], {"unet": strengths[1], "text_encoder": 2 * strengths[1]}]
        both.pipe.set_adapters(["kohya", "peft"], weights)
        goldens.case(f"both_{strengths[0]}", dict(zip(("kohya", "peft"), weights, strict=True)), both, merged=False)

    model = Model()
    attention = [layer for layer in UNET_LAYERS if ".attn" in layer]
    tensors, merged = adapt(model, lora(attention, r=2, lora_alpha=2), lora(TEXT_LAYERS[:2], r=2, lora_alpha=2), seed=3)
    goldens.write("old", old_diffusers(tensors))
    goldens.case("old", {"old": 1.0}, model)
    back = Model()
    back.pipe.load_lora_weights(FILES / "old.safetensors")
    require_reads_back(back, merged, "old")

    for name, layers in {"dora": UNET_LAYERS + CONVOLUTIONS[:2], "dora_linear": attention}.items():
        model = Model()
        options = {"r": 4, "lora_alpha": 4, "use_dora": True}
        tensors, merged = adapt(model, lora(layers, **options), lora(TEXT_LAYERS, **options), seed=4)
        goldens.write(name, tensors if name == "dora" else kohya(tensors, 4.0))
        goldens.case(name, {name: 1.0}, model)
        if name == "dora":
            back = Model()
            back.pipe.load_lora_weights(FILES / "dora.safetensors")
            require_reads_back(
                back, merged, "dora", merged["embedding"]
            )  # it leaves magnitudes of the text encoder out

    model = Model()
    tensors, _ = adapt(model, lora(["time_embedding.linear_1", "conv_in"], r=4, lora_alpha=6, lora_bias=True), seed=5)
    goldens.write("bias", tensors | alphas_of(tensors, 6.0))
    goldens.case("bias", {"bias": 1.0}, model)


def alphas_of(tensors: Tensors, alpha: float) -> Tensors:
    """For each layer of diffusers' names."""
    return {f"{key.split('.lora_')[0]}.alpha": torch.tensor(alpha, dtype=torch.float16) for key in tensors}


def write_xl(goldens: Goldens) -> None:
    """LoRA on SDXL, in LDM's words. The first text encoder's last layer is not read, and yet adapted."""
    model = Model("sdxl")
    layers = (XL_UNET_LAYERS, XL_TEXT_LAYERS, XL_TEXT_LAYERS_2)
    tensors, merged = adapt(model, *(lora(names, r=3, lora_alpha=2) for names in layers), seed=7)
    goldens.write("xl", kohya(tensors, 2.0, text="lora_te1", ldm=XL_LDM))
    goldens.case("xl", {"xl": 1.0}, model)
    back = Model("sdxl")
    back.pipe.load_lora_weights(FILES / "xl.safetensors")
    require_reads_back(back, merged, "xl")


def write_lycoris(goldens: Goldens) -> None:
    """LoHa and LoKr, of small ranks and large ones, whole and with cores.

    Where both factors of LoKr are whole, files mean alpha / rank to be 1: PEFT's is then made 1.
    """
    layers = UNET_LAYERS + CONVOLUTIONS
    configs: dict[str, Callable[[list[str]], Any]] = {
        "loha": lambda names: peft.LoHaConfig(r=2, alpha=3, init_weights=False, target_modules=names),
        "loha_large": lambda names: peft.LoHaConfig(r=6, alpha=6, init_weights=False, target_modules=names),
        "loha_core": lambda names: peft.LoHaConfig(
            r=3, alpha=2, init_weights=False, target_modules=names, use_effective_conv2d=True
        ),
        "lokr": lambda names: peft.LoKrConfig(r=2, alpha=2, init_weights=False, target_modules=names),
        "lokr_whole": lambda names: peft.LoKrConfig(r=64, alpha=64, init_weights=False, target_modules=names),
        "lokr_core": lambda names: peft.LoKrConfig(
            r=2, alpha=1, init_weights=False, target_modules=names, decompose_factor=2, use_effective_conv2d=True
        ),
        "lokr_both": lambda names: peft.LoKrConfig(
            r=1, alpha=2, init_weights=False, target_modules=names, decompose_both=True
        ),
    }
    for seed, (name, config) in enumerate(configs.items()):
        model = Model()
        tensors, _ = adapt(model, config(layers), config(TEXT_LAYERS), seed=10 + seed)
        made = config(layers)
        spelled = kohya(tensors, made.alpha)
        goldens.write(
            name,
            {key.replace("lora_unet_", "lycoris_") if name == "lokr" else key: value for key, value in spelled.items()},
        )
        print(f"  {name}:", ", ".join(sorted({key.split(".")[-1] for key in spelled})))
        goldens.case(name, {name: 1.0}, model)


@torch.no_grad()
def write_others(goldens: Goldens) -> None:
    """From their definitions: LoCon with a core, DoRA by input channels, and differences."""
    torch.manual_seed(20)
    model, tensors = Model(), {}
    for path in ("down_blocks.0.resnets.0.conv1", "up_blocks.0.upsamplers.0.conv"):
        weight = model.unet.get_parameter(f"{path}.weight")
        M, C, *k = weight.shape
        up, mid, down = 0.4 * torch.randn(M, 3, 1, 1), 0.4 * torch.randn(3, 2, *k), 0.4 * torch.randn(2, C, 1, 1)
        name = f"lora_unet_{path.replace('.', '_')}"
        tensors |= {f"{name}.lora_up.weight": up, f"{name}.lora_mid.weight": mid, f"{name}.lora_down.weight": down}
        tensors[f"{name}.alpha"] = torch.tensor(1.5)
        # The filters are what the three convolutions make of an impulse in each channel, turned around.
        impulses = torch.zeros(C, C, 5, 5)
        impulses[range(C), range(C), 2, 2] = 1
        conv = torch.nn.functional.conv2d
        response = conv(conv(conv(impulses, down), mid, padding=1), up)[:, :, 1:4, 1:4]
        weight += 1.5 / 3 * response.transpose(0, 1).flip(2, 3)
    goldens.write("core", tensors)
    goldens.case("core", {"core": 1.0}, model)

    model, tensors = Model(), {}
    for path in (UNET_LAYERS[5], CONVOLUTIONS[1], CONVOLUTIONS[5]):
        weight = model.unet.get_parameter(f"{path}.weight")
        M, C, *k = weight.shape
        up, down = 0.4 * torch.randn(M, 3, *([1] * len(k))), 0.4 * torch.randn(3, C, *k)
        m = (1 + 0.3 * torch.randn(C)) * weight.transpose(0, 1).reshape(C, -1).norm(dim=1)
        name = f"lora_unet_{path.replace('.', '_')}"
        tensors |= {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down, f"{name}.alpha": torch.tensor(2.0)}
        tensors[f"{name}.dora_scale"] = m.reshape(1, C, *([1] * len(k)))
        changed = weight.double() + 2 / 3 * (up.reshape(M, 3).double() @ down.reshape(3, -1).double()).reshape(
            weight.shape
        )
        norms = changed.square().sum(dim=[i for i in range(changed.ndim) if i != 1], keepdim=True).sqrt()
        weight.copy_(m.double().reshape(norms.shape) * changed / norms)
    goldens.write("dora_by_input", tensors)
    goldens.case("dora_by_input", {"dora_by_input": 1.0}, model)

    model, tensors = Model(), {}
    layers = {"conv_in": "diff", "time_embedding.linear_2": "diff", "down_blocks.0.resnets.0.norm1": "w_norm"}
    layers |= {"down_blocks.0.attentions.0.transformer_blocks.0.norm2": "diff", "conv_out": "diff"}
    for path, kind in layers.items():
        for end, ending in (("weight", kind), ("bias", "b_norm" if kind == "w_norm" else "diff_b")):
            parameter = model.unet.get_parameter(f"{path}.{end}")
            difference = 0.2 * torch.randn(parameter.shape)
            tensors[f"lora_unet_{path.replace('.', '_')}.{ending}"] = difference.half()
            parameter += difference.half()
    bias = model.text_encoder.get_parameter("encoder.layers.0.mlp.fc2.bias")
    tensors["lora_te_text_model_encoder_layers_0_mlp_fc2.diff_b"] = torch.randn(bias.shape).bfloat16()
    bias += tensors["lora_te_text_model_encoder_layers_0_mlp_fc2.diff_b"]
    goldens.write("diff", tensors)
    goldens.case("diff", {"diff": 1.0}, model)


def main() -> None:
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    goldens = Goldens()
    write_lora(goldens)
    write_xl(goldens)
    write_lycoris(goldens)
    write_others(goldens)
    facts = {"prompt_ids": PROMPT_IDS, "xl_prompt_ids": XL_PROMPT_IDS, "timestep": TIMESTEP, "cases": goldens.cases}
    path = FOLDER / "lora.npz"
    np.savez_compressed(path, allow_pickle=False, facts=np.array(json.dumps(facts)), **goldens.arrays)
    sizes = [file.stat().st_size for file in FILES.iterdir()]
    print(f"{path.name}: {path.stat().st_size} bytes, {len(sizes)} adapters: {sum(sizes)} bytes")
    print(f"diffusers {diffusers.__version__}, peft {peft.__version__}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
