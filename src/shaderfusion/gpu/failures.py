"""The exceptions of WebGPU's implementations as ours."""

import re
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from shaderfusion.errors import DeviceError, DeviceLostError, GpuMemoryError, ShaderfusionError
from shaderfusion.gpu.backend import gpu_error_types

__all__ = ["gpu_errors"]


@contextmanager
def gpu_errors(doing: str, otherwise: Callable[[str], ShaderfusionError] = DeviceError) -> Iterator[None]:
    """Turns an implementation's exceptions into ours, with what was being done and to which tensor or shader.

    A lost device is a DeviceLostError and a lack of memory a GpuMemoryError; `otherwise` makes the rest from its text.
    """
    try:
        yield
    except ShaderfusionError:
        raise
    except gpu_error_types() as error:
        # What the package's frames hold is let go of now, in order: in a circle with the error, where the garbage
        # collector finds it, cffi's views of arrays bring it down.
        traceback.clear_frames(error.__traceback__)
        text = str(error)
        if re.search(r"device.{0,20}lost|\blost\b", text, re.IGNORECASE) and not isinstance(error, MemoryError):
            raise DeviceLostError(f"{doing}: the driver dropped the device; open it again ({text})") from error
        if isinstance(error, MemoryError) or re.search(r"out of memory|not enough memory", text, re.IGNORECASE):
            raise GpuMemoryError(f"{doing}: the device is out of memory; use a smaller size or batch") from error
        raise otherwise(f"{doing}: {text}") from error
