"""What stands in a model repository, checked before a server is started on it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from skillserve.card import ModelCard, read_card
from skillserve.errors import RepositoryError
from skillserve.probe import Probe, read_probe

__all__ = ["ServedModel", "read_model", "read_repository"]

CONFIG_FILE = "config.pbtxt"

_COMMENT = re.compile(r"#.*")
_VERSIONS = re.compile(r"specific\s*:?\s*\{\s*versions\s*:\s*(\[[\d\s,]*\]|\d+)")
_FILENAME = re.compile(r'default_model_filename\s*:\s*"([^"]+)"')
_TENSORRT = re.compile(r'"tensorrt(_plan)?"')


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """One model of a repository."""

    name: str
    folder: Path
    versions: tuple[int, ...]
    """Those that the version policy names."""
    card: ModelCard
    probe: Probe


def read_repository(repository: Path) -> tuple[ServedModel, ...]:
    """Read all models, in the order of their names.

    Every folder in it is a model, except hidden ones: those are exports that are still being written. Raises
    RepositoryError if there is none, or one cannot be served, so that no model is left out in silence; CardError
    for a card.
    """
    cause = None
    try:
        folders = sorted(path for path in repository.iterdir() if path.is_dir() and not path.name.startswith("."))
        got = "no model in it"
    except OSError as error:
        folders, got, cause = [], error.strerror or str(error), error
    if not folders:
        raise RepositoryError(
            f"model repository `{repository}`",
            got=got,
            wanted=f"folders with a {CONFIG_FILE}",
            fix="Export a model: skillserve export WEIGHTS, or name another one with --repository.",
        ) from cause
    return tuple(read_model(folder) for folder in folders)


def read_model(folder: Path) -> ServedModel:
    """Read one model; raises RepositoryError if it cannot be served, CardError for its card."""
    try:
        return _read_model(folder)
    except (OSError, UnicodeDecodeError) as error:
        raise RepositoryError(
            f"model folder `{folder}`",
            got=f"no {CONFIG_FILE}" if isinstance(error, FileNotFoundError) else str(error),
            wanted=f"a readable {CONFIG_FILE} in UTF-8 with graph, card and probe beside it",
            fix="Export the model: skillserve export WEIGHTS, or move the folder out of the repository.",
        ) from error


def _read_model(folder: Path) -> ServedModel:
    config = _COMMENT.sub("", (folder / CONFIG_FILE).read_text(encoding="utf-8"))
    match = _VERSIONS.search(config)
    versions = tuple(int(number) for number in re.findall(r"\d+", match[1])) if match else ()
    if not versions:
        raise RepositoryError(
            f"model folder `{folder}`",
            got=f"a {CONFIG_FILE} without the versions to serve",
            wanted="version_policy { specific { versions: … } }: any other serves whatever folder appears",
            fix="Export the model again: skillserve export WEIGHTS",
        )
    named = _FILENAME.search(config)
    filename = named[1] if named else "model.plan" if _TENSORRT.search(config) else "model.onnx"
    for version in versions:
        graph = folder / str(version) / filename
        if not graph.exists() or graph.stat().st_size == 0:
            raise RepositoryError(
                f"model folder `{folder}`",
                got=f"a {CONFIG_FILE} but no {version}/{filename}",
                wanted="the graph beside its configuration",
                fix="Export the model: skillserve export WEIGHTS",
            )
    return ServedModel(
        name=folder.name,
        folder=folder,
        versions=versions,
        card=read_card(folder),
        probe=read_probe(folder),
    )
