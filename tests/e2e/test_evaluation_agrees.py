"""The same weights, in process and through the real server, earn the same figures."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MOST_POINTS = 0.1
"""How far apart NDCG@10 may be, in hundredths; rounding may swap near ties."""

pytestmark = pytest.mark.e2e


@pytest.mark.parametrize(
    ("rerank_depth", "lexical_weight", "part_weight"), [(0, 0.0, 0.0), (20, 0.0, 0.0), (20, 0.2, 0.0), (0, 0.2, 1.0)]
)
def test_weights_and_server_agree(
    rerank_depth: int,
    lexical_weight: float,
    part_weight: float,
    server: Any,
    catalogue: Path,
    bundles: Path,
    tiny_embedder: Path,
    tiny_reranker: Path,
    sample_data: Path,
    tmp_path: Path,
    skillserve: Callable[..., subprocess.CompletedProcess[str]],
    in_process: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    first_stage = ("--lexical-weight", str(lexical_weight), "--part-weight", str(part_weight))
    if lexical_weight or part_weight:
        bundles, models = tmp_path / "weighted", ("--models", str(server.repository))
        skillserve("index", str(catalogue), *models, "--bundles", str(bundles), "--url", server.url, *first_stage)
    weights = f"{tiny_embedder}+{tiny_reranker}" if rerank_depth else str(tiny_embedder)
    options = ("--data", str(sample_data), "--pool", "union", "--rerank-depth", str(rerank_depth), "--json")
    options += first_stage
    where = ("--url", server.url, "--run-out", str(tmp_path))
    done = in_process("evaluate", weights, f"server:{bundles}", *options, *where, "--resamples", "1000")
    computed, served = json.loads(done.stdout)["systems"]
    assert computed["digests"] == served["digests"]
    assert set(served["digests"]) == ({"embedder", "reranker"} if rerank_depth else {"embedder"})
    assert abs(served["differences"]["ndcg@10"]["mean"]) * 100 <= MOST_POINTS
    assert served["metrics"]["ndcg@10"]["mean"] > 0
    assert len(list(tmp_path.glob("*.run"))) == 2
