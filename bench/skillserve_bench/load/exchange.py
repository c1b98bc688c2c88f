"""Requests and answers over one connection, answers in any order: each bears the number of its request."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

from skillserve.errors import SkillserveError

__all__ = ["Exchange", "opened_exchange"]


class Exchange:
    """Who waits for an answer, by number.

    `receive` gives the next answer, or the error in its place, with its number. It raises when the connection ends;
    everybody who waits is told then what `gone` says.
    """

    def __init__(
        self,
        receive: Callable[[], Awaitable[tuple[int, bytes | SkillserveError]]],
        gone: Callable[[], SkillserveError],
    ) -> None:
        self._receive, self._gone = receive, gone
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[bytes]] = {}
        self._ended = False

    @contextmanager
    def expected(self) -> Iterator[tuple[int, asyncio.Future[bytes]]]:
        """A number for a request and the answer to come; raises what `gone` says if none could."""
        if self._ended:
            raise self._gone()
        number = next(self._numbers)
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            yield number, answer
        finally:
            del self._waiting[number]

    async def listen(self) -> None:
        """Hand out answers until the connection ends; those whose request was given up are dropped."""
        try:
            while True:
                number, found = await self._receive()
                answer = self._waiting.get(number)
                if answer is None or answer.done():
                    continue
                if isinstance(found, SkillserveError):
                    answer.set_exception(found)
                else:
                    answer.set_result(found)
        finally:
            self._ended = True
            if waiting := [answer for answer in self._waiting.values() if not answer.done()]:
                gone = self._gone()
                for answer in waiting:
                    answer.set_exception(gone)


@asynccontextmanager
async def opened_exchange(
    receive: Callable[[], Awaitable[tuple[int, bytes | SkillserveError]]], gone: Callable[[], SkillserveError]
) -> AsyncIterator[Exchange]:
    """An exchange that listens for as long as the block runs."""
    exchange = Exchange(receive, gone)
    listening = asyncio.create_task(exchange.listen())
    try:
        yield exchange
    finally:
        listening.cancel()
        with suppress(EOFError, OSError, asyncio.CancelledError):
            await listening
