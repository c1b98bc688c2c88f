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

from skillserve.errors import BundleError, ConfigError, RepositoryError, ServerError
from skillserve.max_sim import Interaction
from skillserve.settings import CalibrateSettings, IndexSettings
from skillserve.tensors import Ids
from skillserve_client import build_bundle, open_bundle
from skillserve_client.calibrate import calibrate_bundle
from skillserve_client.check import check_bundle
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


def asked_of(fake: Any, role: str) -> list[Ids]:
    """Every sequence that a model was asked about since the calls were cleared."""
    return [sequence for asked, sequences, _ in fake.calls for sequence in sequences if asked == role]


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


def test_they_are_what_the_server_reads_in_each_skill_alone(
    late_world: IndexSettings, catalogue: Path, late_fake: Any, computed: Any
) -> None:
    built = build_bundle(catalogue, late_fake, index=late_world)
    corpus = open_bundle(late_world.bundles).corpus
    assert built.manifest.late_interaction is not None
    assert built.manifest.late_interaction.how == late_fake.interaction
    assert corpus.tokens is not None
    assert not asked_of(late_fake, "reranker")
    asked = {tuple(ids.tolist()) for ids in asked_of(late_fake, "token_embedder")}
    for row in range(len(corpus.skills)):
        alone = [2, *corpus.skills.rerank_ids(row).tolist(), 3]
        assert tuple(alone) in asked
        read = computed("token_embedder", [np.array(alone, np.int32)])
        lengths = np.linalg.norm(read, axis=1)
        kept = corpus.tokens.skill(row)
        restored = kept.rows * kept.factors[:, None]
        wanted = read[lengths > 0] / lengths[lengths > 0, None]
        assert restored.shape == wanted.shape
        assert np.abs(restored - wanted).max() < WORST_COSINE
    assert len(asked) == len(corpus.skills)


@pytest.mark.parametrize("reranker", ["cross-encoder", "none"])
def test_a_reranker_that_compares_no_tokens_is_refused_before_anything_is_inferred(
    reranker: str, world: IndexSettings, catalogue: Path, fake: Any
) -> None:
    if reranker == "none":
        (world.models / "skill_reranker" / "card.json").unlink()
    with pytest.raises(ConfigError, match="max_sim") as caught:
        build_bundle(catalogue, fake, index=world.model_copy(update={"token_embeddings": True}))
    assert ("without a reranker" if reranker == "none" else "score kind logit") in str(caught.value)
    assert not fake.calls
    assert not world.bundles.exists()


@pytest.mark.parametrize("where", ["server", "repository", "other weights", "other tokenizer"])
def test_an_absent_token_embedder_and_one_of_another_reranker_are_refused(
    where: str, late_world: IndexSettings, catalogue: Path, late_fake: Any
) -> None:
    folder = late_world.models / "skill_token_embedder"
    if where == "server":
        del late_fake.digests["token_embedder"]
    elif where == "repository":
        (folder / "card.json").unlink()
    elif where == "other weights":
        late_fake.digests["token_embedder"] = "a" * 64
        (folder / "card.json").write_text((folder / "card.json").read_text().replace("f" * 64, "a" * 64))
    else:
        (folder / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes() + b" ")
    with pytest.raises(RepositoryError, match="skill_token_embedder"):
        build_bundle(catalogue, late_fake, index=late_world)
    assert not late_fake.calls


def test_skills_that_did_not_change_are_not_read_again_unless_forced(
    late_world: IndexSettings, catalogue: Path, late_fake: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    build_bundle(catalogue, late_fake, index=late_world)
    before = open_bundle(late_world.bundles).corpus
    assert len(asked_of(late_fake, "token_embedder")) == 5
    assert build_bundle(catalogue, late_fake, index=late_world).current
    rows = [json.loads(line) for line in catalogue.read_text().splitlines()]
    rows[1]["description"] = "rust chart"
    catalogue.write_text("".join(json.dumps(row) + "\n" for row in reversed(rows)))
    late_fake.calls.clear()
    build_bundle(catalogue, late_fake, index=late_world)
    after = open_bundle(late_world.bundles).corpus
    assert "4 of 5 skills are unchanged and keep their token embeddings" in capsys.readouterr().err
    ((only,),) = [[ids.tolist() for ids in asked_of(late_fake, "token_embedder")]]
    assert only == [2, *after.skills.rerank_ids(3).tolist(), 3]
    assert before.tokens is not None
    assert after.tokens is not None
    for row in (0, 1, 2, 4):
        assert np.array_equal(after.tokens.skill(row).rows, before.tokens.skill(4 - row).rows)
        assert np.array_equal(after.tokens.skill(row).factors, before.tokens.skill(4 - row).factors)
    late_fake.calls.clear()
    build_bundle(catalogue, late_fake, index=late_world, force=True)
    assert len(asked_of(late_fake, "token_embedder")) == 5


@pytest.mark.parametrize("what", ["tokenizer", "weights", "interaction"])
def test_skills_are_read_again_by_another_model(
    what: str, late_world: IndexSettings, catalogue: Path, late_fake: Any
) -> None:
    """The tokenizer of the same weights, too: it reads other tokens in them."""
    build_bundle(catalogue, late_fake, index=late_world)
    for name in ("skill_reranker", "skill_token_embedder"):
        folder = late_world.models / name
        if what == "tokenizer":
            (folder / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes() + b" ")
        elif what == "weights":
            (folder / "card.json").write_text((folder / "card.json").read_text().replace("f" * 64, "a" * 64))
    if what == "weights":
        late_fake.digests |= dict.fromkeys(("reranker", "token_embedder"), "a" * 64)
    if what == "interaction":
        late_fake.interaction = Interaction(window=9, scale=10.0)
        catalogue.write_text(catalogue.read_text().replace("merge pdf", "chart"))
    late_fake.calls.clear()
    assert not build_bundle(catalogue, late_fake, index=late_world).current
    assert len(asked_of(late_fake, "token_embedder")) == 5
    assert not asked_of(late_fake, "embedder") or what == "interaction"


def test_a_token_embedder_that_fails_leaves_the_live_bundle(
    late_world: IndexSettings, catalogue: Path, late_fake: Any
) -> None:
    before = build_bundle(catalogue, late_fake, index=late_world).manifest.version
    late_fake.failures["token_embedder"] = ServerError("fake", got="no answer", wanted="one", fix="Wait.")
    with pytest.raises(ServerError):
        build_bundle(catalogue, late_fake, index=late_world, force=True)
    assert open_bundle(late_world.bundles).version == before


WORDS = ("resize", "photo", "pdf", "merge", "table", "email", "git")


QUICK = CalibrateSettings(num_folds=2, num_resamples=100)


def test_a_calibration_keeps_token_embeddings_and_goes_with_their_use(
    late_world: IndexSettings, tmp_path: Path, late_fake: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = [(a, b) for a in WORDS for b in WORDS if a != b]

    def write(name: str, rows: list[dict[str, Any]]) -> Path:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    def asking(name: str, some: list[tuple[str, str]]) -> Path:
        return write(name, [{"id": f"{a}{b}", "query": f"{b} {a} x", "skill_ids": [f"{a}-{b}"]} for a, b in some])

    skills = write("pairs.jsonl", [{"id": f"{a}-{b}", "name": a, "description": b, "body": b} for a, b in pairs])
    nones = [
        write(f"none{n}.jsonl", [{"id": f"{i}", "query": f"{c} {n} q"} for i, c in enumerate("abcdefghijklmnopqrst")])
        for n in (1, 2)
    ]
    build_bundle(skills, late_fake, index=late_world)
    late_fake.calls.clear()
    done = calibrate_bundle(
        late_fake,
        requests=asking("requests.jsonl", pairs[::2]),
        none=nones[0],
        index=late_world,
        settings=QUICK,
    )
    assert not asked_of(late_fake, "reranker")
    live = open_bundle(late_world.bundles)
    assert live.calibration is not None
    assert (live.manifest.files[FILE], live.manifest.late_interaction) == (
        open_bundle(late_world.bundles / str(done.manifest.parent)).manifest.files[FILE],
        done.manifest.late_interaction,
    )
    others = asking("others.jsonl", pairs[1::2])
    checked = check_bundle(late_fake, others, nones[1], index=late_world, settings=QUICK)
    assert checked.bundle == live.version
    assert build_bundle(skills, late_fake, index=late_world).current

    off = late_world.model_copy(update={"token_embeddings": False})
    capsys.readouterr()
    plain = build_bundle(skills, late_fake, index=off)
    told = capsys.readouterr().err
    assert (plain.current, plain.calibrated, plain.manifest.late_interaction) == (False, False, None)
    assert FILE not in plain.manifest.files
    assert "dropped, for the use of token embeddings changed" in told
    assert "With --token-embeddings the bundle keeps what it reads" in " ".join(told.split())
    again = build_bundle(skills, late_fake, index=late_world)
    assert not again.current
    assert FILE in again.manifest.files
