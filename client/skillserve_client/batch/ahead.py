"""Doing the next thing while this one is waited for."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import Generic, TypeVar

__all__ = ["running_ahead"]

T = TypeVar("T")

_GLANCE_S = 0.1
"""How often a waiting thread looks whether the other one has ended."""


@contextmanager
def running_ahead(source: Generator[T, None, None]) -> Iterator[Iterator[T]]:
    """The same elements, each made in another thread while the one before it is used.

    At most three are in memory: one in use, one waiting, one being made. What the source raises is raised here, in
    its place. When the block ends, so does the thread, after the element that it is at.
    """
    ahead = _Ahead(source)
    thread = Thread(target=ahead.make, name="skillserve-ahead", daemon=True)
    thread.start()
    try:
        yield ahead.elements()
    finally:
        ahead.stopped.set()
        thread.join()


class _Ahead(Generic[T]):
    """What both threads see."""

    def __init__(self, source: Generator[T, None, None]) -> None:
        self._source = source
        self._made: Queue[tuple[T] | BaseException | None] = Queue(maxsize=1)
        """Elements, each in a tuple of one; what the source raised; None at its end."""
        self.stopped = Event()

    def make(self) -> None:
        """In the other thread."""
        end: BaseException | None = None
        try:
            with closing(self._source):  # here, where what it holds was opened
                for element in self._source:
                    self._put((element,))
                    if self.stopped.is_set():
                        break
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to whoever waits for the element
            end = error
        self._put(end)

    def elements(self) -> Iterator[T]:
        """In the thread that uses them."""
        while True:
            try:
                made = self._made.get(timeout=_GLANCE_S)
            except Empty:  # looked at now and then, so that Ctrl-C is heard
                continue
            if made is None:
                return
            if isinstance(made, BaseException):
                raise made
            yield made[0]

    def _put(self, made: tuple[T] | BaseException | None) -> None:
        while not self.stopped.is_set():
            try:
                self._made.put(made, timeout=_GLANCE_S)
            except Full:
                continue
            return
