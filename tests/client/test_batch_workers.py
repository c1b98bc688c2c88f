"""Who gets which shard, who is blamed for a death, and when a run gives up. The real Ray is in tests/e2e."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pytest

from skillserve.errors import BundleError, ServerError
from skillserve.publish import sha256_of
from skillserve.settings import ClientSettings, IndexSettings, ScoreSettings, Settings
from skillserve_client import build_bundle
from skillserve_client.batch import workers
from skillserve_client.batch.crew import Alone, WorkerDied
from skillserve_client.batch.orders import Order
from skillserve_client.batch.run import Run, Spec
from skillserve_client.batch.watching import Summary

NUM_SHARDS = 9
SHARD_ROWS = 2

Dies = Callable[[int, str], bool]
"""Whether the worker of this number, counted as they are hired, dies in a call: `open`, or the place of a shard."""


class InProcess:
    """A cluster whose workers live here: each computes one call whenever anybody waits, and dies when it is told to."""

    def __init__(self, dies: Dies, num_workers: int) -> None:
        self.num_workers = num_workers
        self._dies = dies
        self._queues: list[tuple[Any, deque[int]]] = []
        self._calls: list[tuple[str, Callable[[], Any]]] = []
        self._answers: dict[int, Any] = {}
        self.num_begun = self.num_ended = 0

    def __enter__(self) -> Self:
        self.num_begun += 1
        return self

    def __exit__(self, *error: object) -> None:
        self.num_ended += 1

    def share(self, thing: object) -> object:
        """The thing itself."""
        return thing

    def hire(self, kind: type, *arguments: object) -> int:
        """The number of a worker."""
        self._queues.append((kind(*arguments), deque()))
        return len(self._queues) - 1

    def dismiss(self, worker: int) -> None:
        """Only the dead are dismissed: nothing of theirs is left to compute."""
        assert not self._queues[worker][1]

    def call(self, worker: int, method: str, *arguments: Any) -> int:
        """The number of a call, which waits for its turn."""
        made, queue = self._queues[worker]
        what = method if method == "open" else str(arguments[0].shard.index)
        self._calls.append((what, lambda: getattr(made, method)(*arguments)))
        queue.append(len(self._calls) - 1)
        return queue[-1]

    def ended(self, calls: Sequence[int], *, timeout_s: float) -> list[int]:
        """One more call of each worker is computed."""
        assert timeout_s
        for number, (_, queue) in enumerate(self._queues):
            if queue:
                what, compute = self._calls[queue[0]]
                if self._dies(number, what):
                    while queue:
                        self._answers[queue.popleft()] = WorkerDied("killed")
                else:
                    self._answers[queue.popleft()] = compute()
        return [call for call in calls if call in self._answers]

    def answer(self, call: int) -> Any:
        """What it gave, or the death."""
        answer = self._answers[call]
        if isinstance(answer, WorkerDied):
            raise answer
        return answer


class Crowded(InProcess):
    """A cluster that has cores for the first workers alone: whoever is hired in place of a dead one waits for ever."""

    def call(self, worker: int, method: str, *arguments: Any) -> int:
        """A call that is queued only where somebody is there to take it."""
        number = super().call(worker, method, *arguments)
        if worker >= self.num_workers:
            self._queues[worker][1].clear()
        return number

    def num_free_cores(self) -> int:
        """Somebody else took them."""
        return 0


class Hasty(InProcess):
    """A cluster whose workers come to the end of two calls while nobody looks."""

    def ended(self, calls: Sequence[int], *, timeout_s: float) -> list[int]:
        """Two more calls of each worker are computed."""
        super().ended(calls, timeout_s=timeout_s)
        return super().ended(calls, timeout_s=timeout_s)


@pytest.fixture
def order(world: IndexSettings, wire_server: Any, tmp_path: Path) -> Order:
    wire_server.parameters = {"skillserve_max_sequence_tokens": "48"}
    words = ["resize", "merge", "commit", "chart", "deploy"]
    rows = [{"id": str(i), "name": words[i % 5], "description": f"photo {i}"} for i in range(NUM_SHARDS * SHARD_ROWS)]
    path = tmp_path / "skills.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "no row\n")
    score = ScoreSettings(engine="ray", worker_engine="server", patience_s=0.0)
    settings = Settings(index=world, score=score, client=ClientSettings(url=wire_server.url))
    return Order(job="embed", sources=(path,), settings=settings)


@pytest.fixture
def carry_out(order: Order, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Summary]:
    """Score with workers that die as told; without them, alone."""

    def run(
        out: Path,
        dies: Dies | None = None,
        num_workers: int = 2,
        order: Order = order,
        kind: type[InProcess] = InProcess,
    ) -> Summary:
        spec = Spec(out=out, engine_name=order.computes_with, shard_rows=SHARD_ROWS)
        if dies is None:
            with order.opened() as (job, engine):
                return Run(job, Alone(job, engine), spec).carry_out()
        cluster = kind(dies, num_workers)
        monkeypatch.setattr(workers, "Cluster", lambda **_: cluster)
        try:
            for_workers, job, models = order.described()
            return Run(job, workers.Workers(for_workers, models), spec).carry_out()
        finally:
            assert cluster.num_ended == 1

    return run


def files_of(out: Path) -> dict[str, str]:
    return {path.name: sha256_of(path) for path in (out / "shards").iterdir()}


@pytest.mark.parametrize("num_workers", [1, 2, 12])
def test_workers_leave_what_one_process_leaves(carry_out: Any, tmp_path: Path, num_workers: int) -> None:
    alone = carry_out(tmp_path / "alone")
    crew = carry_out(tmp_path / "crew", lambda _, __: False, num_workers)
    assert files_of(tmp_path / "crew") == files_of(tmp_path / "alone")
    for name in ("manifest.json", "rejects.jsonl"):
        assert (tmp_path / "crew" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    assert (crew.num_rows, crew.num_scored, crew.num_rejects) == (19, 18, 1)
    assert crew.num_tokens == alone.num_tokens


def test_a_death_costs_the_shard_in_hand_and_another_worker_gets_it(
    carry_out: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    carry_out(tmp_path / "alone")
    computed: list[str] = []

    def dies(worker: int, what: str) -> bool:
        computed.append(what)
        return worker == 1 and what not in {"open", "0", "1"}

    carry_out(tmp_path / "crew", dies)
    assert files_of(tmp_path / "crew") == files_of(tmp_path / "alone")
    assert len(computed) == 3 + (NUM_SHARDS + 1) + 1
    assert "A worker died on shard 00000" in capsys.readouterr().err


def test_a_shard_that_no_worker_survives_ends_the_run_by_name_and_its_neighbours_are_not_blamed(
    carry_out: Any, tmp_path: Path
) -> None:
    with pytest.raises(ServerError, match=r"on shard 000004-\w+: got 3 dead in turn: killed; .*are kept"):
        carry_out(tmp_path / "crew", lambda _, what: what == "4")
    left = files_of(tmp_path / "crew")
    assert len(left) >= 4
    assert not any(name.startswith("000004") for name in left)
    assert carry_out(tmp_path / "crew").num_resumed == len(left)


def test_workers_that_die_before_they_begin_end_the_run(carry_out: Any, tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="before its first shard: got 3 dead in turn"):
        carry_out(tmp_path / "crew", lambda _, what: what == "open")


def test_a_run_whose_dead_workers_find_no_successor_ends_after_a_bounded_wait(
    carry_out: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_LONGEST_START_S", 0.05)
    with pytest.raises(
        ServerError, match=r"no open worker in place of the dead after .*; 2 are opening .* 0 are free; .*kept"
    ):
        carry_out(tmp_path / "crew", lambda _, what: what == "4", kind=Crowded)
    left = files_of(tmp_path / "crew")
    assert left
    assert carry_out(tmp_path / "crew").num_resumed == len(left)


def test_a_run_is_never_without_workers_while_one_of_them_is_open(
    carry_out: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "_LONGEST_START_S", 0.0)
    carry_out(tmp_path / "crew", lambda worker, what: worker == 1 and what != "open", kind=Crowded)
    carry_out(tmp_path / "alone")
    assert files_of(tmp_path / "crew") == files_of(tmp_path / "alone")


def test_a_finished_job_starts_no_worker(
    carry_out: Any, order: Order, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    carry_out(tmp_path / "out")
    cluster = InProcess(lambda _, __: False, 2)
    monkeypatch.setattr(workers, "Cluster", lambda **_: cluster)
    spec = Spec(out=tmp_path / "out", engine_name=order.computes_with, shard_rows=SHARD_ROWS)
    for_workers, job, models = order.described()
    assert Run(job, workers.Workers(for_workers, models), spec).carry_out().num_resumed == NUM_SHARDS + 1
    assert cluster.num_begun == 0


def test_an_order_that_travels_names_every_file_from_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker runs in another folder."""
    files = {"tls_ca": Path("ca.pem"), "tls_certificate": Path("me.pem"), "tls_key": Path("me.key")}
    folders = {"models": Path("models"), "bundles": Path("bundles")}
    settings = Settings(client=ClientSettings(tls=True, **files), index=IndexSettings(**folders))
    monkeypatch.chdir(tmp_path)
    sent = Order(job="embed", sources=(), settings=settings).with_whole_paths().settings
    assert {name: getattr(sent.client, name) for name in files} == {name: tmp_path / at for name, at in files.items()}
    assert {name: getattr(sent.index, name) for name in folders} == {
        name: tmp_path / at for name, at in folders.items()
    }


@pytest.fixture
def rank(order: Order, catalogue: Path, world: IndexSettings, fake: Any, tmp_path: Path) -> Order:
    build_bundle(catalogue, fake, index=world)
    path = tmp_path / "requests.jsonl"
    texts = ["resize photo", "merge pdf", "git commit", "send email", "deploy", "rust tests"]
    path.write_text("".join(json.dumps({"id": str(i), "query": text}) + "\n" for i, text in enumerate(texts)))
    return replace(order, job="rank", sources=(path,))


def publish_another(world: IndexSettings, fake: Any, tmp_path: Path) -> None:
    path = tmp_path / "another.jsonl"
    path.write_text(json.dumps({"id": "img", "name": "images", "description": "photo chart plot"}) + "\n")
    build_bundle(path, fake, index=world)


def test_a_replacement_opens_the_bundle_of_the_run_though_another_one_is_live(
    carry_out: Any, rank: Order, world: IndexSettings, fake: Any, tmp_path: Path
) -> None:
    carry_out(tmp_path / "alone", order=rank)

    def dies(worker: int, what: str) -> bool:
        if (worker, what) != (0, "0"):
            return False
        publish_another(world, fake, tmp_path)
        return True

    carry_out(tmp_path / "crew", dies, order=rank)
    assert files_of(tmp_path / "crew") == files_of(tmp_path / "alone")


def test_a_worker_that_opened_another_bundle_than_the_run_writes_nothing(
    rank: Order, world: IndexSettings, fake: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, job, models = rank.described()
    publish_another(world, fake, tmp_path)
    monkeypatch.setattr(workers, "Cluster", lambda **_: InProcess(lambda _, __: False, 2))
    spec = Spec(out=tmp_path / "out", engine_name=rank.computes_with, shard_rows=SHARD_ROWS)
    with pytest.raises(BundleError, match=r"got bundle .*, bundle_digest .* as at the start"):
        Run(job, workers.Workers(rank, models), spec).carry_out()
    assert not files_of(tmp_path / "out")


def test_workers_that_died_while_results_were_written_get_successors_with_time_to_open(
    carry_out: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that only writing moves, each time by more than a run waits for workers."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    collect = workers._Shift.collect

    def slowly_written(shift: Any) -> Any:
        for finished in collect(shift):
            yield finished
            now[0] += 2 * workers._LONGEST_START_S

    monkeypatch.setattr(workers._Shift, "collect", slowly_written)
    summary = carry_out(tmp_path / "crew", lambda worker, what: worker == 0 and what == "1", 1, kind=Hasty)
    assert summary.num_scored == NUM_SHARDS * SHARD_ROWS
