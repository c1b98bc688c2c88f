"""A crew of many: workers of Ray that hold the models or a channel, each with a shard in hand and one at its elbow.

This process reads, decides what is left, and writes; a worker gets records and gives back a file's content. So its
death loses nothing but the shard in hand, which another one gets, a bounded number of times.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Generator, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Generic

from skillserve.console import talk
from skillserve.errors import ServerError
from skillserve.tensors import Role
from skillserve_client.batch.ahead import running_ahead
from skillserve_client.batch.cluster import Cluster
from skillserve_client.batch.crew import Found, Scored, Task, WorkerDied, score_shard
from skillserve_client.batch.engine import Tokens
from skillserve_client.batch.inputs import R
from skillserve_client.batch.orders import Order
from skillserve_client.wire import ServedModel

__all__ = ["Worker", "Workers"]

_HAND = 2
"""Shards that a worker is given at once: it computes one, and need not wait for the next."""

_GLANCE_S = 1.0
"""How often a waiting run looks about, so that Ctrl-C is heard."""

_LONGEST_START_S = 300.0
"""How long a run goes without any worker, at first or when all have died: others may hold the cores for a while."""

_START = "start"


class Worker:
    """In a process of its own: opens what an order needs once, then computes shard after shard."""

    def __init__(self, order: Order, num_threads: int) -> None:
        self._order, self._num_threads = order, num_threads
        self._held = ExitStack()

    def open(self) -> None:
        """Load the models or connect; raises what `Order.opened` raises."""
        self._job, self._engine = self._held.enter_context(self._order.opened(num_threads=self._num_threads))

    def score(self, found: Found[Any], task: Task) -> Scored:
        """Tokenise and compute a shard."""
        return score_shard(self._job, self._engine, found, None, task, lambda _: None)


class Workers(Generic[R]):
    """The crew; Ray is started when there is something to do, and ends with it."""

    def __init__(self, order: Order, models: Mapping[Role, ServedModel]) -> None:
        """Raises MissingExtraError without Ray."""
        self._order, self._models = order, models
        score = order.settings.score
        self._cluster = Cluster(
            address=score.ray_address, num_workers=score.num_workers, worker_cores=score.worker_cores
        )

    def served(self, role: Role) -> ServedModel:
        """Describe the model of a role."""
        return self._models[role]

    def scored(
        self, found: Generator[Found[R], None, None], task: Task, advance: Tokens
    ) -> Generator[tuple[Found[R], Scored | None], None, None]:
        """In the order in which they are finished."""
        with running_ahead(found) as shards:
            # What was finished before is told at once; Ray may never be needed.
            first = yield from _pass_finished(shards)
            if first is not None:
                with self._cluster as cluster:
                    shift = _Shift(cluster, self._order, task, first)
                    while (yield from shift.hand_out(shards)):
                        for each, answer in shift.collect():
                            advance(answer.num_tokens)
                            yield each, answer


@dataclass
class _Desk(Generic[R]):
    """A worker, and its calls in the order in which it answers them; the first is what it is at."""

    worker: Any
    calls: deque[tuple[Any, Found[R] | None]]
    """Each with its shard; None: it opens."""

    @property
    def is_open(self) -> bool:
        return not self.calls or self.calls[0][1] is not None


class _Shift(Generic[R]):
    """Workers at work on what is left."""

    def __init__(self, cluster: Cluster, order: Order, task: Task, first: Found[R]) -> None:
        self._cluster, self._score = cluster, order.settings.score
        self._order, self._task = cluster.share(order.with_whole_paths()), cluster.share(task)
        self._left: deque[Found[R]] = deque([first])
        """To be handed out before anything new."""
        self._all_read = self._any_opened = False
        self._deaths: Counter[str] = Counter()
        """By shard; before a worker's first one, those in a row."""
        self._last_open = time.monotonic()
        """When a worker was last seen open; before the first one, when they were hired."""
        self._desks: list[_Desk[R]] = [self._hired() for _ in range(cluster.num_workers)]

    def hand_out(self, shards: Iterator[Found[R]]) -> Generator[tuple[Found[R], None], None, bool]:
        """Give shards to whoever has too few; whether there is anything to wait for then."""
        for desk in self._who_is_next():
            if not self._left and not self._all_read:
                shard = yield from _pass_finished(shards)
                self._left.extend([shard] if shard else [])
                self._all_read = shard is None
            if self._left:
                shard = self._left.popleft()
                desk.calls.append((self._cluster.call(desk.worker, "score", shard, self._task), shard))
        return bool(self._awaited())

    def collect(self) -> Iterator[tuple[Found[R], Scored]]:
        """What is finished by now, or within a glance; the dead are replaced, and their shards taken back."""
        ended = set(self._cluster.ended(self._awaited(), timeout_s=_GLANCE_S))
        for i, desk in enumerate(self._desks):
            while desk.calls and desk.calls[0][0] in ended:
                call, shard = desk.calls[0]
                try:
                    answer = self._cluster.answer(call)
                except WorkerDied as death:
                    if desk.is_open:  # perhaps long ago, while results were written; its successor has just been hired
                        self._last_open = time.monotonic()
                    self._blame(shard, str(death))
                    self._left.extendleft(reversed([each for _, each in desk.calls if each]))
                    self._cluster.dismiss(desk.worker)
                    self._desks[i] = self._hired()
                    break
                desk.calls.popleft()
                if shard is not None:
                    yield shard, answer
                else:
                    self._any_opened = True
                    self._deaths.pop(_START, None)
        if any(desk.is_open for desk in self._desks):
            self._last_open = time.monotonic()
        elif time.monotonic() - self._last_open > _LONGEST_START_S:
            raise self._without_workers()

    def _who_is_next(self) -> Iterator[_Desk[R]]:
        """One shard for each, before anyone gets a second."""
        for size in range(_HAND):
            yield from (desk for desk in self._desks if desk.is_open and len(desk.calls) == size)

    def _awaited(self) -> list[Any]:
        """Calls; whoever still opens is not waited for when there is nothing more to hand out."""
        more = bool(self._left) or not self._all_read
        return [call for desk in self._desks for call, shard in desk.calls if shard or more]

    def _hired(self) -> _Desk[R]:
        worker = self._cluster.hire(Worker, self._order, self._score.worker_cores)
        return _Desk(worker, deque([(self._cluster.call(worker, "open"), None)]))

    def _blame(self, shard: Found[R] | None, cause: str) -> None:
        """Count a death; ServerError when there were too many."""
        what = shard.name if shard else _START
        self._deaths[what] += 1
        deaths, most = self._deaths[what], self._score.worker_tries
        place = f"on shard {what}" if shard else "before its first shard"
        if deaths < most:
            talk(f"A worker died {place} ({cause}); it is tried again, {deaths + 1} of {most}.")
            return
        raise ServerError(
            f"worker of Ray {place}",
            got=f"{deaths} dead in turn: {cause}",
            wanted="one that lives until it is done",
            fix="Where memory was short, cut smaller requests (--max-request-tokens) or take fewer workers "
            "(--num-workers), and run the command again: finished shards are kept. With `--engine "
            f"{self._score.worker_engine}` in place of ray it goes on in one process, where its own error is seen.",
        )

    def _without_workers(self) -> ServerError:
        what = "no open worker in place of the dead" if self._any_opened else "no open worker"
        return ServerError(
            f"Ray at {self._score.ray_address or 'this machine'}",
            got=f"{what} after {_LONGEST_START_S:.0f} s; {len(self._desks)} are opening or wait for cores, of which "
            f"{self._cluster.num_free_cores()} are free",
            wanted=f"one that has opened, with {self._score.worker_cores} cores",
            fix="See who holds cores, or what a worker waits for: ray status. Then run the command again: finished "
            "shards are kept.",
        )


def _pass_finished(shards: Iterator[Found[R]]) -> Generator[tuple[Found[R], None], None, Found[R] | None]:
    """The next shard that is to be computed; those finished before it are told of. None: there are no more."""
    for each in shards:
        if each.receipt is None:
            return each
        yield each, None
    return None
