"""A headless Chromium on its software adapter, an export of a tiny model that is served, and pages beside it."""

# pyright: reportMissingImports=false

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from golden.models import model_folder
from web.browser import FLAGS, WAIT_MS, new_page, run
from web.file_server import FileServer, serve

from shaderfusion.web.export import export_web


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Tests that need it are skipped where there is none."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser: pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    driver.expect.set_options(timeout=WAIT_MS)
    with driver.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield opened
        opened.close()


@pytest.fixture(scope="session")
def tiny() -> Iterator[FileServer]:
    """An export of a model of 32 x 32 pixels, served, with the paper's ablation."""
    with tempfile.TemporaryDirectory() as folder:
        export_web(model_folder("sd1"), Path(folder) / "tiny", ablation=True)
        with serve(Path(folder) / "tiny") as server:
            yield server


@pytest.fixture
def server(tiny: FileServer) -> FileServer:
    """The same, undisturbed."""
    tiny.forget()
    return tiny


@pytest.fixture
def page(browser: Any, server: FileServer) -> Iterator[Any]:
    """An empty page beside the export, in a profile of its own."""
    with new_page(browser, server) as opened:
        yield opened


@pytest.fixture(scope="module")
def loaded(browser: Any, tiny: FileServer) -> Iterator[Any]:
    """A page with the tiny model loaded as `pipeline`."""
    tiny.forget()
    with new_page(browser, tiny) as opened:
        run(opened, "globalThis.pipeline = await (await import('/pipeline.js')).Pipeline.load('/');")
        yield opened
