"""One server for all tests of requests."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from server.serving import Client


@pytest.fixture(scope="session")
def client(runtime: str) -> Iterator["Client"]:
    """Of a server with two small models."""
    pytest.importorskip("starlette", reason="starlette comes with the test extra")
    pytest.importorskip("uvicorn", reason="uvicorn comes with the test extra")
    from server.serving import serving

    with serving(runtime) as client:
        yield client
