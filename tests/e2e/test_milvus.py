"""The real commands against the real server, with the vectors in Milvus Lite: the answers are those of FAISS."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e


def test_milvus_answers_what_faiss_answers(
    server: Any,
    catalogue: Path,
    bundles: Path,
    skillserve: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    """Each command is a process of its own, so that what was written must be found again by others.

    Scores are compared loosely, since two bundles were embedded in batches of their own.
    """
    milvus = ("--bundles", str(tmp_path / "bundles"), "--url", server.url, "--uri", str(tmp_path / "lite.db"), "--json")
    models = ("--models", str(server.repository), "--kind", "milvus")
    built = json.loads(skillserve("index", str(catalogue), *models, *milvus).stdout)
    assert built["collection"]["alias"] == "skillserve"
    request = "find a slow sql query"
    answers = [
        json.loads(skillserve("search", request, "--top-k", "8", *where).stdout)
        for where in (("--bundles", str(bundles), "--url", server.url, "--json"), milvus)
    ]
    faiss, found = ([(hit["skill_id"], hit["similarity"]) for hit in answer["hits"]] for answer in answers)
    assert [skill for skill, _ in found] == [skill for skill, _ in faiss]
    assert [similarity for _, similarity in found] == pytest.approx([similarity for _, similarity in faiss], abs=1e-5)
    assert json.loads(skillserve("index", str(catalogue), *models, *milvus).stdout)["status"] == "current"
