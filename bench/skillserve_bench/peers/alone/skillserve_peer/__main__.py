"""Open an engine on a job, say so on stdout, and serve until told to stop."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from .engines import ENGINES
from .job import Job
from .lines import serve


async def _run(name: str, job: Job, told: int) -> None:
    def ready(port: int) -> None:
        line = json.dumps({"event": "ready", "port": port, "pid": os.getpid(), "threads": job.threads})
        os.write(told, line.encode() + b"\n")

    async with ENGINES[name](job) as search:
        await serve(search, ready)


def main() -> None:
    """Stdout carries one line; whatever a library prints goes to stderr."""
    told = os.dup(1)
    os.dup2(2, 1)
    name, folder = sys.argv[1:]
    asyncio.run(_run(name, Job.read(Path(folder)), told))


main()
