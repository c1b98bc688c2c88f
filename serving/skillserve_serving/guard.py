"""Runs a command that dies with its starter: `python -I -S guard.py STARTER_PID COMMAND…`.

Asks the kernel for SIGKILL when the starter dies, then becomes the command: same pid, no process in between.
A `preexec_fn` could do the same but is not safe beside threads. The kernel counts the starting THREAD, so a
server is to be started from a thread that lives as long as the server shall.
"""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    starter, command = int(sys.argv[1]), sys.argv[2:]
    # SIGKILL, since a Triton with a dead stub can hang in SIGTERM; its stubs notice within seconds and leave.
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        sys.exit(f"prctl: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != starter:
        sys.exit("the starter is gone")
    os.execv(command[0], command)  # noqa: S606 - no shell is wanted
