"""Vectors to measure indexes with: not evenly spread, since no catalogue is, and the same for every kind.

Shape legend: N vectors, Q queries, K results, D embedding dimension.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from skillserve.errors import ConfigError, OutputError
from skillserve.machine import memory_bytes
from skillserve.settings import IndexSettings
from skillserve_client import open_bundle
from skillserve_client.vectors import Rows
from skillserve_client.wire import Floats

__all__ = ["Source", "exact_neighbours", "mixture", "require_room", "widened", "write_vectors"]

_AT_ONCE = 8_192
"""Vectors that are drawn from one seed: a smaller set is the beginning of a larger one."""
_CLUSTERS, _LATENT = 1_000, 32
_WITHIN, _EVERYWHERE = 0.5, 0.1
_NOISE = 0.4
"""Length of what is added to a unit vector of a bundle: the cosine with it is about 0.93."""
_COPIES = 3
"""Of the largest set, in memory (vectors, index, what a build or Milvus holds beside it) and on the disk."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where vectors come from."""

    told: str
    """In words, for the report."""
    dim: int
    draw: Callable[[np.random.Generator, int], Floats]
    """So many of them, `[n, D]`, of any length."""


def mixture(dim: int, *, seed: int) -> Source:
    """Clusters of unequal sizes that vary in a few directions, and a little in all."""
    rng = np.random.default_rng([seed, 0])
    centres = rng.standard_normal((_CLUSTERS, _LATENT))
    directions = rng.standard_normal((_LATENT, dim)) / np.sqrt(_LATENT)
    shares = 1 / (10 + np.arange(_CLUSTERS))
    shares /= shares.sum()

    def draw(rng: np.random.Generator, num: int) -> Floats:
        latent = centres[rng.choice(_CLUSTERS, num, p=shares)] + _WITHIN * rng.standard_normal((num, _LATENT))
        drawn: Floats = (latent @ directions + _EVERYWHERE * rng.standard_normal((num, dim))).astype(np.float32)
        return drawn

    told = (
        f"Vectors are drawn: {_CLUSTERS:,} clusters of unequal sizes in {_LATENT} directions of {dim}, with a little "
        "noise in all of them. Recall on embeddings of skills is another one; --bundles measures with those."
    )
    return Source(told, dim, draw)


def widened(bundles: Path, settings: IndexSettings) -> Source:
    """The embeddings of a bundle, each drawn many times with noise; raises BundleError."""
    bundle = open_bundle(bundles, index=settings)
    index = bundle.corpus.index
    known = index.vectors(list(index.marks()))

    def draw(rng: np.random.Generator, num: int) -> Floats:
        noise = rng.standard_normal((num, index.dim)) * (_NOISE / np.sqrt(index.dim))
        drawn: Floats = (known[rng.integers(0, len(known), num)] + noise).astype(np.float32)
        return drawn

    told = (
        f"Vectors are the embeddings of a bundle's {len(known):,} skills, drawn again and again with noise of length "
        f"{_NOISE}: real directions, drawn neighbours."
    )
    return Source(told, index.dim, draw)


def write_vectors(path: Path, source: Source, num: int, *, seed: int, stream: int = 1) -> None:
    """Unit vectors `[N, D]` as a .npy file; another stream of one seed gives others, such as queries."""
    out: np.memmap[tuple[int, ...], np.dtype[np.float32]] = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
        path, mode="w+", dtype=np.float32, shape=(num, source.dim)
    )
    for number, start in enumerate(range(0, num, _AT_ONCE)):
        block = source.draw(np.random.default_rng([seed, stream, number]), _AT_ONCE)
        block /= np.linalg.norm(block, axis=1, keepdims=True)
        out[start : start + _AT_ONCE] = block[: num - start]
    out.flush()


def exact_neighbours(vectors: Floats, queries: Floats, sizes: Sequence[int], k: int) -> dict[int, Rows]:
    """For each size n, rising, places `[Q, K]` of the nearest among the first n vectors, by numpy's products."""
    best = np.full((len(queries), k), -np.inf, np.float32)
    places = np.zeros((len(queries), k), np.int64)
    found: dict[int, Rows] = {}
    done = 0
    for size in sizes:
        while done < size:
            end = min(done + _AT_ONCE, size)
            scores = np.concatenate([best, queries @ vectors[done:end].T], axis=1)
            candidates = np.concatenate(
                [places, np.broadcast_to(np.arange(done, end), (len(queries), end - done))], axis=1
            )
            chosen = np.argpartition(-scores, k - 1, axis=1)[:, :k]
            best, places = np.take_along_axis(scores, chosen, 1), np.take_along_axis(candidates, chosen, 1)
            done = end
        found[size] = places.copy()
    return found


def require_room(rows: int, dim: int, scratch: Path) -> None:
    """Refuse sets for which there is no memory (ConfigError) or no disk (OutputError), before anything is drawn."""
    wanted = rows * dim * 4 * _COPIES
    available = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):  # which, unlike free pages, counts what the kernel would drop
            available = int(line.split()[1]) * 1024
    available = min(available, memory_bytes())  # the file is the machine's, also in a container
    if wanted > available:
        raise ConfigError(
            f"{rows:,} vectors of {dim:,} numbers",
            got=f"{available / 2**30:,.1f} GiB of free memory",
            wanted=f"{wanted / 2**30:,.1f} GiB, for vectors, index and what a build holds beside them",
            fix="Measure fewer: --rows 10000,30000; the plan for many is computed from them.",
        )
    free = shutil.disk_usage(scratch).free
    if wanted > free:
        raise OutputError(
            f"scratch folder `{scratch}`",
            got=f"{free / 2**30:,.1f} GiB free",
            wanted=f"{wanted / 2**30:,.1f} GiB, for vectors and indexes",
            fix="Make room, name another folder with --scratch, or fewer --rows.",
        )
