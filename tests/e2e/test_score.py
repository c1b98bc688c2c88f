"""Batch scoring as it is run: real graphs, the real server, real kills."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from skillserve.publish import sha256_of
from skillserve.settings import ClientSettings, SearchSettings
from skillserve_bench.kills import finish, kill_once
from skillserve_client import Searcher

pytestmark = pytest.mark.e2e

TOLERANCE = 1e-5
"""Unit vectors, and logits of size 1, of one graph in other company and in other threads differ by a few 1e-7."""

NUM_KILLS = 4
SHARD_ROWS = 2
"""More than a hundred shards, so that the work does not end before the kills."""

Command = Callable[..., subprocess.CompletedProcess[str]]


def table_of(out: Path) -> list[dict[str, Any]]:
    return [row for file in sorted((out / "shards").iterdir()) for row in pq.read_table(file).to_pylist()]


def files_of(out: Path) -> dict[str, str]:
    return {file.name: sha256_of(file) for file in (out / "shards").iterdir()}


def test_killed_at_any_moment_a_run_repeats_nothing_and_ends_like_an_undisturbed_one(
    repository: Path, catalogue: Path, tmp_path: Path
) -> None:
    """`skillserve bench score --kills 50` does the same for a table."""

    def command(out: Path) -> list[str]:
        options = ["--engine", "direct", "--models", str(repository), "--shard-rows", str(SHARD_ROWS), "--json"]
        return [sys.executable, "-m", "skillserve", "score", "embed", str(catalogue), "--out", str(out), *options]

    quiet, killed = tmp_path / "quiet", tmp_path / "killed"
    undisturbed = finish(command(quiet))
    rng = random.Random(28)
    pause_s = 2 * undisturbed["seconds"] / undisturbed["num_shards"]
    finished = num_killed = 0
    for _ in range(NUM_KILLS):
        kill = kill_once(command(killed), killed, pause_s=pause_s, rng=rng)
        num_killed += not kill.ended
        assert kill.before == finished
        assert (kill.repeated, kill.missing) == (0, 0)
        # The one more was finished, and killed before it could be told.
        assert kill.computed <= kill.after - kill.before <= kill.computed + 1
        finished = kill.after
    assert num_killed
    done = finish(command(killed))
    assert done["num_resumed"] == finished
    assert files_of(killed) == files_of(quiet)
    rows = table_of(killed)
    assert [row["row"] for row in rows] == list(range(undisturbed["num_rows"]))
    assert len({row["id"] for row in rows}) == len(rows)


def test_both_engines_and_the_searcher_agree(
    server: Any, bundles: Path, sample_data: Path, skillserve: Command, tmp_path: Path
) -> None:
    queries = [json.loads(line) for line in (sample_data / "queries" / "test.jsonl").read_text().splitlines()[:12]]
    requests = tmp_path / "requests.jsonl"
    requests.write_text("".join(json.dumps(query) + "\n" for query in [*queries, {"id": "blank", "query": " "}]))
    options = ["--bundles", str(bundles), "--models", str(server.repository), "--url", server.url]
    options += ["--rerank-depth", "8", "--top-k", "8"]
    found = {}
    for engine in ("server", "direct"):
        done = skillserve(
            *("score", "rank", str(requests), "--out", str(tmp_path / engine), "--engine", engine, *options),
            check=False,
        )
        assert done.returncode == 6, done.stderr
        found[engine] = table_of(tmp_path / engine)
        (reject,) = map(json.loads, (tmp_path / engine / "rejects.jsonl").read_text().splitlines())
        assert (reject["id"], reject["where"], reject["reason"]) == ("blank", "requests.jsonl:13", "lacks a `query`")
    settings = SearchSettings(rerank_depth=8, top_k=8)
    with Searcher.connect(bundles, client=ClientSettings(url=server.url), settings=settings) as searcher:
        for query, one, other in zip(queries, found["server"], found["direct"], strict=True):
            hits = searcher.search(query["query"]).hits
            for rows in (one["hits"], other["hits"]):
                scores = {hit["skill_id"]: hit["score"] for hit in rows}
                assert np.allclose([scores[hit.skill_id] for hit in hits], [hit.score for hit in hits], atol=TOLERANCE)


def test_an_audit_of_embedded_skills_counts_the_hits_of_rankings(
    server: Any, bundles: Path, catalogue: Path, sample_data: Path, skillserve: Command, tmp_path: Path
) -> None:
    """Vectors from graphs in this process, categories from the server: one graph, so they belong together."""
    requests = tmp_path / "requests.jsonl"
    lines = (sample_data / "queries" / "test.jsonl").read_text().splitlines()[:6]
    requests.write_text("\n".join(lines) + "\n")
    models = ["--models", str(server.repository), "--url", server.url]
    vectors, rankings, out = (tmp_path / name for name in ("vectors", "rankings", "audit"))
    skillserve("score", "embed", str(catalogue), "--out", str(vectors), "--engine", "direct", *models)
    ranked = ["--bundles", str(bundles), "--rerank-depth", "0", "--top-k", "3", "--no-abstain"]
    skillserve("score", "rank", str(requests), "--out", str(rankings), *ranked, *models)
    read = ["--vectors", str(vectors), "--rankings", str(rankings)]
    told = json.loads(skillserve("score", "audit", str(catalogue), *read, "--out", str(out), *models, "--json").stdout)
    rows = table_of(vectors)
    near = np.array([row["embedding"] for row in rows])
    similarities = near @ near.T - 2 * np.eye(len(near))
    for row, own in zip(pq.read_table(out / "neighbours.parquet").to_pylist(), similarities, strict=True):
        found = [each["similarity"] for each in row["neighbours"]]
        assert np.allclose(found, np.sort(own)[::-1][:10], atol=TOLERANCE)
    hubs = pq.read_table(out / "hubs.parquet").to_pylist()
    assert sum(row["rankings"] for row in hubs) == 3 * len(lines)
    assert sum(row["first"] for row in hubs) == told["rankings"]["num_rankings"] == len(lines)
    assert {row["id"] for row in hubs} == {row["id"] for row in rows}
    assert sum(each["num_skills"] for each in told["categories"]["counts"]) == len(rows)
