"""Whose turn it is: a thread that keeps a schedule comes before all others of the machine, where the system allows it.

A server that shares its cores computes in stretches of milliseconds, and a request whose moment comes meanwhile would
wait for the end of one. Linux gives real-time priority to whoever has CAP_SYS_NICE or a limit for it (RLIMIT_RTPRIO).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["first_of_all", "may_be_first"]


@contextmanager
def first_of_all() -> Iterator[bool]:
    """This thread, and not those that it makes, before all others; says whether the system allowed it."""
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except OSError:  # not permitted; a sandbox may know no such call
        yield False
        return
    try:
        yield True
    finally:
        # The flag is kept: without CAP_SYS_NICE the kernel would refuse to take it back, and the priority with it.
        with suppress(OSError):
            os.sched_setscheduler(0, policy | os.SCHED_RESET_ON_FORK, parameters)


def may_be_first() -> bool:
    """Whether `first_of_all` does something here; asked in a thread that ends with the answer."""
    answers: list[bool] = []

    def ask() -> None:
        with first_of_all() as allowed:
            answers.append(allowed)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return answers == [True]
