"""What a worker thread tells a client on the event loop: a channel that a slow reader cannot fill, and its text."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Mapping
from typing import Any, NamedTuple

__all__ = ["ENDS", "Channel", "Event", "stream"]

ENDS = ("done", "cancelled", "error")
"""The last event of a job is one of these."""

_LATEST = ("queued", "step", "preview")
"""Events of which only the newest is worth sending."""

_ALIVE_EVERY_S = 5.0


class Event(NamedTuple):
    """Of a job."""

    name: str
    data: Mapping[str, Any]

    def text(self) -> str:
        """As a server-sent event."""
        return f"event: {self.name}\ndata: {json.dumps(self.data)}\n\n"


class Channel:
    """Events from any thread to one reader. An event of which only the newest counts takes the place of an unread one:
    what waits is at most the pictures of one job, and a few small events."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._unread: list[Event] = []
        self._wake = asyncio.Event()

    def put(self, name: str, data: Mapping[str, Any]) -> None:
        """Never waits."""
        with self._lock:
            if name in _LATEST:
                self._unread = [event for event in self._unread if event.name != name]
            self._unread.append(Event(name, data))
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
            self._loop.call_soon_threadsafe(self._wake.set)

    async def get(self) -> Event:
        """The next event, once there is one."""
        while True:
            with self._lock:
                if self._unread:
                    return self._unread.pop(0)
                self._wake.clear()
            await self._wake.wait()

    async def __aiter__(self) -> AsyncIterator[Event]:
        """Up to the last one."""
        while True:
            event = await self.get()
            yield event
            if event.name in ENDS:
                return


async def stream(channel: Channel) -> AsyncIterator[str]:
    """The body of a text/event-stream: a comment where nothing happens for a while, so that a dead line is noticed."""
    while True:
        try:
            async with asyncio.timeout(_ALIVE_EVERY_S):
                event = await channel.get()
        except TimeoutError:
            yield ": alive\n\n"
            continue
        yield event.text()
        if event.name in ENDS:
            return
