"""The server as a process: its socket, and how it stops."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Iterable, Iterator

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from shaderfusion.errors import InputError
from shaderfusion.output import say
from shaderfusion.server.service import Service

__all__ = ["HttpServer", "listen", "own_names"]

_MOST_CONNECTIONS = 256
_HEAD_TIMEOUT_S = 30.0
"""For a request's line and headers to come."""
_LAST_WORDS_S = 5
"""For clients to read their last events when the server stops."""


def listen(host: str, port: int) -> socket.socket:
    """A socket at that address; port 0 is any that is free. InputError where it cannot be had."""
    with contextlib.ExitStack() as undo:
        try:
            family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            opened = undo.enter_context(socket.socket(family))
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(address)
        except (OSError, UnicodeError, OverflowError) as error:
            sentence = f"--host (={host}) with --port (={port}) cannot be listened at: {error}; use others"
            raise InputError(sentence) from None
        undo.pop_all()
        return opened


def own_names(host: str, others: Iterable[str] = ()) -> set[str]:
    """By which clients may call a server that listens at `host`, beside the address that they reach."""
    return {"localhost", host, socket.gethostname(), *others}


class PatientProtocol(H11Protocol):
    """uvicorn's, which would wait for the head of a request as long as it takes; a few hundred such clients would
    leave no connection to others."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Of a client that may send its request now."""
        super().connection_made(transport)
        self._look_later()

    def _look_later(self) -> None:
        self.loop.call_later(_HEAD_TIMEOUT_S, self._look, self.cycle)

    def _look(self, last: object) -> None:
        """Closes a connection on which no request has come since the last look, and none is being answered."""
        if self.transport.is_closing():
            return
        if self.cycle is last and (last is None or self.cycle.response_complete):
            self.transport.abort()
        else:
            self._look_later()


class HttpServer(uvicorn.Server):
    """uvicorn, which on SIGTERM and Ctrl-C has the worker finish its job first. A second signal ends at once."""

    def __init__(
        self, app: ASGIApp, service: Service, opened: socket.socket, on_ready: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=PatientProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                limit_concurrency=_MOST_CONNECTIONS,
                timeout_graceful_shutdown=_LAST_WORDS_S,
            )
        )
        self._service = service
        self._opened = opened
        self._on_ready = on_ready

    def run_until_stopped(self) -> None:
        """Serves until a signal, or until `should_exit` is set."""
        asyncio.run(self.serve([self._opened]))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listens, and says so."""
        await super().startup(sockets)
        self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """The job that runs is finished, and its picture kept; those that wait end with a sentence."""
        queue = self._service.queue
        if queue.running:
            say("stopping after the current job; Ctrl-C again stops at once")
        queue.stop()
        while queue.is_alive and not self.force_exit:
            await asyncio.sleep(0.05)
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """A signal that was answered is not raised again: the command ends as one that has done its work."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        handlers: dict[int, Callable[..., object] | int | None] = {
            number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
