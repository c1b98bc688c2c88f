"""Sequences to rows in bulk: sorted, in runs within a token budget, whatever computes them.

A run that is shed waits and is sent again. A run that fails is halved until the rows at fault are alone.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from threading import Event, Lock
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from skillserve.card import ScoreKind
from skillserve.errors import RepositoryError, RequestRejected, ServerError, ServerOverloaded, ServerUnreachable
from skillserve.pairs import reading_order
from skillserve.tensors import Ids, Role, token_budget_batches
from skillserve_client.wire import Floats, Inference, ServedModel

__all__ = ["Engine", "Inferred", "Tokens"]

Tokens = Callable[[int], object]
"""Called with the number of tokens that were just computed."""

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0

_OF_ROWS = frozenset({ServerError, RequestRejected})
"""What a row can be at fault for; lost connections, full queues and timeouts are the server's."""

_ONE_TOKEN = np.zeros(1, np.int32)
"""A sequence that every sound model answers: id 0 is in every vocabulary."""


@dataclass(frozen=True, slots=True)
class Inferred:
    """What became of a list of sequences."""

    rows: Floats
    """`[n, D]` or `[n]`, or of token embedders `[T, D]`; what stands at a refused one means nothing."""
    refused: dict[int, str]
    """Position of a sequence → why."""


class Engine:
    """One way to compute, at most `num_workers` runs at once. Close it, or use it in a `with` block."""

    def __init__(
        self,
        inference: Inference,
        *,
        num_workers: int,
        max_run_tokens: int,
        patience_s: float,
        timeout_s: float | None = None,
    ) -> None:
        self._inference = inference
        self._max_run_tokens = max_run_tokens
        self._patience_s = patience_s
        # A server that works through the runs in turn lets the last one wait for the others.
        self._timeout_s = None if timeout_s is None else timeout_s * num_workers
        self._pool = ThreadPoolExecutor(num_workers, thread_name_prefix="skillserve-run")
        self._stopped = Event()
        self._lock = Lock()
        self.num_repeats = 0
        """Runs that were sent again, since the server shed them or was away."""

    def served(self, role: Role) -> ServedModel:
        """Describe the model of a role."""
        return self._inference.served(role)

    def require_same(self, before: ServedModel) -> None:
        """Refuse a model that changed since; RepositoryError."""
        now = self._inference.served(before.role)
        if (now.digest, now.graph_digest) != (before.digest, before.graph_digest):
            raise RepositoryError(
                f"{before.role} on the server",
                got=f"{now.digest[:12]}, graph {now.graph_digest[:12]}, at the end of a shard",
                wanted=f"{before.digest[:12]}, graph {before.graph_digest[:12]}, as at the start",
                fix="This shard was not written. Serve the model that the run began with, or score with --fresh.",
            )

    def infer(
        self, role: Role, sequences: Sequence[Ids], *, digest: str, advance: Tokens, score_kind: ScoreKind = "cosine"
    ) -> Inferred:
        """Rows in the order of the sequences; those that no server could answer are refused, each on its own.

        Raises BundleError for another model than `digest`, and ServerError when the server, not a row, is at fault.
        """
        model = self.served(role)
        lens = np.fromiter(map(len, sequences), np.int64, len(sequences))
        # Longest first: runs are uniform, and memory peaks at once and not after hours. But a packed graph that reads
        # sides of pairs apart reads a request once a run, so there pairs of one request stay together.
        key = reading_order(score_kind) if model.layout == "packed" else len
        order = np.array(sorted(range(len(sequences)), key=lambda i: key(sequences[i]), reverse=True), np.int64)
        runs = [order[chosen] for chosen in token_budget_batches(lens[order].tolist(), max_tokens=self._max_run_tokens)]
        ends = np.cumsum([model.num_rows([sequence]) for sequence in sequences], dtype=np.int64)
        rows = np.zeros((model.num_rows(sequences), *model.no_rows().shape[1:]), np.float32)
        refused: dict[int, str] = {}
        futures: dict[Future[Inferred], tuple[list[int], int]] = {}
        try:
            for members in runs:
                part = [sequences[i] for i in members]
                futures[self._pool.submit(self._run, role, part, digest)] = members.tolist(), int(lens[members].sum())
            for future in as_completed(futures):
                places, num_tokens = futures.pop(future)  # and with it its rows
                done = future.result()
                rows[_places(ends, places)] = done.rows
                refused |= {places[i]: why for i, why in done.refused.items()}
                advance(num_tokens)
        except BaseException:
            self._stopped.set()
            for future in futures:
                future.cancel()
            raise
        return Inferred(rows, refused)

    def close(self) -> None:
        """Stop; a run that is being computed is not waited for."""
        self._stopped.set()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, role: Role, sequences: Sequence[Ids], digest: str) -> Inferred:
        """One run, or its halves."""
        try:
            return Inferred(self._patiently(role, sequences, digest), {})
        except ServerError as error:
            if type(error) not in _OF_ROWS:
                raise
            if len(sequences) == 1:
                return self._alone(role, sequences, digest, error)
        middle = len(sequences) // 2
        first, second = (self._run(role, half, digest) for half in (sequences[:middle], sequences[middle:]))
        moved = {middle + i: why for i, why in second.refused.items()}
        return Inferred(np.concatenate([first.rows, second.rows]), first.refused | moved)

    def _alone(self, role: Role, sequences: Sequence[Ids], digest: str, error: ServerError) -> Inferred:
        """A sequence that failed alone: it is at fault if the model is well, and fails on it once more.

        Whoever fails on a single token fails on everything, and no row is to blame: raises the error then.
        """
        try:
            self._patiently(role, [_ONE_TOKEN], digest)
        except ServerError:
            raise error from None
        try:
            return Inferred(self._patiently(role, sequences, digest), {})
        except ServerError as again:
            if type(again) not in _OF_ROWS:
                raise
            why = f"the model refused it: {again.got}; wanted {again.wanted}"
        model = self.served(role)
        return Inferred(np.zeros((model.num_rows(sequences), *model.no_rows().shape[1:]), np.float32), {0: why})

    def _patiently(self, role: Role, sequences: Sequence[Ids], digest: str) -> Floats:
        """Send; as long as the server sheds or is away, wait and send again, until the patience ends."""
        deadline, ceiling_s = time.monotonic() + self._patience_s, _FIRST_PAUSE_S
        while True:
            try:
                return self._inference.infer(role, sequences, timeout_s=self._timeout_s, digest=digest)
            except (ServerOverloaded, ServerUnreachable):
                # Jitter, since all workers were shed at once, and would all come back at once.
                pause_s = random.uniform(ceiling_s / 2, ceiling_s)  # noqa: S311 - jitter, not cryptography
                if time.monotonic() + pause_s >= deadline or self._stopped.wait(pause_s):
                    raise
            ceiling_s = min(ceiling_s * 2, _LONGEST_PAUSE_S)
            with self._lock:
                self.num_repeats += 1


def _places(ends: npt.NDArray[np.int64], members: Sequence[int]) -> npt.NDArray[np.int64]:
    """Rows of these sequences, by the ends of all."""
    return np.concatenate([np.arange(ends[i - 1] if i else 0, ends[i]) for i in members])
