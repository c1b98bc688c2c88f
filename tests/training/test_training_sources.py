"""Datasets of the hub: pinned, recorded by their commit, and nothing of the test split but its skills.

The hub's own cache stands in for the hub.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import RevisionNotFoundError

from skillserve.errors import CatalogueError, ConfigError
from skillserve_training import read_training_data

COMMIT = "a050" * 10


@pytest.fixture
def cached(tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset `org/name` in the cache of a machine without network; `main` is its only commit."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "datasets--org--name"
    snapshot = folder / "snapshots" / COMMIT
    shutil.copytree(tiny_data, snapshot / "data")  # as SkillRet's dataset has it
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    return snapshot


@pytest.mark.parametrize("spec", [f"hub:org/name@{COMMIT}", "hub:org/name@main", "org/name@main"])
def test_a_dataset_is_recorded_by_its_commit(spec: str, cached: Path, tiny_data: Path) -> None:
    local, hub = read_training_data(tiny_data), read_training_data(spec)
    assert cached.is_dir()
    assert hub.origin == f"hub:org/name@{COMMIT}"
    assert (hub.skills, hub.queries, hub.golds, hub.digest) == (local.skills, local.queries, local.golds, local.digest)


def test_a_dataset_without_a_revision_is_refused() -> None:
    with pytest.raises(ConfigError, match="no revision"):
        read_training_data("hub:org/name")


def test_what_names_neither_folder_nor_dataset_is_said() -> None:
    for spec in ("nowhere", "no/where"):
        with pytest.raises(CatalogueError, match=r"no such folder.*hub:org/name@revision"):
            read_training_data(spec)


@pytest.mark.usefixtures("cached")
@pytest.mark.parametrize("spec", ["hub:org/name@v2", "hub:org/other@main"])
def test_what_is_not_cached_names_the_command_that_fetches_it(spec: str) -> None:
    with pytest.raises(ConfigError, match="hf download org/"):
        read_training_data(spec)


def test_a_dataset_that_is_incomplete_in_the_cache_is_said(cached: Path) -> None:
    (cached / "data" / "qrels" / "train.jsonl").unlink()
    with pytest.raises(ConfigError, match="no qrels/train in what was fetched or cached"):
        read_training_data("hub:org/name@main")


def test_a_revision_that_the_hub_lacks_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> str:
        raise RevisionNotFoundError("404")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    with pytest.raises(ConfigError, match=r"no such dataset or revision.*commits/main"):
        read_training_data("hub:org/name@gone")


def test_only_data_files_are_fetched_and_of_the_test_split_only_skills(
    tiny_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def fetch(name: str, **options: object) -> str:
        asked.update(options, name=name)
        return str(tiny_data)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    read_training_data("hub:org/name@main")
    patterns = asked["allow_patterns"]
    assert isinstance(patterns, list)
    assert (asked["name"], asked["repo_type"], asked["revision"]) == ("org/name", "dataset", "main")
    chosen = huggingface_hub.utils.filter_repo_objects(
        [
            "README.md",
            "name.py",
            "data/skills/train.jsonl",
            "data/skills/train/a/b/SKILL.md",
            "data/skills/train/a/b/run.py",
            "skills/test.parquet",
            "queries/train.jsonl.gz",
            "queries/test.jsonl",
            "data/queries/test.jsonl",
            "data/qrels/test.jsonl",
            "qrels/train.jsonl",
            "pickle/qrels/train.jsonl",
        ],
        allow_patterns=patterns,
    )
    assert sorted(chosen) == [
        "data/skills/train.jsonl",
        "data/skills/train/a/b/SKILL.md",
        "qrels/train.jsonl",
        "queries/train.jsonl.gz",
        "skills/test.parquet",
    ]
