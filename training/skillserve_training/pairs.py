"""What an embedder is trained on: requests and documents as token ids, and in which order a run sees their pairs.

A document is a skill as the model reads it, whole or in part. Besides the requests of the data, the catalogue itself
gives pairs: a description with the rest of its skill, and a section of a body with name and description.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from skillserve.framing import EmbedderTokens
from skillserve.records import Skill
from skillserve.settings import TrainSettings
from skillserve.tensors import Ids
from skillserve_training.dataset import TrainingData

__all__ = ["EmbedderTexts", "Pair", "schedule_of_pairs", "tokenise"]

_SECTION = re.compile(r"\n(?=#{1,4} )")
_LEAST_SECTION_CHARS = 120
"""A section of a heading and a line says nothing about its skill."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One step's row: a request, a document that fits it, and documents that do not."""

    request: int
    document: int
    negatives: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class EmbedderTexts:
    """Everything that pairs point into."""

    requests: list[Ids]
    """Framed; those of the data first, then those that the catalogue gives."""
    golds: list[frozenset[int]]
    """Per request, the positions of its skills."""
    documents: list[Ids]
    """Framed; document i is skill i whole, as long as there are skills."""
    skill_of: list[int]
    """Per document, the position of its skill."""
    real: list[tuple[int, int]]
    """(request, document) of the data, one for each gold."""
    described: list[tuple[int, int]]
    """(description, rest of the skill)."""
    sections: list[tuple[int, int]]
    """(section of the body, name and description)."""


def tokenise(data: TrainingData, tokens: EmbedderTokens, settings: TrainSettings) -> EmbedderTexts:
    """Requests and skills as the card of `tokens` has them read; what the settings do not use is not tokenised."""
    position = {skill.id: i for i, skill in enumerate(data.skills)}
    texts = EmbedderTexts(
        requests=[cut.ids for cut in tokens.queries([query.text for query in data.queries])],
        golds=[frozenset(position[skill] for skill in data.golds[query.id]) for query in data.queries],
        documents=tokens.skills(data.skills),
        skill_of=list(range(len(data.skills))),
        real=[],
        described=[],
        sections=[],
    )
    texts.real.extend((request, skill) for request, golds in enumerate(texts.golds) for skill in sorted(golds))
    if settings.catalogue_share:
        found = [i for i, skill in enumerate(data.skills) if skill.description.strip() and skill.body.strip()]
        rests = [replace(data.skills[i], description="") for i in found]
        texts.described.extend(_add(texts, tokens, found, [data.skills[i].description for i in found], rests))
    if settings.section_share:
        parts = [(i, part) for i, skill in enumerate(data.skills) for part in _sections(skill)]
        heads = [replace(data.skills[i], body="") for i, _ in parts]
        texts.sections.extend(_add(texts, tokens, [i for i, _ in parts], [part for _, part in parts], heads))
    return texts


def _add(
    texts: EmbedderTexts, tokens: EmbedderTokens, skills: Sequence[int], requests: list[str], documents: list[Skill]
) -> list[tuple[int, int]]:
    """Append requests and documents, row by row of the same skill; returns their pairs."""
    pairs = [(len(texts.requests) + row, len(texts.documents) + row) for row in range(len(skills))]
    texts.requests.extend(cut.ids for cut in tokens.queries(requests))
    texts.documents.extend(tokens.skills(documents))
    texts.golds.extend(frozenset((skill,)) for skill in skills)
    texts.skill_of.extend(skills)
    return pairs


def _sections(skill: Skill) -> list[str]:
    return [part for part in _SECTION.split(skill.body) if len(part.strip()) >= _LEAST_SECTION_CHARS]


def schedule_of_pairs(
    texts: EmbedderTexts, negatives: Sequence[Sequence[int]], settings: TrainSettings
) -> tuple[list[Pair], int]:
    """All rows of a run in order, and the number of steps; `negatives[request]` are wrong skills, hardest first.

    The whole order is drawn beforehand, so a run that was stopped goes on with the very rows that were left. Every
    pass holds all pairs of the data once, shuffled, and its share of the catalogue's own, drawn anew.
    """
    draw = random.Random(settings.seed)  # noqa: S311 -- reproducible, not secret
    num_described = min(round(settings.catalogue_share * len(texts.real)), len(texts.described))
    num_sections = min(round(settings.section_share * len(texts.real)), len(texts.sections))
    per_pass = len(texts.real) + num_described + num_sections
    size = min(settings.batch_size, per_pass)
    steps = max(1, round(settings.epochs * (per_pass // size)))
    rows: list[Pair] = []
    while len(rows) < steps * size:
        drawn = [*texts.real, *draw.sample(texts.described, num_described), *draw.sample(texts.sections, num_sections)]
        draw.shuffle(drawn)
        for request, document in drawn[: per_pass // size * size]:
            wrong = negatives[request] if request < len(negatives) else ()
            chosen = draw.sample(wrong, min(settings.num_negatives, len(wrong)))
            rows.append(Pair(request, document, tuple(chosen)))
    return rows[: steps * size], steps
