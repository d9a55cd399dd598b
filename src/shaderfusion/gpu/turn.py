"""Whose turn it is to use a device, among several threads: first come, first served."""

from __future__ import annotations

import threading
from collections import deque

__all__ = ["Turn"]


class Turn:
    """A lock as a context manager, served in the order of asking, so that no thread that asks again and again keeps the
    others out. The thread that has it may take it again."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()  # the first of them has the turn
        self._owner: int | None = None
        self._depth = 0

    def __enter__(self) -> None:
        me = threading.get_ident()
        with self._changed:
            if self._owner != me:
                ticket = object()
                self._waiting.append(ticket)
                try:
                    self._changed.wait_for(lambda: self._waiting[0] is ticket)
                except BaseException:  # such as Ctrl-C
                    self._waiting.remove(ticket)
                    self._changed.notify_all()
                    raise
                self._owner = me
            self._depth += 1

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._depth -= 1
            if self._depth == 0:
                self._owner = None
                self._waiting.popleft()
                self._changed.notify_all()
