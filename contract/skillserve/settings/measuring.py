"""Settings of measurements: of rankings, and of speed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from skillserve.settings.section import Section, words

__all__ = ["BenchSettings", "CapacitySettings", "EvaluateSettings", "SweepSettings"]


_Positive = Annotated[int, Field(ge=1)]
_Natural = Annotated[int, Field(ge=0)]


class EvaluateSettings(Section):
    """Measuring systems on judged requests."""

    depth: int = Field(100, ge=1, description="skills that each system ranks for a request")
    rerank_depth: int = Field(
        20, ge=0, description="candidates that a reranker reorders, the others follow as they stood; 0 for none"
    )
    lexical_weight: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="weight of shared words, in process; a bundle has its own"
    )
    part_weight: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="weight of a request's parts, in process; a bundle has its own"
    )
    cutoffs: str = Field(
        "5,10,15",
        pattern=r"^[1-9]\d*(,[1-9]\d*)*$",
        description="ranks at which metrics are taken, with commas between; 10 always is one",
    )
    resamples: int = Field(10_000, ge=100, description="bootstrap samples of the requests, for intervals")
    seed: int = Field(13, ge=0, description="seed of the bootstrap")

    @property
    def ks(self) -> tuple[int, ...]:
        """The cutoffs as numbers, least first."""
        return tuple(sorted({int(cutoff) for cutoff in self.cutoffs.split(",")}))


class BenchSettings(Section):
    """A measurement."""

    rounds: int = Field(
        7, ge=1, description="rounds; each measures every contender once, figures are medians over them"
    )
    num_clients: int = Field(
        32, ge=1, description="clients at once, each sending its next request when the last one is answered"
    )
    num_requests: int = Field(640, ge=1, description="requests per contender and round")
    num_pairs: int = Field(200, ge=1, description="lone requests per length, each once in process and once served")
    seed: int = Field(13, ge=0, description="seed of lengths, of the choice of requests, and of arrivals")
    length: Literal["smoke", "short", "full"] = Field(
        "full",
        description="`smoke` shows in a minute or two that everything works, `full` gives figures, and `short` gives "
        "them in half the time with wider intervals",
    )
    levels: tuple[Literal["embedder", "reranker", "search"], ...] = Field(
        ("embedder", "reranker", "search"), description="what is driven, as embedder,search"
    )
    scenarios: tuple[Literal["index", "single", "multi", "offline", "server", "overload"], ...] = Field(
        ("index", "single", "multi", "offline", "server", "overload"), description="what is measured, as single,server"
    )
    bound_ms: float = Field(100.0, gt=0, description="bound on the 99th percentile of latency in `server`")
    bound_factor: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="instead of bound_ms, so many times the median of each contender's own lone requests, as 10",
    )
    arrivals: Literal["poisson", "constant"] = Field("poisson", description="how an open loop's requests arrive")
    num_workers: int = Field(
        0, ge=0, description="load processes; 0: one for each two cores. Too few make a run invalid, and it says so"
    )
    regression_share: float = Field(
        0.05, ge=0, description="how much worse a figure may be before `compare` calls it a regression"
    )

    peers_folder: Path = Field(Path(".bench/peers"), description="folder of the environments that peers run in")
    rows: tuple[_Positive, ...] = Field(
        (10_000, 100_000, 1_000_000), min_length=2, description="skills of each catalogue, as 10000,100000"
    )
    most_growth: float = Field(
        1.25,
        ge=1,
        allow_inf_nan=False,
        description="how often the smallest catalogue's peak memory the largest may need",
    )

    @property
    def bound(self) -> str:
        """The bound of `server` in words."""
        if self.bound_factor is None:
            return f"{self.bound_ms:g} ms"
        return f"{self.bound_factor:g} times its lone median"

    @field_validator("levels", "scenarios", "rows", mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        """Flags and variables bring text: `embedder,search`."""
        return words(value)


class SweepSettings(Section):
    """A grid of settings, every combination of which is measured."""

    instances: tuple[_Positive, ...] = Field(
        (), description="instances of each model, as 1,2; not set: as exported, like the next three"
    )
    threads: tuple[_Natural, ...] = Field((), description="intra-op threads of each instance, 0 for all cores, as 1,2")
    max_batch_sizes: tuple[_Positive, ...] = Field(
        (), description="requests that the server may join in one execution, as 8,64"
    )
    max_queue_delay_us: tuple[_Natural, ...] = Field(
        (), description="how long the server waits for company, microseconds, as 0,500"
    )
    token_budgets: tuple[_Positive, ...] = Field(
        (4_096,), description="most tokens of one request to a model, as 1024,4096; a search's pairs are cut into such"
    )
    candidates: tuple[_Positive, ...] = Field((50,), description="skills taken from the index, as 20,50")
    rerank_depths: tuple[_Natural, ...] = Field((0, 20), description="candidates that are reranked, as 0,10,20")
    rounds: int = Field(3, ge=1, description="rounds; each starts every server and measures every point once")
    seconds: float = Field(
        15.0,
        ge=1,
        description="length of each load, warm-up included; two for each point and round, of a search alone "
        "and of many",
    )
    num_judged: int = Field(300, ge=1, description="judged requests behind NDCG@10, at most")
    quality_loss: float = Field(
        0.01, ge=0, lt=1, description="NDCG@10 that a recommendation may give up for speed, against the best point"
    )

    @field_validator(
        "instances",
        "threads",
        "max_batch_sizes",
        "max_queue_delay_us",
        "token_budgets",
        "candidates",
        "rerank_depths",
        mode="before",
    )
    @classmethod
    def _from_text(cls, value: object) -> object:
        """Flags and variables bring text: `1,2`. A list that was given has something in it, each value once."""
        values = words(value)
        if not isinstance(values, tuple | list):
            return values
        if not values:
            raise ValueError("there is nothing in the list, so the grid would be empty")
        return tuple(dict.fromkeys(values))


_Ladder = Annotated[int, Field(ge=1_000)]


class CapacitySettings(Section):
    """Planning for more skills than one machine can measure: what is measured, and what it is to be enough for."""

    skills: int = Field(100_000_000, ge=1_000, description="skills to plan for")
    hours: float = Field(24.0, gt=0, allow_inf_nan=False, description="hours in which all of them are to be embedded")
    memory_gib: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="memory of a planned machine, GiB; not set: this one's"
    )
    memory_share: float = Field(0.7, gt=0, le=1, description="share of that memory which an index may fill")
    other_bytes: int = Field(
        0, ge=0, description="bytes that a searching machine holds for each skill beside the index, such as its texts"
    )
    milvus_factor: float = Field(
        2.0,
        ge=1,
        allow_inf_nan=False,
        description="memory of a Milvus cluster as a multiple of the same index in FAISS, an assumption",
    )
    kinds: tuple[str, ...] = Field(
        ("flat", "fp16", "sq8", "ivf-flat", "ivf-sq8", "ivf-pq", "hnsw", "milvus-lite"),
        min_length=1,
        description="kinds of index that are measured, as flat,hnsw",
    )
    rows: tuple[_Ladder, ...] = Field(
        (10_000, 30_000, 100_000),
        min_length=2,
        description="vectors of each measured index, as 10000,100000; a thousand at least",
    )
    dim: int = Field(384, ge=8, description="numbers of a vector; those of --bundles have their own")
    num_queries: int = Field(200, ge=10, description="searches of each index")
    top_k: int = Field(10, ge=1, le=100, description="nearest vectors that a search finds")
    num_probes: int = Field(32, ge=1, description="lists that a search of an IVF index looks into")
    search_breadth: int = Field(64, ge=1, description="candidates that a search of HNSW keeps, its efSearch")
    skills_per_s: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="skills a second that one machine embeds; not set: measured"
    )
    num_embedded: int = Field(256, ge=1, description="skills that are embedded to measure that, in each round")
    rounds: int = Field(3, ge=1, description="rounds; each measures every index once, figures are medians over them")
    seed: int = Field(13, ge=0, description="seed of the vectors")

    @field_validator("kinds", "rows", mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        """Flags and variables bring text: `flat,hnsw`. Each value counts once."""
        values = words(value)
        return tuple(dict.fromkeys(values)) if isinstance(values, tuple | list) else values
