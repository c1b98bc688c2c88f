r"""The only place that takes a request apart.

A long request often asks for several things, and one vector blends them. Its parts are embedded beside the whole, each
as a request of its own, so that a skill which fits one of them well is found (`skillserve.fusion.blend`).

    sentence   ends at `.`, `!`, `?` or `…` with white space behind it, at a full-width `。`, `!` or `?` whatever is
               behind it, once quotes and brackets are closed, and at a line break, as list items do; what holds fewer
               than two words goes with the sentence behind it, or at the end with the one before
    word       what stands between white space; in Chinese and Japanese, which have none, up to two Han characters,
               about the length of their words, or a run of hiragana or of katakana, so that a greeting is one word
    part       three neighbouring sentences; the next part begins one sentence later

A request of at most three sentences is a part itself, and has none. None has more than `MAX_PARTS`: in longer requests
the parts are longer and spread evenly, cover the whole and still share two sentences with their neighbours, so that a
request of any length costs so many sequences at most. A change of these rules is another `PART_FORMAT`, which bundles
carry.
"""

from __future__ import annotations

import re
from itertools import islice

__all__ = ["MAX_PARTS", "PART_FORMAT", "PART_SENTENCES", "PART_STRIDE", "request_parts"]

PART_FORMAT = "parts/2"
"""Version of everything in this file."""

PART_SENTENCES = 3
"""Sentences of a part, unless the request is very long."""

PART_STRIDE = 1
"""How many sentences later the next part begins, at the least."""

MAX_PARTS = 16
"""Most parts of a request."""

_SHARED = PART_SENTENCES - PART_STRIDE
"""Sentences that neighbouring parts have in common, at the least."""

_LEAST_WORDS = 2
"""Words of a sentence: `1.`, `e.g.`, `Thanks!` and `谢谢。` are none."""

_HAN = r"\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_HIRAGANA = r"\u3041-\u309f"
_KATAKANA = r"\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f"
_STOPS = r"\u3002\uff01\uff1f\uff61"
_CLOSING = r")\]\u2019\u201d\u3009\u300b\u300d\u300f\u3011\u3015\uff09\uff3d\uff5d\uff63"
_COMMAS = r"\u3001\uff0c\uff1a\uff1b\uff64"

# Each begins with what it cannot go on without, so that none looks at a character more than a few times. A group is
# what still belongs to the sentence.
_BREAK = re.compile(rf"(?<=[.!?…])\s+|([{_STOPS}][{_STOPS}{_CLOSING}]*)\s*|[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")
_WORD = re.compile(
    rf"[{_HAN}]{{1,2}}|[{_HIRAGANA}]+|[{_KATAKANA}]+|[^\W_][^\s{_COMMAS}{_STOPS}{_HAN}{_HIRAGANA}{_KATAKANA}]*"
)


def request_parts(text: str) -> tuple[str, ...]:
    """The parts of a request in its order, each a piece of it as it stands there; at most `MAX_PARTS`.

    >>> request_parts("Merge two PDFs. Keep bookmarks. Drop blank pages. Then mail it.")
    ('Merge two PDFs. Keep bookmarks. Drop blank pages.', 'Keep bookmarks. Drop blank pages. Then mail it.')
    >>> request_parts("Merge two PDFs. Keep bookmarks. Thanks!")
    ()
    """
    sentences = _sentences(text)
    if len(sentences) <= PART_SENTENCES:
        return ()
    num = len(sentences)
    size = max(PART_SENTENCES, _ceil(num + (MAX_PARTS - 1) * _SHARED, MAX_PARTS))
    gaps = min(_ceil(num - size, PART_STRIDE), MAX_PARTS - 1)
    firsts = [i * (num - size) // gaps for i in range(gaps + 1)]
    return tuple(text[sentences[first][0] : sentences[first + size - 1][1]].strip() for first in firsts)


def _sentences(text: str) -> list[tuple[int, int]]:
    """Where each sentence begins and ends."""
    ends = [(max(found.start(), found.end(1)), found.end()) for found in _BREAK.finditer(text)]
    found: list[tuple[int, int]] = []
    begin = at = words = 0
    for end, following in [*ends, (len(text), len(text))]:
        words += sum(1 for _ in islice(_WORD.finditer(text, at, end), _LEAST_WORDS))
        at = following
        if words >= _LEAST_WORDS:
            found.append((begin, end))
            begin, words = following, 0
    if found:
        found[-1] = found[-1][0], len(text)
    return found


def _ceil(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)
