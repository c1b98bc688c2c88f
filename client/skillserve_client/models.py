"""The models of a repository, each proven to be what was exported and what the server runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from skillserve.card import CARD_FILE, ModelCard, read_card
from skillserve.console import talk
from skillserve.errors import ConfigError, RepositoryError
from skillserve.settings import IndexSettings
from skillserve.tensors import MODEL_NAMES, Role, weights_role
from skillserve_client.wire import Describing, ServedModel

__all__ = ["Source", "read_sources", "require_unchanged", "token_source"]

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


def token_source(index: IndexSettings, sources: Mapping[Role, Source], triton: Describing) -> Source | None:
    """What reads the tokens of skills, where they are to be kept; where they could be, that is said.

    Raises ConfigError for a reranker that compares no tokens, RepositoryError without a token embedder of its weights,
    and as `read_sources`.
    """
    reranker = sources.get("reranker")
    folder = index.models / MODEL_NAMES["token_embedder"]
    if reranker is None and _read(folder / CARD_FILE) is not None:
        raise RepositoryError(
            f"model repository `{index.models}`",
            got=f"{MODEL_NAMES['token_embedder']} without {MODEL_NAMES['reranker']}, which has its weights",
            wanted="both, for a bundle is built with both, or neither",
            fix="Export the reranker again, which writes both: skillserve export WEIGHTS",
        )
    compares = reranker is not None and reranker.card.score_kind == "max_sim"
    if not index.token_embeddings:
        if compares and reranker is not None and reranker.served.layout == "packed":
            talk(
                "The reranker compares tokens, and reads all those of its candidates in every search. With "
                "--token-embeddings 320 the bundle keeps what it reads in skills, and reranking is many times faster."
            )
        return None
    if reranker is None or not compares:
        raise ConfigError(
            "setting index.token_embeddings",
            got="a repository without a reranker"
            if reranker is None
            else f"a reranker of score kind {reranker.card.score_kind}, which reads request and skill together",
            wanted="one of score kind max_sim, which compares their tokens",
            fix="Leave it out, or train such a reranker: skillserve train reranker --interaction late",
        )
    source = read_sources(index.models, triton, roles=("token_embedder",))["token_embedder"]
    if (source.card.digest, source.tokenizer_json) != (reranker.card.digest, reranker.tokenizer_json):
        raise RepositoryError(
            f"model folder `{folder}`",
            got=f"weights {source.card.short_digest}, or another tokenizer than the reranker's",
            wanted=f"the reranker's: {reranker.card.short_digest}",
            fix="Export the reranker again, which writes both: skillserve export WEIGHTS",
        )
    return source


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
