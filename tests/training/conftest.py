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
def make_qwen3(tmp_path_factory: pytest.TempPathFactory, tiny_bpe_tokenizer: Path) -> Callable[..., Path]:
    """Write a random Qwen3 as others publish one: `make(kind, seed=…, **config)`, kind `model` or `lm`."""
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model

    def make(kind: str = "lm", *, seed: int = 0, dtype: torch.dtype = torch.float32, **config: object) -> Path:
        torch.manual_seed(seed)
        facts = {
            "vocab_size": 1100,  # more than the tokenizer knows, as in the real ones
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "max_position_embeddings": 512,
            "tie_word_embeddings": True,
        }
        model = (Qwen3ForCausalLM if kind == "lm" else Qwen3Model)(Qwen3Config(**facts | config))
        with torch.no_grad():
            # The default initialisation is so small that everything looks alike; real models are not like that.
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(5.0)
        folder = tmp_path_factory.mktemp("qwen3") / "tiny-qwen3"
        model.to(dtype).save_pretrained(folder, safe_serialization=True)
        (folder / "tokenizer.json").write_bytes(tiny_bpe_tokenizer.read_bytes())
        return folder

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
