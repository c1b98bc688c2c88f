"""From skills to a filled index: what is unchanged keeps its vectors, the rest is embedded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from skillserve.console import progress, talk
from skillserve.errors import BundleError
from skillserve.framing import EmbedderTokens, RerankerTokens
from skillserve.records import Skill
from skillserve.tensors import Ids, token_budget_batches
from skillserve_client.bundle import Bundle
from skillserve_client.manifest import RERANKER_TOKENIZER
from skillserve_client.models import Source
from skillserve_client.table import SkillTable
from skillserve_client.token_embeddings import SkillTokens, TokenEmbeddings
from skillserve_client.vectors import Entries, Identity, Mark, VectorIndex, differences
from skillserve_client.wire import Floats, Inference

__all__ = ["fill", "identity_of", "read_tokens", "state_digest", "tokenised"]

_SKILLS_AT_ONCE = 512
"""Skills tokenised between two ticks of the progress bar."""
_TOKENS_AT_ONCE = 131_072
"""Tokens whose embeddings are in memory in float32: 200 MB of them at D = 384."""
_SKILLS_A_WRITE = 4_096
"""Skills embedded between two writes to an index that outlives a killed build; a pause of the server each."""


def identity_of(source: Source) -> Identity:
    """What the vectors of a served embedder are comparable with."""
    if source.card.dim is None:
        raise ValueError(f"{source.card.role} {source.card.short_digest} has no dimension")
    return Identity(
        embedder=source.card.digest,
        # The digest covers the tokenizer of the weights; this is the one that was served with them.
        tokenizer=hashlib.sha256(source.tokenizer_json).hexdigest(),
        dim=source.card.dim,
    )


def state_digest(identity: Identity, marks: Mapping[str, Mark], salt: str) -> str:
    """SHA-256 of what an index holds; another salt makes it another one."""
    content = [identity.embedder, identity.tokenizer, identity.dim, marks, salt]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def fill(
    index: VectorIndex,
    skills: Sequence[Skill],
    marks: Mapping[str, Mark],
    *,
    embedder: EmbedderTokens,
    triton: Inference,
    held: VectorIndex | None,
    lasting: bool,
) -> None:
    """Make an index hold exactly these skills, whose marks are in the same order.

    What the index itself holds already stays; vectors of skills with the same content are taken from `held`, an index
    of the same identity. A `lasting` index gets what is embedded every few thousand skills, so that a kill loses no
    more than those; any other one all at once. Raises ServerError, and BundleError if the index does not count what
    was written to it.
    """
    gone, missing = differences(index.marks(), marks)
    index.delete(gone)
    known = held.marks() if held is not None else {}
    carried = [skill for skill in missing if skill in known and known[skill].digest == marks[skill].digest]
    if held is not None and carried:
        talk(f"{len(carried)} of {len(skills)} skills are unchanged and keep their vectors; --force embeds them anew.")
        index.upsert(Entries({skill: marks[skill] for skill in carried}, held.vectors(carried)))
    wanted = set(missing).difference(carried)
    if fresh := [skill for skill in skills if skill.id in wanted]:
        sequences = tokenised(embedder.skills, fresh, "tokenising for the embedder")
        at_once = _SKILLS_A_WRITE if lasting else len(fresh)
        for places, vectors in _embedded(sequences, triton, embedder.card.digest, at_once):
            index.upsert(Entries({fresh[place].id: marks[fresh[place].id] for place in places}, vectors))
    if len(index) != len(marks):
        raise BundleError(
            "the new bundle's index",
            got=f"{len(index)} vectors",
            wanted=f"{len(marks)}, one a skill",
            fix="Nothing was published. If nobody else writes to that index, run the command again with --force.",
        )


def read_tokens(
    skills: SkillTable, reranker: RerankerTokens, source: Source, triton: Inference, *, limit: int, held: Bundle | None
) -> TokenEmbeddings:
    """The embeddings of the first `limit` tokens of all skills; of unchanged ones those that another bundle keeps.

    Raises ServerError, and BundleError if the server changed to another model.
    """
    dim, how = source.served.dim, source.served.interaction
    if dim is None or how is None:
        raise ValueError(f"{source.served.name} is no token embedder")
    before = held.corpus.tokens if held is not None and _same_reading(held, source, limit) else None
    if before is not None and (before.dim, before.how) != (dim, how):
        before = None
    known = {} if held is None or before is None else held.corpus.skills.marks()
    marks = skills.marks()
    found: dict[int, SkillTokens] = {}
    if before is not None:
        for skill, mark in marks.items():
            if skill in known and known[skill].digest == mark.digest:
                found[mark.row] = before.skill(known[skill].row)
        if found:
            talk(
                f"{len(found)} of {len(marks)} skills are unchanged and keep their token embeddings; --force reads "
                "them anew."
            )
    fresh = [row for row in range(len(skills)) if row not in found]
    texts = {row: reranker.skill_alone(skills.rerank_ids(row), limit) for row in fresh}
    fresh.sort(key=lambda row: -len(texts[row]))
    with progress("reading skills token by token", len(fresh)) as bar:
        # In parts, since in float32 those of all skills may not fit into memory.
        for part in token_budget_batches([len(texts[row]) for row in fresh], max_tokens=_TOKENS_AT_ONCE):
            asked = [texts[row] for row in fresh[part]]
            rows = triton.infer("token_embedder", asked, progress=bar.advance, digest=source.card.digest)
            ends = np.cumsum([len(text) for text in asked])[:-1]
            found |= {row: SkillTokens.of(own) for row, own in zip(fresh[part], np.split(rows, ends), strict=True)}
    return TokenEmbeddings.joined((found[row] for row in range(len(skills))), dim, how)


def _same_reading(held: Bundle, source: Source, limit: int) -> bool:
    """Whether a bundle's skills were read so far, and by this model; with another tokenizer it reads other tokens."""
    return (
        held.manifest.token_embeddings == limit
        and held.digests["reranker"] == source.card.digest
        and held.manifest.files[RERANKER_TOKENIZER].sha256 == hashlib.sha256(source.tokenizer_json).hexdigest()
    )


def tokenised(tokenise: Callable[[Sequence[Skill]], list[Ids]], skills: Sequence[Skill], title: str) -> list[Ids]:
    """Skills to ids, with a progress bar of that title."""
    sequences: list[Ids] = []
    with progress(title, len(skills)) as bar:
        for start in range(0, len(skills), _SKILLS_AT_ONCE):
            part = skills[start : start + _SKILLS_AT_ONCE]
            sequences += tokenise(part)
            bar.advance(len(part))
    return sequences


def _embedded(
    sequences: Sequence[Ids], triton: Inference, digest: str, at_once: int
) -> Iterator[tuple[list[int], Floats]]:
    """Places and their embeddings, longest first, so that requests are uniform and memory peaks at the start."""
    order = np.argsort([-len(sequence) for sequence in sequences], kind="stable").tolist()
    with progress("embedding skills", len(sequences)) as bar:
        for start in range(0, len(order), at_once):
            places = order[start : start + at_once]
            asked = [sequences[place] for place in places]
            yield places, triton.infer("embedder", asked, progress=bar.advance, digest=digest)
