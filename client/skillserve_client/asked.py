"""Requests whose outcome is known, compared with a catalogue before the server is asked for anything."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from skillserve.console import talk
from skillserve.errors import CatalogueError
from skillserve.skillfile import read_queries
from skillserve_client.corpus import Corpus
from skillserve_client.quality import read_judged
from skillserve_client.samples import Asked

__all__ = ["Known", "read_known"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """Answerable requests first, then those that nothing fits."""

    asked: tuple[Asked, ...]
    num_answerable: int
    digest: str
    """SHA-256 over texts and skills."""

    @property
    def num_none(self) -> int:
        """Requests that nothing fits."""
        return len(self.asked) - self.num_answerable


def read_known(
    corpus: Corpus, requests: Path, qrels: Path | None, none: Path, *, least_answerable: int, least_none: int
) -> Known:
    """Read both files; raises CatalogueError for faulty lines, contradictions, and too few requests of either kind.

    A request counts as answerable if at least one of its skills is in the catalogue; one whose skills are all
    elsewhere is left out, which is said: nobody has judged whether another skill of this catalogue fits it.
    """
    ids = frozenset(corpus.skills.ids())
    judged = read_judged(requests, qrels)
    answerable = []
    for query in judged.queries:
        golds = ids.intersection(skill for skill, rel in judged.qrels[query.id].items() if rel > 0)
        if golds:
            answerable.append(Asked(text=query.text, golds=golds))
    if not answerable:
        raise CatalogueError(
            f"`{requests}`",
            got=f"{len(judged.queries)} requests with skills, none of which is in the catalogue",
            wanted="requests that this catalogue's skills fit",
            fix="Name the requests that belong to it: --requests FILE --qrels FILE",
        )
    if elsewhere := len(judged.queries) - len(answerable):
        talk(f"{elsewhere} requests are left out: their skills are not in the catalogue.")
    unfit = read_queries(none)
    if fitting := [query.id for query in unfit if query.skill_ids]:
        raise CatalogueError(
            f"`{none}`",
            got=f"{len(fitting)} requests with `skill_ids`, first `{fitting[0]}`",
            wanted="requests that no skill fits",
            fix="Put them into the other file: --requests FILE",
        )
    _require_enough(requests, "that a skill of the catalogue fits", len(answerable), least_answerable)
    _require_enough(none, "that no skill fits", len(unfit), least_none)
    asked = (*answerable, *(Asked(text=query.text, golds=frozenset()) for query in unfit))
    content = json.dumps([(request.text, sorted(request.golds)) for request in asked])
    return Known(asked=asked, num_answerable=len(answerable), digest=hashlib.sha256(content.encode()).hexdigest())


def _require_enough(file: Path, which: str, found: int, least: int) -> None:
    if found < least:
        raise CatalogueError(
            f"`{file}`",
            got=f"{found} requests {which}",
            wanted=f"at least {least}",
            fix="Collect more of them; a larger --false-injection needs fewer that no skill fits.",
        )
