"""The queue by itself, with work that waits for the test."""

import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from shaderfusion.errors import InputError
from shaderfusion.server.queue import Job, Queue
from shaderfusion.server.refusal import RefusedError

PATIENCE_S = 10


class Recorder:
    """A job whose work lasts until `release`, and what it told."""

    def __init__(self, name: str, log: list[str], error: Exception | None = None) -> None:
        self.events: list[tuple[str, Mapping[str, Any]]] = []
        self.begun, self.release, self.ended = threading.Event(), threading.Event(), threading.Event()
        self._name, self._log, self._error = name, log, error
        self.job = Job(self._work, self._put, ["steps"])

    def _put(self, name: str, data: Mapping[str, Any]) -> None:
        self.events.append((name, {key: value for key, value in data.items() if key != "job"}))
        if name in ("done", "cancelled", "error"):
            self.ended.set()

    def _work(self, job: Job) -> dict[str, str]:
        self._log.append(self._name)
        self.begun.set()
        while not self.release.wait(0.01):
            job.go_on()
        if self._error:
            raise self._error
        return {"made": self._name}

    @property
    def positions(self) -> list[int]:
        return [data["position"] for name, data in self.events if name == "queued"]

    @property
    def last(self) -> tuple[str, Mapping[str, Any]]:
        assert self.ended.wait(PATIENCE_S)
        return self.events[-1]


def wait_for_end(queue: Queue) -> None:
    end = time.monotonic() + PATIENCE_S
    while queue.is_alive:
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def log() -> list[str]:
    return []


@pytest.fixture
def queue() -> Iterator[Queue]:
    queue = Queue(2)
    yield queue
    queue.stop()
    if queue.running:
        queue.cancel(queue.running)
    wait_for_end(queue)


def fill(queue: Queue, log: list[str]) -> list[Recorder]:
    """One that runs, and two that wait."""
    jobs = [Recorder(name, log) for name in "abc"]
    for each in jobs:
        queue.submit(each.job)
        if each is jobs[0]:
            assert each.begun.wait(PATIENCE_S)
    return jobs


def test_first_come_first_served(queue: Queue, log: list[str]) -> None:
    jobs = fill(queue, log)
    assert (queue.running, queue.waiting) == (jobs[0].job.id, 2)
    for each in jobs:
        each.release.set()
        assert each.last[0] == "done"
        assert each.last[1]["made"] in log
        assert each.last[1]["seconds"] >= 0
    assert log == ["a", "b", "c"]
    assert [each.positions for each in jobs] == [[0], [1, 0], [2, 1, 0]]


def test_it_is_bounded(queue: Queue, log: list[str]) -> None:
    jobs = fill(queue, log)
    with pytest.raises(RefusedError, match="full, with 2 jobs waiting; ask again in") as found:
        queue.submit(Recorder("d", log).job)
    assert found.value.status == 429
    assert int((found.value.headers or {})["Retry-After"]) >= 1
    assert queue.cancel(jobs[1].job.id)
    queue.submit(Recorder("d", log).job)


def test_cancelled_jobs(queue: Queue, log: list[str]) -> None:
    running, waiting, last = fill(queue, log)
    assert queue.cancel(waiting.job.id)
    assert not queue.cancel(waiting.job.id)
    assert waiting.last == ("cancelled", {})
    assert last.positions == [2, 1]
    assert queue.cancel(running.job.id)
    assert running.last == ("cancelled", {})
    assert not queue.cancel("nonsense")
    last.release.set()
    assert last.last[0] == "done"
    assert log == ["a", "c"]


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (InputError("steps (=0) must be more"), {"error": "steps (=0) must be more", "field": "steps"}),
        (InputError("num_inference_steps (=0) is"), {"error": "num_inference_steps (=0) is", "field": "steps"}),
        (InputError("nothing fits"), {"error": "nothing fits", "field": None}),
        (ZeroDivisionError("x"), {"error": "the server failed; its log says where", "field": None}),
    ],
)
def test_a_failed_job_is_not_the_end(
    queue: Queue, log: list[str], error: Exception, told: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    failing, next_one = Recorder("a", log, error), Recorder("b", log)
    failing.release.set()
    next_one.release.set()
    queue.submit(failing.job)
    queue.submit(next_one.job)
    assert failing.last == ("error", told)
    assert next_one.last[0] == "done"
    assert ("ZeroDivisionError" in capsys.readouterr().err) == isinstance(error, ZeroDivisionError)


def test_stopping_finishes_what_runs(log: list[str]) -> None:
    queue = Queue(2)
    running, *waiting = fill(queue, log)
    queue.stop()
    for each in waiting:
        assert each.last[0] == "error"
        assert "stopping" in each.last[1]["error"]
    with pytest.raises(RefusedError, match="stopping") as found:
        queue.submit(Recorder("d", log).job)
    assert found.value.status == 503
    assert queue.is_alive
    running.release.set()
    assert running.last[0] == "done"
    wait_for_end(queue)
