"""What an audit computes, against loops that anybody can follow."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import skew

from skillserve.errors import ConfigError
from skillserve_client.batch.audit import groups as groups_module
from skillserve_client.batch.audit import neighbours as blocks_module
from skillserve_client.batch.audit.categories import assign
from skillserve_client.batch.audit.groups import Forest, first_of_text
from skillserve_client.batch.audit.hubs import are_hubs, occurrences_of, skewness
from skillserve_client.batch.audit.neighbours import neighbour_blocks
from skillserve_client.batch.audit.taxonomy import read_taxonomy
from skillserve_client.wire import Floats

DIM = 12
THRESHOLD = 0.9


def unit(rows: np.ndarray) -> Floats:
    unit_rows: Floats = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    return unit_rows


@pytest.fixture(scope="module")
def vectors() -> Floats:
    """Loners, crowds of close ones larger than any list, and copies to the last bit."""
    rng = np.random.default_rng(5)
    loners = rng.normal(size=(150, DIM))
    crowds = [rng.normal(size=DIM) + rng.normal(scale=0.05, size=(size, DIM)) for size in (60, 7, 2)]
    copies = np.repeat(rng.normal(size=(2, DIM)), (40, 3), axis=0)
    together = np.concatenate([loners, *crowds, copies])
    return unit(together[rng.permutation(len(together))])


@pytest.fixture(scope="module")
def near(vectors: Floats) -> np.ndarray:
    """All similarities `[N, N]`, one by one, summed in float64 and rounded once."""
    exact = vectors.astype(np.float64)
    return np.array([[(one * other).sum() for other in exact] for one in exact]).astype(np.float32)


def components(close: np.ndarray) -> set[tuple[int, ...]]:
    """Connected components of two or more, by walking."""
    left, found = set(range(len(close))), set()
    while left:
        reached, edge = set(), {left.pop()}
        while edge:
            reached |= edge
            edge = {int(j) for i in edge for j in np.flatnonzero(close[i])} - reached
        left -= reached
        if len(reached) > 1:
            found.add(tuple(sorted(reached)))
    return found


@pytest.mark.parametrize(("num_neighbours", "block_bytes"), [(1, 100_000), (10, 1), (10, 1 << 28), (1_000, 100_000)])
def test_neighbours_and_close_pairs_are_those_of_a_full_comparison(
    vectors: Floats, near: np.ndarray, num_neighbours: int, block_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks_module, "_BLOCK_BYTES", block_bytes)
    found = list(neighbour_blocks(vectors, num_neighbours=num_neighbours, threshold=THRESHOLD))
    assert [block.first for block in found] == np.cumsum([0, *(len(block.rows) for block in found[:-1])]).tolist()
    assert (len(found) == 1) == (block_bytes == 1 << 28)
    rows = np.concatenate([block.rows for block in found])
    similarities = np.concatenate([block.similarities for block in found])
    for i in range(len(vectors)):
        others = [j for j in range(len(vectors)) if j != i]
        wanted = sorted(others, key=lambda j: (-near[i, j], j))[:num_neighbours]
        assert rows[i].tolist() == wanted
        assert np.array_equal(similarities[i], near[i, wanted])
    pairs = [tuple(pair) for block in found for pair in block.pairs.tolist()]
    close = np.argwhere(np.triu(near >= np.float32(THRESHOLD), k=1))
    assert sorted(pairs) == sorted(map(tuple, close.tolist()))


def test_groups_are_the_connected_components_and_the_one_in_the_middle_represents_each(
    vectors: Floats, near: np.ndarray
) -> None:
    forest = Forest(len(vectors))
    for block in neighbour_blocks(vectors, num_neighbours=3, threshold=THRESHOLD):
        forest.join(block.pairs)
    groups = forest.groups(vectors)
    assert {tuple(group.rows.tolist()) for group in groups} == components(near >= np.float32(THRESHOLD))
    assert {len(group.rows) for group in groups} >= {60, 40, 7, 3}
    order = [(-len(group.rows), group.rows[0]) for group in groups]
    assert order == sorted(order)
    for group in groups:
        own = near[np.ix_(group.rows, group.rows)].astype(np.float64)
        means = (own.sum(axis=1) - np.diag(own)) / (len(own) - 1)
        chosen = group.rows.tolist().index(group.representative)
        assert means[chosen] == pytest.approx(means.max(), abs=1e-6)
        assert np.allclose(group.similarities, own[chosen], atol=1e-6)
    (copies,) = (group for group in groups if len(group.rows) == 40)
    assert copies.representative == copies.rows[0]


def test_a_crowd_of_copies_is_one_group_without_a_look_at_every_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """400 copies have 79,800 pairs; once their chain hangs together, no pair has anything to add."""
    monkeypatch.setattr(groups_module, "_PAIRS_AT_ONCE", 500)
    looked_at: list[int] = []
    whole = Forest._root
    monkeypatch.setattr(Forest, "_root", lambda self, row: looked_at.append(row) or whole(self, row))
    forest = Forest(403)
    forest.join(np.argwhere(np.triu(np.ones((400, 400), bool), k=1)))
    forest.join(np.array([[402, 401]]))
    sizes = [group.rows.tolist() for group in forest.groups(unit(np.ones((403, DIM))))]
    assert sizes == [list(range(400)), [401, 402]]
    assert len(looked_at) < 2_000


def test_of_two_the_first_represents_whatever_rounding_says() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        pair = unit(np.repeat(rng.normal(size=(1, DIM)), 2, axis=0) + rng.normal(scale=0.01, size=(2, DIM)))
        forest = Forest(2)
        forest.join(np.array([[0, 1]]))
        (group,) = forest.groups(pair)
        assert group.representative == 0


def test_equal_texts_are_known_by_their_first() -> None:
    assert first_of_text([b"a", b"b", b"a", b"c", b"b", b"a"]).tolist() == [0, 1, 0, 3, 1, 0]


def test_occurrences_are_counted_and_their_skewness_is_scipys(vectors: Floats) -> None:
    (found,) = neighbour_blocks(vectors, num_neighbours=10, threshold=1.0)
    counts = occurrences_of(found.rows)
    tally = Counter(row for rows in found.rows.tolist() for row in rows)
    assert counts.tolist() == [tally[row] for row in range(len(vectors))]
    assert counts.sum() == 10 * len(vectors)
    assert skewness(counts) == pytest.approx(skew(counts), rel=1e-12)
    mean, deviation = np.mean(counts), np.std(counts)
    assert are_hubs(counts).tolist() == [count > mean + 2 * deviation for count in counts.tolist()]
    assert skewness(np.full(5, 3)) is None
    assert not are_hubs(np.full(5, 3)).any()


def test_the_nearest_category_wins_and_margins_are_to_the_next_ones() -> None:
    rng = np.random.default_rng(3)
    skills, categories = unit(rng.normal(size=(5_000, DIM))), unit(rng.normal(size=(5, DIM)))
    majors = ["x", "y", "x", "z", "y"]
    found = assign(skills, categories, majors)
    for i in [*range(0, 5_000, 97), 4_999]:
        near = [float(np.dot(skills[i].astype(float), category.astype(float))) for category in categories]
        best, second = sorted(range(5), key=lambda c: -near[c])[:2]
        other = max(near[c] for c in range(5) if majors[c] != majors[best])
        assert (found.category[i], found.runner_up[i]) == (best, second)
        figures = [found.similarity[i], found.margin[i], found.major_margin[i]]
        assert figures == pytest.approx([near[best], near[best] - near[second], near[best] - other], abs=1e-6)
    assert np.isnan(assign(skills, categories, [""] * 5).major_margin).all()
    twice = assign(skills, categories[[1, 1, 0]], ["", "", ""])
    assert not (twice.category == 1).any()


def test_skillrets_taxonomy_has_six_major_and_eighteen_sub_categories() -> None:
    taxonomy = read_taxonomy(None)
    assert "2605.05726" in taxonomy.source
    subs = Counter(category.major for category in taxonomy.categories)
    assert sorted(subs.values()) == [2, 2, 2, 3, 3, 6]
    assert len({category.sub for category in taxonomy.categories}) == 18


def test_a_taxonomy_is_toml_or_json_and_its_digest_is_of_what_it_says(tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text(
        'name = "T"\ncategories = [{sub = "a", description = "x"}, {major = "m", sub = "a", description = "y"}]\n'
    )
    (tmp_path / "t.json").write_text(
        '{"categories": [{"description": "x", "sub": " a "}, {"major": "m", "sub": "a", "description": "y"}],'
        ' "name": "T"}'
    )
    one, other = read_taxonomy(tmp_path / "t.toml"), read_taxonomy(tmp_path / "t.json")
    assert one == other
    assert one.digest == other.digest != read_taxonomy(None).digest
    assert [category.title for category in one.categories] == ["a", "m / a"]
    assert one.categories[0].request == "a: x"


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("t.toml", "name = ", "TOML or JSON"),
        ("t.json", '{"name": "T", "categories": [', "TOML or JSON"),
        ("t.json", '{"name": "T", "categories": [{"sub": "a", "description": "x"}]}', "at least 2"),
        ("t.json", '{"name": "T", "categories": [{"sub": "a", "description": "x"}, {"sub": "b"}]}', "description"),
        (
            "t.json",
            '{"name": "T", "categories": [{"sub": "a", "description": " "}, {}]}',
            r"categories\.0\.description",
        ),
        (
            "t.toml",
            'name = "T"\ncategories = [{sub = "a", description = "x"}, {sub = "a", description = "y"}]',
            "twice",
        ),
    ],
)
def test_a_taxonomy_at_fault_is_named_with_its_fault(tmp_path: Path, file: str, text: str, said: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_taxonomy(tmp_path / file)
    with pytest.raises(ConfigError, match="No such file"):
        read_taxonomy(tmp_path / "nowhere.toml")
