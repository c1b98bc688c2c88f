"""What stands in a model repository, checked before a server is started on it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from skillserve.card import ModelCard, read_card
from skillserve.errors import RepositoryError
from skillserve.graph_file import check_graph, digest_of_files
from skillserve.probe import Probe, read_probe
from skillserve.publish import sha256_of
from skillserve.tensors import MODEL_NAMES, Role

__all__ = ["ServedModel", "read_model", "read_repository"]

CONFIG_FILE = "config.pbtxt"
EXPORT_FILE = "export.json"

_COMMENT = re.compile(r"#.*")
_VERSIONS = re.compile(r"specific\s*:?\s*\{\s*versions\s*:\s*(\[[\d\s,]*\]|\d+)")
_FILENAME = re.compile(r'default_model_filename\s*:\s*"([^"]+)"')
_PLAN = re.compile(r'(?:platform\s*:\s*"tensorrt_plan"|backend\s*:\s*"tensorrt")')
"""Not the accelerator of that name, which ONNX Runtime has for graphs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """One model of a repository."""

    name: str
    folder: Path
    versions: tuple[int, ...]
    """Those that the version policy names."""
    card: ModelCard
    probe: Probe

    @property
    def role(self) -> Role:
        """What it does; by its name, since weights may be served in two roles."""
        return next((role for role, name in MODEL_NAMES.items() if name == self.name), self.card.role)


def read_repository(repository: Path, *, max_graph_gib: float | None = None) -> tuple[ServedModel, ...]:
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
    return tuple(read_model(folder, max_graph_gib=max_graph_gib) for folder in folders)


def read_model(folder: Path, *, max_graph_gib: float | None = None) -> ServedModel:
    """Read one model and check its graphs; raises RepositoryError if it cannot be served, CardError for its card.

    The C++ backend loads whatever stands there, so this is the only check that a production server's graphs get.
    """
    try:
        return _read_model(folder, max_graph_gib)
    except (OSError, UnicodeDecodeError) as error:
        raise RepositoryError(
            f"model folder `{folder}`",
            got=f"no {CONFIG_FILE}" if isinstance(error, FileNotFoundError) else str(error),
            wanted=f"a readable {CONFIG_FILE} in UTF-8 with graph, card and probe beside it",
            fix="Export the model: skillserve export WEIGHTS, or move the folder out of the repository.",
        ) from error


def _read_model(folder: Path, max_graph_gib: float | None) -> ServedModel:
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
    is_plan = _PLAN.search(config) is not None
    named = _FILENAME.search(config)
    filename = named[1] if named else "model.plan" if is_plan else "model.onnx"
    for version in versions:
        graph = folder / str(version) / filename
        if not graph.exists() or graph.stat().st_size == 0:
            raise RepositoryError(
                f"model folder `{folder}`",
                got=f"a {CONFIG_FILE} but no {version}/{filename}",
                wanted="the graph beside its configuration",
                fix=f"Build the plan where the GPU is: skillserve plan {folder}"
                if is_plan
                else "Export the model: skillserve export WEIGHTS",
            )
    model = ServedModel(
        name=folder.name,
        folder=folder,
        versions=versions,
        card=read_card(folder),
        probe=read_probe(folder),
    )
    for version in versions:
        graph, files = folder / str(version) / filename, _recorded(folder, version)
        if is_plan:  # TensorRT's own format: nobody else can look into it
            _require_plan(graph, files.get(filename))
        else:
            check_graph(graph, digest=digest_of_files(files) if files else None, max_gib=max_graph_gib)
    return model


def _require_plan(plan: Path, sha256: str | None) -> None:
    found = sha256_of(plan)
    if sha256 is not None and found != sha256:
        raise RepositoryError(
            f"plan `{plan}`",
            got=f"content with the SHA-256 {found[:12]}",
            wanted=f"{sha256[:12]}, as it was built",
            fix=f"Do not serve it. Build it again: skillserve plan {plan.parent.parent}",
        )


def _recorded(folder: Path, version: int) -> dict[str, str]:
    """The SHA-256 of a version's files by the export's record; empty where it, or the version, is missing."""
    try:
        record = (folder / EXPORT_FILE).read_bytes()
    except FileNotFoundError:
        return {}
    prefix = f"{version}/"
    try:
        files = {str(name): str(found) for name, found in json.loads(record)["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RepositoryError(
            f"model folder `{folder}`",
            got=f"an {EXPORT_FILE} that names no files",
            wanted="the SHA-256 of every file, as `skillserve export` writes it",
            fix="Export the model again: skillserve export WEIGHTS",
        ) from error
    return {name.removeprefix(prefix): found for name, found in files.items() if name.startswith(prefix)}
