"""What tests do with a page of the browser."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from web.file_server import FileServer

__all__ = ["FLAGS", "WAIT_MS", "error_of", "new_page", "run"]

FLAGS = ["--no-sandbox", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--ignore-gpu-blocklist"]
WAIT_MS = 120_000.0


@contextmanager
def new_page(browser: Any, server: FileServer) -> Iterator[Any]:
    """An empty page beside what is served, in a profile of its own, as wide as a phone."""
    server.replaced["blank.html"] = b'<!doctype html><link rel="icon" href="data:,">'
    context = browser.new_context(viewport={"width": 390, "height": 844})
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    page.goto(server.url + "blank.html")
    yield page
    context.close()


def run(page: Any, code: str, argument: Any = None) -> Any:
    """What the body of an asynchronous function returns, of `argument`."""
    return page.evaluate(f"async (argument) => {{ {code} }}", argument)


def error_of(page: Any, code: str, argument: Any = None) -> str:
    """The name and message of what the body throws."""
    caught = "catch (error) { return `${error.name}: ${error.message}`; } return 'nothing thrown';"
    return run(page, f"try {{ {code} }} {caught}", argument)
