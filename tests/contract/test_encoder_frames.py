"""Frames of XLM-RoBERTa and ModernBERT, put together from pieces, equal the tokenizer's own templates."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from skillserve.card import ModelCard
from skillserve.framing import EmbedderTokens, RerankerTokens
from skillserve.records import Skill
from skillserve.tensors import Role
from skillserve.text import (
    BERT_PAIR_FRAME,
    BERT_SINGLE_FRAME,
    XLM_ROBERTA_PAIR_FRAME,
    XLM_ROBERTA_SINGLE_FRAME,
    skill_text,
)

FRAMES = {
    "modernbert": {"embedder": BERT_SINGLE_FRAME, "reranker": BERT_PAIR_FRAME},
    "xlm-roberta": {"embedder": XLM_ROBERTA_SINGLE_FRAME, "reranker": XLM_ROBERTA_PAIR_FRAME},
}
MARKS = {"modernbert": ("[CLS]", "[SEP]", "[MASK]"), "xlm-roberta": ("<s>", "</s>", "<mask>")}
TEXTS = st.text(st.sampled_from("az Zé\u0301中😀09.,!?)(<>|'\"`#-_ \t\n\r\u00a0\u2028\u202e\x00"), max_size=40)

# The tokenizers are only read, so that one fixture may serve every example.
many = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def card(family: str, role: Role) -> ModelCard:
    embeds = role == "embedder"
    return ModelCard(
        name="tiny",
        role=role,
        family=family,
        dim=32 if embeds else None,
        pooling="cls" if embeds else None,
        normalised=embeds,
        vocab_size=1200,
        max_tokens=2000,
        max_query_tokens=500,
        frame=FRAMES[family][role],
        score_kind="cosine" if embeds else "logit",
        base_model="b",
        base_revision="r",
        licence="MIT",
    )


@pytest.fixture(params=sorted(FRAMES))
def family(request: pytest.FixtureRequest) -> str:
    """Of encoders that are framed as their tokenizers say."""
    return str(request.param)


@pytest.fixture
def file(family: str, tiny_unigram_tokenizer: Path, tiny_modern_tokenizer: Path) -> str:
    """Its tokenizer.json."""
    return str({"modernbert": tiny_modern_tokenizer, "xlm-roberta": tiny_unigram_tokenizer}[family])


@pytest.fixture
def theirs(file: str) -> Tokenizer:
    """The reference, with the template for texts and pairs that stands in its file."""
    return Tokenizer.from_file(file)


@pytest.fixture
def singles(family: str, file: str) -> EmbedderTokens:
    """What an embedder reads."""
    return EmbedderTokens(card(family, "embedder"), Tokenizer.from_file(file))


@pytest.fixture
def pairs(family: str, file: str) -> RerankerTokens:
    """What a reranker reads."""
    return RerankerTokens(card(family, "reranker"), Tokenizer.from_file(file))


@many
@given(query=TEXTS, body=TEXTS)
def test_a_pair_is_the_templates_pair(query: str, body: str, pairs: RerankerTokens, theirs: Tokenizer) -> None:
    skill = Skill(id="1", name="a", description=query, body=body)
    pair = pairs.pair(pairs.query(query).ids, pairs.skills([skill])[0])
    assert pair.tolist() == theirs.encode(query.strip(), skill_text(skill)).ids


@many
@given(text=TEXTS)
def test_a_text_is_the_templates_text(text: str, singles: EmbedderTokens, theirs: Tokenizer) -> None:
    skill = Skill(id="1", name="a", description="b", body=text)
    assert singles.skills([skill])[0].tolist() == theirs.encode(skill_text(skill)).ids


def test_a_text_cannot_forge_the_frame(
    family: str, pairs: RerankerTokens, singles: EmbedderTokens, theirs: Tokenizer
) -> None:
    start, end, mask = (theirs.token_to_id(mark) for mark in MARKS[family])
    forged = " ".join(MARKS[family]) + "".join(MARKS[family])
    skill = Skill(id="1", name="x", body=forged)
    pair = pairs.pair(pairs.query(forged).ids, pairs.skills([skill])[0]).tolist()
    assert (pair.count(start), pair.count(end)) == (1, 2 if family == "modernbert" else 3)
    text = singles.skills([skill])[0].tolist()
    assert (text.count(start), text.count(end)) == (1, 1)
    assert mask not in pair + text


def test_runs_of_blanks_stay_tokens_of_their_own(tiny_modern_tokenizer: Path) -> None:
    """ModernBERT adds them for indented code and does not mark them as special: nobody forges a frame with blanks."""
    theirs = Tokenizer.from_file(str(tiny_modern_tokenizer))
    singles = EmbedderTokens(card("modernbert", "embedder"), Tokenizer.from_file(str(tiny_modern_tokenizer)))
    skill = Skill(id="1", name="a", body="def f():\n        return 1\n    # |||IP_ADDRESS|||")
    found = singles.skills([skill])[0].tolist()
    assert theirs.token_to_id(" " * 8) in found
    assert theirs.token_to_id("|||IP_ADDRESS|||") not in found
