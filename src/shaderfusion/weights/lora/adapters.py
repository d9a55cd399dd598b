"""A model's adapters by name: which are active, and how strong."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shaderfusion.errors import InputError
from shaderfusion.files import shown
from shaderfusion.weights.lora.file import Changes
from shaderfusion.weights.lora.merge import Patch
from shaderfusion.weights.lora.names import COMPONENTS

__all__ = ["Adapters", "Strength", "name_files"]

Strength = float | Mapping[str, float]
"""Of an adapter, or of its changes by component, such as {"unet": 1, "text_encoder": 0.5}; 1 where none is named."""


def name_files(files: Sequence[tuple[str | Path, Strength]]) -> dict[str, tuple[Path, Strength]]:
    """Files or folders with the strength of each, by the name without its suffix; InputError where two have one."""
    named: dict[str, tuple[Path, Strength]] = {}
    for file, strength in files:
        path = Path(file)
        name = path.name.removesuffix(".safetensors")
        if name in named:
            raise InputError(
                f"LoRAs ({named[name][0]}, {path}) must have different names, by which prompts know them; rename one"
            )
        named[name] = (path, strength)
    return named


@dataclass(frozen=True)
class Adapters:
    """Adapters that were read, in that order, and the strengths of those that are active. Never changed: every method
    returns another one, so that a pipeline keeps what it had where it cannot be made."""

    _loaded: Mapping[str, Changes] = field(repr=False)
    _active: Mapping[str, Strength]

    @property
    def names(self) -> list[str]:
        """Of all that are loaded."""
        return list(self._loaded)

    @property
    def active(self) -> list[str]:
        """Names of those that are active."""
        return list(self._active)

    def new_name(self, name: str | None) -> str:
        """The name of one more, by default as diffusers makes it; InputError where there is one of that name."""
        name = f"default_{len(self._loaded)}" if name is None else name
        if not isinstance(name, str) or not name or name in self._loaded:
            raise InputError(f"adapter_name (={shown(name)}) must be a text that no adapter has yet; choose another")
        return name

    def add(self, name: str, changes: Changes, strength: Strength, *, keeps: bool) -> Adapters:
        """With one more active at that strength, and with `keeps` those that are active now."""
        active = {**(self._active if keeps else {}), name: strength}
        return Adapters({**self._loaded, name: changes}, {}).set(list(active), list(active.values()))

    def set(self, names: str | Sequence[str], strengths: Strength | Sequence[Strength] | None = None) -> Adapters:
        """With these alone active, at a strength for all or one for each, by default 1; InputError for others."""
        names = [names] if isinstance(names, str) else list(names)
        for name in names:
            if name not in self._loaded:
                known = ", ".join(self._loaded) or "none"
                raise InputError(f"adapter (={shown(name)}) must be one that is loaded ({known})")
        if len(set(names)) < len(names):
            raise InputError(f"adapters (={shown(names)}) must each be named once")
        if strengths is None or isinstance(strengths, (int, float, Mapping)):
            strengths = [1.0 if strengths is None else strengths] * len(names)
        if len(strengths) != len(names):
            raise InputError(
                f"adapter_weights (of {len(strengths)}) must be one, or one for each of {len(names)} names"
            )
        for strength in strengths:
            for component, value in strength.items() if isinstance(strength, Mapping) else [(None, strength)]:
                if component not in (None, *COMPONENTS):
                    raise InputError(f"adapter_weights names {shown(component)}, must name {' or '.join(COMPONENTS)}")
                if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value):
                    raise InputError(f"adapter_weights has {shown(value)}, must be finite numbers")
        return Adapters(self._loaded, dict(zip(names, strengths, strict=True)))

    def with_strengths(self, strengths: Mapping[str, Strength]) -> Adapters:
        """With these active too, or at another strength; InputError for one that is not loaded."""
        active = {**self._active, **strengths}
        return self.set(list(active), list(active.values())) if strengths else self

    def patches(self) -> dict[str, dict[str, Patch]]:
        """What they change, by component and path: nothing where the strength is 0.

        In the order of names, so that sums are the same however the adapters came to be active.
        """
        found: dict[tuple[str, str], Patch] = {}
        for name in sorted(self._active):
            strength = self._active[name]
            for key, change in self._loaded[name].items():
                own = strength.get(key[0], 1.0) if isinstance(strength, Mapping) else strength
                if own:
                    found[key] = Patch((*found.get(key, Patch(())).changes, (change, float(own))))
        patches: dict[str, dict[str, Patch]] = {}
        for (component, path), patch in found.items():
            patches.setdefault(component, {})[path] = patch
        return patches
