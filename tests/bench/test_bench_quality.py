"""Comparing two rankings, without a server; the peer itself against a computation by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import BertModel

from skillserve.card import read_card
from skillserve.errors import MissingExtraError
from skillserve.records import Skill
from skillserve.skillfile import read_skills
from skillserve.text import skill_text
from skillserve_bench.peers.sentence_transformers import SentenceTransformersPeer
from skillserve_bench.scenarios.quality import compare, find_catalogue

QRELS = {"q1": {"a": 1}, "q2": {"b": 1}}
SAME = {"q1": ["a", "x"], "q2": ["b", "y"]}


def test_equal_rankings_are_within_the_goal(sample_data: Path) -> None:
    findings = compare(SAME, SAME, QRELS, server="none", catalogue=find_catalogue(sample_data))
    assert findings.passed
    assert findings.figures["top_10_overlap"] == 1.0
    assert findings.figures["same_order"] == 2
    assert findings.figures["served"]["ndcg@10"] == 1.0
    assert findings.figures["num_skills"] == len(read_skills(find_catalogue(sample_data).skills))


def test_a_gold_one_place_lower_is_a_difference_in_points_and_fails(sample_data: Path) -> None:
    other = {"q1": ["x", "a"], "q2": ["b", "z"]}
    findings = compare(other, SAME, QRELS, server="none", catalogue=find_catalogue(sample_data))
    assert not findings.passed
    wanted = (1 / np.log2(3) - 1) / 2 * 100
    assert findings.figures["difference_points"]["ndcg@10"] == pytest.approx(wanted)
    assert findings.figures["difference_points"]["recall@10"] == 0.0
    assert findings.figures["top_10_overlap"] == 0.75
    assert "NOT within" in findings.summary[0]


def test_the_peer_pools_and_normalises_as_the_card_says(stock_embedder: Path) -> None:
    skill = Skill(id="1", name="find", description="plan the query and deploy")
    found = SentenceTransformersPeer(stock_embedder).embed_skills([skill])
    card = read_card(stock_embedder)
    ids = Tokenizer.from_file(str(stock_embedder / "tokenizer.json")).encode(
        skill_text(skill), add_special_tokens=False
    )
    tokenizer = Tokenizer.from_file(str(stock_embedder / "tokenizer.json"))
    framed = [tokenizer.token_to_id("[CLS]"), *ids.ids[: card.max_tokens - 2], tokenizer.token_to_id("[SEP]")]
    with torch.no_grad():
        mean = BertModel.from_pretrained(stock_embedder).eval()(torch.tensor([framed])).last_hidden_state[0].mean(0)
    np.testing.assert_allclose(found[0], (mean / mean.norm()).numpy(), atol=1e-5)


def test_a_missing_package_is_named_with_its_pip_line(stock_embedder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'skillserve\[training\]'"):
        SentenceTransformersPeer(stock_embedder)
