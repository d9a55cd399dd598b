"""`shaderfusion` and `python -m shaderfusion`: one command as a process."""

import gc
import os
import sys
from contextlib import suppress
from typing import NoReturn

from shaderfusion import cli

__all__ = ["main"]

_COLLECTED_AFTER = 50_000
"""Objects made. Nearly all that a command imports and records stays until its end: Python need not look it through as
often as by default."""


def main() -> NoReturn:
    """Runs the command of `sys.argv`, and ends at once: the system frees memory faster than Python takes it apart."""
    gc.set_threshold(_COLLECTED_AFTER)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy would start a thread for each core; none has work here
    status = cli.main()
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):  # there is none, or nobody reads it, or it is closed
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
