"""BLAS in a process that shares its cores: one thread a product, whatever numpy was built with.

OpenBLAS shares a product among threads of its own, and they spin: for their part while another one has the core, and
for tens of milliseconds after the last product in case there is a next one. Products of several searches wait for each
other besides. Where server or other searches want the cores, that costs more than the second thread gains.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cached_property

from threadpoolctl import ThreadpoolController

__all__ = ["OneThread", "one_thread"]


class OneThread:
    """A limit for the whole process while somebody wants it, since numpy's OpenBLAS knows no other.

    The first one sets it and the last one takes it back; each doing both would have the first one's return set free
    the others, and the last one's leave the limit for good.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._num = 0
        self._limit = ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Products made in this block take one thread each; how many threads there were before is as before, then."""
        with self._lock:
            if self._num == 0:
                self._limit.enter_context(self._libraries.limit(limits=1, user_api="blas"))
            self._num += 1
        try:
            yield
        finally:
            with self._lock:
                self._num -= 1
                if self._num == 0:
                    self._limit.close()

    @cached_property
    def _libraries(self) -> ThreadpoolController:
        """Those that are loaded when it is first asked for: numpy's are, and looking for them takes milliseconds."""
        return ThreadpoolController().select(user_api="blas")


one_thread = OneThread()
"""Of this process."""
