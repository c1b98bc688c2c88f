"""A bound on what is in flight, shared fairly by threads."""

from __future__ import annotations

from collections import deque
from threading import Event, Lock

__all__ = ["Slots"]


class Slots:
    """A semaphore that serves in the order of asking.

    `threading.Semaphore` lets a thread that just released a slot take it again before those who wait for it, so
    bulk work could hold up a search for as long as it lasts.
    """

    def __init__(self, num: int) -> None:
        self._num_free = num
        self._waiting: deque[Event] = deque()
        self._lock = Lock()

    def take(self, timeout_s: float) -> None:
        """Wait for a slot; raises TimeoutError if none became free in time."""
        with self._lock:
            if self._num_free:
                self._num_free -= 1
                return
            turn = Event()
            self._waiting.append(turn)
        given = False
        try:
            given = turn.wait(timeout_s)
        finally:  # too late, or interrupted
            if not given:
                self._step_back(turn)
        if not given:
            raise TimeoutError

    def give(self) -> None:
        """Hand the slot to whoever waits longest."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._num_free += 1

    def _step_back(self, turn: Event) -> None:
        with self._lock:
            if turn in self._waiting:
                self._waiting.remove(turn)
                return
        self.give()  # the slot came in the very moment of leaving: it goes to the next one
