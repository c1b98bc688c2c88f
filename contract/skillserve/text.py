"""The only place that formats the texts which models read.

Three formats exist. Each is versioned by `TEXT_FORMAT`; a change of any of them makes embeddings
incomparable, so cards and bundles carry the version and refuse another one.

1. Skill text: `name | description | body` (SkillRet, arXiv 2605.05726, its released scripts).
2. Query text: the card's query prompt in front of the request.
3. Frame: what stands around the texts in the token sequence, such as `[CLS]{query}[SEP]{skill}[SEP]`.

A frame separates what we wrote from what strangers wrote. Its literal parts are tokenised with special
tokens parsed; the texts in its slots are tokenised with special tokens NOT parsed, so a skill that
contains `[SEP]` or `<|im_end|>` cannot forge the frame.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from skillserve.records import Skill

__all__ = [
    "BERT_PAIR_FRAME",
    "BERT_SINGLE_FRAME",
    "TEXT_FORMAT",
    "Frame",
    "Piece",
    "document_text",
    "query_text",
    "skill_text",
]

TEXT_FORMAT = "skillret/1"
"""Version of everything in this file."""

BERT_SINGLE_FRAME = "[CLS]{text}[SEP]"
BERT_PAIR_FRAME = "[CLS]{query}[SEP]{skill}[SEP]"

_SLOT = re.compile(r"\{(text|query|skill)\}")


def skill_text(skill: Skill) -> str:
    """`name | description | body`; a skill without a body repeats its description there, as SkillRet does."""
    name, description, body = skill.name.strip(), skill.description.strip(), skill.body.strip()
    return f"{name} | {description} | {body or description}"


def query_text(prompt: str, query: str) -> str:
    """The request as the embedder reads it: the card's query prompt, then the request."""
    return prompt + query.strip()


def document_text(prompt: str, skill: Skill) -> str:
    """The skill as the embedder reads it: the card's document prompt, then the skill text."""
    return prompt + skill_text(skill)


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a frame: a literal that we wrote, or the name of the slot that a stranger's text fills."""

    kind: Literal["literal", "slot"]
    value: str


@dataclass(frozen=True, slots=True)
class Frame:
    """A parsed frame: literals and slots in order.

    >>> [p.value for p in Frame.parse("[CLS]{query}[SEP]{skill}[SEP]").pieces]
    ['[CLS]', 'query', '[SEP]', 'skill', '[SEP]']
    """

    pieces: tuple[Piece, ...]

    @classmethod
    def parse(cls, template: str) -> Frame:
        """Split a template at `{text}`, `{query}` and `{skill}`; every slot at most once (ValueError)."""
        pieces: list[Piece] = []
        at = 0
        for match in _SLOT.finditer(template):
            if match.start() > at:
                pieces.append(Piece("literal", template[at : match.start()]))
            pieces.append(Piece("slot", match.group(1)))
            at = match.end()
        if at < len(template):
            pieces.append(Piece("literal", template[at:]))
        slots = [piece.value for piece in pieces if piece.kind == "slot"]
        if sorted(slots) not in (["text"], ["query", "skill"]):
            raise ValueError(f"frame {template!r} needs the slot {{text}}, or {{query}} and {{skill}}, once each")
        return cls(tuple(pieces))

    @property
    def slots(self) -> tuple[str, ...]:
        """Slot names in the order in which they stand."""
        return tuple(piece.value for piece in self.pieces if piece.kind == "slot")

    @property
    def literals(self) -> tuple[str, ...]:
        """The literal parts in the order in which they stand."""
        return tuple(piece.value for piece in self.pieces if piece.kind == "literal")
