"""What a bundle says about itself: its manifest, the pointer to the live one, and its measured quality."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from skillserve.fusion import FirstStageWeights
from skillserve.max_sim import Interaction
from skillserve.parts import PART_FORMAT
from skillserve.records import Skill
from skillserve.tensors import Role
from skillserve_client.vectors import Identity

__all__ = [
    "CALIBRATION_FILE",
    "CURRENT",
    "EMBEDDER_CARD",
    "EMBEDDER_TOKENIZER",
    "INDEX_FILE",
    "LEXICAL_FILE",
    "MANIFEST_FILE",
    "OPTIONAL_FILES",
    "QUALITY_FILE",
    "REQUIRED_FILES",
    "RERANKER_CARD",
    "RERANKER_TOKENIZER",
    "SKILLS_FILE",
    "TOKENS_FILE",
    "Collection",
    "FileEntry",
    "LateInteraction",
    "Manifest",
    "ModelEntry",
    "Pointer",
    "Quality",
    "Record",
    "Sha256",
    "Version",
    "catalogue_digest",
    "skill_digest",
]

CURRENT = "CURRENT"
"""File beside the versions: `<version> <SHA-256 of its manifest.json>`, the anchor of all checks."""

MANIFEST_FILE = "manifest.json"
SKILLS_FILE = "skills.parquet"
INDEX_FILE = "index.faiss"
LEXICAL_FILE = "lexical.bm25"
QUALITY_FILE = "quality.json"
CALIBRATION_FILE = "calibration.json"
TOKENS_FILE = "token_embeddings.npz"
EMBEDDER_CARD = "embedder.card.json"
EMBEDDER_TOKENIZER = "embedder.tokenizer.json"
RERANKER_CARD = "reranker.card.json"
RERANKER_TOKENIZER = "reranker.tokenizer.json"
REQUIRED_FILES = frozenset({SKILLS_FILE, EMBEDDER_CARD, EMBEDDER_TOKENIZER})
OPTIONAL_FILES = frozenset(
    {INDEX_FILE, RERANKER_CARD, RERANKER_TOKENIZER, LEXICAL_FILE, QUALITY_FILE, CALIBRATION_FILE, TOKENS_FILE}
)

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Version = Annotated[str, Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z._-]{0,99}$")]


class Record(BaseModel):
    """Base of all that a bundle writes down: frozen, and nothing unknown in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FileEntry(Record):
    """One file of the bundle."""

    sha256: Sha256
    size_bytes: int = Field(ge=0)


class ModelEntry(Record):
    """The model that a part of the bundle was made with."""

    digest: Sha256
    served_version: str
    """Model version on the server that built the bundle, for the record; the digest decides."""


class LateInteraction(Record):
    """What scores are made with of token embeddings, as the server that gave them said; see `skillserve.max_sim`."""

    window: int = Field(gt=0)
    scale: float = Field(gt=0, allow_inf_nan=False)
    skill_tokens: int = Field(gt=0)
    """Of each skill so many were read, at most."""

    @classmethod
    def of(cls, how: Interaction, skill_tokens: int) -> LateInteraction:
        """The same, to be written down."""
        return cls(window=how.window, scale=how.scale, skill_tokens=skill_tokens)

    @property
    def how(self) -> Interaction:
        """The same, as it is computed with."""
        return Interaction(window=self.window, scale=self.scale)


class Collection(Record):
    """Where in Milvus the vectors are; at which address stands in the settings of whoever searches."""

    alias: str
    """Name that follows the live bundle, for others than skillserve."""
    name: str
    """The collection itself: what this bundle is searched in, wherever the alias points."""


class Manifest(Record):
    """Everything that must hold before a bundle is used."""

    schema_version: Literal[1] = 1
    version: Version
    created: str
    """UTC, ISO 8601."""
    parent: Version | None
    """Version that was live before."""
    num_skills: int = Field(gt=0)
    dim: int = Field(gt=0)
    metric: Literal["inner_product"] = "inner_product"
    index_kind: Literal["flat", "milvus"] = "flat"
    """`flat` is FAISS, in the bundle."""
    collection: Collection | None = None
    """Of a bundle in Milvus."""
    lexical_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Weight of lexical scores in the first stage, see `skillserve.fusion.blend`; 0 without a lexical index."""
    part_weight: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Weight of a request's parts there."""
    part_format: str = PART_FORMAT
    """How requests were taken apart when the bundle was measured; bundles from before there were parts weigh none."""
    late_interaction: LateInteraction | None = None
    """Of a bundle that keeps token embeddings."""
    text_format: str
    catalogue_digest: Sha256
    models: dict[Role, ModelEntry]
    files: dict[str, FileEntry]

    @property
    def token_embeddings(self) -> int:
        """As `IndexSettings.token_embeddings`."""
        return 0 if self.late_interaction is None else self.late_interaction.skill_tokens

    @property
    def weights(self) -> FirstStageWeights:
        """Both weights of the first stage."""
        return FirstStageWeights.of(self)

    @property
    def identity(self) -> Identity:
        """What its vectors are comparable with."""
        return Identity(
            embedder=self.models["embedder"].digest, tokenizer=self.files[EMBEDDER_TOKENIZER].sha256, dim=self.dim
        )


class Pointer(Record):
    """The content of CURRENT."""

    version: Version
    manifest_sha256: Sha256

    @classmethod
    def parse(cls, text: str) -> Pointer:
        """Read the line; raises ValueError (pydantic's ValidationError is one)."""
        match = re.fullmatch(r"(\S+) (\S+)\n", text)
        if match is None:
            raise ValueError("not `<version> <sha256>`")
        return cls(version=match[1], manifest_sha256=match[2])

    def line(self) -> str:
        """The line as it is written."""
        return f"{self.version} {self.manifest_sha256}\n"


class Quality(Record):
    """How well a bundle answered requests with known answers, measured before it was published."""

    schema_version: Literal[1] = 1
    requests: int = Field(gt=0)
    """Judged requests that were measured."""
    queries_digest: Sha256
    k: int
    candidates: int
    rerank_depth: int
    first_stage: dict[str, float]
    """`ndcg@k`, `recall@k`, `completeness@k` of the order of the first stage."""
    two_stage: dict[str, float] | None
    """The same after reranking; None without a reranker."""
    rerank_helps: bool | None
    """False if reranking lowered NDCG@k; None without a reranker."""


def catalogue_digest(skills: Sequence[Skill]) -> str:
    """SHA-256 over all fields of all skills, in order."""
    return _digest(asdict(skill) for skill in skills)


def skill_digest(skill: Skill) -> str:
    """SHA-256 over all fields of one skill: while it is the same, so is its vector."""
    return _digest([asdict(skill)])


def _digest(records: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps(record, sort_keys=True, separators=(",", ":")).encode() + b"\n")
    return digest.hexdigest()
