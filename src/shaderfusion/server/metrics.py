"""What /metrics says, in the text format of Prometheus."""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

__all__ = ["Metrics"]

_BUCKETS_S = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600)
_STATM = Path("/proc/self/statm")


class Metrics:
    """Counts of what was done. Any thread may count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: Counter[str] = Counter({"done": 0, "cancelled": 0, "error": 0})
        self._refused: Counter[int] = Counter()
        self._pictures = 0
        self._buckets = [0] * len(_BUCKETS_S)
        self._sum_s = 0.0

    def ended(self, outcome: str, seconds: float) -> None:
        """A job; those that are done are in the histogram."""
        with self._lock:
            self._jobs[outcome] += 1
            if outcome == "done":
                self._sum_s += seconds
                for index, bound in enumerate(_BUCKETS_S):
                    self._buckets[index] += seconds <= bound

    def made_picture(self) -> None:
        with self._lock:
            self._pictures += 1

    def refused(self, status: int) -> None:
        """A request."""
        with self._lock:
            self._refused[status] += 1

    def text(self, gauges: Mapping[str, tuple[str, float]]) -> str:
        """With gauges by name, each with what it means."""
        lines: list[str] = []

        def add(name: str, kind: str, about: str, values: Mapping[str, float]) -> None:
            lines.extend([f"# HELP shaderfusion_{name} {about}", f"# TYPE shaderfusion_{name} {kind}"])
            lines.extend(f"shaderfusion_{name}{suffix} {value:g}" for suffix, value in values.items())

        with self._lock:
            jobs = {f'{{outcome="{outcome}"}}': count for outcome, count in self._jobs.items()}
            add("jobs_total", "counter", "Jobs that ended.", jobs)
            refused = {f'{{status="{status}"}}': count for status, count in sorted(self._refused.items())}
            add("requests_refused_total", "counter", "Requests that were answered with an error.", refused)
            add("pictures_total", "counter", "Pictures that were made.", {"": self._pictures})
            buckets = dict(zip((f'_bucket{{le="{bound:g}"}}' for bound in _BUCKETS_S), self._buckets, strict=True))
            num_done = self._jobs["done"]
            values = {**buckets, '_bucket{le="+Inf"}': num_done, "_sum": self._sum_s, "_count": num_done}
            add("job_seconds", "histogram", "Work for a job, without its time in the queue.", values)
        for name, (about, value) in {**gauges, **_process()}.items():
            add(name, "gauge", about, {"": value})
        return "\n".join(lines) + "\n"


def _process() -> dict[str, tuple[str, float]]:
    """Of this process, where the system says it."""
    try:
        pages = int(_STATM.read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return {}
    return {"resident_memory_bytes": ("The server's memory on the host.", pages * os.sysconf("SC_PAGE_SIZE"))}
