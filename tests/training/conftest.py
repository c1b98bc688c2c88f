"""Training data small enough to be learnt in a second."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
import torch

from skillserve.settings import TrainSettings

TOPICS = ("sql", "query", "deploy", "test", "agent", "log", "index", "plan")


def write_lines(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Tiny products gain nothing from a second thread, and lose much where the cores are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny_data(tmp_path: Path) -> Path:
    """A folder in SkillRet's layout: a skill for each two topics, a request for each skill, a few with two golds."""
    folder = tmp_path / "data"
    skills = [
        {"id": f"{a}-{b}", "name": f"{a} {b}", "description": f"find the {a}", "body": f"{a} and {b}"}
        for a in TOPICS
        for b in TOPICS
        if a < b
    ]
    requests = [{"id": f"q-{skill['id']}", "query": f"the {skill['name']}"} for skill in skills]
    qrels = [
        {"query_id": request["id"], "skill_id": skill["id"], "relevance": 1}
        for request, skill in zip(requests, skills, strict=True)
    ]
    for left, right in zip(skills[::7], skills[1::7], strict=False):
        requests.append({"id": f"q2-{left['id']}", "query": f"{left['name']} {right['name']}"})
        qrels += [{"query_id": f"q2-{left['id']}", "skill_id": gold["id"], "relevance": 1} for gold in (left, right)]
    write_lines(folder / "skills" / "train.jsonl", skills)
    write_lines(folder / "queries" / "train.jsonl", requests)
    write_lines(folder / "qrels" / "train.jsonl", qrels)
    return folder


@pytest.fixture(scope="session")
def make_qwen3(make_base: Callable[..., Path]) -> Callable[..., Path]:
    """Write a random Qwen3 as others publish one: `make(kind, seed=…, **config)`, kind `model` or `lm`."""

    def make(kind: str = "lm", **facts: object) -> Path:
        return make_base("qwen3", "reranker" if kind == "lm" else "embedder", **facts)

    return make


@pytest.fixture
def tiny_settings() -> TrainSettings:
    """A run of a second on a random two-layer model."""
    return TrainSettings(
        epochs=4,
        batch_size=8,
        learning_rate=2e-3,
        max_tokens=48,
        train_tokens=40,
        holdout_share=0.2,
        precision="float32",
        seed=5,
    )
