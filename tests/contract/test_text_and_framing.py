"""Text formats are golden; frames cannot be forged; what a reranker reads equals the usual pair encoding."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers
from tokenizers.processors import TemplateProcessing

from skillserve.card import read_card
from skillserve.errors import QueryError
from skillserve.framing import EmbedderTokens, RerankerTokens
from skillserve.parts import request_parts
from skillserve.records import Skill
from skillserve.text import Frame, document_text, query_text, skill_text

SKILL = Skill(id="1", name=" sql-tuner ", description="Makes queries fast. ", body="\n# Steps\n1. EXPLAIN\n")


def test_skill_text_is_golden() -> None:
    """Embeddings of another format are not comparable: a change here is a new TEXT_FORMAT."""
    assert skill_text(SKILL) == "sql-tuner | Makes queries fast. | # Steps\n1. EXPLAIN"


def test_a_skill_without_body_repeats_its_description() -> None:
    assert skill_text(Skill(id="1", name="a", description="b")) == "a | b | b"


def test_prompts_stand_in_front() -> None:
    assert query_text("Query: ", "  find it \n") == "Query: find it"
    assert document_text("Doc: ", Skill(id="1", name="a", body="c")) == "Doc: a |  | c"


@pytest.mark.parametrize("template", ["", "[CLS][SEP]", "{text}{text}", "{query}", "{text}{query}{skill}"])
def test_a_frame_without_its_slots_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match="slot"):
        Frame.parse(template)


@given(st.text(alphabet="[]{}ab", max_size=12))
def test_a_frame_keeps_every_character_of_its_literals(literal: str) -> None:
    """Parsing loses nothing, whatever brackets stand in the literals."""
    if any(slot in literal for slot in ("{text}", "{query}", "{skill}")):
        return
    frame = Frame.parse(literal + "{text}" + literal)
    assert frame.literals == ((literal, literal) if literal else ())
    assert frame.slots == ("text",)


@pytest.fixture
def tokens(tiny_reranker: Path) -> RerankerTokens:
    """What a cross-encoder reads."""
    return RerankerTokens(read_card(tiny_reranker), Tokenizer.from_file(str(tiny_reranker / "tokenizer.json")))


def test_a_pair_equals_the_usual_pair_encoding(tokens: RerankerTokens, tiny_tokenizer: Path) -> None:
    """Piecewise tokenisation gives what the tokenizer's own template for pairs gives."""
    tokenizer = Tokenizer.from_file(str(tiny_tokenizer))
    special = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = TemplateProcessing(pair="[CLS] $A [SEP] $B [SEP]", special_tokens=special)
    query, skill = "find the sql log", Skill(id="1", name="log", description="plan")
    pair = tokens.pair(tokens.query(query).ids, tokens.skills([skill])[0])
    assert pair.tolist() == tokenizer.encode(query, skill_text(skill)).ids
    assert pair.dtype == np.int32


@pytest.mark.parametrize(
    "text", ["[SEP]", "[CLS] x [SEP] y", "<|im_end|>", "a\x00b", "\u202eabc", "\ud800 x", "", "   "]
)
def test_a_text_cannot_forge_the_frame(tokens: RerankerTokens, text: str) -> None:
    """Special tokens inside a text are ordinary characters; NUL, direction marks and lone surrogates are harmless."""
    separator, start = 3, 2
    pair = tokens.pair(tokens.query(text).ids, tokens.skills([Skill(id="1", name="x", body=text)])[0])
    assert (pair == separator).sum() == 2
    assert (pair == start).sum() == 1
    assert pair[0] == start
    assert pair[-1] == separator


def test_only_the_skill_is_cut_from_a_pair(tokens: RerankerTokens) -> None:
    """The request and the closing separator survive the longest skill."""
    query = tokens.query("a b c d")
    side = tokens.skills([Skill(id="1", name="x", body="y " * 500)])[0]
    pair = tokens.pair(query.ids, side)
    assert len(pair) == tokens.card.max_tokens
    assert pair[1:5].tolist() == query.ids.tolist()
    assert pair[-1] == 3


def test_a_huge_request_is_cut_and_says_so(tokens: RerankerTokens) -> None:
    """100 kB are not tokenised to keep 20 tokens; the count of what was cut is extrapolated."""
    cut = tokens.query("find " * 20_000)
    assert len(cut.ids) == tokens.card.max_query_tokens
    assert cut.num_cut > 1_000


def test_parts_are_read_as_requests_and_the_whole_stands_in_for_those_without_readable_text(
    tiny_embedder: Path,
) -> None:
    """A tokenizer may know less than the rule: this one drops a letter that counts as a word's."""
    card = read_card(tiny_embedder).model_copy(update={"query_prompt": "find: "})
    tokenizer = Tokenizer.from_file(str(tiny_embedder / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Replace("ж", ""), tokenizer.normalizer])
    tokens = EmbedderTokens(card, tokenizer)
    one, two, three, four, nothing = "find a log.", "plan the sql.", "sort my table.", "read all rows.", "жж ж"
    head, tail = f"{one} {two} {three}", f"{two} {three} {four}"
    texts = [f"{one} {two}", f"{head} {four}", f"{head} {four}\n{nothing}\n{nothing}\n{nothing}"]
    taken_apart = [(text, *request_parts(text)) for text in texts]
    read = tokens.queries_in_pieces(taken_apart)
    wanted = [[], [head, tail], [head, tail, f"{three} {four}\n{nothing}", f"{four}\n{nothing}\n{nothing}", texts[2]]]
    for text, cuts, parts in zip(texts, read, wanted, strict=True):
        expected = tokens.queries([text, *parts])
        assert [cut.ids.tolist() for cut in cuts] == [cut.ids.tolist() for cut in expected]
    assert [len(cuts) for cuts in tokens.queries_in_pieces([(text,) for text in texts])] == [1, 1, 1]
    with pytest.raises(QueryError):
        tokens.queries_in_pieces([taken_apart[0], (nothing,)])
