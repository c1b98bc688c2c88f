"""The model card: what every room must know about a pair of weights and tokenizer, and its digest.

A weights folder holds `model.safetensors`, `config.json`, `tokenizer.json` and `card.json`. The digest is
the SHA-256 over the first three and the card itself (with the digest left out), so a changed prompt is a
changed model: it would change every embedding. The section `export` is left out, too: it changes none.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from skillserve.errors import CardError
from skillserve.gate import GATES, ExportSection, Gate
from skillserve.publish import sha256_of, write_text
from skillserve.tensors import Precision, WeightsRole
from skillserve.text import TEXT_FORMAT, Frame

__all__ = [
    "CARD_FILE",
    "WEIGHT_FILES",
    "ModelCard",
    "Pooling",
    "ScoreKind",
    "compute_digest",
    "read_card",
    "write_card",
]

CARD_FILE = "card.json"
WEIGHT_FILES = ("config.json", "model.safetensors", "tokenizer.json")
"""Files that the digest covers, besides the card."""

Pooling = Literal["mean", "cls", "last"]
ScoreKind = Literal["cosine", "logit", "yes_no", "max_sim"]
"""Cosine of embedders; of rerankers the logit of a classifier, the gap logit(yes) - logit(no), or late interaction:
how near a request's tokens come to a skill's (ColBERT, arXiv 2004.12832)."""


class ModelCard(BaseModel):
    """Facts about one model; written by training, read by every room."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    name: str = Field(min_length=1)
    role: WeightsRole
    family: str = Field(min_length=1, description="architecture, as in config.json's model_type")
    dim: int | None = Field(default=None, gt=0, description="embedding dimension; embedders only")
    vocab_size: int = Field(gt=0, description="token ids are in [0, vocab_size)")
    max_tokens: int = Field(gt=0, description="longest sequence, frame included")
    max_query_tokens: int = Field(gt=0, description="longest request inside a sequence, frame not counted")
    pooling: Pooling | None = Field(default=None, description="embedders only")
    normalised: bool = Field(default=False, description="embeddings have length 1")
    query_prompt: str = Field(default="", description="stands before every request, embedders only")
    document_prompt: str = Field(default="", description="stands before every skill text, embedders only")
    frame: str = Field(description="what stands around the texts, see skillserve.text.Frame")
    score_kind: ScoreKind
    similarity_weight: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="rerankers only, chosen on held-out data: the final score of a candidate is logit + "
        "similarity_weight * similarity, see skillserve.fusion",
    )
    text_format: str = TEXT_FORMAT
    base_model: str
    base_revision: str
    data_digest: str | None = Field(default=None, description="SHA-256 over the training data; none for stock models")
    training: dict[str, Any] = Field(default_factory=dict, description="summary of how it was trained")
    licence: str
    export: ExportSection = Field(default_factory=ExportSection, description="what its exports are judged by")
    digest: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")

    @model_validator(mode="after")
    def _fits_its_role(self) -> Self:
        slots = sorted(Frame.parse(self.frame).slots)
        if self.role == "embedder":
            if self.dim is None or self.pooling is None or self.score_kind != "cosine" or slots != ["text"]:
                raise ValueError("an embedder has dim, pooling, score_kind `cosine` and a frame with {text}")
            if self.similarity_weight:
                raise ValueError("similarity_weight belongs to a reranker")
        elif self.score_kind == "cosine" or slots != ["query", "skill"]:
            raise ValueError("a reranker has another score_kind than `cosine` and a frame with {query} and {skill}")
        if self.max_query_tokens > self.max_tokens:
            raise ValueError("max_query_tokens must not exceed max_tokens")
        return self

    @property
    def short_digest(self) -> str:
        """The first 12 characters, for people."""
        return self.digest[:12]

    def gate(self, precision: Precision) -> Gate:
        """The rank gate's thresholds for an export of this precision."""
        return self.export.gate.get(precision, GATES[precision])

    def canonical_json(self) -> str:
        """The card as the digest hashes it: sorted keys, no spaces, without digest, exports and defaults.

        A field that a later version adds as an optional one thus leaves the digests of older cards alone. Raises
        CardError for a figure in `training` that JSON does not have.
        """
        for name, value in self.training.items():
            try:
                json.dumps(value, allow_nan=False, default=str)
            except ValueError as error:
                raise CardError(
                    f"card of `{self.name}`",
                    got=f"{value} as training.{name}",
                    wanted="finite figures",
                    fix="The training diverged: run it again with a lower --learning-rate.",
                ) from error
        content = self.model_dump(mode="json", exclude={"digest", "export"}, exclude_defaults=True)
        # These two are versions: when their default moves on, the digest must move with it.
        content |= {"schema_version": self.schema_version, "text_format": self.text_format}
        return json.dumps(content, sort_keys=True, separators=(",", ":"))


def compute_digest(folder: Path, card: ModelCard) -> str:
    """SHA-256 over the weights, the tokenizer and the card; raises CardError for a file that cannot be read."""
    digest = hashlib.sha256()
    for name in WEIGHT_FILES:
        try:
            digest.update(f"{name}:{sha256_of(folder / name)}\n".encode())
        except OSError as error:
            raise CardError(
                f"weights folder `{folder}`",
                got=_absence(name, error),
                wanted=", ".join(WEIGHT_FILES),
                fix="Train again, or write the folder with `skillserve card`.",
            ) from error
    digest.update(card.canonical_json().encode())
    return digest.hexdigest()


def write_card(folder: Path, card: ModelCard) -> ModelCard:
    """Stamp the digest into the card and write it beside the weights; returns the stamped card."""
    stamped = card.model_copy(update={"digest": compute_digest(folder, card)})
    write_text(folder / CARD_FILE, stamped.model_dump_json(indent=2) + "\n")
    return stamped


def read_card(folder: Path, *, verify_weights: bool = False, fix: str | None = None) -> ModelCard:
    """Read a card; `verify_weights` recomputes the digest (reads the weights once).

    Raises CardError. Its advice is to write the card again; where that is wrong, as in a model repository, `fix`
    is given instead.
    """
    path = folder / CARD_FILE
    try:
        card = ModelCard.model_validate_json(path.read_bytes())
    except OSError as error:
        raise CardError(
            f"folder `{folder}`",
            got=_absence(CARD_FILE, error),
            wanted="weights with their card",
            fix=fix or "Write one with `skillserve card`, or train the model with `skillserve train`.",
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "card"
        raise CardError(
            f"model card `{path}`",
            got=f"{error.error_count()} fault(s), first at {where}: {first['msg']}",
            wanted="a valid card of schema version 1",
            fix=fix or "Write it again with `skillserve card`.",
        ) from error
    if card.text_format != TEXT_FORMAT:
        raise CardError(
            f"model card `{path}`",
            got=f"text format {card.text_format}",
            wanted=TEXT_FORMAT,
            fix=fix or "Train or export the model again with this version of skillserve.",
        )
    if verify_weights and (found := compute_digest(folder, card)) != card.digest:
        raise CardError(
            f"weights folder `{folder}`",
            got=f"content with digest {found[:12]}",
            wanted=f"{card.short_digest or 'a digest'} as its card says",
            fix=fix
            or "A file was changed after the card was written: train again, or write it with `skillserve card`.",
        )
    return card


def _absence(name: str, error: OSError) -> str:
    return f"no {name}" if isinstance(error, FileNotFoundError) else f"{name}: {error.strerror}"
