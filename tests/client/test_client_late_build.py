"""Bundles with token embeddings, built: what is read in skills, when it is read again, who is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from skillserve.errors import ConfigError, RepositoryError, ServerError
from skillserve.max_sim import Interaction
from skillserve.settings import CalibrateSettings, IndexSettings
from skillserve.tensors import Ids
from skillserve_client import build_bundle, open_bundle
from skillserve_client.calibrate import calibrate_bundle
from skillserve_client.check import check_bundle

FILE = "token_embeddings.npz"
WORST_COSINE = 0.01
"""As eight bits turn one at most."""


def asked_of(fake: Any, role: str) -> list[Ids]:
    """Every sequence that a model was asked about since the calls were cleared."""
    return [sequence for asked, sequences, _ in fake.calls for sequence in sequences if asked == role]


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
        alone = [2, *corpus.skills.rerank_ids(row)[: late_world.token_embeddings].tolist(), 3]
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
        build_bundle(catalogue, fake, index=world.model_copy(update={"token_embeddings": 40}))
    assert ("without a reranker" if reranker == "none" else "score kind logit") in str(caught.value)
    assert not fake.calls
    assert not world.bundles.exists()


@pytest.mark.parametrize("changes", [{"token_embeddings": 40}, {"token_embeddings": 0}])
def test_a_token_embedder_whose_reranker_was_removed_is_not_passed_over(
    changes: dict[str, Any], late_world: IndexSettings, catalogue: Path, late_fake: Any
) -> None:
    """Without a word the bundle would have no second stage."""
    (late_world.models / "skill_reranker" / "card.json").unlink()
    with pytest.raises(RepositoryError, match="skill_token_embedder without skill_reranker"):
        build_bundle(catalogue, late_fake, index=late_world.model_copy(update=changes))
    assert not late_fake.calls


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

    off = late_world.model_copy(update={"token_embeddings": 0})
    capsys.readouterr()
    plain = build_bundle(skills, late_fake, index=off)
    told = capsys.readouterr().err
    assert (plain.current, plain.calibrated, plain.manifest.late_interaction) == (False, False, None)
    assert FILE not in plain.manifest.files
    assert "dropped, for the use of token embeddings changed" in told
    assert "With --token-embeddings 320 the bundle keeps what it reads" in " ".join(told.split())
    again = build_bundle(skills, late_fake, index=late_world)
    assert not again.current
    assert FILE in again.manifest.files


def test_another_number_of_tokens_reads_all_skills_again(
    late_world: IndexSettings, catalogue: Path, late_fake: Any
) -> None:
    build_bundle(catalogue, late_fake, index=late_world)
    late_fake.calls.clear()
    fewer = build_bundle(catalogue, late_fake, index=late_world.model_copy(update={"token_embeddings": 3}))
    assert not fewer.current
    assert fewer.manifest.token_embeddings == 3
    assert {len(ids) for ids in asked_of(late_fake, "token_embedder")} <= {3, 4, 5}
    tokens = open_bundle(late_world.bundles).corpus.tokens
    assert tokens is not None
    assert len(asked_of(late_fake, "token_embedder")) == len(tokens)
