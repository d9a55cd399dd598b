"""Names of adapters' tensors: which tensor of the model each is for, and what it is there.

kohya's scripts flatten a layer's path with underscores, diffusers and PEFT keep its dots, and both have changed what
comes before and after it. Here all are flattened, and looked up among the flattened paths of the model's own weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from shaderfusion.errors import ModelError
from shaderfusion.graph.graph import Graph
from shaderfusion.weights.checkpoint import TensorSource
from shaderfusion.weights.ldm_names import UNetBlocks, unet_name
from shaderfusion.weights.names import name_candidates

__all__ = ["COMPONENTS", "Layer", "Targets", "find_family", "find_other_kind", "split_key"]

_PREFIXES = {
    "unet": ("lora_unet_", "lycoris_", "unet_", "diffusion_model_", "model_diffusion_model_", ""),
    "text_encoder": ("lora_te_", "lora_te1_", "text_encoder_"),
    "text_encoder_2": ("lora_te2_", "text_encoder_2_"),
}
"""What comes before a flattened path, by component."""
COMPONENTS = tuple(_PREFIXES)
"""Those that adapters change."""

_ENDINGS = {
    "up": "lora_up.weight lora_B.weight lora_B.default.weight lora.up.weight lora_linear_layer.up.weight",
    "down": "lora_down.weight lora_A.weight lora_A.default.weight lora.down.weight lora_linear_layer.down.weight",
    "mid": "lora_mid.weight",
    "up_bias": "lora_B.bias lora_B.default.bias",
    "magnitude": "lora_magnitude_vector lora_magnitude_vector.weight lora_magnitude_vector.default.weight",
}
_ALSO_NAMES = "alpha dora_scale diff diff_b w_norm b_norm hada_w1_a hada_w1_b hada_w2_a hada_w2_b hada_t1 hada_t2"
_ALSO_NAMES += " lokr_w1 lokr_w1_a lokr_w1_b lokr_w2 lokr_w2_a lokr_w2_b lokr_t2"
_PARAMETERS = {ending: name for name, endings in _ENDINGS.items() for ending in endings.split()}
_PARAMETERS |= {name: name for name in _ALSO_NAMES.split()}
"""How a key ends, by what it holds."""

_OLD_NAMES = {  # of attention's layers, in files of diffusers before 0.17; kohya's to_out has no number either
    "_to_out_0": ("_to_out",),
    "_self_attn_q_proj": ("_self_attn_to_q",),
    "_self_attn_k_proj": ("_self_attn_to_k",),
    "_self_attn_v_proj": ("_self_attn_to_v",),
    "_self_attn_out_proj": ("_self_attn_to_out",),
}

_MOST_LAYERS = 256

_CONTEXT_WIDTHS = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}
_OTHER_FAMILIES = {
    r"(^|_)(joint_blocks|attn_add_[qkv]_proj|add_[qkv]_proj)_?": "Stable Diffusion 3 or Flux",
    r"(^|_)(double_blocks|single_blocks|single_transformer_blocks)_": "Flux",
    r"^(transformer|lora_transformer)_": "a diffusion transformer, such as Flux or Stable Diffusion 3",
    r"^(lora_te2|text_encoder_2)_": "SDXL",
}

_TAKE_ANOTHER = "take one of LoRA, LoCon, LoHa, LoKr or DoRA"
_OTHER_KINDS = {
    r"\.b?oft_(blocks|diag|r|m|s)\b": f"has OFT or BOFT, which is not read; {_TAKE_ANOTHER}",
    r"\.(on_input|ia3_l(\.\w+)?)$": f"has IA3, which is not read; {_TAKE_ANOTHER}",
    r"\.[ab][12]\.weight$": f"has GLoRA, which is not read; {_TAKE_ANOTHER}",
    r"\bvera_lambda_": f"has VeRA, which is not read; {_TAKE_ANOTHER}",
    r"^base_model\.model\.": "is of PEFT's own folder, which has its alpha elsewhere; save it by diffusers' "
    "save_lora_weights",
    r"^((model\.diffusion_model\.input_blocks\.0\.0)|((first_stage_model\.)?decoder\.)?conv_in)\.weight$": "is a model "
    "or a part of one, and no LoRA; give it as the model",
    r"^(emb_params|clip_[lg]|string_to_param\.\*)$": "is a textual inversion; give it as an embedding",
    r"^(lora_)?(controlnet|control_model|input_hint_block|image_proj|ip_adapter)[._]": "is a ControlNet or an "
    f"IP-Adapter, which are not read; {_TAKE_ANOTHER}",
}
"""Of files that are no adapters of a kind that is merged, by a key of theirs."""


class Layer(NamedTuple):
    """A layer of the model: its weight is the component's tensor `path.weight`, and its bias `path.bias`."""

    component: str
    path: str


def split_key(key: str) -> tuple[str, str] | None:
    """The layer's name, flattened, and what of `_PARAMETERS` the tensor is for it; None where it is none of them."""
    for ending, parameter in _PARAMETERS.items():
        if key.endswith(f".{ending}") or (ending.startswith("lora.") and key.endswith(f"_{ending}")):
            name = key[: -len(ending) - 1]
            return _flat(name.replace(".processor.", ".")), parameter
    return None


class Targets:
    """What adapters of a model may change: all tensors that its networks read, by their names in adapters' files."""

    def __init__(self, graphs: Mapping[str, Iterable[Graph]], sources: Mapping[str, TensorSource]) -> None:
        """Graphs of each component, and where its tensors come from."""
        self.shapes: dict[tuple[str, str], tuple[int, ...]] = {}
        """By component and path."""
        self._layers: dict[str, Layer] = {}
        for component in _PREFIXES:
            shapes: dict[str, tuple[int, ...]] = {}
            for graph in graphs.get(component, ()):
                shapes |= {path: weight.source_shape for weight in graph.weights.values() for path in weight.paths}
            if shapes:
                shapes |= dict(_unread(shapes, sources[component]))
            self.shapes |= {(component, path): shape for path, shape in shapes.items()}
            blocks = _unet_blocks(shapes) if component == "unet" else None
            for path in dict.fromkeys(path.rpartition(".")[0] for path in shapes):
                for name in _names(path, blocks):
                    self._layers |= {prefix + name: Layer(component, path) for prefix in _PREFIXES[component]}

    def find(self, name: str) -> Layer | None:
        """The layer of that flattened name in an adapter's file; None where the model has none."""
        return self._layers.get(name)

    @property
    def context_width(self) -> int | None:
        """Channels of the prompt's embedding that the UNet reads; None where it reads none."""
        return next((shape[1] for (_, path), shape in self.shapes.items() if path.endswith("attn2.to_k.weight")), None)


def find_family(sizes: Mapping[str, tuple[int, int] | None], targets: Targets) -> str | None:
    """What else than this model an adapter is for, by its layers' names and their weights' sizes (M, N); else None."""
    for name, size in sizes.items():
        for pattern, family in _OTHER_FAMILIES.items():
            if re.search(pattern, name) and not targets.find(name):
                return family
        is_context = name.endswith(("attn2_to_k", "attn2_to_v"))
        if is_context and size and targets.context_width not in (None, size[1]):
            other = f"a model whose prompts have {size[1]} channels"
            return _CONTEXT_WIDTHS.get(size[1], other)
    return None


def find_other_kind(keys: Iterable[str]) -> str | None:
    """What a file is, and what to do, where its keys tell that it is no adapter that is read; else None."""
    keys = list(keys)
    for pattern, what in _OTHER_KINDS.items():
        if any(map(re.compile(pattern, re.IGNORECASE).search, keys)):
            return what
    return None


def _flat(name: str) -> str:
    return name.replace(".", "_")


def _names(path: str, blocks: UNetBlocks | None) -> Iterator[str]:
    """A layer's flattened path, and what else files call it."""
    candidates = [*name_candidates(path)]
    if blocks:
        candidates.append(unet_name(f"{path}.weight", blocks).removesuffix(".weight"))
    for flat in map(_flat, candidates):
        yield flat
        for new, olds in _OLD_NAMES.items():
            if flat.endswith(new):
                yield from (flat.removesuffix(new) + old for old in olds)


def _unet_blocks(paths: Iterable[str]) -> UNetBlocks:
    """What LDM's numbers of a UNet's layers depend on, from diffusers' paths."""
    found = [re.match(r"(down|up)_blocks\.(\d+)\.(resnets|attentions)\.(\d+)\.", path) for path in paths]
    places = {(match[1], match[3], int(match[2]), int(match[4])) for match in found if match}
    num_blocks = 1 + max((block for side, _, block, _ in places if side == "down"), default=-1)
    layers = (sum(place[:3] == ("down", "resnets", block) for place in places) for block in range(num_blocks))
    attention = (("up", "attentions", block, 0) in places for block in range(num_blocks))
    return UNetBlocks(tuple(layers), tuple(attention))


def _unread(shapes: Mapping[str, tuple[int, ...]], source: TensorSource) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Tensors of a text encoder's layers that its checkpoint has and its networks do not read, such as of the last one
    where the embedding is the state before it: adapters have changes of them too."""
    first = {path: shape for path, shape in shapes.items() if ".layers.0." in path}
    for layer in range(1, _MOST_LAYERS if first else 0):
        others = {path.replace(".layers.0.", f".layers.{layer}."): shape for path, shape in first.items()}
        try:
            for path, shape in others.items():
                source.find(path, shape)
        except ModelError:
            return
        yield from others.items()
