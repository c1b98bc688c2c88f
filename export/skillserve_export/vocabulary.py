"""Ids of tokens that we write ourselves."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from skillserve.errors import ContractError

__all__ = ["ANSWERS", "OPENING", "token_ids"]

ANSWERS = ("yes", "no")
"""What a reranker of score kind `yes_no` is asked for."""
OPENING = "[CLS]"
"""What each side of a pair begins with whose sides are read apart."""


def token_ids(folder: Path, *tokens: str) -> tuple[int, ...]:
    """Their ids in the tokenizer of a weights folder; ContractError for one that it does not have."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    found = {token: tokenizer.token_to_id(token) for token in tokens}
    absent = [token for token, known in found.items() if known is None]
    if absent:
        raise ContractError(
            f"tokenizer in `{folder}`",
            got=f"no token {' and no '.join(absent)}",
            wanted="the tokenizer of the family in the card",
            fix="Train the model again, or correct the family in its card.",
        )
    return tuple(found.values())
