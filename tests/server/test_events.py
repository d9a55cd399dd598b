"""A channel between the worker and a client, and what a client that does not read does to others."""

import asyncio
import json
import socket
import threading
from typing import Any

import pytest

pytest.importorskip("starlette", reason="starlette comes with the test extra")
from server.serving import SMALL, Client

from shaderfusion.server.events import Channel, Event, stream


def test_only_the_newest_of_a_kind_waits() -> None:
    async def run() -> list[Event]:
        channel = Channel(asyncio.get_running_loop())

        def work() -> None:
            for step in range(10_000):
                channel.put("step", {"step": step})
                channel.put("preview", {"step": step, "images": ["x" * 1000]})
            channel.put("picture", {"index": 0})
            channel.put("picture", {"index": 1})
            channel.put("done", {})

        worker = threading.Thread(target=work)
        worker.start()
        worker.join()
        return [event async for event in channel]

    events = asyncio.run(run())
    assert [event.name for event in events] == ["step", "preview", "picture", "picture", "done"]
    assert events[0].data == {"step": 9999}


def test_events_come_in_order_while_they_are_read() -> None:
    async def run() -> list[Any]:
        channel = Channel(asyncio.get_running_loop())

        def work() -> None:
            for index in range(1000):
                channel.put("picture", {"index": index})
            channel.put("done", {})

        threading.Thread(target=work).start()
        return [event.data.get("index") async for event in channel]

    assert asyncio.run(run()) == [*range(1000), None]


def test_a_stream_says_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shaderfusion.server.events._ALIVE_EVERY_S", 0.01)

    async def run() -> list[str]:
        channel = Channel(asyncio.get_running_loop())
        found: list[str] = []
        async for text in stream(channel):
            found.append(text)
            if len(found) == 2:
                channel.put("error", {"error": "a line\nbreak"})
        return found

    *alive, last = asyncio.run(run())
    assert set(alive) == {": alive\n\n"}
    assert last == 'event: error\ndata: {"error": "a line\\nbreak"}\n\n'


def test_a_reader_that_does_not_read_holds_nobody_up(client: Client) -> None:
    body = json.dumps({**SMALL, "steps": 20, "preview_every": 1, "width": 64, "height": 64}).encode()
    with socket.create_connection(("127.0.0.1", client.port)) as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.sendall(b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        client.wait_for(lambda queue: queue["running"] is not None)
        assert client.generate(**SMALL)[-1][0] == "done"
