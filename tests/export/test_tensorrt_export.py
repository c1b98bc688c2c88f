"""`skillserve export --runtime`: what is written for TensorRT, what is refused, and what the operator is told."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tokenizers import Tokenizer
from tritonclient.grpc.model_config_pb2 import ModelConfig

from skillserve.card import read_card
from skillserve.cli import main
from skillserve_export.lengths import served_lengths


def _run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, dict[str, object]]:
    code = main([*map(str, arguments), "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("runtime", ["tensorrt", "onnxruntime-tensorrt"])
def test_a_folder_for_tensorrt_holds_graph_profiles_and_full_masks(
    runtime: str, tiny_reranker: Path, sample_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models"
    asked = ["--layout", "padded", "--runtime", runtime, "--data", sample_data, "--num-buckets", 2]
    code, told = _run(capsys, "export", tiny_reranker, "--repository", models, *asked)
    assert code == 0, told
    folder = models / "skill_reranker"
    config = text_format.Parse((folder / "config.pbtxt").read_text(), ModelConfig())
    profiles = json.loads((folder / "profiles.json").read_text())
    assert told["profiles"] == profiles
    ends = [profile["max"][1] for profile in profiles["profiles"]]
    assert config.parameters["skillserve_length_buckets"].string_value == ",".join(map(str, ends))
    wanted = {"warmup/input_ids", "warmup/attention_mask"}
    wanted |= {f"warmup/attention_mask_{end}" for end in ends}
    assert {f"warmup/{path.name}" for path in (folder / "warmup").iterdir()} == wanted
    for end in ends:
        assert np.fromfile(folder / "warmup" / f"attention_mask_{end}", np.int32).tolist() == [1] * end
    record = json.loads((folder / "export.json").read_text())
    assert record["runtime"] == runtime
    assert not (folder / "1" / "model.plan").exists()


def test_the_operator_sees_what_each_number_of_buckets_costs(
    tiny_embedder: Path, sample_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--layout", "padded", "--runtime", "tensorrt", "--data", str(sample_data)]
    assert main(["export", str(tiny_embedder), "--repository", str(tmp_path), *asked]) == 0
    told = capsys.readouterr()
    assert "padding waste" in told.out
    assert "skillserve plan" in told.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--layout", "packed", "--runtime", "tensorrt"], "--layout padded"),
        (["--runtime", "onnxruntime-tensorrt"], "--layout padded"),
        (["--layout", "padded", "--runtime", "tensorrt", "--precision", "int8"], "fp16"),
    ],
)
def test_what_tensorrt_cannot_take_is_refused_before_any_work(
    arguments: list[str], said: str, tiny_embedder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told = _run(capsys, "export", tiny_embedder, "--repository", tmp_path / "models", *arguments)
    assert code == 2
    assert said in str(told["fix"])
    assert not (tmp_path / "models").exists()


def test_without_lengths_to_count_there_are_no_profiles(
    tiny_embedder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, told = _run(capsys, "export", tiny_embedder, "--layout", "padded", "--runtime", "tensorrt")
    assert code == 2
    assert "--data" in str(told["fix"])
    assert not (tmp_path / "models").exists()


def test_lengths_are_those_that_the_tokenizer_gives(tiny_embedder: Path, sample_data: Path) -> None:
    """Counted again with the tokenizer alone: [CLS], the text, [SEP], at most the card's 48 tokens."""
    card = read_card(tiny_embedder)
    tokenizer = Tokenizer.from_file(str(tiny_embedder / "tokenizer.json"))
    rows = [json.loads(line) for line in (sample_data / "queries" / "test.jsonl").read_text().splitlines()]
    room = card.max_query_tokens
    requests = Counter(min(len(tokenizer.encode(row["query"], add_special_tokens=False).ids), room) + 2 for row in rows)
    found = served_lengths(card, tiny_embedder, sample_data)
    num_skills = len((sample_data / "skills" / "test.jsonl").read_text().splitlines())
    assert sum(found.values()) == len(rows) + num_skills
    assert max(found) <= card.max_tokens
    assert all(found[length] >= count for length, count in requests.items())


def test_a_rerankers_lengths_are_those_of_pairs(tiny_reranker: Path, sample_data: Path) -> None:
    found = served_lengths(read_card(tiny_reranker), tiny_reranker, sample_data)
    assert sum(found.values()) == 64 * 64
    assert max(found) <= read_card(tiny_reranker).max_tokens
