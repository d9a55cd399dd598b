"""One queue, first come first served, and the one thread that does its jobs."""

from __future__ import annotations

import secrets
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from shaderfusion.errors import ShaderfusionError
from shaderfusion.server.refusal import RefusedError, field_of

__all__ = ["STOPPING", "CancelledError", "Job", "Queue"]

STOPPING = "the server is stopping; ask again when it has started anew"
_LONGEST_WAIT_S = 120
_FIRST_GUESS_S = 5.0


class CancelledError(ShaderfusionError):
    """The job's client wants it no more."""


class Job:
    """Something to do on the device.

    `work` is run by the worker; between two steps it calls `go_on`, and what it returns is told at the end. `put` takes
    the job's events, from any thread, and must not wait. `fields` are those that an error may name.
    """

    def __init__(
        self,
        work: Callable[[Job], Mapping[str, Any] | None],
        put: Callable[[str, Mapping[str, Any]], None],
        fields: Iterable[str] = (),
    ) -> None:
        self.id = secrets.token_urlsafe(12)
        self.work = work
        self.fields = tuple(fields)
        self.is_cancelled = False
        self.position: int | None = None
        self._put = put

    def tell(self, event: str, **data: Any) -> None:
        """The client."""
        self._put(event, {"job": self.id, **data})

    def go_on(self) -> None:
        """CancelledError where the client has gone, or cancelled."""
        if self.is_cancelled:
            raise CancelledError


class Queue:
    """Jobs that wait, and the one that runs. `ended` hears of each with its outcome and seconds of work."""

    def __init__(self, most_waiting: int, ended: Callable[[str, float], None] = lambda outcome, seconds: None) -> None:
        self._most_waiting = most_waiting
        self._ended = ended
        self._waiting: list[Job] = []
        self._running: Job | None = None
        self._changed = threading.Condition()
        self._is_stopping = False
        self._usual_s = _FIRST_GUESS_S
        self._worker = threading.Thread(target=self._run, name="worker", daemon=True)
        self._worker.start()

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return len(self._waiting)

    @property
    def running(self) -> str | None:
        """The id of the job that runs."""
        job = self._running
        return job.id if job else None

    @property
    def is_alive(self) -> bool:
        """Whether the worker has not ended yet."""
        return self._worker.is_alive()

    def require_room(self) -> None:
        """RefusedError where a job would be refused."""
        if self._is_stopping:
            raise RefusedError(503, STOPPING)
        if len(self._waiting) >= self._most_waiting:
            wait_s = round(min(max(1.0, self._usual_s), _LONGEST_WAIT_S))
            raise RefusedError(
                429,
                f"the queue is full, with {len(self._waiting)} jobs waiting; ask again in {wait_s} s",
                headers={"Retry-After": str(wait_s)},
            )

    def submit(self, job: Job) -> None:
        """To the end of the queue; RefusedError where it is full, or the server stops."""
        with self._changed:
            self.require_room()
            self._waiting.append(job)
            self._tell_positions()
            self._changed.notify_all()

    def cancel(self, job_id: str) -> bool:
        """Ends a job that waits at once, and one that runs after its current step; no where there is none."""
        with self._changed:
            job = next((job for job in (*self._waiting, self._running) if job and job.id == job_id), None)
            if job is None or job.is_cancelled:
                return False
            job.is_cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)
                self._end(job, "cancelled", 0.0, {})
                self._tell_positions()
            return True

    def stop(self) -> None:
        """Waiting jobs end with a sentence, and the worker after its current one. Takes no more jobs."""
        with self._changed:
            self._is_stopping = True
            for job in self._waiting:
                self._end(job, "error", 0.0, {"error": STOPPING, "field": None})
            self._waiting.clear()
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_stopping)
                if not self._waiting:
                    return
                job = self._running = self._waiting.pop(0)
                self._tell_positions()
            started = time.perf_counter()
            outcome, data = _do(job)
            seconds = time.perf_counter() - started
            with self._changed:
                self._running = None
                if outcome == "done":
                    self._usual_s += 0.3 * (seconds - self._usual_s)
                    data = {"seconds": seconds, **data}
                self._end(job, outcome, seconds, data)
                self._tell_positions()

    def _end(self, job: Job, outcome: str, seconds: float, data: Mapping[str, Any]) -> None:
        self._ended(outcome, seconds)
        job.tell(outcome, **data)

    def _tell_positions(self) -> None:
        """Each job how many are before it, where that has changed."""
        for position, job in enumerate(self._waiting, start=1 if self._running else 0):
            if job.position != position:
                job.position = position
                job.tell("queued", position=position)


def _do(job: Job) -> tuple[str, dict[str, Any]]:
    """A job's work: its outcome, and what its last event says."""
    try:
        job.go_on()
        return "done", dict(job.work(job) or {})
    except CancelledError:
        return "cancelled", {}
    except ShaderfusionError as error:
        return "error", {"error": str(error), "field": field_of(error, job.fields)}
    except Exception:  # the server lives on, whatever one job finds
        traceback.print_exc(file=sys.stderr)
        return "error", {"error": "the server failed; its log says where", "field": None}
