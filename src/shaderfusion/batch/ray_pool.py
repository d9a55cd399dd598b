"""Jobs spread over the GPUs of a Ray cluster, by Ray's actor pool and its retries. Ray is an extra, imported if needed.

A worker is an actor with a GPU of its own. One that dies is started again by Ray, wherever there is room, and its job
with it. A worker without more jobs is let go, so that there is room where it was.
"""

from __future__ import annotations

import os
import re
import socket
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from shaderfusion.arguments import missing_extra
from shaderfusion.errors import DeviceError, DeviceLostError, InputError, ShaderfusionError

__all__ = ["spread"]

_RETRIES = 3
"""Of a job whose worker dies; more, and it may be the job that kills them."""

_REACHABLE_S = 5.0

Job = TypeVar("Job")
Result = TypeVar("Result")
OpenWorker = Callable[[str | None], Callable[[Job], Result]]
"""Called on a worker with the number of its GPU on that machine, or None, before its first job; can be pickled."""


def spread(
    open_worker: OpenWorker[Job, Result],
    jobs: Sequence[Job],
    *,
    address: str,
    num_workers: int | None,
    is_over: Callable[[], bool],
) -> Iterator[tuple[Job, Result | DeviceError]]:
    """Each job with what a worker made of it, as soon as it is; with an error where its workers died again and again.

    By default there is a worker for each GPU, or, in a cluster without any, for each machine. Once it `is_over`, no
    more jobs are begun. InputError without Ray, its cluster, so many GPUs or CPUs, or where a worker cannot be opened.
    """
    ray = _import_ray()
    with _cluster(ray, address):
        number, options = _workers(ray.nodes(), num_workers)
        actor = ray.remote(_Worker).options(max_restarts=-1, max_task_retries=_RETRIES, **options)
        pool = ray.util.ActorPool([actor.remote(open_worker, os.getcwd()) for _ in range(min(number, len(jobs)))])
        waiting, reason = deque(enumerate(jobs)), ""
        given: dict[int, Job] = {}
        while True:
            while waiting and pool.has_free() and not is_over():
                index, job = waiting.popleft()
                given[index] = job
                pool.submit(lambda worker, entry: worker.make.remote(*entry), (index, job))
            if not pool.has_next():
                break
            while pool.has_free():
                pool.pop_idle()  # Ray ends a worker that nothing refers to
            try:
                index, result = pool.get_next_unordered()
            except ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, ShaderfusionError) else error from None
            except ray.exceptions.RayError as error:  # of a job that stays in `given`
                reason = str(error).strip().splitlines()[-1].strip()
            else:
                yield given.pop(index), result
        if waiting and not is_over():
            raise InputError(
                f"no worker of Ray is left ({reason}); all its machines must have shaderfusion and its extra ray"
            )
        for job in given.values():
            yield job, DeviceError(f"its worker died again and again ({reason}); see Ray's logs on that machine")


class _Worker:
    """The actor. What it opens stays open from job to job."""

    def __init__(self, open_worker: OpenWorker[Any, Any], folder: str) -> None:
        with suppress(OSError):  # where there is no such folder, names of the hub and absolute paths will do
            os.chdir(folder)
        self._open = open_worker
        self._make: Callable[[Any], Any] | None = None

    def make(self, index: int, job: Any) -> tuple[int, Any]:
        import ray  # pyright: ignore[reportMissingImports]

        try:
            if self._make is None:
                gpus = ray.get_runtime_context().get_accelerator_ids().get("GPU")
                self._make = self._open(gpus[0] if gpus else None)
            return index, self._make(job)
        except DeviceLostError:
            os._exit(1)  # as if it had died: a new process may find the device again
        except ShaderfusionError as error:
            raise InputError(f"a worker of Ray on {socket.gethostname()} cannot be used: {error}") from None


def _import_ray() -> Any:
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.util  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise missing_extra("--ray", "ray") from None
    return ray


@contextmanager
def _cluster(ray: Any, address: str) -> Iterator[None]:
    """A cluster that this process belongs to, or for "local" one of its own, which ends with it."""
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
        options["include_dashboard"] = False
    try:
        if place := re.fullmatch(r"([^/]+):(\d{1,5})", address):
            # Ray itself would try for a minute.
            socket.create_connection((place[1], int(place[2])), _REACHABLE_S).close()
        ray.init(address=address, **options)
    except (OSError, OverflowError, RuntimeError, ValueError, SystemExit) as error:
        # Ray 2.60 ends the process where something else answers.
        reason = "no Ray answers there" if isinstance(error, SystemExit) else " ".join(str(error).split())
        raise InputError(
            f"--ray (={address}) must be a cluster that can be reached, as HOST:PORT or auto ({reason}); "
            "without an address, --ray starts its own"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _workers(nodes: Sequence[Mapping[str, Any]], asked: int | None) -> tuple[int, dict[str, Any]]:
    """How many workers a cluster of such nodes, as of `ray.nodes`, is to have, and Ray's options for each."""
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    gpus, cpus = ([int(node.get(name, 0)) for node in alive] for name in ("GPU", "CPU"))
    kind, each = ("GPUs", gpus) if any(gpus) else ("CPUs", cpus)
    if not 1 <= (asked or 1) <= sum(each):
        raise InputError(f"--workers (={asked or 1}) must be at most {sum(each)}, the {kind} of the Ray cluster")
    default = sum(gpus) or sum(map(bool, cpus))
    options = {"num_gpus": 1, "num_cpus": 0} if any(gpus) else {"num_cpus": 1}
    return default if asked is None else asked, {**options, "scheduling_strategy": "SPREAD"}
