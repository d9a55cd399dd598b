"""wgpu's exceptions as ours."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import wgpu

from shaderfusion.errors import DeviceError, DeviceLostError, GpuMemoryError, ShaderfusionError

__all__ = ["gpu_errors"]


@contextmanager
def gpu_errors(doing: str, otherwise: Callable[[str], ShaderfusionError] = DeviceError) -> Iterator[None]:
    """Turns wgpu's exceptions into ours, with what was being done and to which tensor or shader.

    A lost device is a DeviceLostError and a lack of memory a GpuMemoryError; `otherwise` makes the rest from its text.
    """
    try:
        yield
    except ShaderfusionError:
        raise
    except wgpu.GPUOutOfMemoryError as error:
        raise GpuMemoryError(f"{doing}: the device is out of memory; use a smaller size or batch") from error
    except wgpu.GPUError as error:
        text = str(error)
        if re.search(r"device.{0,20}lost|\blost\b", text, re.IGNORECASE):
            raise DeviceLostError(f"{doing}: the driver dropped the device; open it again ({text})") from error
        if re.search(r"out of memory|not enough memory", text, re.IGNORECASE):
            raise GpuMemoryError(f"{doing}: the device is out of memory; use a smaller size or batch") from error
        raise otherwise(f"{doing}: {text}") from error
