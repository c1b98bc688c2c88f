"""The engine: rows where they belong, poison alone, patience with a server that sheds, none with one that is ill."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import grpc
import numpy as np
import pytest

from skillserve.errors import BundleError, RepositoryError, RequestRejected, ServerError, ServerOverloaded
from skillserve.settings import ClientSettings
from skillserve.tensors import Ids
from skillserve_client import Triton
from skillserve_client.batch.ahead import running_ahead
from skillserve_client.batch.engine import Engine

SHED = (grpc.StatusCode.UNAVAILABLE, "Exceeds maximum queue size")


def sequences_of(lens: Sequence[int], first: int = 5) -> list[Ids]:
    rng = np.random.default_rng(3)
    return [rng.integers(first, 60, length).astype(np.int32) for length in lens]


class Recorded:
    """Remembers what it was sent, and lets some sequences fail."""

    def __init__(self, fake: Any, poison: Callable[[Ids], bool], error: ServerError | None = None) -> None:
        self.fake, self.poison = fake, poison
        self.error = error or ServerError("fake", got="NaN", wanted="numbers", fix="None.")
        self.runs: list[int] = []

    def served(self, role: Any) -> Any:
        """As the one it stands before."""
        return self.fake.served(role)

    def infer(self, role: Any, sequences: Sequence[Ids], **how: Any) -> Any:
        """Fail where there is poison."""
        self.runs.append(sum(map(len, sequences)))
        if any(self.poison(sequence) for sequence in sequences):
            raise self.error
        return self.fake.infer(role, sequences, **how)


def never(_sequence: Ids) -> bool:
    return False


def engine_of(inference: Any, **changes: Any) -> Engine:
    return Engine(inference, **{"num_workers": 2, "max_run_tokens": 64, "patience_s": 5.0} | changes)


def test_rows_come_back_in_order_and_runs_keep_to_the_budget(fake: Any, computed: Any) -> None:
    sequences = sequences_of([3, 40, 7, 7, 1, 33, 12, 5, 48])
    recorded, counted = Recorded(fake, never), []
    with engine_of(recorded) as engine:
        found = engine.infer("embedder", sequences, digest="e" * 64, advance=counted.append)
        nothing = engine.infer("embedder", [], digest="e" * 64, advance=counted.append)
    assert np.array_equal(found.rows, computed("embedder", sequences))
    assert not found.refused
    assert nothing.rows.shape == (0, found.rows.shape[1])
    assert sum(counted) == sum(map(len, sequences)) == sum(recorded.runs)
    assert max(recorded.runs) <= 64
    assert len(recorded.runs) < len(sequences)


def test_pairs_whose_sides_are_read_apart_keep_to_their_requests(fake: Any, computed: Any) -> None:
    """Lengths alone would have put them in turns; the budget still cuts, and every row comes home."""
    requests = [np.array([2, word, word, 3], np.int32) for word in (7, 9, 11)]
    skills = [np.array([2, *[20] * length, 3], np.int32) for length in (2, 9, 5, 7)]
    pairs = [np.concatenate([request, skill]) for skill in skills for request in requests]
    sent: list[Ids] = []

    def seen(sequence: Ids) -> bool:
        sent.append(sequence)
        return False

    with engine_of(Recorded(fake, seen), num_workers=1, max_run_tokens=30) as engine:
        found = engine.infer("reranker", pairs, digest="f" * 64, score_kind="max_sim", advance=lambda _: None)
    assert np.array_equal(found.rows, computed("reranker", pairs))
    asked = [int(pair[1]) for pair in sent]
    assert len(asked) == len(pairs)
    assert sum(before != after for before, after in pairwise(asked)) == len(requests) - 1
    lens = [len(pair) for pair in sent]
    assert all(lens[start : start + 4] == sorted(lens[start : start + 4], reverse=True) for start in (0, 4, 8))


@pytest.mark.parametrize("bad", [[0], [8], [2, 3, 7], list(range(9))])
def test_poison_is_found_alone_and_its_neighbours_get_their_rows(fake: Any, computed: Any, bad: list[int]) -> None:
    sequences = sequences_of([9, 4, 4, 6, 2, 8, 3, 3, 1])
    for i in bad:
        sequences[i][0] = 61
    with engine_of(Recorded(fake, lambda sequence: 61 in sequence)) as engine:
        found = engine.infer("embedder", sequences, digest="e" * 64, advance=lambda _: None)
    assert sorted(found.refused) == bad
    assert all(why == "the model refused it: NaN; wanted numbers" for why in found.refused.values())
    sound = [i for i in range(9) if i not in bad]
    if sound:
        assert np.array_equal(found.rows[sound], computed("embedder", [sequences[i] for i in sound]))


def test_who_failed_while_the_server_was_ill_is_asked_again_and_not_blamed(fake: Any, computed: Any) -> None:
    """A process behind the server dies and is replaced: what it was busy with fails once, and then no more."""
    sequences = sequences_of([9, 4, 4])
    left = [3]

    def once(sequence: Ids) -> bool:
        left[0] -= len(sequence) == 9 and left[0] > 0
        return len(sequence) == 9 and left[0] > 0

    with engine_of(Recorded(fake, once), num_workers=1) as engine:
        found = engine.infer("embedder", sequences, digest="e" * 64, advance=lambda _: None)
    assert not found.refused
    assert np.array_equal(found.rows, computed("embedder", sequences))


def test_a_server_that_refuses_everything_is_an_error_and_no_row_is_blamed(fake: Any) -> None:
    closed = RequestRejected("fake", got="This protocol is restricted", wanted="x", fix="y")
    with (
        engine_of(Recorded(fake, lambda _: True, closed)) as engine,
        pytest.raises(RequestRejected, match="restricted"),
    ):
        engine.infer("embedder", sequences_of([3, 4]), digest="e" * 64, advance=lambda _: None)


def test_another_model_and_a_model_that_changed_are_errors(fake: Any) -> None:
    with engine_of(fake) as engine:
        before = engine.served("embedder")
        with pytest.raises(BundleError):
            engine.infer("embedder", sequences_of([3]), digest="0" * 64, advance=lambda _: None)
        engine.require_same(before)
        fake.digests["embedder"] = "a" * 64
        with pytest.raises(RepositoryError, match="at the end of a shard"):
            engine.require_same(before)


def test_a_shed_run_waits_and_is_sent_again_over_the_wire(wire_server: Any, computed: Any) -> None:
    """A real gRPC server: four requests are shed, as Triton does when its queue is full."""
    wire_server.aborts += [SHED] * 4
    sequences = sequences_of([10, 20, 30, 15, 8, 44])
    with (
        Triton(ClientSettings(url=wire_server.url, timeout_s=20, num_in_flight=2)) as triton,
        engine_of(triton, patience_s=30.0, timeout_s=20.0) as engine,
    ):
        found = engine.infer("embedder", sequences, digest="e" * 64, advance=lambda _: None)
        assert engine.num_repeats == 4
    assert np.array_equal(found.rows, computed("embedder", sequences))
    assert wire_server.most_at_once <= 2


def test_patience_ends(wire_server: Any) -> None:
    wire_server.aborts += [SHED] * 1000
    with (
        Triton(ClientSettings(url=wire_server.url, timeout_s=20)) as triton,
        engine_of(triton, patience_s=0.3) as engine,
        pytest.raises(ServerOverloaded),
    ):
        engine.infer("embedder", sequences_of([10]), digest="e" * 64, advance=lambda _: None)


def test_a_nan_of_the_wire_is_the_rows_own(wire_server: Any) -> None:
    wire_server.poison = 61
    sequences = sequences_of([4, 5, 6])
    sequences[1][2] = 61
    with Triton(ClientSettings(url=wire_server.url, timeout_s=20)) as triton, engine_of(triton) as engine:
        found = engine.infer("embedder", sequences, digest="e" * 64, advance=lambda _: None)
    assert list(found.refused) == [1]
    assert "no finite number" in found.refused[1]
    assert np.isfinite(found.rows).all()


def test_the_next_element_is_made_while_this_one_is_used() -> None:
    made, used = [], threading.Event()

    def source() -> Any:
        for i in range(5):
            made.append(i)
            if i == 1:
                used.set()
            yield i

    with running_ahead(source()) as elements:
        assert next(elements) == 0
        assert used.wait(20)  # the second one, although nobody has asked for it
        assert list(elements) == [1, 2, 3, 4]
    assert made == [0, 1, 2, 3, 4]


def test_what_the_source_raises_is_raised_in_its_place_and_leaving_ends_the_thread() -> None:
    closed = threading.Event()

    def source() -> Any:
        try:
            yield 1
            yield 2
            raise ServerError("source", got="a", wanted="b", fix="c")
        finally:
            closed.set()

    with running_ahead(source()) as elements, pytest.raises(ServerError):
        assert list(elements) == [1, 2]
    closed.clear()
    with running_ahead(source()) as elements:
        assert next(elements) == 1
    assert closed.is_set()
    assert not [thread for thread in threading.enumerate() if thread.name == "skillserve-ahead"]
