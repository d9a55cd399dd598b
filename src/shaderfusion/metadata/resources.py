"""Adapters and textual inversions that web UIs' and model sites' fields name, and no tag in the prompt does."""

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["find_resources"]

_ADAPTERS = ("lora", "locon", "lycoris", "lyco", "dora")
_OWN = ("checkpoint", "model")
"""Kinds that are the model itself, which is compared by its hash."""


def find_resources(fields: Mapping[str, str], *, names_adapters: bool) -> dict[str, str]:
    """What each such field names beside the model; `names_adapters`: the prompt has tags of the adapters."""
    found: dict[str, list[str]] = {"Civitai resources": [], "Hashes": []}
    for resource in _parse(fields.get("Civitai resources", ""), list):
        if isinstance(resource, dict):
            name = next((str(resource[key]) for key in ("modelName", "air", "modelVersionId") if key in resource), "?")
            kind, weight = str(resource.get("type", "?")).lower(), resource.get("weight")
            found["Civitai resources"].append(f"{kind} {name}" + (f" ({weight})" if weight is not None else ""))
    for name in _parse(fields.get("Hashes", ""), dict):
        kind, colon, rest = str(name).partition(":")
        is_said = kind == "embed" and "TI hashes" in fields
        if colon and not is_said:
            found["Hashes"].append(f"{kind.lower()} {rest}")
    left_out = (*_OWN, *(_ADAPTERS if names_adapters else ()))
    kept = {name: [text for text in texts if text.partition(" ")[0] not in left_out] for name, texts in found.items()}
    demands = {name: ", ".join(texts) for name, texts in kept.items() if texts}
    if "Lora hashes" in fields and not names_adapters:
        demands["Lora hashes"] = fields["Lora hashes"]
    return demands


def _parse(text: str, kind: type) -> Any:
    """JSON of that kind, or an empty one."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return kind()
    return value if isinstance(value, kind) else kind()
