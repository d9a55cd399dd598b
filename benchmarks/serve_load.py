"""Load on `shaderfusion serve`: many clients at once, some of which cancel, go away, send nonsense or read slowly.

Each accepted job must end in its own picture, which is compared with one made alone before, or in its cancellation.
Prints the median and the 95th percentile of the seconds from a request to its picture, and the server's memory.

    python benchmarks/serve_load.py --requests 200 --clients 20
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import random
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

from PIL import Image

__all__ = ["main"]

PROMPTS = ("a red heart", "a rocket", "a tree", "a yellow star", "a fox")
KINDS = {"plain": 12, "cancelled": 3, "gone": 3, "broken": 3, "slow": 3}
"""Kinds of requests, and how often each comes."""
BROKEN: tuple[Any, ...] = ({"steps": 0}, {"prompt": 1}, {"nonsense": 1}, {"width": 10**9}, {"image": "x"}, [])
SETTLED_S = 0.5


class Load:
    """What is asked, and what came of it."""

    def __init__(self, port: int, fields: dict[str, Any]) -> None:
        self._port = port
        self._fields = fields
        self._lock = threading.Lock()
        self.known: dict[tuple[str, int], bytes] = {}
        self.outcomes: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.problems: list[str] = []

    def make_known(self) -> None:
        """Each prompt with each seed, alone."""
        for prompt in PROMPTS:
            for seed in range(2):
                events = list(self._ask({"prompt": prompt, "seed": seed}))
                (picture,) = [data for name, data in events if name == "picture"]
                self.known[prompt, seed] = _pixels(picture["image"])

    def request(self, index: int) -> None:
        """One request of a kind that its number gives."""
        chosen = random.Random(index)
        kind = chosen.choices(list(KINDS), list(KINDS.values()))[0]
        prompt, seed = chosen.choice(list(self.known))
        body = {"prompt": prompt, "seed": seed, "preview_every": chosen.choice((0, 1))}
        started = time.perf_counter()
        try:
            outcome = self._run(kind, body, chosen)
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            outcome = "lost"
            self._complain(f"{kind} request {index}: {error!r}")
        with self._lock:
            self.outcomes[f"{kind}: {outcome}"] += 1
            if outcome == "picture" and kind == "plain":
                self.seconds.append(time.perf_counter() - started)

    def _run(self, kind: str, body: dict[str, Any], chosen: random.Random) -> str:
        if kind == "broken":
            wrong = chosen.choice(BROKEN)
            status, _ = self._post("/api/generate", {**body, **wrong} if isinstance(wrong, dict) else wrong)
            if not 400 <= status < 500:
                self._complain(f"{wrong} is answered with {status}")
            return "refused"
        left = chosen.randrange(1, 6) if kind in ("cancelled", "gone") else None
        found = last = ""
        for name, data in self._ask(body):
            if kind == "slow":
                time.sleep(0.2)
            if left is not None:
                left -= 1
                if left == 0 and kind == "gone":
                    return "gone"
                if left == 0:
                    self._post("/api/cancel", {"job": data["job"]})
            if name == "picture":
                found = "picture"
                own = data["settings"]
                key = (own["prompt"], own["seed"])
                if key != (body["prompt"], body["seed"]) or _pixels(data["image"]) != self.known[key]:
                    self._complain(f"{body} got the picture of {key}")
            elif name == "error":
                self._complain(f"{body}: {data['error']}")
            last = name
        if last != ("done" if found else "cancelled"):
            self._complain(f"{body} ended with {last}")
        return found or last

    def _ask(self, body: dict[str, Any]) -> Iterator[tuple[str, Any]]:
        """A job's events; asks again while the queue is full."""
        data = json.dumps({**self._fields, **body})
        while True:
            with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)) as connection:
                connection.request("POST", "/api/generate", data)
                with closing(connection.getresponse()) as answer:
                    if answer.status == 200:
                        yield from _events(answer)
                        return
                    if answer.status != 429:
                        raise ValueError(answer.read())
                    wait_s = float(answer.headers["Retry-After"])
            with self._lock:
                self.outcomes["told to come again"] += 1
            time.sleep(min(wait_s, 2) * random.uniform(0.5, 1))

    def _post(self, path: str, body: Any) -> tuple[int, bytes]:
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)) as connection:
            connection.request("POST", path, json.dumps(body))
            answer = connection.getresponse()
            return answer.status, answer.read()

    def metric(self, name: str) -> float:
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=600)) as connection:
            connection.request("GET", "/metrics")
            lines = connection.getresponse().read().decode().splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"shaderfusion_{name} "))

    def _complain(self, problem: str) -> None:
        with self._lock:
            self.problems.append(problem)


def _events(answer: http.client.HTTPResponse) -> Iterator[tuple[str, Any]]:
    name = ""
    for line in answer:
        if line.startswith(b"event: "):
            name = line[7:].strip().decode()
        elif line.startswith(b"data: "):
            yield name, json.loads(line[6:])


def _pixels(url: str) -> bytes:
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        return image.tobytes()


def main() -> int:
    """1 where anything went wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--clients", type=int, default=20)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--size", type=int, default=64, help="pixels of a side")
    parser.add_argument("options", nargs="*", help="of `shaderfusion serve`, after --")
    args = parser.parse_args()
    command = [sys.executable, "-m", "shaderfusion", "serve", "--port", "0", *args.options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        port = int(server.stdout.readline().strip().rpartition(":")[2])
        size = {"width": args.size, "height": args.size}
        load = Load(port, {**size, "steps": args.steps, "scheduler": "ddim"})
        load.make_known()
        memory, num_before = [load.metric("resident_memory_bytes")], load.metric("pictures_total")
        started = time.perf_counter()
        with ThreadPoolExecutor(args.clients) as clients:
            for first in range(0, args.requests, max(1, args.requests // 4)):
                last = min(args.requests, first + max(1, args.requests // 4))
                list(clients.map(load.request, range(first, last)))
                memory.append(load.metric("resident_memory_bytes"))
        seconds = time.perf_counter() - started
        end = time.monotonic() + 60
        while load.metric("running") and time.monotonic() < end:
            time.sleep(SETTLED_S)
        num_made = load.metric("pictures_total") - num_before
        server.send_signal(signal.SIGTERM)
        status = server.wait(60)
    for outcome, count in sorted(load.outcomes.items()):
        print(f"{count:5}  {outcome}")
    p50, p95 = (statistics.quantiles(load.seconds, n=100, method="inclusive")[at - 1] for at in (50, 95))
    print(f"{num_made:g} pictures in {seconds:.1f} s; p50 {p50:.2f} s, p95 {p95:.2f} s from the request to its picture")
    print("memory:", ", ".join(f"{size / 1e6:.0f} MB" for size in memory))
    for problem in (*load.problems, *([f"the server ended with {status}"] if status else [])):
        print("problem:", problem)
    return 1 if load.problems or status else 0


if __name__ == "__main__":
    sys.exit(main())
