"""The C declarations of the wgpu package, compiled once instead of parsed by every process.

The package gives cffi its header as text. cffi parses that in Python at each start, and all its names again for each C
type that is used: most of what the host would do until a device is open. cffi can also compile declarations to a module
of tables, which loads at once and in which types are looked up in C. It is kept in the cache folder, where that can be
written, by a name that says what it was made of.
"""

import hashlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import StringIO
from pathlib import Path
from typing import Any

import cffi

from shaderfusion.errors import InputError
from shaderfusion.files import cache_folder
from shaderfusion.output import write_whole

__all__ = ["compiled_declarations"]


@contextmanager
def compiled_declarations() -> Iterator[None]:
    """The package, imported meanwhile, uses compiled declarations. Nothing changes where it was imported before."""
    package: Any = cffi
    parsed, package.FFI = package.FFI, _CompiledFFI
    try:
        yield
    finally:
        package.FFI = parsed


class _CompiledFFI:
    """To the package a cffi.FFI: `cdef` as it calls it, and then all that a compiled one has."""

    def cdef(self, text: str) -> None:
        compiled = _load(text)
        vars(self).update({name: getattr(compiled, name) for name in dir(compiled) if not name.startswith("__")})

    def set_source(self, *_: object) -> None:
        """The package names a module here, which it does not compile."""


def _load(text: str) -> Any:
    """The compiled FFI of declarations, from the cache if it is there."""
    maker = "\0".join((text, cffi.__version__, sys.implementation.cache_tag or ""))
    path = cache_folder() / f"declarations-{hashlib.sha256(maker.encode()).hexdigest()[:16]}.py"
    with suppress(Exception):  # there is none, or a damaged one
        if _is_own(path):
            return _run(path.read_text(encoding="utf-8"))
    code = _compile(text)
    with suppress(OSError, InputError):  # it cannot be written
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole("the cache", path, code.encode())
    return _run(code)


def _is_own(path: Path) -> bool:
    """Whether this user wrote a file: another's, such as where root keeps a user's HOME, is not run."""
    return not hasattr(os, "geteuid") or path.stat().st_uid == os.geteuid()


def _compile(text: str) -> str:
    """Declarations as the Python module in which cffi keeps them."""
    from cffi import api
    from cffi.recompiler import make_py_source

    ffi = api.FFI()
    ffi.cdef(text)
    ffi.set_source("declarations", None)
    module = StringIO()
    make_py_source(ffi, "declarations", module)
    return module.getvalue()


def _run(code: str) -> Any:
    namespace: dict[str, Any] = {}
    exec(code, namespace)
    return namespace["ffi"]
