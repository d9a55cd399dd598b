"""`shaderfusion devices`: the GPU adapters of this machine."""

import argparse
import json
from typing import Any

from shaderfusion.cli.options import add_json
from shaderfusion.errors import DeviceError
from shaderfusion.output import Table, say, show

__all__ = ["add_parser"]


def add_parser(commands: Any) -> None:
    """`shaderfusion devices`, for the parser of commands."""
    devices = commands.add_parser("devices", help="list the GPU adapters of this machine", allow_abbrev=False)
    devices.set_defaults(command=_run)
    add_json(devices)


def _run(args: argparse.Namespace) -> None:
    from shaderfusion.gpu.device import INSTALL_HINT, list_devices, refusals

    devices = list_devices()
    if not devices:
        raise DeviceError(INSTALL_HINT)
    for refusal in refusals():
        say(refusal)
    if args.json:
        show(json.dumps([device.as_dict() for device in devices]))
        return
    heading = ("runtime", "index", "name", "kind", "backend", "driver", "dtype", "matrix units")
    rows = []
    for d in devices:
        has_matrix_units = "yes" if d.has_matrix_units else "no"
        rows.append((d.runtime, str(d.index), d.name, d.kind, d.backend, d.driver, d.default_dtype, has_matrix_units))
    show(Table(heading, rows, "<" * len(heading)).text())
