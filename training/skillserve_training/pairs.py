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
from skillserve.fusion import FirstStageWeights
from skillserve.records import Skill
from skillserve.settings import TrainSettings
from skillserve.tensors import Ids
from skillserve_training.dataset import TrainingData

__all__ = ["EmbedderTexts", "Pair", "schedule_of_pairs", "tokenise"]

_SECTION = re.compile(r"\n(?=#{1,4} )")
_FRONT_MATTER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)
_LEAST_SECTION_CHARS = 120
"""A section of a heading and a line says nothing about its skill."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One step's row: a request, a document that fits it, and documents that do not."""

    request: int
    document: int
    negatives: tuple[int, ...] = ()
    parts: tuple[int, ...] = ()
    """Which parts of the request are read beside it."""


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
    parts: list[list[Ids]]
    """Per request, its parts framed as requests; none for what the catalogue gives, nor where parts have no weight."""


def tokenise(data: TrainingData, tokens: EmbedderTokens, settings: TrainSettings) -> EmbedderTexts:
    """Requests and skills as the card of `tokens` has them read; what the settings do not use is not tokenised."""
    position = {skill.id: i for i, skill in enumerate(data.skills)}
    weights = FirstStageWeights.of(settings)
    read = tokens.queries_in_pieces([weights.pieces(query.text) for query in data.queries])
    texts = EmbedderTexts(
        requests=[whole.ids for whole, *_ in read],
        golds=[frozenset(position[skill] for skill in data.golds[query.id]) for query in data.queries],
        documents=tokens.skills(data.skills),
        skill_of=list(range(len(data.skills))),
        real=[],
        described=[],
        sections=[],
        parts=[[part.ids for part in parts] for _, *parts in read],
    )
    texts.real.extend((request, skill) for request, golds in enumerate(texts.golds) for skill in sorted(golds))
    if settings.catalogue_share:
        described = [(i, skill.description) for i, skill in enumerate(data.skills) if skill.body.strip()]
        rests = tokens.skills([replace(_bare(data.skills[i]), description="") for i, _ in described])
        texts.described.extend(_add(texts, tokens, described, rests))
    if settings.section_share:
        parts = [(i, part) for i, skill in enumerate(data.skills) for part in _sections(_bare(skill))]
        divided = sorted({i for i, _ in parts})
        heads = dict(zip(divided, tokens.skills([replace(data.skills[i], body="") for i in divided]), strict=True))
        texts.sections.extend(_add(texts, tokens, parts, [heads[i] for i, _ in parts]))
    return texts


def _add(
    texts: EmbedderTexts, tokens: EmbedderTokens, requests: Sequence[tuple[int, str]], documents: Sequence[Ids]
) -> list[tuple[int, int]]:
    """Append requests (skill, text) and documents, row by row of the same skill; returns their pairs.

    What a tokenizer finds no word in, such as a description of one invisible character, asks for nothing.
    """
    rows = zip(requests, documents, strict=True)
    asking = [(skill, text, document) for (skill, text), document in rows if any(letter.isalnum() for letter in text)]
    pairs = [(len(texts.requests) + row, len(texts.documents) + row) for row in range(len(asking))]
    texts.requests.extend(cut.ids for cut in tokens.queries([text for _, text, _ in asking]))
    texts.documents.extend(document for *_, document in asking)
    texts.parts.extend([] for _ in asking)
    texts.golds.extend(frozenset((skill,)) for skill, *_ in asking)
    texts.skill_of.extend(skill for skill, *_ in asking)
    return pairs


def _bare(skill: Skill) -> Skill:
    """The skill without front matter in its body, where its name and description would stand again."""
    return replace(skill, body=_FRONT_MATTER.sub("", skill.body, count=1))


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
            rows.append(Pair(request, document, tuple(chosen), _spread(len(texts.parts[request]), settings.num_parts)))
    return rows[: steps * size], steps


def _spread(num: int, most: int) -> tuple[int, ...]:
    """At most so many of `num` parts, evenly spread with the first and the last.

    Neighbours share sentences, so few parts read all of a request. Drawn at random they would often miss the part that
    a skill fits, and the best of the others would be taught as the right one.
    """
    if num <= most:
        return tuple(range(num))
    return tuple(round(i * (num - 1) / max(most - 1, 1)) for i in range(most))
