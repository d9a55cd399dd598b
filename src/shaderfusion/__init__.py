"""Stable Diffusion as GPU compute shaders. Importing this touches no GPU: each name loads its module on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from shaderfusion.errors import ShaderfusionError
    from shaderfusion.gpu.device import list_devices
    from shaderfusion.info import describe
    from shaderfusion.pipeline import StableDiffusionPipeline

__all__ = ["ShaderfusionError", "StableDiffusionPipeline", "__version__", "describe", "list_devices"]

__version__ = "0.1.0"

_HOMES = {
    "ShaderfusionError": "shaderfusion.errors",
    "StableDiffusionPipeline": "shaderfusion.pipeline",
    "describe": "shaderfusion.info",
    "list_devices": "shaderfusion.gpu.device",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
