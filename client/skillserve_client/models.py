"""The models of a repository, each proven to be what was exported and what the server runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from skillserve.card import CARD_FILE, ModelCard, read_card
from skillserve.errors import RepositoryError
from skillserve.tensors import MODEL_NAMES, Role, weights_role
from skillserve_client.wire import Describing, ServedModel

__all__ = ["Source", "read_sources", "require_unchanged"]

_TOKENIZER_FILE = "tokenizer.json"
_EXPORT_FILE = "export.json"
_EXPORT = "Export the model again: skillserve export WEIGHTS"


@dataclass(frozen=True, slots=True)
class Source:
    """A model of the repository, which the server was seen to run."""

    card: ModelCard
    card_json: bytes
    tokenizer_json: bytes
    served: ServedModel


def read_sources(
    repository: Path, triton: Describing, *, roles: Sequence[Role] = ("embedder", "reranker")
) -> dict[Role, Source]:
    """The models of the repository, each compared with the server; a repository may hold no reranker.

    Raises RepositoryError or CardError for a folder at fault or another model on the server, and ServerError.
    """
    sources: dict[Role, Source] = {}
    for role in roles:
        folder = repository / MODEL_NAMES[role]
        if role == "reranker" and _read(folder / CARD_FILE) is None:
            continue
        card_json, tokenizer_json = _exported(folder, CARD_FILE), _exported(folder, _TOKENIZER_FILE)
        card = read_card(folder)
        served = triton.served(role)
        if served.digest != card.digest or card.role != weights_role(role):
            raise RepositoryError(
                f"model folder `{folder}`, {card.role} {card.short_digest}",
                got=f"a server that runs {role} {served.digest[:12]}",
                wanted="a server that runs this repository",
                fix=f"Restart it: skillserve serve --repository {repository}; or name its repository with --models",
            )
        sources[role] = Source(card, card_json, tokenizer_json, served)
    return sources


def require_unchanged(sources: dict[Role, Source], triton: Describing) -> None:
    """Refuse a server that changed its models since they were read; raises RepositoryError."""
    for role, source in sources.items():
        before, now = source.served, triton.served(role)
        if (now.digest, now.version) != (before.digest, before.version):
            raise RepositoryError(
                f"{role} on the server",
                got=f"{now.digest[:12]}, version {now.version}, at the end of the run",
                wanted=f"{before.digest[:12]}, version {before.version}, as at its start",
                fix="Nothing was published. Run the command again.",
            )


def _exported(folder: Path, file: str) -> bytes:
    """A file, compared with what the export wrote down of it; a folder without that record is taken as it is."""
    content, record = _read(folder / file), _read(folder / _EXPORT_FILE)
    if content is None:
        raise RepositoryError(
            f"model folder `{folder}`",
            got=f"no {file}",
            wanted="a model written by `skillserve export`",
            fix="Name the repository with --models, or write it: skillserve export WEIGHTS",
        )
    if record is None:
        return content
    try:
        wanted = json.loads(record)["files"][file]
    except (ValueError, KeyError, TypeError) as error:
        raise RepositoryError(
            f"model folder `{folder}`",
            got=f"an {_EXPORT_FILE} without the SHA-256 of {file}",
            wanted="one",
            fix=_EXPORT,
        ) from error
    found = hashlib.sha256(content).hexdigest()
    if found != wanted:
        raise RepositoryError(
            f"model file `{folder / file}`",
            got=f"SHA-256 {found[:12]}",
            wanted=f"{str(wanted)[:12]}, as its {_EXPORT_FILE} says",
            fix=_EXPORT,
        )
    return content


def _read(path: Path) -> bytes | None:
    """The content of a file, None if there is none; raises RepositoryError if it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise RepositoryError(
            f"model file `{path}`",
            got=error.strerror or str(error),
            wanted="a readable file of a model folder",
            fix="Correct its permissions, or name another repository: --models FOLDER",
        ) from error
