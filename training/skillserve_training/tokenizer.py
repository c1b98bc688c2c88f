"""The one door to `tokenizers` in this room: tokenizer.json of a folder, and ids of single tokens in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from skillserve.errors import CardError
from skillserve_training.base import MINILM

__all__ = ["open_tokenizer", "token_ids"]


def open_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a base or a weights folder; CardError if the file cannot be read."""
    file = folder / "tokenizer.json"
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception for every fault of the file
        raise CardError(
            f"`{file}`",
            got=str(error),
            wanted="a file that the tokenizers library reads",
            fix=f"Name another base, such as --base {MINILM}",
        ) from error


def token_ids(folder: Path, tokens: Sequence[str]) -> tuple[int, ...]:
    """Ids of tokens that we write ourselves; CardError if the tokenizer makes none, or several, of one of them."""
    tokenizer = open_tokenizer(folder)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    found = [tokenizer.encode(token, add_special_tokens=False).ids for token in tokens]
    for token, ids in zip(tokens, found, strict=True):
        if len(ids) != 1 or tokenizer.id_to_token(ids[0]) != token:
            raise CardError(
                f"`{folder / 'tokenizer.json'}`",
                got=f"{len(ids)} tokens for {token}",
                wanted="one token of its own",
                fix=f"Name another base, such as --base {MINILM}",
            )
    return tuple(ids[0] for ids in found)
