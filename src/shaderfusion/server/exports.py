"""Folders that `shaderfusion export web` has written, as their pages want them served."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

__all__ = ["export_routes"]

_HEADERS = {
    "Cache-Control": "no-cache",  # another export may come to the same folder
    # The page's own, without the trusted types of this server's page: there is none for a service worker's address.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".safetensors": "application/octet-stream",
}
"""What a system has in its own list may be something else, with which browsers run no module."""


def export_routes(exports: Mapping[str, Path]) -> list[BaseRoute]:
    """Each folder below /export/NAME/."""
    routes: list[BaseRoute] = []
    for name, folder in exports.items():
        routes += [Route(f"/export/{name}", _to_folder), Mount(f"/export/{name}", _ExportFiles(folder))]
    return routes


async def _to_folder(request: Request) -> Response:
    """The page's own addresses are relative, so that its address has to end in a slash; so is this one, for proxies."""
    return RedirectResponse(f"./{request.url.path.rpartition('/')[2]}/")


class _ExportFiles(StaticFiles):
    """The files of a folder; those below are named by the manifest, and its page is index.html."""

    def __init__(self, folder: Path) -> None:
        super().__init__(directory=folder, html=True)

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers.update(_HEADERS)
        if own := _TYPES.get(Path(full_path).suffix):
            response.headers["Content-Type"] = own
        return response
