"""Settings of measurements: of rankings, and of speed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from skillserve.settings.section import Section, words

__all__ = ["BenchSettings", "EvaluateSettings"]


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
    length: Literal["smoke", "full"] = Field(
        "full", description="`smoke` shows in a minute or two that everything works, `full` gives figures"
    )
    levels: tuple[Literal["embedder", "reranker", "search"], ...] = Field(
        ("embedder", "reranker", "search"), description="what is driven, as embedder,search"
    )
    scenarios: tuple[Literal["index", "single", "multi", "offline", "server", "overload"], ...] = Field(
        ("index", "single", "multi", "offline", "server", "overload"), description="what is measured, as single,server"
    )
    bound_ms: float = Field(100.0, gt=0, description="bound on the 99th percentile of latency in `server`")
    arrivals: Literal["poisson", "constant"] = Field("poisson", description="how an open loop's requests arrive")
    num_workers: int = Field(
        0, ge=0, description="load processes; 0: one for each two cores. Too few make a run invalid, and it says so"
    )
    regression_share: float = Field(
        0.05, ge=0, description="how much worse a figure may be before `compare` calls it a regression"
    )

    peers_folder: Path = Field(Path(".bench/peers"), description="folder of the environments that peers run in")

    @field_validator("levels", "scenarios", mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        """Flags and variables bring text: `embedder,search`."""
        return words(value)
