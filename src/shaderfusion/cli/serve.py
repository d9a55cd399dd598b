"""`shaderfusion serve`: a page to make pictures on, and HTTP for programs."""

import argparse
import os
from pathlib import Path
from typing import Any

from shaderfusion.arguments import missing_extra
from shaderfusion.cli.generate import MAX_IMAGES, make_field_parser
from shaderfusion.cli.options import (
    DEFAULT_MODEL,
    DTYPE_OF_DEVICE,
    add_device,
    add_dtype,
    add_memory,
    add_model,
    add_tuning,
    text,
    whole_number,
)
from shaderfusion.errors import InputError
from shaderfusion.output import say, show
from shaderfusion.server.setup import Limits

__all__ = ["add_parser"]

_KEY = "SHADERFUSION_API_KEY"
_COMMON = ("device", "runtime", "dtype", "tuning", "memory", "lora_dir")
_LIMITS = {
    "max_side": ("PX", 65_536, 1024, "the longest side of a picture"),
    "max_steps": ("N", 10_000, 50, "the most steps of a run"),
    "max_images": ("N", MAX_IMAGES, 4, "the most pictures of a job"),
    "max_queue": ("N", 10_000, 16, "jobs that may wait; more are refused with 429"),
    "max_body": ("BYTES", 1 << 31, 20_000_000, "the largest request"),
    "max_pixels": ("N", 1 << 28, 1 << 24, "the most pixels of a picture that a request holds"),
}
"""By Limits' names: metavar, maximum, example, meaning."""


def add_parser(commands: Any) -> None:
    """`shaderfusion serve`, for the parser of commands."""
    serve = commands.add_parser("serve", help="a page to make pictures on, and an HTTP API", allow_abbrev=False)
    serve.set_defaults(command=_run)
    add_model(serve, "--model", action="append", default=[])
    meaning = "a folder whose models clients may name too: diffusers folders and .safetensors files"
    serve.add_argument("--models-dir", type=Path, metavar="DIR", help=meaning)
    meaning = "a folder of adapters that prompts may name, as <lora:NAME:SCALE>"
    serve.add_argument("--lora-dir", type=Path, metavar="DIR", help=meaning)
    meaning = "a folder of `export web`, to serve at /export/, by its name; may be given several times"
    serve.add_argument("--export", type=Path, action="append", default=[], metavar="DIR", help=meaning)
    meaning = "keep all pictures in that folder, which is made; default: they are sent and not kept"
    serve.add_argument("--output-dir", type=Path, metavar="DIR", help=meaning)
    meaning = "the address to listen at; default: 127.0.0.1, which only this machine reaches"
    serve.add_argument("--host", type=text, default="127.0.0.1", metavar="ADDRESS", help=meaning)
    meaning = "0 is any that is free; default: 7860"
    serve.add_argument("--port", type=whole_number(0, 7860, 65_535), default=7860, metavar="N", help=meaning)
    serve.add_argument("--open", action="store_true", help="open the page in the browser")
    meaning = f"clients must send it, as `Authorization: Bearer KEY`; default: that of {_KEY}, or none"
    serve.add_argument("--api-key", type=text, metavar="KEY", help=meaning)
    meaning = "another name by which clients call this server, as behind a proxy; may be given several times"
    serve.add_argument("--allow-host", type=text, action="append", default=[], metavar="NAME", help=meaning)
    meaning = "another site whose pages may use this server, such as https://example.org; may be given several times"
    serve.add_argument("--allow-origin", type=text, action="append", default=[], metavar="ORIGIN", help=meaning)
    for name, (metavar, most, example, meaning) in _LIMITS.items():
        option = f"--{name.replace('_', '-')}"
        meaning = f"{meaning}; default: {getattr(Limits, name)}"
        serve.add_argument(option, type=whole_number(1, example, most), metavar=metavar, help=meaning)
    add_device(serve)
    add_dtype(serve, DTYPE_OF_DEVICE)
    add_tuning(serve, "auto")
    add_memory(serve)


def _run(args: argparse.Namespace) -> None:
    """Everything that can be refused is refused before the server listens."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise missing_extra("serve", "serve") from None
    from shaderfusion.server.app import make_app
    from shaderfusion.server.models import Models, find_models
    from shaderfusion.server.running import HttpServer, listen, own_names
    from shaderfusion.server.safety import is_loopback
    from shaderfusion.server.service import Service
    from shaderfusion.server.settings import Fields
    from shaderfusion.server.setup import Setup
    from shaderfusion.web.folder import find_exports

    given = {name: value for name in _LIMITS if (value := getattr(args, name)) is not None}
    common = {name: getattr(args, name) for name in _COMMON}
    setup = Setup(common, Limits(**given), args.output_dir)
    if args.output_dir is not None:
        _require_folder(args.output_dir)
    exports = find_exports(args.export)
    wanted = args.model or ([] if args.models_dir else [DEFAULT_MODEL])
    with listen(args.host, args.port) as opened:
        address, port = opened.getsockname()[:2]
        api_key = args.api_key or os.environ.get(_KEY) or None
        if api_key is None and not is_loopback(address):
            say(f"warning: everyone who reaches {address} can use this server: it has no --api-key")
        models = Models(find_models(wanted, args.models_dir), common, required=wanted)
        service = Service(models, Fields(make_field_parser(), setup), setup)
        hosts = own_names(args.host, args.allow_host)
        app = make_app(service, hosts=hosts, origins=args.allow_origin, api_key=api_key, exports=exports)
        HttpServer(app, service, opened, on_ready=lambda: _ready(address, port, args.open)).run_until_stopped()


def _ready(address: str, port: int, opens: bool) -> None:
    show(_url(address, port))
    if opens:
        import threading
        import webbrowser

        here = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)  # no address for a browser
        page = threading.Thread(target=webbrowser.open, args=(_url(here, port),), daemon=True)
        page.start()  # beside us, since a text browser would be waited for


def _url(address: str, port: int) -> str:
    return f"http://{f'[{address}]' if ':' in address else address}:{port}"


def _require_folder(folder: Path) -> None:
    from shaderfusion.output import remove_parts, require_writable

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise InputError(f"--output-dir (={folder}) cannot be a folder ({error}); choose another") from None
    require_writable("--output-dir", folder / "picture.png", ".png", "picture.png")
    remove_parts(folder)
