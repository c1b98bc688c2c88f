"""The lexical index against BM25 written out, its bytes, and the first-stage score."""

from __future__ import annotations

import math
import os
import re
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skillserve.errors import BundleError, MissingExtraError
from skillserve.fusion import FirstStageWeights, blend
from skillserve.lexical import LexicalIndex

TEXTS = [
    "pdf | merge PDF files | Merge two pdf files into one pdf.",
    "photo | resize photos | and the of",
    "mail | send e-mail with Postfix | postfix queue, postfix relay",
    "the | a | an",
]
REQUESTS = ["merge the PDFs into a pdf, pdf", "postfix", "photo photos of the mail", "zebra", "", "the \ud800 of"]


def naive(texts: Sequence[str], request: str, k1: float = 1.5, b: float = 0.75) -> list[float]:
    """Lucene's BM25 (Kamphuis et al. 2020, table 1); a word that the request says twice counts twice."""
    stop_words = {"a", "an", "and", "of", "the", "into", "with"}

    def words(text: str) -> list[str]:
        return [word for word in re.findall(r"\b\w\w+\b", text.lower()) if word not in stop_words]

    documents = [words(text) for text in texts]
    mean_length = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        score = 0.0
        for word in words(request):
            tf, df = document.count(word), sum(word in other for other in documents)
            idf = math.log(1 + (len(documents) - df + 0.5) / (df + 0.5))
            score += idf * tf / (tf + k1 * (1 - b + b * len(document) / mean_length))
        scores.append(score)
    return scores


@pytest.mark.parametrize("request_text", REQUESTS)
def test_scores_are_those_of_bm25_written_out(request_text: str) -> None:
    index = LexicalIndex.build(TEXTS)
    (found,) = index.scores([request_text])
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, naive(TEXTS, request_text), rtol=1e-6)
    assert len(index) == len(TEXTS)


def test_an_index_survives_a_round_trip_bit_for_bit() -> None:
    index = LexicalIndex.build(TEXTS)
    again = LexicalIndex.from_bytes(index.to_bytes(), subject="lexical.bm25")
    assert again.to_bytes() == index.to_bytes()
    for request in REQUESTS:
        assert again.scores([request]).tobytes() == index.scores([request]).tobytes()


@pytest.mark.parametrize("texts", [["the"], ["", "x"]])
def test_a_catalogue_without_a_word_has_an_index_all_the_same(texts: list[str]) -> None:
    index = LexicalIndex.from_bytes(LexicalIndex.build(texts).to_bytes(), subject="x")
    assert index.scores(["anything"]).tolist() == [[0.0] * len(texts)]
    with pytest.raises(ValueError, match="at least one"):
        LexicalIndex.build([])


def test_one_catalogue_has_the_same_bytes_in_every_process() -> None:
    """Sets of words are in another order in each."""
    code = "import sys; from skillserve.lexical import LexicalIndex as L; "
    code += f"sys.stdout.buffer.write(L.build({TEXTS!r}).to_bytes())"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, check=True, env={**os.environ, "PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    }
    assert outputs == {LexicalIndex.build(TEXTS).to_bytes()}


def test_an_index_that_points_outside_of_itself_is_refused_by_name() -> None:
    content = LexicalIndex.build(["alpha beta", "beta"]).to_bytes()
    header, _, body = content.partition(b"\n")
    starts, rows, parts = body[:24], body[24:36], body[36:]
    numbers = np.array
    damaged = {
        "empty": b"",
        "no header": b"{}\n" + body,
        "a word twice": header.replace(b"alpha", b"beta") + b"\n" + body,
        "no skills": header.replace(b'"num_skills":2', b'"num_skills":0') + b"\n" + body,
        "fewer skills": header.replace(b'"num_skills":2', b'"num_skills":1') + b"\n" + body,
        "one word more": header.replace(b'"words":[', b'"words":["x",') + b"\n" + body,
        "cut": content[:-1],
        "an entry less": content[:-8],
        "longer": content + b"\0",
        "starts late": b"\n".join([header, numbers([1, 1, 3], "<i8").tobytes() + rows + parts]),
        "goes back": b"\n".join([header, numbers([0, 4, 3], "<i8").tobytes() + rows + parts]),
        "far away": b"\n".join([header, numbers([0, 1, 2**40], "<i8").tobytes() + rows + parts]),
        "a row too high": b"\n".join([header, starts + numbers([0, 2, 1], "<i4").tobytes() + parts]),
        "a negative row": b"\n".join([header, starts + numbers([0, -1, 1], "<i4").tobytes() + parts]),
        "no number": b"\n".join([header, starts + rows + numbers([0, np.nan, 1], "<f4").tobytes()]),
        "less than nothing": b"\n".join([header, starts + rows + numbers([0, -1, 1], "<f4").tobytes()]),
    }
    assert LexicalIndex.from_bytes(b"\n".join([header, starts + rows + parts]), subject="x").to_bytes() == content
    for damage, changed in damaged.items():
        with pytest.raises(BundleError, match=r"lexical\.bm25") as caught:
            LexicalIndex.from_bytes(changed, subject="lexical.bm25")
        assert "--force" in caught.value.fix, damage


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_index_is_refused_or_answers_within_bounds(data: st.DataObject) -> None:
    """Nothing but BundleError, and never a read outside of the arrays, whatever a sealed file holds."""
    content = LexicalIndex.build(TEXTS).to_bytes()
    at = data.draw(st.integers(0, len(content) - 1))
    changed = content[:at] + bytes([data.draw(st.integers(0, 255))]) + content[at + 1 :]
    try:
        index = LexicalIndex.from_bytes(changed, subject="x")
    except BundleError:
        return
    for request in REQUESTS:
        assert index.scores([request, request]).shape == (2, len(index))


def test_without_bm25s_the_pip_line_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    content = LexicalIndex.build(TEXTS).to_bytes()
    monkeypatch.setitem(sys.modules, "bm25s", None)
    for make in (lambda: LexicalIndex.build(TEXTS), lambda: LexicalIndex.from_bytes(content, subject="x")):
        with pytest.raises(MissingExtraError, match=r"pip install 'skillserve\[client\]'"):
            make()


NEAR = np.array([0.5, -0.25, 0.75], np.float32)
WORDS = np.array([0.0, 8.0, 4.0], np.float32)


def test_first_stage_scores_are_similarity_plus_the_weighted_share_of_the_most_words() -> None:
    scores = blend(NEAR[None], WORDS[None], FirstStageWeights(lexical=0.5))
    assert scores.dtype == np.float32
    assert scores.tolist() == [0.5, -0.25 + 0.5, 0.75 + 0.25]


@pytest.mark.parametrize(("lexical", "weight"), [(WORDS, 0.0), (np.zeros(3, np.float32), 0.5)])
def test_without_a_weight_or_a_shared_word_similarities_stay_bit_for_bit(lexical: np.ndarray, weight: float) -> None:
    similarities = np.array([-0.0, 0.1, 0.3], np.float32)
    scores = blend(similarities[None], lexical[None], FirstStageWeights(lexical=weight))
    assert scores.tobytes() == similarities.tobytes()


def test_similarities_and_lexical_scores_must_pair_up() -> None:
    with pytest.raises(ValueError, match="pair up"):
        blend(NEAR[None], WORDS[None, :1], FirstStageWeights(lexical=0.5))
    with pytest.raises(ValueError, match="no lexical scores"):
        blend(NEAR[None], None, FirstStageWeights(lexical=0.5))
