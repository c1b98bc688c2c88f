"""How many of a request's words a skill has: BM25 over a catalogue, for the first stage and as a system of its own.

As SkillRet measures it: bm25s with its defaults (Lucene's variant, k1 1.5, b 0.75) and English stop words, over the
full skill text. Training's `bm25` and the client's bundles both score with this index, which is the one door to
bm25s; it is imported when an index is made, since not every room has it.

As bytes an index is one line of JSON with its words, and behind it three arrays, little-endian:

    starts  int64    [V + 1]   word v's entries are starts[v] up to starts[v + 1]
    rows    int32    [P]       the skill of an entry
    parts   float32  [P]       what one occurrence of the word in a request adds to that skill's score

Shape legend: N skills, V words, P pairs of a word and a skill that has it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skillserve.errors import BundleError, MissingExtraError
from skillserve.framing import mend

__all__ = ["LexicalIndex", "require_bm25s"]

Floats = npt.NDArray[np.float32]

_STOP_WORDS = "english"
_STARTS, _ROWS, _PARTS = np.dtype("<i8"), np.dtype("<i4"), np.dtype("<f4")


class _Header(BaseModel):
    """The line of JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    num_skills: Annotated[int, Field(gt=0)]
    words: list[str]


class LexicalIndex:
    """BM25 scores of a catalogue's words; row r is the skill at row r of the catalogue."""

    def __init__(self, index: Any) -> None:  # noqa: ANN401 -- bm25s has no types
        self._index = index

    @classmethod
    def build(cls, texts: Sequence[str]) -> LexicalIndex:
        """Index the N ≥ 1 skill texts of a catalogue; the same texts make the same bytes.

        MissingExtraError without bm25s.
        """
        if not texts:
            raise ValueError("a lexical index needs at least one text")
        index = _new()
        words = _words(texts)
        # bm25s numbers words as a set yields them, which is another order in every process.
        places = {word: place for place, word in enumerate(sorted({word for text in words for word in text}))}
        with np.errstate(invalid="ignore"):  # a catalogue without a word has the mean length 0
            index.index(
                ([[places[word] for word in text] for text in words], places),
                create_empty_token=False,
                show_progress=False,
            )
        return cls(index)

    def __len__(self) -> int:
        return int(self._index.scores["num_docs"])

    def scores(self, texts: Sequence[str]) -> Floats:
        """BM25 of every skill for each of M texts `[M, N]`, 0 for those without a word of it."""
        found = np.zeros((len(texts), len(self)), np.float32)
        for row, words in enumerate(_words(texts)):
            if ids := self._index.get_tokens_ids(words):
                found[row] = self._index.get_scores_from_ids(ids)
        return found

    def to_bytes(self) -> bytes:
        """The index as the module says."""
        found = self._index.scores
        header = _Header(num_skills=len(self), words=list(self._index.vocab_dict))
        arrays = (found["indptr"].astype(_STARTS), found["indices"].astype(_ROWS), found["data"].astype(_PARTS))
        return b"".join([header.model_dump_json().encode(), b"\n", *(array.tobytes() for array in arrays)])

    @classmethod
    def from_bytes(cls, content: bytes, *, subject: str) -> LexicalIndex:
        """Read an index whose checksum was verified; BundleError for one that points outside of itself.

        MissingExtraError without bm25s.
        """
        line, _, body = content.partition(b"\n")
        try:
            header = _Header.model_validate_json(line)
        except ValidationError as error:
            raise _unreadable(subject, str(error.errors()[0]["msg"])) from error
        num_words = len(header.words)
        num_pairs, rest = divmod(len(body) - (num_words + 1) * _STARTS.itemsize, _ROWS.itemsize + _PARTS.itemsize)
        if num_pairs < 0 or rest:
            raise _unreadable(subject, f"{len(body)} bytes for {num_words} words")
        cuts = np.cumsum([(num_words + 1) * _STARTS.itemsize, num_pairs * _ROWS.itemsize]).tolist()
        starts = np.frombuffer(body[: cuts[0]], _STARTS)
        rows = np.frombuffer(body[cuts[0] : cuts[1]], _ROWS)
        parts = np.frombuffer(body[cuts[1] :], _PARTS)
        if len(set(header.words)) != num_words:
            raise _unreadable(subject, "a word twice")
        if starts[0] != 0 or starts[-1] != num_pairs or (np.diff(starts) < 0).any():
            raise _unreadable(subject, "words whose entries are not where they belong")
        if ((rows < 0) | (rows >= header.num_skills)).any():
            raise _unreadable(subject, f"an entry that is none of {header.num_skills} skills")
        if not (np.isfinite(parts) & (parts >= 0)).all():
            raise _unreadable(subject, "scores that are no finite numbers from 0")
        # What bm25s.BM25.load sets, without the files that it reads.
        index = _new()
        index.scores = {"data": parts, "indices": rows, "indptr": starts, "num_docs": header.num_skills}
        index.vocab_dict = {word: place for place, word in enumerate(header.words)}
        index.nonoccurrence_array = None
        return cls(index)


def require_bm25s(*, extra: str) -> Any:  # noqa: ANN401 -- a module
    """The package bm25s; MissingExtraError naming the pip `extra` that brings it."""
    try:
        import bm25s
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "lexical scores",
            got=f"no package `{error.name}`",
            wanted=f"the {extra} extra",
            fix=f"Install it: pip install 'skillserve[{extra}]'",
        ) from error
    return bm25s


def _new() -> Any:  # noqa: ANN401 -- bm25s has no types
    """An empty index whose arithmetic does not depend on what else is installed."""
    return require_bm25s(extra="client").BM25(backend="numpy", csc_backend="numpy")


def _words(texts: Sequence[str]) -> list[list[str]]:
    found: list[list[str]] = require_bm25s(extra="client").tokenize(
        [mend(text) for text in texts], stopwords=_STOP_WORDS, return_ids=False, show_progress=False
    )
    return found


def _unreadable(subject: str, got: str) -> BundleError:
    return BundleError(
        subject,
        got=got,
        wanted="a lexical index",
        fix="Build the bundle again: skillserve index CATALOGUE --force",
    )
