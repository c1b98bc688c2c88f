"""Requests taken apart: sentences, windows over them, and hostile ones."""

# ruff: noqa: RUF001 -- full-width punctuation is what is tested

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from skillserve.parts import MAX_PARTS, PART_SENTENCES, request_parts


def numbered(num: int) -> list[str]:
    """Sentences that differ."""
    return [f"This is number {i}." for i in range(num)]


@pytest.mark.parametrize("num", range(PART_SENTENCES + 1))
def test_a_request_of_up_to_three_sentences_has_no_parts(num: int) -> None:
    assert request_parts(" ".join(numbered(num))) == ()


@pytest.mark.parametrize("num", [4, 5, 11, 18])
def test_parts_are_all_windows_of_three_sentences(num: int) -> None:
    sentences = numbered(num)
    expected = tuple(" ".join(sentences[i : i + 3]) for i in range(num - 2))
    assert request_parts(" ".join(sentences)) == expected


@pytest.mark.parametrize("num", [19, 20, 34, 35, 97, 1000, 4321])
def test_longer_requests_have_sixteen_longer_parts_that_cover_them_evenly(num: int) -> None:
    sentences = numbered(num)
    parts = request_parts(" ".join(sentences))
    places = [[int(word) for word in part.replace(".", "").split() if word.isdecimal()] for part in parts]
    assert len(parts) == MAX_PARTS
    assert sorted({place for part in places for place in part}) == list(range(num))
    assert len({len(part) for part in places}) == 1
    for one, following in pairwise(places):
        assert one[0] < following[0]
        assert len(set(one) & set(following)) >= 2
    # No longer than they must be: fifteen steps of all but two sentences, and one whole part.
    size = len(places[0])
    assert (size - 1) + (MAX_PARTS - 1) * (size - 3) < num


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Do one! Is it two? Say three… End with four.", ["Do one!", "Is it two?", "Say three…", "End with four."]),
        ("do one\ndo two\r\ndo three\n\n\n do four", ["do one", "do two", "do three", "do four"]),
        ("- do one\n- do two\n* do three\n4. do four", ["- do one", "- do two", "* do three", "4. do four"]),
        (
            "Open app.py now. Use v1.2 only. E.g. do this. Then stop it.",
            ["Open app.py now.", None, None, "Then stop it."],
        ),
        ("Hello!\nDo one. Do two. Do three. Do four. Thanks!", ["Hello!\nDo one.", None, None, "Do four. Thanks!"]),
        ("1. Do one. 2. Do two. 3. Do three. 4. Do four.", ["1. Do one.", "2. Do two.", "3. Do three.", "4. Do four."]),
        ("Do one. *** Do two. --- Do three. 🎉 🎉 🎉. Do four.", ["Do one.", None, None, "🎉 🎉 🎉. Do four."]),
        ("合并文件。压缩图片！它很慢吗？翻译这篇文章", ["合并文件。", "压缩图片！", "它很慢吗？", "翻译这篇文章"]),
        (
            "ありがとう！画像を縮小して。PDFを結合。表を直せますか？メールを送る｡",
            ["ありがとう！画像を縮小して。", "PDFを結合。", "表を直せますか？", "メールを送る｡"],
        ),
        (
            "他说「合并文件。」压缩图片！？翻译。整理表格。好的。用Python。",
            ["他说「合并文件。」", "压缩图片！？", "翻译。整理表格。", "好的。用Python。"],
        ),
        ("合并文件。 Merge PDF. 压缩图片！再翻译它。", ["合并文件。", "Merge PDF.", "压缩图片！", "再翻译它。"]),
        ("用v1.2画图。版本３．５更好。改名，重试。说完了。", ["用v1.2画图。", "版本３．５更好。", None, "说完了。"]),
    ],
)
def test_where_sentences_end(text: str, sentences: list[str | None]) -> None:
    """Four sentences make two parts; the first begins and the last ends as the request does."""
    parts = request_parts(text)
    assert len(parts) == len(sentences) - 2
    first, last = parts[0], parts[-1]
    assert (text.startswith(first), text.endswith(last)) == (True, True)
    if sentences[0] is not None:
        assert text[: text.index(last)].strip() == sentences[0]
    if sentences[-1] is not None:
        assert text[len(first) :].strip() == sentences[-1]


@settings(max_examples=300, deadline=None)
@example("1. 2. 3. 4. 5. 6. 7. 8.")
@example("\ud800. \ud800 a. b c. d e. f g. h")
@given(st.text(alphabet=st.sampled_from("ab1. !?…\n\r\t\u2028-_\ud800🎉é"), max_size=400))
def test_parts_are_few_pieces_of_the_request_with_words_in_each(text: str) -> None:
    parts = request_parts(text)
    assert len(parts) <= MAX_PARTS
    assert len(parts) != 1
    assert request_parts(text) == parts
    assert request_parts(f"  {text}\n") == parts
    at = 0
    for part in parts:
        assert part == part.strip()
        at = text.index(part, at)  # in the order of the request
        assert sum(any(char.isalnum() for char in word) for word in part.split()) >= 2 * PART_SENTENCES
    assert_covered(text.strip(), parts)


@settings(max_examples=300, deadline=None)
@example("。".join(["漢字の文"] * 60))
@example("漢。漢。漢。漢。漢。漢。漢。漢。")
@given(st.text(alphabet=st.sampled_from("漢字あアー。！？｡」、…. \nab1"), max_size=400))
def test_parts_without_white_space_between_words_are_pieces_that_cover_the_request(text: str) -> None:
    parts = request_parts(text)
    assert len(parts) <= MAX_PARTS
    assert request_parts(f"\n{text}\u3000") == parts
    for part in parts:
        assert part == part.strip()
        assert part in text
        assert sum(char.isalnum() for char in part) >= 2 * PART_SENTENCES
    assert_covered(text.strip(), parts)


def assert_covered(text: str, parts: tuple[str, ...]) -> None:
    """Every character lies in a part; equal pieces are looked for as far to the right as leaves no gap."""
    reach = 0
    for part in parts:
        at = text.rfind(part, 0, reach + len(part))
        assert at >= 0
        reach = at + len(part)
    assert not parts or reach == len(text)


HOSTILE = {
    "dots": ".",
    "line breaks": "\n",
    "line breaks and blanks": "\n ",
    "blanks": " ",
    "dots and blanks": ". ",
    "one word": "a",
    "short words": "a. ",
    "sentences": "do it. ",
    "punctuation and blanks": "-.- ",
    "a blank before each break": " \t\n",
    "full stops of Chinese": "。",
    "Chinese": "漢",
    "hiragana": "あ",
    "changing scripts": "漢あアa",
    "Chinese sentences": "合并文件。",
    "closing brackets": "。」」」",
    "full stops and blanks": "。  ",
}


def seconds(text: str) -> float:
    began = time.process_time()
    request_parts(text)
    return time.process_time() - began


@pytest.mark.parametrize("pattern", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_requests_take_time_in_proportion_to_their_length(pattern: str) -> None:
    """Eight times the text would take 64 times as long if anything were quadratic; 24 leaves room for noise."""
    short, long = (pattern * (num // len(pattern)) for num in (125_000, 1_000_000))
    assert min(seconds(long) for _ in range(2)) < 24 * max(min(seconds(short) for _ in range(3)), 0.002)
    assert len(request_parts(long)) <= MAX_PARTS
    assert sum(map(len, request_parts(long))) < 4 * len(long)
