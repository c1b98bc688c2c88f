"""What an output folder says about itself: its identity, a receipt for each finished shard, the manifest of all."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Literal

from pydantic import Field

from skillserve_client.manifest import Record, Sha256

__all__ = [
    "AUDIT_FILES",
    "MANIFEST_FILE",
    "OUTPUT_FORMAT",
    "RECEIPTS",
    "REJECTS_FILE",
    "SHARDED_FILES",
    "SHARDS",
    "SUMMARY_FILE",
    "WRITTEN_BY",
    "Entry",
    "Identity",
    "JobName",
    "Manifest",
    "Receipt",
    "Reject",
]

OUTPUT_FORMAT = 1
"""Goes up when shards, receipts or manifest change their form: folders of two forms never mix."""

WRITTEN_BY: Literal["skillserve score"] = "skillserve score"

MANIFEST_FILE = "manifest.json"

JobName = Literal["embed", "rank", "pairs", "audit"]

SHARDS = "shards"
RECEIPTS = "receipts"
REJECTS_FILE = "rejects.jsonl"
SHARDED_FILES = frozenset({SHARDS, RECEIPTS, REJECTS_FILE})
"""What `embed`, `rank` and `pairs` write beside their manifest."""

SUMMARY_FILE = "summary.json"
_TABLES = ("neighbours", "duplicates", "hubs", "categories")
AUDIT_FILES = frozenset({SUMMARY_FILE, *(f"{name}.{ending}" for name in _TABLES for ending in ("parquet", "jsonl"))})
"""What an audit writes there."""


class Identity(Record):
    """All that results depend on besides the input."""

    output_format: int = OUTPUT_FORMAT
    job: JobName
    models: dict[str, dict[str, str]]
    """Role → digest, graph digest and precision."""
    options: dict[str, Any]

    @property
    def digest(self) -> str:
        """SHA-256 over all of it."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(content.encode()).hexdigest()

    def shard_name(self, index: int, input_digest: str) -> str:
        """Of a shard's files: its place, and the hash of input shard, models and options."""
        key = hashlib.sha256(f"{self.digest}:{input_digest}".encode()).hexdigest()
        return f"{index:06d}-{key[:32]}"


class Reject(Record):
    """A row that gets no result, and why: a line of the file of rejects."""

    row: int = Field(ge=0)
    """Position in the input, over all sources, from 0."""
    source: str
    where: str
    """File and line, or the row of a table."""
    id: str | None
    reason: str


class Entry(Record):
    """A finished shard, or a table of an audit."""

    name: str
    file: str
    """In the output folder."""
    sha256: Sha256
    size: int = Field(ge=0)
    input_digest: Sha256
    first_row: int = Field(ge=0)
    num_rows: int = Field(ge=0)
    """Of the input; scored ones and rejects together."""
    num_rejects: int = Field(ge=0)
    num_tokens: int = Field(ge=0)


class Receipt(Record):
    """Written after a shard's file: a shard is finished when its receipt stands."""

    entry: Entry
    rejects: tuple[Reject, ...]


class Manifest(Record):
    """The output folder; `complete` when every row of the input is in a shard or among the rejects."""

    written_by: Literal["skillserve score"] = WRITTEN_BY
    status: Literal["running", "complete"]
    identity: Identity
    identity_digest: Sha256
    sources: tuple[str, ...]
    input_digest: str = ""
    """SHA-256 over the digests of all input shards."""
    num_rows: int = 0
    num_rejects: int = 0
    num_tokens: int = 0
    shards: tuple[Entry, ...] = ()
    """Of an audit its tables."""
