"""Settings of the room `client`: building a bundle, calibrating and searching it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from skillserve.settings.section import Section

__all__ = [
    "TLS_FIELDS",
    "AuditSettings",
    "CalibrateSettings",
    "ClientSettings",
    "IndexSettings",
    "ScoreSettings",
    "SearchSettings",
]

TLS_FIELDS = ("tls", "tls_ca", "tls_certificate", "tls_key", "tls_server_name")
"""Those of `ClientSettings`."""


class ClientSettings(Section):
    """How a client reaches the server and how large its requests are."""

    url: str = Field(
        "127.0.0.1:8001",
        description="gRPC address of the server, host:port; of replicas: IP:port,IP:port or a DNS name of them all",
    )
    timeout_s: float = Field(60.0, gt=0, description="longest wait for one inference call, seconds")
    max_request_tokens: int = Field(
        4_096, gt=0, description="tokens per request in bulk work; the server joins requests, so small ones cost little"
    )
    num_in_flight: int = Field(16, ge=1, description="requests of one client that may be in flight at once")
    tls: bool = Field(default=False, description="encrypt the connection, and check who answers")
    tls_ca: Path | None = Field(
        None, description="PEM file of the authorities that sign the server's certificate; not set: gRPC's own list"
    )
    tls_certificate: Path | None = Field(
        None, description="PEM file with the client's own certificate, for a server that asks for one; needs --tls-key"
    )
    tls_key: Path | None = Field(None, description="PEM file with the key of --tls-certificate")
    tls_server_name: str | None = Field(
        None, min_length=1, description="name that the server's certificate carries; not set: the host of the address"
    )

    @model_validator(mode="after")
    def _whole(self) -> Self:
        """Options of TLS without TLS would be dropped in silence, and a certificate is of no use without its key."""
        given = [name for name in TLS_FIELDS[1:] if getattr(self, name) is not None]
        if given and not self.tls:
            raise ValueError(f"{', '.join(given)} without tls")
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key are of use together only")
        return self


class SearchSettings(Section):
    """One search: how many candidates, how many of them reranked, how many shown, and by when."""

    candidates: int = Field(
        50,
        ge=1,
        description="skills taken from the index before reranking; more finds more",
    )
    rerank_depth: int | None = Field(
        None,
        ge=0,
        description="candidates that are reranked, 0 for none; not set: 20, or 0 where the bundle says it hurts",
    )
    lexical_weight: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="weight of shared words, 0 for none; not set: the bundle's"
    )
    part_weight: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="weight of a request's parts, 0 for none; not set: the bundle's"
    )
    namespace: str | None = Field(
        None, description="search only skills of this author or repository; not set: the whole catalogue"
    )
    top_k: int = Field(5, ge=1, description="hits in the answer")
    deadline_ms: float | None = Field(
        None,
        gt=0,
        description="answer by then, without reranking if need be, or fail; not set: no deadline",
    )
    abstain: bool = Field(
        default=True,
        description="give no hits where probably no skill fits; needs a calibrated bundle (`skillserve calibrate`)",
    )


class IndexSettings(Section):
    """Building a bundle."""

    models: Path = Field(
        Path("models"),
        description="model repository that the server runs: cards and tokenizers are read from it",
    )
    bundles: Path = Field(Path("bundles"), description="folder of bundles; CURRENT in it names the live one")
    keep: int = Field(
        5, ge=1, description="newest bundles that are kept; the live one and the one before it always are"
    )
    kind: Literal["faiss", "milvus"] = Field(
        "faiss", description="who keeps the vectors: FAISS, in the bundle and in this process, or Milvus, elsewhere"
    )
    uri: str | None = Field(
        None,
        min_length=1,
        description="address of Milvus, such as http://host:19530; a local file ending in .db is Milvus Lite. "
        "A token is never part of it: [env: SKILLSERVE_INDEX_TOKEN]",
    )
    alias: str = Field(
        "skillserve",
        pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,199}$",
        description="name in Milvus that follows the live bundle; collections are called after it",
    )
    milvus_timeout_s: float = Field(30.0, gt=0, description="longest wait for one answer of Milvus, seconds")
    lexical_weight: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="weight of shared words in the first stage, such as 0.2"
    )
    part_weight: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="weight of a long request's parts in the first stage, such as 1; each part is embedded, too",
    )
    token_embeddings: int = Field(
        0,
        ge=0,
        description="how many tokens of each skill have their embeddings kept, so that searches read their request "
        "alone, 0 for none; 320 is what pairs of 512 leave a skill beside most requests. For a reranker of score kind "
        "max_sim; takes so many times its dimension a skill, 123 kB, in the bundle and in the memory of searchers",
    )


class ScoreSettings(Section):
    """Scoring files in bulk."""

    engine: Literal["server", "direct", "ray"] = Field(
        "server",
        description="`server` asks a running one; `direct` runs the graphs of --models in this process; `ray` hands "
        "shards to workers on many machines",
    )
    format: Literal["parquet", "jsonl"] = Field("parquet", description="of finished shards and tables")
    shard_rows: int | None = Field(
        None,
        ge=1,
        description="rows of a shard, the most work that a kill can lose; not set: 4096, for rankings 256",
    )
    patience_s: float = Field(
        120.0, ge=0, description="how long a request that the server sheds, or a lost server, is tried again, seconds"
    )
    worker_engine: Literal["server", "direct"] = Field(
        "direct", description="what each worker of `ray` computes with: a server, or graphs of its own"
    )
    ray_address: str | None = Field(
        None,
        min_length=1,
        description="running Ray to join, such as host:6379 or auto; not set: one on this machine, for this run",
    )
    num_workers: int | None = Field(None, ge=1, description="workers of `ray`; not set: as many as Ray has cores for")
    worker_cores: int = Field(1, ge=1, description="cores that a worker of `ray` takes, and its graphs use")
    worker_tries: int = Field(
        3, ge=1, description="how many workers of `ray` may die on one shard, or before their first, until the run ends"
    )


class AuditSettings(Section):
    """Auditing a catalogue."""

    num_neighbours: int = Field(
        10, ge=1, description="nearest skills that are listed for each one, and hubs are counted by"
    )
    duplicate_similarity: float = Field(
        0.9,
        gt=-1,
        le=1,
        description="similarity from which on two skills are near duplicates; lower finds more that are not",
    )
    categories: bool = Field(default=True, description="assign categories, which needs the embedder and no more")
    taxonomy: Path | None = Field(
        None, description="TOML or JSON file of categories with descriptions; not set: SkillRet's 18"
    )


class CalibrateSettings(Section):
    """From scores to probabilities, and the threshold below which a search abstains."""

    none_share: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="assumed share of requests that no skill fits; probabilities depend on it, refusals do not",
    )
    left_out_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of their weight carried by answerable requests whose own skills were left out; in a large "
        "catalogue others fit those, and probabilities become too low",
    )
    false_injection: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="most requests that no skill fits, as a share of them, that may get hits all the same",
    )
    num_folds: int = Field(5, ge=2, description="folds of the cross-validation")
    num_resamples: int = Field(1_000, ge=100, description="bootstrap resamples behind the intervals of --check")
    seed: int = Field(13, ge=0, description="seed of folds and resamples")
