"""What an export's `manifest.json` says: all that a page must know before it fetches more (docs/browser.md)."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import asdict
from typing import Any

from shaderfusion import __version__
from shaderfusion.config import SchedulerConfig
from shaderfusion.errors import ModelError
from shaderfusion.families.family import Family, RunSize
from shaderfusion.kernels.capabilities import Capabilities
from shaderfusion.kernels.common.denoise_step import COEFFICIENTS
from shaderfusion.schedulers import require_scheduler
from shaderfusion.schedulers.names import scheduler_of_model
from shaderfusion.schedulers.sigmas import spacing_of_sigmas
from shaderfusion.text.tokenizer import Tokenizer
from shaderfusion.web.programs import Programs
from shaderfusion.web.shards import Stored

__all__ = [
    "FORMAT",
    "MANIFEST",
    "PLAYER_SCHEDULERS",
    "VERSION",
    "as_bytes",
    "describe_model",
    "describe_scheduler",
    "describe_table",
    "describe_tokenizer",
    "limits",
]

FORMAT, VERSION = "shaderfusion-web", 1
MANIFEST = "manifest.json"

PLAYER_SCHEDULERS = ("ddim", "pndm", "euler", "euler_a")
"""Those of which the player makes tables. Where the model's own is none of them, the first that fits it is used."""

_STEPS, _GUIDANCE_SCALE = 20, 7.5


def as_bytes(value: object) -> bytes:
    """As JSON. Equal values give equal bytes."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


def describe_model(model: Family, name: str, size: RunSize) -> dict[str, Any]:
    """The manifest's first part: what it is, sizes, and the order of a step's coefficients."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "made_by": f"shaderfusion {__version__}",
        "model": {"name": name, "family": type(model).__name__},
        "size": {
            "width": size.width_px,
            "height": size.height_px,
            "batch": size.batch,
            "rows": size.rows,
            "num_tokens": size.num_tokens,
        },
        "latents": {"shape": [*model.latents_shape(size)], "scale_factor": model.scale_factor},
        "defaults": {"steps": _STEPS, "guidance_scale": _GUIDANCE_SCALE},
        "coefficients": [*COEFFICIENTS],
    }


def describe_scheduler(config: SchedulerConfig) -> dict[str, Any]:
    """The noise schedule, and which of PLAYER_SCHEDULERS take it; ModelError where none does.

    Warns where the model's own scheduler is none of them.
    """
    names: list[str] = []
    refusal: ModelError | None = None
    for name in PLAYER_SCHEDULERS:
        try:
            require_scheduler(config, name)
            if name != "euler" or not spacing_of_sigmas(config):  # such as Karras', which are Python's alone
                names.append(name)
        except ModelError as error:
            refusal = error
    if not names and refusal:
        raise refusal
    own = scheduler_of_model(config)
    name = own.rule if own and own.rule in names else names[0]
    if own and own.rule != name:
        warnings.warn(
            f"the model's own scheduler ({config.class_name}) with its options is none of the player's: the page takes "
            f"{name}, whose pictures are others",
            stacklevel=2,
        )
    values = {key: value for key, value in asdict(config).items() if value != -math.inf}
    return {"name": name, "names": names, "config": values}


def describe_tokenizer(tokenizer: Tokenizer) -> tuple[dict[str, int], dict[str, Any]]:
    """Its ids for the manifest, and its vocabulary for a file: tokens by id, merges by rank, and what is looked for
    before a text is split."""
    bpe = json.loads(tokenizer.bpe.to_str())
    vocab: dict[str, int] = bpe["model"]["vocab"]
    tokens: list[str | None] = [None] * (max(vocab.values()) + 1)
    for token, index in vocab.items():
        tokens[index] = token
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in bpe["model"]["merges"]]
    ids = {
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "pad_id": tokenizer.pad_id,
        "unk_id": vocab[bpe["model"]["unk_token"]],
        "max_length": tokenizer.max_length,
    }
    return ids, {"vocab": tokens, "merges": merges, "added": bpe["added_tokens"]}


def describe_table(stored: Stored) -> dict[str, Any]:
    """Where the player finds the rows of a table."""
    parts = [
        {"shard": part.shard, "offset": part.offset, "first_row": part.rows.start, "rows": len(part.rows)}
        for part in stored.parts
    ]
    return {"dtype": stored.dtype, "shape": [*stored.shape], "parts": parts}


def limits(programs: Programs, capabilities: Capabilities) -> dict[str, int]:
    """WebGPU's limits that they need: of workgroups those that kernels were chosen for, of the rest the largest."""
    calls = programs.calls
    tensors = [binding.tensor for call in calls for binding in call.bindings]
    return {
        "maxBufferSize": programs.largest_buffer_bytes,
        "maxStorageBufferBindingSize": max(tensor.size_bytes for tensor in tensors),
        "maxStorageBuffersPerShaderStage": max(len(call.bindings) for call in calls),
        "maxComputeWorkgroupsPerDimension": max(max(call.workgroups) for call in calls),
        "maxComputeWorkgroupStorageSize": capabilities.max_workgroup_bytes,
        "maxComputeInvocationsPerWorkgroup": capabilities.max_invocations,
        "maxComputeWorkgroupSizeX": capabilities.max_workgroup_size_x,
    }
