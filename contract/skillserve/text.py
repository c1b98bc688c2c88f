r"""The only place that formats the texts which models read.

Three formats exist. Each is versioned by `TEXT_FORMAT`; a change of any of them makes embeddings
incomparable, so cards and bundles carry the version and refuse another one.

1. Skill text: `name | description | body` (SkillRet, arXiv 2605.05726, its released scripts).
2. Query text: the card's query prompt in front of the request.
3. Frame: what stands around the texts in the token sequence, such as `[CLS]{query}[SEP]{skill}[SEP]`.

A frame separates what we wrote from what strangers wrote. Its literal parts are tokenised with special
tokens parsed; the texts in its slots are tokenised with special tokens NOT parsed, so a skill that
contains `[SEP]` or `<|im_end|>` cannot forge the frame.

A slot may carry white space inside its braces, `{ query\n}`, which is read together with the text. Byte-level
tokenizers such as Qwen3's make one token of a blank and the word behind it, and one of a full stop and the line
break behind it; with the seams inside the slots, pieces have the ids of the whole text tokenised at once.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from skillserve.records import Skill

__all__ = [
    "BERT_LATE_FRAME",
    "BERT_PAIR_FRAME",
    "BERT_SINGLE_FRAME",
    "QWEN3_PAIR_FRAME",
    "QWEN3_QUERY_PROMPT",
    "QWEN3_SINGLE_FRAME",
    "TEXT_FORMAT",
    "XLM_ROBERTA_PAIR_FRAME",
    "XLM_ROBERTA_SINGLE_FRAME",
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
"""ModernBERT's too."""
BERT_LATE_FRAME = "[CLS]{query}[SEP][CLS]{skill}[SEP]"
"""Two texts that are read apart, each as a single one is, and compared token by token."""

XLM_ROBERTA_SINGLE_FRAME = "<s>{text}</s>"
XLM_ROBERTA_PAIR_FRAME = "<s>{query}</s></s>{skill}</s>"
"""Two end tokens between the texts, as RoBERTa was trained."""

QWEN3_SINGLE_FRAME = "{text}<|endoftext|>"
QWEN3_QUERY_PROMPT = "Instruct: Given a skill search query, retrieve relevant skills that match the query\nQuery: "
QWEN3_PAIR_FRAME = (
    "<|im_start|>system\n"
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. "
    'Note that the answer can only be "yes" or "no".<|im_end|>\n'
    "<|im_start|>user\n"
    "<Instruct>: Given a skill search query, judge whether the skill document is relevant and useful for the query\n"
    "<Query>:{ query\n}<Document>:{ skill}<|im_end|>\n"
    "<|im_start|>assistant\n<think>\n\n</think>\n\n"
)
"""SkillRet's texts for Qwen3; the answer to the second one is `yes` or `no`."""

_SLOT = re.compile(r"\{(\s*)(text|query|skill)(\s*)\}")


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
    before: str = ""
    """White space that a slot's text is read with, in front of it."""
    after: str = ""
    """The same behind it; it stays where the text is cut."""


@dataclass(frozen=True, slots=True)
class Frame:
    r"""A parsed frame: literals and slots in order.

    >>> [p.value for p in Frame.parse("[CLS]{query}[SEP]{skill}[SEP]").pieces]
    ['[CLS]', 'query', '[SEP]', 'skill', '[SEP]']
    >>> Frame.parse("Query:{ text\n}").pieces[1]
    Piece(kind='slot', value='text', before=' ', after='\n')
    """

    pieces: tuple[Piece, ...]

    @classmethod
    def parse(cls, template: str) -> Frame:
        """Split a template at `{text}`, `{query}` and `{skill}`; every slot at most once (ValueError).

        White space inside the braces belongs to the slot, white space outside of them to a literal.
        """
        pieces: list[Piece] = []
        at = 0
        for match in _SLOT.finditer(template):
            if match.start() > at:
                pieces.append(Piece("literal", template[at : match.start()]))
            pieces.append(Piece("slot", match[2], before=match[1], after=match[3]))
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
