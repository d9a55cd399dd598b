"""An adapter's file: its header checked, its tensors matched with the model's, then its values read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from shaderfusion.errors import InputError, WeightsError
from shaderfusion.files import exists, is_file, is_folder, shown
from shaderfusion.kernels.common.prepare_weight import STORED_SIZE_BYTES, StoredDType
from shaderfusion.weights.checkpoint import MappedFile, StoredTensor
from shaderfusion.weights.lora.kinds import (
    AdapterTensor,
    Change,
    Decomposed,
    LowRank,
    Matrix,
    Product,
    Whole,
)
from shaderfusion.weights.lora.names import Layer, Targets, find_family, find_other_kind, split_key
from shaderfusion.weights.other_formats import PICKLE_SUFFIXES

__all__ = ["Changes", "find_file", "read_adapter"]

Changes = Mapping[tuple[str, str], Change]
"""By component and path of the model's tensor."""

_DEFAULT_NAME = "pytorch_lora_weights.safetensors"
_LARGEST_ALPHA = 1_000_000
_ALWAYS_ALLOWED_BYTES = 16_000_000
"""Of a file: more than a tiny model has."""
_SCALAR_DTYPES = {"BF16": "", "F16": "<f2", "F32": "<f4", "F64": "<f8", "I32": "<i4", "I64": "<i8"}
"""Of alpha; NumPy has no bf16."""
_NUM_SHOWN = 3
_KINDS = "LoRA, LoCon, LoHa, LoKr, DoRA or a difference"


def find_file(path: str | Path, weight_name: str | None = None) -> Path:
    """The file at a path, or in a folder the one of that name, diffusers' own name, or the only one; InputError."""
    file = Path(path)
    if is_folder(file):
        names = [weight_name] if weight_name else [_DEFAULT_NAME]
        if not weight_name and not exists(file / _DEFAULT_NAME):
            names = sorted(found.name for found in file.glob("*.safetensors"))
        if len(names) != 1:
            listed = f"{len(names)} .safetensors files; say which by weight_name" if names else "no .safetensors file"
            raise InputError(f"{file}: the folder of a LoRA has {listed}")
        file = file / names[0]
    elif weight_name:
        raise InputError(f"{file}: weight_name (={shown(weight_name)}) must be of a file in a folder; none is here")
    if file.suffix.lower() in PICKLE_SUFFIXES:
        raise InputError(
            f"{file}: pickle files can run code when opened, so shaderfusion never does; take the LoRA as .safetensors"
        )
    if not is_file(file):
        raise InputError(f"{file}: there is no such file; give the path of a LoRA's .safetensors file")
    return file


def read_adapter(file: Path, targets: Targets) -> Changes:
    """What the file changes at strength 1. All of it is for the model and of a known kind, or an error is raised.

    WeightsError names the file, what of it is wrong and what to do. Values are read last: then they are in memory.
    """
    mapped = MappedFile(file)
    if other := find_other_kind(mapped.entries()):
        raise WeightsError(f"{file}: {other}")
    tensors = _open_tensors(mapped)
    layers, unknown = _by_layer(tensors)
    if family := find_family({name: _size_of(parameters) for name, parameters in layers.items()}, targets):
        raise WeightsError(f"{file}: is a LoRA for {family}, which the model is not; take one for the model's family")
    found = {name: layer for name in layers if (layer := targets.find(name))}
    unknown += [f"{name} ({', '.join(layers[name])})" for name in layers if name not in found]
    if unknown or not layers:
        named = ", ".join(map(shown, unknown[:_NUM_SHOWN])) + (", ..." if len(unknown) > _NUM_SHOWN else "")
        what = f"{len(unknown)} names in it are not ({named})" if unknown else "it has none"
        raise WeightsError(
            f"{file}: every tensor must be of a supported kind ({_KINDS}) and for a layer of the model, and {what}; "
            "take a LoRA for the model's family"
        )
    most = max(_ALWAYS_ALLOWED_BYTES, sum(4 * math.prod(shape) for shape in targets.shapes.values()))
    if mapped.size_bytes > most:
        raise WeightsError(
            f"{file}: has {mapped.size_bytes / 1e6:,.0f} MB, must have at most {most / 1e6:,.0f} MB, as many as all "
            "weights that it may change have in f32; take a LoRA for the model's family"
        )
    scales = _Scales(mapped, found)
    changes: dict[tuple[str, str], Change] = {}
    for name, layer in found.items():
        shapes = {kind: targets.shapes.get((layer.component, f"{layer.path}.{kind}")) for kind in ("weight", "bias")}
        try:
            for kind, change in _make_changes(layers[name], partial(scales.of, layer), shapes["weight"]).items():
                _require_size(kind, change, shapes[kind])
                if (layer.component, f"{layer.path}.{kind}") in changes:
                    raise ValueError("its layer is there twice, by two names")
                changes[layer.component, f"{layer.path}.{kind}"] = change
        except ValueError as error:
            raise WeightsError(
                f"{file}: {name}: {error}; take a LoRA for the model's family, or a whole file"
            ) from None
    for key, tensor in tensors.items():
        if not key.endswith(".alpha"):
            tensor.stored = _read(tensor.stored, f"{file}: {key}")
    return changes


class _Parameters(dict[str, AdapterTensor]):
    """A layer's tensors by what they are for it."""

    def take(self, *names: str) -> list[AdapterTensor]:
        """Those of these names, no longer among the others; ValueError where one is missing."""
        missing = [name for name in names if name not in self]
        if missing:
            present = "".join(f"has {name}, and " for name in names if name in self)
            raise ValueError(f"{present}lacks {', '.join(missing)}")
        return [self.pop(name) for name in names]

    def low_rank(self, up: str, down: str, mid: str, *, transposed_core: bool) -> LowRank:
        """Of two factors, or of three where `mid` is there; then, with transposed_core, up is stored transposed."""
        core = self.pop(mid, None)
        first, second = self.take(up, down)
        return LowRank(first, second, core, transposed=transposed_core and core is not None)

    def matrix(self, name: str) -> Matrix:
        """A factor of LoKr: whole, or `name_a` times `name_b`."""
        if name in self:
            return Whole(self.pop(name))
        return self.low_rank(f"{name}_a", f"{name}_b", f"{name.replace('_w', '_t')}", transposed_core=True)


class _Scales:
    """alpha / rank of each layer: alpha from the file's tensors, or from PEFT's metadata, or else the rank."""

    def __init__(self, mapped: MappedFile, layers: Mapping[str, Layer]) -> None:
        self._options: dict[str, Any] = {}
        try:
            self._options = dict(json.loads(mapped.metadata().get("lora_adapter_metadata", "{}")))
            for component in {layer.component for layer in layers.values()}:
                for pattern in dict(self._option(component, "alpha_pattern", {})):
                    if not re.fullmatch(r"[\w.]+", pattern):  # which may take longer to match than anyone waits
                        raise ValueError(f"alpha_pattern {shown(pattern)} must be the end of a layer's path")
        except (ValueError, TypeError, RecursionError) as error:
            raise WeightsError(
                f"{mapped.path}: its lora_adapter_metadata must be PEFT's ({error}); save the file again"
            ) from None

    def _option(self, component: str, name: str, default: Any) -> Any:
        value = self._options.get(f"{component}.{name}")
        return default if value is None else value

    def of(self, layer: Layer, rank: int, alpha: float | None) -> float:
        """Of a layer, whose alpha the file may have; ValueError for what is no number."""
        is_rank_stabilized = alpha is None and self._option(layer.component, "use_rslora", False)
        if alpha is None:
            patterns = dict(self._option(layer.component, "alpha_pattern", {}))
            own = [value for pattern, value in patterns.items() if f".{layer.path}".endswith(f".{pattern}")]
            alpha = own[0] if own else self._option(layer.component, "lora_alpha", rank)  # the first, as in PEFT
        if not isinstance(alpha, (int, float)) or not -_LARGEST_ALPHA <= alpha <= _LARGEST_ALPHA:  # NaN is not
            raise ValueError(f"alpha (={shown(alpha)}) must be a number from -{_LARGEST_ALPHA:,} to {_LARGEST_ALPHA:,}")
        return alpha / (math.sqrt(rank) if is_rank_stabilized else rank)


def _open_tensors(mapped: MappedFile) -> dict[str, AdapterTensor]:
    """All of the file, as views of it; WeightsError for a dtype or shape that no adapter has."""
    tensors: dict[str, AdapterTensor] = {}
    for key, entry in mapped.entries().items():
        is_scalar = key.endswith(".alpha")
        if math.prod(entry.shape) != 1 if is_scalar else not (1 <= len(entry.shape) <= 4 and min(entry.shape) >= 1):
            what = "one number" if is_scalar else "1 to 4 dimensions of at least 1"
            shape = shown(entry.shape)
            raise WeightsError(f"{mapped.path}: {shown(key)} has shape {shape}, must be {what}; take a whole file")
        known = ", ".join(_SCALAR_DTYPES if is_scalar else STORED_SIZE_BYTES)
        if entry.dtype not in known.split(", "):
            raise WeightsError(
                f"{mapped.path}: {shown(key)} has dtype {entry.dtype}, must be one of {known}; convert the file"
            )
        stored = StoredTensor(cast(StoredDType, entry.dtype), mapped.read(entry.begin, entry.end))
        tensors[key] = AdapterTensor(entry.shape, stored)
    return tensors


def _by_layer(tensors: Mapping[str, AdapterTensor]) -> tuple[dict[str, _Parameters], list[str]]:
    """The tensors by layer and parameter, and keys that are neither."""
    layers: dict[str, _Parameters] = {}
    unknown: list[str] = []
    for key, tensor in tensors.items():
        name, parameter = split_key(key) or ("", "")
        if not name or parameter in layers.get(name, {}):
            unknown.append(key)
        else:
            layers.setdefault(name, _Parameters())[parameter] = tensor
    return layers, unknown


def _size_of(parameters: _Parameters) -> tuple[int, int] | None:
    """(M, N) of the weight that a layer's tensors change; None where they do not go together."""
    try:
        change = _make_changes(parameters, lambda *_: 1.0, None).get("weight")
    except ValueError:
        return None
    return change and change.size


def _make_changes(
    parameters: _Parameters, scale_of: Callable[[int, float | None], float], shape: tuple[int, ...] | None
) -> dict[str, Change]:
    """The changes of a layer's weight, of that shape, and bias; ValueError where its tensors do not go together."""
    left = _Parameters(parameters)
    alpha = _read_number(left.pop("alpha")) if "alpha" in left else None
    made: dict[str, Change] = {}
    if "up" in left or "down" in left:
        matrix = left.low_rank("up", "down", "mid", transposed_core=False)
        scale = scale_of(matrix.rank, alpha)
        made["weight"] = Product(matrix, scale)
        if "up_bias" in left:
            made["bias"] = Product(Whole(left.pop("up_bias")), scale)
    elif any(name.startswith("hada_") for name in left):
        first, second = (
            left.low_rank(f"hada_w{i}_a", f"hada_w{i}_b", f"hada_t{i}", transposed_core=True) for i in (1, 2)
        )
        if first.size != second.size:
            raise ValueError(f"its products are of sizes {first.size} and {second.size}")
        made["weight"] = Product(second, scale_of(first.rank, alpha), first)
    elif any(name.startswith("lokr_") for name in left):
        one, other = left.matrix("lokr_w1"), left.matrix("lokr_w2")
        ranks = [matrix.rank for matrix in (other, one) if isinstance(matrix, LowRank)]
        scale = scale_of(ranks[0], alpha) if ranks else 1.0
        made["weight"] = Product(other, scale, one, is_kronecker=True)
    for kind, names in {"weight": ("diff", "w_norm"), "bias": ("diff_b", "b_norm")}.items():
        for name in names:
            if kind not in made and name in left:
                made[kind] = Product(Whole(left.pop(name)))
    for name in ("dora_scale", "magnitude"):
        product = made.get("weight")
        if name in left and isinstance(product, Product):
            made["weight"] = _decompose(product, left.pop(name), shape if name == "dora_scale" else None)
    if left or not made:
        raise ValueError(f"its tensors do not go together ({', '.join(parameters)})")
    return made


def _decompose(product: Product, magnitude: AdapterTensor, shape: tuple[int, ...] | None) -> Decomposed:
    """With DoRA's magnitude of all output channels, or (1, I, ...) of the input channels of a weight of that shape."""
    channels = math.prod(magnitude.shape)
    is_row = len(magnitude.shape) > 1 and magnitude.shape[0] == 1
    by_input = is_row and shape is not None and shape[1:2] == (channels,)
    if not by_input and channels != product.size[0]:
        raise ValueError(f"its magnitude has shape {magnitude.shape}, and its weight is of size {product.size}")
    return Decomposed(product, magnitude, by_input)


def _require_size(kind: str, change: Change, shape: tuple[int, ...] | None) -> None:
    if shape is None:
        raise ValueError(f"it changes a {kind}, and the model's layer has none")
    size = (shape[0], math.prod(shape[1:]))
    if change.size != size:
        raise ValueError(f"it changes a {kind} of size {change.size}, and the model's is of size {size}")


def _read_number(tensor: AdapterTensor) -> float:
    dtype, data = tensor.stored
    return float((tensor.values() if dtype == "BF16" else data.copy().view(_SCALAR_DTYPES[dtype])).reshape(-1)[0])


def _read(stored: StoredTensor, name: str) -> StoredTensor:
    """In the host's memory, and checked."""
    if not np.isfinite(stored.to_f32()).all():
        raise WeightsError(f"{name}: has NaN or infinite values; the file is damaged, download it again")
    return StoredTensor(stored.dtype, stored.data.copy())
