"""Settings of measurements: of rankings, and of speed."""

from __future__ import annotations

from pydantic import Field

from skillserve.settings.section import Section

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
    seed: int = Field(13, ge=0, description="seed of lengths, and of the choice of requests")
