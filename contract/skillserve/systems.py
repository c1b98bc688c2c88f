"""Systems: whatever ranks skills for requests, behind one protocol, each imported only when it is opened.

In the words of information retrieval a system is what produces a run: BM25, an embedder, an embedder with a
reranker, the served line, or a run that somebody else's system left in a file. Their rooms never import each other;
they meet in this table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

from skillserve.card import ModelCard
from skillserve.errors import CardError
from skillserve.lazy import load_target
from skillserve.records import Query, Run, Skill
from skillserve.settings import Settings

__all__ = ["INSTRUCTED_FAMILIES", "SYSTEMS", "Opener", "System", "SystemKind", "open_system", "require_query_prompt"]


class System(Protocol):
    """Something that ranks skills."""

    @property
    def name(self) -> str:
        """The spec it was opened with."""
        ...

    @property
    def digests(self) -> Mapping[str, str]:
        """Role → digest of the models that take part; empty for systems without models."""
        ...

    def rank(self, queries: Sequence[Query], skills: Sequence[Skill], *, depth: int) -> Run:
        """For each query at most `depth` of these skills; the order is that of `skillserve.metrics.ranked`.

        A system whose catalogue or run was fixed before refuses skills that are not the same: BundleError or
        CatalogueError.
        """
        ...


Opener = Callable[[str, Settings], System]
"""Opens a system from its spec, without the prefix, and the settings; checks all that can be checked at once."""


@dataclass(frozen=True, slots=True)
class SystemKind:
    """One row of the table."""

    target: str
    """`module:attribute` of an `Opener`."""
    extra: str | None
    """The pip extra that brings its packages; None if the base has them."""
    help: str


SYSTEMS: dict[str, SystemKind] = {
    "bm25": SystemKind("skillserve_training.bm25:open_bm25", "training", "`bm25`"),
    "server": SystemKind(
        "skillserve_client.system:open_served", "client", "`server:BUNDLES`, the served line with its live bundle"
    ),
    "run": SystemKind("skillserve.runs:open_run", None, "`run:FILE`, a TREC run"),
    "weights": SystemKind(
        "skillserve_training.systems:open_weights",
        "training",
        "`FOLDER`, an embedder's weights, or `FOLDER+FOLDER`, an embedder and a reranker",
    ),
}
"""Kinds of systems. A spec names `weights` by naming folders, the others by their word."""

INSTRUCTED_FAMILIES = frozenset({"qwen3"})
"""Architectures whose embedders are tuned on instructions: without one, queries are embedded as documents."""


def open_system(spec: str, settings: Settings) -> System:
    """The system that `spec` names, ready to rank; see `SYSTEMS`.

    Raises MissingExtraError where its room is not installed, UsageError for a spec that names nothing, and CardError
    or BundleError for artefacts that cannot be measured fairly.
    """
    prefix, colon, rest = spec.partition(":")
    if spec != "bm25" and not (colon and prefix in ("server", "run")):
        prefix, rest = "weights", spec
    kind = SYSTEMS[prefix]
    opener = cast("Opener", load_target(kind.target, extra=kind.extra, subject=f"system `{spec}`"))
    return opener(rest, settings)


def require_query_prompt(card: ModelCard, *, subject: str) -> None:
    """Refuse an embedder of an instruction-tuned family whose card has no query prompt; raises CardError."""
    if card.family in INSTRUCTED_FAMILIES and not card.query_prompt.strip():
        raise CardError(
            subject,
            got=f"an embedder of the family {card.family} without a query prompt",
            wanted="the prompt it was trained with: a wrong or missing prompt costs 2.3 to 8.8 NDCG points, SkillRet",
            fix="Write its card from a base that names its prompts: skillserve card --base FOLDER --out FOLDER",
        )
