"""Exceptions of shaderfusion. Every message names the value, the rule and the remedy.

ShaderfusionError
├── InputError            a value the caller passed (also a ValueError)
│   └── ShapeError        a tensor handed to a kernel or graph has the wrong shape or dtype
├── ModelError            a model folder: missing component, unsupported option, bad JSON
│   └── WeightsError      a weights file: missing or misshapen tensor, truncated file, NaN
├── NotFiniteError        a network gave values that are not finite, of which no picture can be made
├── DeviceError           no adapter, or none that matches
│   ├── DeviceLostError   the driver dropped the device while it was in use
│   ├── GpuMemoryError    an allocation failed (also a MemoryError)
│   └── DeviceLimitError  a tensor is larger than the device lets a shader bind
└── ShaderError           a WGSL source did not compose or compile
"""

__all__ = [
    "DeviceError",
    "DeviceLimitError",
    "DeviceLostError",
    "GpuMemoryError",
    "InputError",
    "ModelError",
    "NotFiniteError",
    "ShaderError",
    "ShaderfusionError",
    "ShapeError",
    "WeightsError",
]


class ShaderfusionError(Exception):
    """Base of everything this package raises on purpose."""


class InputError(ShaderfusionError, ValueError):
    """A value that the caller passed is outside its rule."""


class ShapeError(InputError):
    """A tensor has a shape or dtype that a kernel cannot take."""


class ModelError(ShaderfusionError):
    """A model folder cannot be used."""


class WeightsError(ModelError):
    """A weights file cannot be used."""


class NotFiniteError(ShaderfusionError):
    """A network gave NaN or infinite values."""


class DeviceError(ShaderfusionError):
    """No usable GPU adapter."""


class DeviceLostError(DeviceError):
    """The driver dropped the device."""


class GpuMemoryError(DeviceError, MemoryError):
    """The device could not allocate a buffer."""


class DeviceLimitError(DeviceError):
    """A tensor is larger than the device can bind."""


class ShaderError(ShaderfusionError):
    """A WGSL source did not compose or compile."""
