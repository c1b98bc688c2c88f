"""Large models come in shards; an index of them cannot lead anywhere else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from skillserve.errors import ConfigError
from skillserve_training import draft_card, resolve_base, write_stock
from skillserve_training.weights import open_reranker

Make = Callable[..., Path]


@pytest.fixture
def sharded(make_qwen3: Make, tmp_path: Path) -> Path:
    """A base in shards, and its index."""
    whole = make_qwen3(tie_word_embeddings=False, dtype=torch.bfloat16)
    folder = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(whole, dtype=torch.bfloat16).save_pretrained(folder, max_shard_size="150kB")
    shutil.copyfile(whole / "tokenizer.json", folder / "tokenizer.json")
    assert len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    return folder


def test_shards_open_and_are_written_as_one_file(sharded: Path, tmp_path: Path) -> None:
    base, out = resolve_base(str(sharded)), tmp_path / "out"
    write_stock(out, base, draft_card(base, "reranker", max_tokens=256))
    assert sorted(path.name for path in out.iterdir()) == [
        "card.json",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    shards = {name: tensor for path in sharded.glob("*.safetensors") for name, tensor in load_file(path).items()}
    written = load_file(out / "model.safetensors")
    assert written.keys() == shards.keys()
    assert all(torch.equal(tensor, shards[name]) for name, tensor in written.items())
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    before, after = open_reranker(sharded).state_dict(), open_reranker(out).state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_the_revision_of_shards_covers_all_of_them(sharded: Path) -> None:
    before = resolve_base(str(sharded)).revision
    shard = max(sharded.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    assert resolve_base(str(sharded)).revision != before


@pytest.mark.parametrize(
    "place",
    [
        "../stolen.safetensors",
        "/etc/hostname",
        "absent.safetensors",
        "pytorch_model.bin",
        "link.safetensors",
        "nul\0.safetensors",
    ],
)
def test_an_index_that_leaves_the_folder_is_refused(sharded: Path, place: str) -> None:
    (sharded.parent / "stolen.safetensors").write_bytes(min(sharded.glob("*.safetensors")).read_bytes())
    (sharded / "link.safetensors").symlink_to(sharded.parent / "stolen.safetensors")
    (sharded / "pytorch_model.bin").touch()
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_bytes())
    content["weight_map"]["lm_head.weight"] = place
    index.write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=r"shards that are not there"):
        resolve_base(str(sharded))


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {}}', '{"weight_map": [1]}'])
def test_a_damaged_index_is_an_error_of_ours(sharded: Path, content: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ConfigError, match=r"model\.safetensors\.index\.json"):
        resolve_base(str(sharded))


def test_shards_of_a_hub_snapshot_are_links_into_its_blobs(
    sharded: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached = tmp_path / "hub" / "models--org--name"
    snapshot = cached / "snapshots" / ("1b2c" * 10)
    snapshot.mkdir(parents=True)
    (cached / "blobs").mkdir()
    for path in sharded.iterdir():
        shutil.copyfile(path, cached / "blobs" / path.name)
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(snapshot.name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    assert resolve_base("org/name@main").revision == snapshot.name
    open_reranker(resolve_base("org/name@main").folder)
