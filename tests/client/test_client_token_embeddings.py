"""Token embeddings in 8 bits: what they lose, what of a file is refused, when a build reads skills again."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skillserve.errors import BundleError
from skillserve.max_sim import Interaction
from skillserve.settings import IndexSettings
from skillserve_client import Bundle, build_bundle, open_bundle, token_embeddings
from skillserve_client.token_embeddings import SkillTokens, TokenEmbeddings

FILE = "token_embeddings.npz"
HOW = Interaction(window=4, scale=10.0)
WORST_COSINE = 0.01
"""Error of one number is at most 1/254 of the row's largest; this bounds what many of them add up to."""


def random_units(num: int, dim: int, seed: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(num, dim))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def some_tokens() -> TokenEmbeddings:
    """Three skills; the second has no token that weighs anything."""
    parts = [SkillTokens.of(rows) for rows in (random_units(3, 8, 1), np.zeros((2, 8), np.float32))]
    return TokenEmbeddings.joined([*parts, SkillTokens.of(random_units(5, 8, 2))], 8, HOW)


def archive(**arrays: Any) -> bytes:
    sink = io.BytesIO()
    np.savez(sink, **arrays)
    return sink.getvalue()


def reseal(root: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the live bundle's manifest and make CURRENT agree."""
    folder = root / (root / "CURRENT").read_text().split()[0]
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    content = json.dumps(manifest)
    (folder / "manifest.json").write_text(content)
    (root / "CURRENT").write_text(f"{folder.name} {hashlib.sha256(content.encode()).hexdigest()}\n")


@pytest.mark.parametrize("dim", [8, 128, 384])
def test_eight_bits_turn_no_cosine_by_more_than_a_hundredth(dim: int) -> None:
    rows, others = random_units(200, dim, 3), random_units(200, dim, 4)
    kept = SkillTokens.of(rows * np.linspace(0.1, 9, 200, dtype=np.float32)[:, None])
    assert kept.rows.dtype == np.int8
    assert np.abs(kept.rows.astype(np.int16)).max(axis=1).tolist() == [127] * 200
    restored = kept.rows.astype(np.float64) * kept.factors[:, None]
    assert np.abs(restored @ others.T - rows.astype(np.float64) @ others.T).max() < WORST_COSINE


def test_tokens_that_weigh_nothing_are_left_out_and_a_skill_of_marks_has_none() -> None:
    rows = random_units(4, 8, 5)
    rows[[0, 2]] = 0
    kept, whole = SkillTokens.of(rows), SkillTokens.of(rows[[1, 3]])
    assert np.array_equal(kept.rows, whole.rows)
    tokens = some_tokens()
    assert (len(tokens), tokens.dim, tokens.ends.tolist()) == (3, 8, [3, 3, 8])
    assert tokens.skill(1).rows.shape == (0, 8)
    asked = random_units(6, 8, 6)
    alone = [float(tokens.scores(asked, [row])[0]) for row in range(3)]
    assert alone[1] == pytest.approx(-HOW.scale)
    assert tokens.scores(asked, [2, 1, 0]).tolist() == pytest.approx(alone[::-1], rel=1e-6)
    assert tokens.scores(asked, []).shape == (0,)


def test_bytes_give_back_what_they_were_made_of() -> None:
    tokens = some_tokens()
    again = TokenEmbeddings.from_bytes(tokens.to_bytes(), HOW, subject="file")
    assert again.how == HOW
    for name in ("rows", "factors", "ends"):
        assert np.array_equal(getattr(again, name), getattr(tokens, name))
        assert getattr(again, name).dtype == getattr(tokens, name).dtype


SOUND: dict[str, Any] = {
    "rows": np.ones((3, 8), np.int8),
    "factors": np.ones(3, np.float32),
    "ends": np.array([1, 3], np.int64),
}


def one_array() -> bytes:
    sink = io.BytesIO()
    np.save(sink, SOUND["rows"])
    return sink.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no archive",
        one_array(),
        archive(**SOUND)[:-30],
        archive(**SOUND)[:100] + b"\xff" * 40 + archive(**SOUND)[140:],
        archive(rows=SOUND["rows"], ends=SOUND["ends"]),
        archive(**SOUND | {"rows": np.ones((3, 8), np.float32)}),
        archive(**SOUND | {"rows": np.ones(3, np.int8)}),
        archive(**SOUND | {"factors": np.ones(3)}),
        archive(**SOUND | {"factors": np.ones(4, np.float32)}),
        archive(**SOUND | {"ends": np.array([1, 3], np.int32)}),
        archive(**SOUND | {"ends": np.array([1, 2], np.int64)}),
        archive(**SOUND | {"ends": np.array([4, 3], np.int64)}),
        archive(**SOUND | {"ends": np.array([-1, 3], np.int64)}),
        archive(**SOUND | {"rows": np.array([{}, [], ()], object)}),
    ],
)
def test_a_file_that_holds_something_else_is_refused(content: bytes) -> None:
    assert len(TokenEmbeddings.from_bytes(archive(**SOUND), HOW, subject="the file")) == 2
    with pytest.raises(BundleError, match="the file"):
        TokenEmbeddings.from_bytes(content, HOW, subject="the file")


def test_a_flipped_byte_is_refused_by_the_name_of_its_file(
    late_world: IndexSettings, catalogue: Path, late_fake: Any
) -> None:
    version = build_bundle(catalogue, late_fake, index=late_world).manifest.version
    path = late_world.bundles / version / FILE
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=FILE):
        open_bundle(late_world.bundles)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda manifest: manifest.update(late_interaction=None), "half of token embeddings"),
        (lambda manifest: manifest["files"].pop(FILE), "half of token embeddings"),
        (lambda manifest: manifest["late_interaction"].update(window=0), "window"),
        (
            lambda manifest: (
                manifest["models"].pop("reranker"),
                manifest["files"].pop("reranker.card.json"),
                manifest["files"].pop("reranker.tokenizer.json"),
            ),
            "token embeddings without a reranker",
        ),
    ],
)
def test_a_manifest_with_half_of_it_is_refused(
    change: Callable[[Any], object], said: str, late_world: IndexSettings, catalogue: Path, late_fake: Any
) -> None:
    build_bundle(catalogue, late_fake, index=late_world)
    reseal(late_world.bundles, change)
    with pytest.raises(BundleError, match=said):
        open_bundle(late_world.bundles)


def test_token_embeddings_of_fewer_skills_are_refused(
    late_world: IndexSettings, catalogue: Path, late_fake: Any
) -> None:
    version = build_bundle(catalogue, late_fake, index=late_world).manifest.version
    content = some_tokens().to_bytes()
    (late_world.bundles / version / FILE).write_bytes(content)
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    reseal(late_world.bundles, lambda manifest: manifest["files"].update({FILE: entry}))
    with pytest.raises(BundleError, match="of 3 skills"):
        open_bundle(late_world.bundles)


def test_scores_do_not_depend_on_how_many_tokens_are_compared_together(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = some_tokens()
    asked = random_units(5, tokens.dim, seed=8)
    candidates = [*range(len(tokens)), 0]
    whole = tokens.scores(asked, candidates)
    monkeypatch.setattr(token_embeddings, "_TOKENS_AT_ONCE", 3)
    assert np.allclose(tokens.scores(asked, candidates), whole, atol=1e-6)
    assert tokens.scores(asked, []).shape == (0,)


def test_a_manifest_speaks_of_token_embeddings_only_where_there_are_some(
    world: IndexSettings, late_bundle: Bundle, catalogue: Path, fake: Any
) -> None:
    """Releases that do not know them refuse fields that they do not know."""
    plain = build_bundle(catalogue, fake, index=world.model_copy(update={"bundles": world.bundles / "plain"}))
    written = json.loads((world.bundles / "plain" / plain.manifest.version / "manifest.json").read_text())
    assert "late_interaction" not in written
    assert "late_interaction" in json.loads((late_bundle.folder / "manifest.json").read_text())
