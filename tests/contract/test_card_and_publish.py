"""Cards are bound to their weights; what is published is whole or not there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from skillserve import publish
from skillserve.card import ModelCard, compute_digest, read_card, write_card
from skillserve.errors import CardError
from skillserve.publish import published_folder, write_text
from skillserve.text import BERT_PAIR_FRAME


@pytest.fixture
def weights(tiny_embedder: Path, tmp_path: Path) -> Path:
    """A private copy of a weights folder."""
    for path in tiny_embedder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_a_card_survives_the_round_trip(weights: Path) -> None:
    card = read_card(weights, verify_weights=True)
    assert write_card(weights, card) == card
    assert read_card(weights) == card


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_changed_file_changes_the_digest(weights: Path, name: str) -> None:
    with (weights / name).open("ab") as file:
        file.write(b"\n")
    with pytest.raises(CardError, match="skillserve card"):
        read_card(weights, verify_weights=True)


def test_a_changed_prompt_changes_the_digest(weights: Path) -> None:
    card = read_card(weights)
    assert compute_digest(weights, card.model_copy(update={"query_prompt": "Query: "})) != card.digest


def test_a_missing_file_is_named(weights: Path) -> None:
    (weights / "tokenizer.json").unlink()
    with pytest.raises(CardError, match=r"no tokenizer\.json"):
        read_card(weights, verify_weights=True)


@pytest.mark.parametrize(
    "change",
    [
        {"frame": BERT_PAIR_FRAME},
        {"dim": None},
        {"pooling": None},
        {"score_kind": "logit"},
        {"max_query_tokens": 10_000},
        {"vocab_size": 0},
        {"colour": "blue"},
        {"text_format": "other/9"},
    ],
)
def test_a_card_that_contradicts_itself_is_refused(weights: Path, change: dict[str, object]) -> None:
    content = json.loads((weights / "card.json").read_text()) | change
    (weights / "card.json").write_text(json.dumps(content))
    with pytest.raises(CardError, match=r"card\.json"):
        read_card(weights)


def test_a_card_is_frozen(weights: Path) -> None:
    with pytest.raises(ValidationError):
        read_card(weights).dim = 5


GOLDEN_DIGEST = "dda578c907c8651e88635b176354d9f2d512856cdca321cacbbe0c7df9b39c59"


def test_the_digest_of_a_fixed_model_never_changes(tmp_path: Path) -> None:
    """Or every bundle and every exported graph of every user would have to be made again."""
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_bytes(name.encode())
    card = ModelCard(
        name="a",
        role="embedder",
        family="bert",
        dim=4,
        vocab_size=9,
        max_tokens=8,
        max_query_tokens=4,
        pooling="mean",
        frame="[CLS] {text} [SEP]",
        score_kind="cosine",
        base_model="b",
        base_revision="c",
        training={"loss": 0.1, "ünit": [1, None]},
        licence="Apache-2.0",
    )
    assert compute_digest(tmp_path, card) == GOLDEN_DIGEST


def test_an_optional_field_of_a_later_version_leaves_digests_alone(weights: Path) -> None:
    class LaterCard(ModelCard):
        colour: str | None = None

    card = read_card(weights)
    later = LaterCard.model_validate(card.model_dump())
    assert compute_digest(weights, later) == card.digest
    assert compute_digest(weights, later.model_copy(update={"colour": "blue"})) != card.digest
    assert compute_digest(weights, card.model_copy(update={"text_format": "other/9"})) != card.digest


@pytest.mark.parametrize("value", [float("nan"), {"deep": [float("-inf")]}])
def test_a_figure_that_is_none_is_refused_by_name(weights: Path, value: object) -> None:
    card = read_card(weights)
    before = (weights / "card.json").read_bytes()
    with pytest.raises(CardError, match=r"training\.loss"):
        write_card(weights, card.model_copy(update={"training": {"seed": 1, "loss": value}}))
    assert (weights / "card.json").read_bytes() == before


def test_a_path_that_cannot_hold_a_card_is_said(weights: Path) -> None:
    with pytest.raises(CardError, match="Not a directory"):
        read_card(weights / "config.json")
    (weights / "tokenizer.json").unlink()
    (weights / "tokenizer.json").mkdir()
    with pytest.raises(CardError, match=r"tokenizer\.json: Is a directory"):
        read_card(weights, verify_weights=True)
    (weights / "card.json").unlink()
    (weights / "card.json").mkdir()
    with pytest.raises(CardError, match=r"card\.json: Is a directory"):
        read_card(weights)


def test_the_advice_can_be_the_callers(tmp_path: Path) -> None:
    with pytest.raises(CardError, match=r"with their card\. Export it again$"):
        read_card(tmp_path, fix="Export it again")


def test_no_card_is_said(tmp_path: Path) -> None:
    with pytest.raises(CardError, match="skillserve card"):
        read_card(tmp_path)


def test_a_reranker_has_no_dim(tiny_reranker: Path) -> None:
    card = read_card(tiny_reranker)
    assert isinstance(card, ModelCard)
    assert card.dim is None


def test_a_failed_block_leaves_the_old_folder(tmp_path: Path) -> None:
    """And no draft beside it."""
    target = tmp_path / "folder"
    with published_folder(target) as draft:
        (draft / "a").write_text("old")

    def fail() -> None:
        with published_folder(target) as draft:
            (draft / "a").write_text("new")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fail()
    assert (target / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_published_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for name in ("a", "b"):
        with published_folder(target) as draft:
            (draft / name).write_text(name)
    assert [path.name for path in target.iterdir()] == ["b"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder in a repository, with `old` in it."""
    with published_folder(tmp_path / "repository" / "model") as draft:
        (draft / "old").touch()
    return tmp_path / "repository" / "model"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_draft_is_never_seen_in_the_targets_parent(published: Path) -> None:
    """Triton refuses to poll a repository with a folder in it that is no model."""
    with published_folder(published):
        assert names(published.parent) == ["model"]
        assert names(published.parent.parent) == [".repository.drafts", "repository"]
    assert names(published.parent.parent) == ["repository"]


def test_an_existing_folder_is_exchanged_in_one_step(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two renames would leave a moment without a target; the file systems that tests run on need none."""

    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(Path, "rename", refuse)
    with published_folder(published) as draft:
        (draft / "new").touch()
    assert names(published) == ["new"]


@pytest.mark.parametrize("at", [1, 2])
def test_an_interrupt_between_two_renames_loses_nothing(
    at: int, published: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "_exchange", lambda *_: False)
    rename, calls = Path.rename, []

    def interrupted(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == at:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt), published_folder(published) as draft:
        (draft / "new").touch()
    assert names(published) == ["old"]
    assert names(published.parent.parent) == ["repository"]
    monkeypatch.setattr(Path, "rename", rename)
    with published_folder(published) as draft:
        (draft / "new").touch()
    assert names(published) == ["new"]


KILLED = """
import os, signal, sys
from pathlib import Path
from skillserve import publish
target, at = Path(sys.argv[1]), sys.argv[2]
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if at == "renames":
    publish._exchange = lambda *_: False
    rename = Path.rename
    Path.rename = lambda self, to: die() if self.name == "new" else rename(self, to)
with publish.published_folder(target) as draft:
    (draft / "new").touch()
    if at == "block":
        die()
"""


@pytest.mark.parametrize("at", ["block", "renames"])
def test_what_a_killed_writer_leaves_is_mended_by_the_next_one(at: str, published: Path) -> None:
    subprocess.run([sys.executable, "-c", KILLED, str(published), at], check=False)
    assert names(published.parent) == (["model"] if at == "block" else [])
    assert names(published.parent.parent) == [".repository.drafts", "repository"]
    with published_folder(published.parent / "another"):
        assert names(published) == ["old"]
        assert len(names(published.parent.parent / ".repository.drafts")) == 1
    assert names(published.parent.parent) == ["repository"]


def test_a_writer_that_lives_keeps_its_draft(published: Path) -> None:
    with published_folder(published) as draft:
        with published_folder(published.parent / "another"):
            pass
        (draft / "new").touch()
    assert names(published) == ["new"]
    assert names(published.parent) == ["another", "model"]


def test_drafts_go_inside_where_the_folder_beside_is_not_ours(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in /tmp, where somebody else could have made it, and could then change what is published."""
    outside = published.parent.parent / ".repository.drafts"
    outside.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: outside.stat().st_uid + 1)
    with published_folder(published) as draft:
        (draft / "new").touch()
        assert names(published.parent) == [".repository.drafts", "model"]
    assert names(outside) == []
    assert names(published.parent) == ["model"]
    assert names(published) == ["new"]


def test_drafts_go_inside_a_mount_of_its_own() -> None:
    """No rename reaches into it from outside."""
    with published_folder(Path("/dev/shm") / f"skillserve-test-{os.getpid()}") as draft:  # noqa: S108
        assert draft.parent.parent == Path("/dev/shm/.shm.drafts")  # noqa: S108
    shutil.rmtree(Path("/dev/shm") / f"skillserve-test-{os.getpid()}")  # noqa: S108


def test_folders_are_flushed_as_files_are(published: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: set[int] = set()
    fsync = os.fsync

    def record(descriptor: int) -> None:
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    with published_folder(published) as draft:
        (draft / "1").mkdir()
        (draft / "1" / "graph").touch()
    written = (published, published / "1", published / "1" / "graph", published.parent)
    assert {path.stat().st_ino for path in written} <= synced


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "one")
    write_text(tmp_path / "x", "two")
    assert (tmp_path / "x").read_text() == "two"
    assert len(list(tmp_path.iterdir())) == 1
