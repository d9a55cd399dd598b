"""What an export's `manifest.json` says: all that a page must know before it fetches more (docs/browser.md)."""

from __future__ import annotations

import json
import re
from typing import Any

from shaderfusion import __version__
from shaderfusion.families.family import Family
from shaderfusion.families.run_size import RunSize
from shaderfusion.kernels.capabilities import Capabilities
from shaderfusion.kernels.common.denoise_step import COEFFICIENTS
from shaderfusion.text.tokenizer import Tokenizer
from shaderfusion.web.programs import Programs
from shaderfusion.web.shards import Stored

__all__ = [
    "FORMAT",
    "MANIFEST",
    "VERSION",
    "as_bytes",
    "describe_model",
    "describe_table",
    "describe_tokenizer",
    "limits",
]

FORMAT, VERSION = "shaderfusion-web", 1
MANIFEST = "manifest.json"


def as_bytes(value: object) -> bytes:
    """As JSON. Equal values give equal bytes."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False).encode()


def describe_model(model: Family, name: str, size: RunSize, steps: int) -> dict[str, Any]:
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
        "defaults": {"steps": steps, "guidance_scale": model.defaults.guidance_scale},
        "coefficients": [*COEFFICIENTS],
    }


def describe_tokenizer(tokenizer: Tokenizer) -> dict[str, Any]:
    """Its vocabulary, tokens by id, merges by rank; what is looked for before a text is split; and its other ids."""
    bpe = json.loads(tokenizer.bpe.to_str())
    vocab: dict[str, int] = bpe["model"]["vocab"]
    tokens: list[str | None] = [None] * (max(vocab.values()) + 1)
    for token, index in vocab.items():
        tokens[index] = token
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in bpe["model"]["merges"]]
    normalizer = tokenizer.bpe.normalizer
    exact = [token for token in bpe["added_tokens"] if not token["normalized"]]
    normalized = [
        {**token, "content": normalizer.normalize_str(token["content"])}
        for token in bpe["added_tokens"]
        if token["normalized"]
    ]
    return {
        "vocab": tokens,
        "merges": merges,
        "exact": _describe_added(exact),
        "normalized": _describe_added(normalized),
        "bos_id": tokenizer.bos_id,
        "eos_id": tokenizer.eos_id,
        "pad_id": tokenizer.pad_id,
        "unk_id": vocab[bpe["model"]["unk_token"]],
        "max_length": tokenizer.max_length,
    }


def _describe_added(tokens: list[dict[str, Any]]) -> dict[str, Any]:
    """A regular expression of JavaScript that finds them, the longest first, and their ids."""
    patterns: list[str] = []
    for token in sorted(tokens, key=lambda token: -len(token["content"])):
        escaped = re.sub(r"[^\w\s]", lambda sign: f"\\u{{{ord(sign[0]):x}}}", token["content"])
        patterns.append(rf"(?<![\p{{L}}\p{{N}}_]){escaped}(?![\p{{L}}\p{{N}}_])" if token["single_word"] else escaped)
    nothing = "(?!)"
    return {"pattern": "|".join(patterns) or nothing, "ids": {token["content"]: token["id"] for token in tokens}}


def describe_table(stored: Stored) -> dict[str, Any]:
    """Where the player finds the rows of a table."""
    parts = [
        {"shard": part.shard, "offset": part.offset, "first_row": part.rows.start, "rows": len(part.rows)}
        for part in stored.parts
    ]
    return {"dtype": stored.dtype.lower(), "row_bytes": stored.row_bytes, "parts": parts}


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
