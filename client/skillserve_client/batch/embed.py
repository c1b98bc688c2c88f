"""The job `embed`: a catalogue to vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from skillserve.framing import EmbedderTokens
from skillserve.records import Skill
from skillserve.skillfile import skill_of
from skillserve.tensors import Ids, Role
from skillserve_client.batch.engine import Engine, Tokens
from skillserve_client.batch.inputs import Sources
from skillserve_client.batch.jobs import Outcome, Refused
from skillserve_client.models import Source
from skillserve_client.tokens import embedder_tokens

__all__ = ["SHARD_ROWS", "EmbedJob", "Prepared", "catalogue_of"]

SHARD_ROWS = 4_096
"""Skills of a shard, where nobody wants another number."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """Skills as the embedder reads them."""

    ids: list[str]
    sequences: list[Ids]


def catalogue_of(paths: Sequence[Path]) -> Sources[Skill]:
    """The skills of these files and folders."""
    return Sources(paths=paths, parse=skill_of, needed=("name",), tree_of_skill_md=True)


@dataclass(frozen=True, slots=True)
class EmbedJob:
    """Vectors as `skillserve index` computes them."""

    sources: Sources[Skill]
    tokens: EmbedderTokens
    name: Literal["embed"] = "embed"
    shard_rows: int = SHARD_ROWS

    @classmethod
    def of(cls, paths: Sequence[Path], source: Source) -> EmbedJob:
        """The job for these files, with the embedder of a repository; raises CardError."""
        return cls(catalogue_of(paths), embedder_tokens(source.card, source.tokenizer_json))

    @property
    def digests(self) -> Mapping[Role, str]:
        """Of the embedder."""
        return {"embedder": self.tokens.card.digest}

    @property
    def options(self) -> Mapping[str, Any]:
        """None: an embedding depends on the skill and the model alone."""
        return {}

    @property
    def dim(self) -> int | None:
        """D."""
        return self.tokens.card.dim

    def prepare(self, records: Sequence[Skill]) -> Prepared:
        """Tokenise."""
        return Prepared([skill.id for skill in records], self.tokens.skills(records))

    def score(self, prepared: Prepared, engine: Engine, advance: Tokens) -> list[Outcome]:
        """Embed."""
        digest = self.tokens.card.digest
        inferred = engine.infer("embedder", prepared.sequences, digest=digest, advance=advance)
        return [
            Refused(inferred.refused[i]) if i in inferred.refused else {"id": skill_id, "embedding": inferred.rows[i]}
            for i, skill_id in enumerate(prepared.ids)
        ]
