"""Exports for browsers, as `serve --export` has them: types, policy, ranges, and the page in a real browser."""

# pyright: reportMissingImports=false

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from golden.models import model_folder

pytest.importorskip("starlette", reason="starlette comes with the test extra")
pytest.importorskip("uvicorn", reason="uvicorn comes with the test extra")
from server.serving import Client, serving

from shaderfusion.cli import main
from shaderfusion.errors import InputError
from shaderfusion.web.export import export_web
from shaderfusion.web.folder import find_exports

NAME = "a fox {it}"
"""What a folder may be called."""
URL = "/export/a%20fox%20%7Bit%7D"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exports") / NAME
    export_web(model_folder("sd1"), path)
    return path


@pytest.fixture(scope="module")
def exporting(runtime: str, folder: Path) -> Iterator[Client]:
    """A server that asks for a key, which a browser cannot send for a page."""
    with serving(runtime, api_key="secret", exports=find_exports([folder])) as client:
        yield client


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("", "text/html; charset=utf-8"),
        ("pipeline.js", "text/javascript; charset=utf-8"),
        ("style.css", "text/css; charset=utf-8"),
        ("icon.svg", "image/svg+xml"),
        ("manifest.json", "application/json"),
        ("weights/00001.safetensors", "application/octet-stream"),
    ],
)
def test_files(exporting: Client, folder: Path, path: str, kind: str) -> None:
    answer = exporting.get(f"{URL}/{path}")
    assert answer.status == 200
    assert answer.headers["content-type"] == kind
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.body == (folder / (path or "index.html")).read_bytes()


def test_the_rest_of_a_file(exporting: Client, folder: Path) -> None:
    answer = exporting.get(f"{URL}/weights/00001.safetensors", range="bytes=1000-")
    assert answer.status == 206
    assert answer.body == (folder / "weights" / "00001.safetensors").read_bytes()[1000:]


def test_the_address_without_its_slash(exporting: Client) -> None:
    answer = exporting.get(URL)
    assert answer.status == 307
    assert answer.headers["location"] == f"./{URL.rpartition('/')[2]}/"


@pytest.mark.parametrize("path", ["x", "weights", "../a", "%2e%2e/a", "..%2f..%2fetc/passwd", "%00", "a" * 5000])
def test_what_is_not_there(exporting: Client, path: str) -> None:
    assert exporting.get(f"{URL}/{path}").status == 404
    assert exporting.get(f"/export/other/{path}").status == 404


def test_links_lead_nowhere(exporting: Client, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    assert exporting.get(f"{URL}/link").status == 404


def test_folders_that_are_no_exports(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--port", "0", "--export", str(tmp_path)]) == 2
    assert "must be a folder that `export web` has written" in capsys.readouterr().err
    with pytest.raises(InputError, match="has the name of"):
        find_exports([folder, folder])


def test_the_page(exporting: Client) -> None:
    """Nothing of it is refused by the policy, and a worker keeps it."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright comes with the test extra")
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        pytest.skip("no chromium on the PATH")
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        errors: list[str] = []
        page.on("console", lambda message: message.type == "error" and errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"http://localhost:{exporting.port}{URL}")
        assert page.evaluate("navigator.serviceWorker.ready.then(({ scope }) => scope)").endswith(f"{URL}/")
        assert page.url.endswith(f"{URL}/")
        browser.close()
    assert errors == []
