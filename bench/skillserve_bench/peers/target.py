"""Asking a peer's daemon: one adapter for all of them, one connection for each load process.

The protocol is told where it is served, in `alone/skillserve_peer/lines.py`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from skillserve.errors import DeadlineExceeded, ServerError, ServerUnreachable
from skillserve.framing import mend
from skillserve.text import query_text
from skillserve_bench.load.exchange import Exchange, opened_exchange
from skillserve_bench.load.target import Send
from skillserve_bench.peers.daemon import last_words

__all__ = ["PeerTarget", "peer_payload"]

_LONGEST_LINE = 2**22


@dataclass(frozen=True, slots=True)
class PeerTarget:
    """The whole search, text in to ids out; an answer is the ids, one a line, as `SearchTarget` gives them."""

    name: str
    port: int
    timeout_s: float
    told: Path
    """File of what the daemon says; errors quote its last lines."""

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Send]:
        """One connection; raises ServerUnreachable if nobody answers."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=_LONGEST_LINE)
        except OSError as error:
            raise self._gone(str(error)) from error

        async def receive() -> tuple[int, bytes]:
            if not (line := await reader.readline()):
                raise EOFError
            number, payload = line.split(b" ", 1)
            return int(number), payload

        try:
            async with opened_exchange(receive, partial(self._gone, "the end of its connection")) as exchange:
                yield partial(self._asked, exchange, writer)
        finally:
            writer.close()

    async def _asked(self, exchange: Exchange, writer: asyncio.StreamWriter, payload: bytes) -> bytes:
        with exchange.expected() as (number, answer):
            deadline_ns = time.monotonic_ns() + round(self.timeout_s * 1e9)
            writer.write(b"%d %d %b\n" % (number, deadline_ns, payload))
            try:
                return self._ids(await asyncio.wait_for(answer, self.timeout_s))
            except TimeoutError as error:
                raise DeadlineExceeded(
                    f"peer `{self.name}`",
                    got=f"no answer in {self.timeout_s:g} s",
                    wanted="one",
                    fix="Offer it less, or raise --timeout-s.",
                ) from error

    def _ids(self, payload: bytes) -> bytes:
        found = json.loads(payload)
        if "error" in found:
            raise ServerError(
                f"peer `{self.name}`",
                got=f"{found['error']}; it last said: {last_words(self.told)}",
                wanted="an answer",
                fix=f"Install it again: skillserve bench peers install {self.name}; or measure the others without it.",
            )
        return "\n".join(found["ids"]).encode()

    def _gone(self, got: str) -> ServerUnreachable:
        return ServerUnreachable(
            f"peer `{self.name}` on port {self.port}",
            got=f"{got}; it last said: {last_words(self.told)}",
            wanted="a daemon that answers",
            fix="Remedy what it said, then start the measurement again, or measure the others without it.",
        )


def peer_payload(query_prompt: str, text: str) -> bytes:
    """A request as a daemon reads it: formatted for both models beforehand."""
    text = mend(text)
    return json.dumps({"embed": query_text(query_prompt, text), "rerank": query_text("", text)}).encode()
