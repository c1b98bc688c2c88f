"""All indexes measured in turns, each in processes of its own."""

from __future__ import annotations

import multiprocessing
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TypeVar

import numpy as np

from skillserve.console import progress
from skillserve.errors import ConfigError, ServerError, SkillserveError
from skillserve.settings import CapacitySettings
from skillserve_bench.alternation import alternate
from skillserve_bench.capacity.growth import Growth, growths
from skillserve_bench.capacity.trials import MILVUS, Order, build, serve, why_no_milvus
from skillserve_bench.capacity.vectors import Source, exact_neighbours, write_vectors
from skillserve_bench.figures import quantile
from skillserve_client.index import STRUCTURES
from skillserve_client.vectors import Rows

__all__ = ["KINDS", "Measured", "measure_field", "recall", "require_kinds"]

KINDS = (*STRUCTURES, MILVUS)

_LITE_SHARE = 4
"""Milvus Lite is measured at a quarter of the sizes: it compares in Python, and a search of 100,000 takes seconds."""

_LIMIT_S, _LIMIT_S_A_NUMBER = 600.0, 5e-5
"""How long a process may take, and how much more for each number of its vectors: 20 ms for 384 of them, several times
what the slowest kinds take on one core."""

Result = TypeVar("Result")


class _Overtime(Exception):
    """A process did not end within its limit, and was killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One kind of index at all sizes."""

    growths: Mapping[str, Growth]
    """`train` and `add` in seconds, `memory` and `disk` in bytes, `search` and `batch` in seconds for each search."""
    recalls: tuple[float, ...]
    """For each size, the median over rounds."""


def require_kinds(kinds: Sequence[str], dim: int) -> None:
    """Refuse kinds that nobody knows, or that cannot hold such vectors; raises ConfigError."""
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ConfigError(
            "setting --kinds",
            got=f"`{unknown[0]}`",
            wanted=f"some of {', '.join(KINDS)}",
            fix="Name them with commas between: --kinds flat,ivf-sq8,hnsw",
        )
    if "ivf-pq" in kinds and dim % 8:
        raise ConfigError(
            f"vectors of {dim} numbers",
            got="the kind ivf-pq, which keeps a byte for eight numbers",
            wanted="a dimension that eight divides",
            fix="Leave ivf-pq out of --kinds, or plan for another --dim.",
        )


def recall(found: Rows, exact: Rows) -> float:
    """Mean share of the exact nearest `[Q, K]` that are among those found `[q, K]`, of the first q queries."""
    return float(np.mean([len(np.intersect1d(*pair)) / len(pair[1]) for pair in zip(found, exact, strict=False)]))


def measure_field(
    source: Source, settings: CapacitySettings, scratch: Path
) -> tuple[dict[str, Measured], dict[str, str]]:
    """Measure every kind at every size, and say of those that are not open here why.

    Raises SkillserveError if a process came to its end, or to none.
    """
    k = settings.top_k
    vectors, queries = scratch / "vectors.npy", scratch / "queries.npy"
    write_vectors(vectors, source, max(settings.rows), seed=settings.seed)
    write_vectors(queries, source, settings.num_queries, seed=settings.seed, stream=2)
    kinds, absent = list(settings.kinds), {}
    if MILVUS in kinds and (why := _why_no_milvus(_emptied(scratch / "probe"))):
        kinds.remove(MILVUS)
        absent[MILVUS] = why
    sizes = {kind: sorted(rows // (_LITE_SHARE if kind == MILVUS else 1) for rows in settings.rows) for kind in kinds}
    every = sorted({rows for ladder in sizes.values() for rows in ladder})
    exact = exact_neighbours(np.load(vectors, mmap_mode="r"), np.load(queries), every, k)

    def trial(kind: str, rows: int) -> Callable[[int], dict[str, float]]:
        limit_s = _LIMIT_S + _LIMIT_S_A_NUMBER * rows * source.dim

        def measure(_number: int) -> dict[str, float]:
            order = Order(
                kind=kind,
                rows=rows,
                vectors=vectors,
                queries=queries,
                folder=_emptied(scratch / "index"),
                top_k=k,
                num_probes=settings.num_probes,
                search_breadth=settings.search_breadth,
            )
            if kind in absent:
                return {}
            try:
                built, served = _in_process(build, order, limit_s=limit_s), _in_process(serve, order, limit_s=limit_s)
            except ServerError as error:  # Milvus gave up on this size; the others are measured all the same
                absent[kind] = error.got
                return {}
            except _Overtime as error:
                if kind == MILVUS:
                    absent[kind] = f"{rows:,} rows of it had no end: {error}"
                    return {}
                raise SkillserveError(
                    f"index `{kind}` of {rows:,} rows",
                    got=str(error),
                    wanted="its figures",
                    fix=f"Measure smaller ones with --rows, or leave {kind} out of --kinds.",
                ) from error
            if served.memory_bytes <= 0:  # and there is no plan without that figure
                absent[kind] = f"opening {rows:,} rows of it took no memory that could be seen (larger --rows do)"
                return {}
            return {
                "train": built.train_s,
                "add": built.add_s,
                "memory": served.memory_bytes,
                "disk": built.disk_bytes,
                "search": served.search_s,
                "batch": served.batch_s,
                "recall": recall(served.places, exact[rows]),
            }

        return measure

    contenders = {_name(kind, rows): trial(kind, rows) for rows in every for kind in kinds if rows in sizes[kind]}
    with progress("indexes", len(contenders) * settings.rounds) as bar:
        # No warm-up: each index has fresh processes, and searches have their own.
        found = alternate(contenders, rounds=settings.rounds, warm_up=0, advance=bar.advance)
    return {
        kind: _measured(kind, ladder, [found[_name(kind, rows)] for rows in ladder])
        for kind, ladder in sizes.items()
        if kind not in absent
    }, absent


def _name(kind: str, rows: int) -> str:
    return f"{kind} of {rows}"


def _measured(kind: str, sizes: Sequence[int], found: Sequence[Sequence[Mapping[str, float]]]) -> Measured:
    def values(figure: str) -> list[list[float]]:
        return [[trial[figure] for trial in size] for size in found]

    figures = {name: values(name) for name in ("train", "add", "memory", "disk", "search", "batch")}
    return Measured(
        growths=growths(kind, sizes, figures),
        recalls=tuple(quantile(size, 0.5) for size in values("recall")),
    )


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _why_no_milvus(folder: Path) -> str | None:
    try:
        return _in_process(why_no_milvus, folder, limit_s=_LIMIT_S)
    except _Overtime as error:
        return str(error)


def _in_process(work: Callable[..., Result], *arguments: object, limit_s: float) -> Result:
    """The result of a function in a process that is new, but has imported what it needs: memory in it is its own.

    Raises what the function raises, _Overtime, and SkillserveError if the process ended without a word.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["skillserve_bench.capacity.trials"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_tell, args=(sender, work, arguments))
    with receiver:
        with sender:  # ours: as long as it is open, nobody hears that the process is gone
            process.start()
        try:
            if not receiver.poll(limit_s):
                raise _Overtime(f"no answer within {limit_s:,.0f} s")
            result, error = receiver.recv()
        except EOFError as end:
            raise SkillserveError(
                f"a process that measures an index ({work.__name__})",
                got="its end before it reported",
                wanted="its figures",
                fix="Look for the reason in the kernel's log (out of memory?), then measure fewer --rows or --kinds.",
            ) from end
        finally:
            process.kill()  # also where it has told its result and does not leave
            process.join()
    if error is not None:
        raise error
    found: Result = result
    return found


def _tell(sender: Connection, work: Callable[..., object], arguments: tuple[object, ...]) -> None:
    try:
        told: tuple[object, Exception | None] = work(*arguments), None
    except Exception as error:  # noqa: BLE001 -- whatever it is, it is raised where somebody waits
        told = None, error
    sender.send(told)
