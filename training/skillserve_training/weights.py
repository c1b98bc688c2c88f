"""Weights folders: opening those of a base, writing new ones whole or not at all.

A folder holds `model.safetensors`, `config.json`, `tokenizer.json` and `card.json`.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from transformers import BertForSequenceClassification, BertModel, PreTrainedModel

from skillserve.card import ModelCard, write_card
from skillserve.errors import CardError, ConfigError
from skillserve.framing import EmbedderTokens, RerankerTokens
from skillserve.publish import published_folder, write_text
from skillserve.tensors import Role
from skillserve_training.base import MINILM, Base, read_json

__all__ = [
    "embedder_tokens",
    "open_embedder",
    "open_reranker",
    "reranker_tokens",
    "separator_id",
    "write_stock",
    "write_trained",
]

M = TypeVar("M", BertModel, BertForSequenceClassification)

_ARCHITECTURES: dict[Role, str] = {"embedder": "BertModel", "reranker": "BertForSequenceClassification"}
_HEAD = ("bert.pooler.", "classifier.")
_SEPARATOR = "[SEP]"
_POOLER = ("pooler.",)
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
"""Runs are short, and on a CPU dropout keeps attention off its fast path: half of the time of a step."""


def embedder_tokens(folder: Path, card: ModelCard) -> EmbedderTokens:
    """What turns texts into the ids that serving makes; CardError if tokenizer.json cannot be read."""
    return EmbedderTokens(card, _open_tokenizer(folder))


def reranker_tokens(folder: Path, card: ModelCard) -> RerankerTokens:
    """The same for pairs of a request and a skill."""
    return RerankerTokens(card, _open_tokenizer(folder))


def separator_id(folder: Path) -> int:
    """Id of BERT's separator; a pair's second segment begins behind its first one."""
    found = _open_tokenizer(folder).token_to_id(_SEPARATOR)
    if found is None:
        raise CardError(
            f"`{folder / 'tokenizer.json'}`",
            got=f"no token {_SEPARATOR}",
            wanted="a BERT tokenizer",
            fix=f"Name another base, such as --base {MINILM}",
        )
    return int(found)


def open_embedder(folder: Path) -> BertModel:
    """The encoder of a base or of a trained embedder, float32, in evaluation mode.

    BERT's own pooler may be missing: embedders pool as their card says.
    """
    return _open(folder, BertModel, optional=_POOLER)


def open_reranker(folder: Path, *, new_head: bool = False) -> BertForSequenceClassification:
    """A model with one logit, float32, in evaluation mode; with `new_head` pooler and classifier may be missing."""
    if new_head:
        return _open(folder, BertForSequenceClassification, optional=_HEAD, num_labels=1)
    return _open(folder, BertForSequenceClassification)


def write_stock(out: Path, base: Base, card: ModelCard) -> ModelCard:
    """Write an untrained model's folder, its weights byte by byte; returns the stamped card."""
    # Opened before it is written: what does not load must not get a card.
    model = open_embedder(base.folder) if card.role == "embedder" else open_reranker(base.folder)
    if card.role == "reranker" and model.config.num_labels != 1:
        raise ConfigError(
            f"base `{base.name}`",
            got=f"a classifier with {model.config.num_labels} labels",
            wanted="one label, the relevance",
            fix=f"Train one: skillserve train reranker --base {MINILM}",
        )
    with published_folder(out) as draft:
        shutil.copyfile(base.folder / "model.safetensors", draft / "model.safetensors")
        config = read_json(base.folder / "config.json") | {"architectures": [_ARCHITECTURES[card.role]]}
        write_text(draft / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
        _write_tokenizer(draft, base.folder)
        return write_card(draft, card)


def write_trained(out: Path, model: PreTrainedModel, base: Base, card: ModelCard) -> ModelCard:
    """Write a trained model's folder with its base's tokenizer; returns the stamped card."""
    with published_folder(out) as draft:
        model.save_pretrained(draft, safe_serialization=True)
        # safetensors makes files that only their owner reads; an export or a server may run as somebody else.
        (draft / "model.safetensors").chmod(0o644)
        _write_tokenizer(draft, base.folder)
        return write_card(draft, card)


def _open(folder: Path, kind: type[M], *, optional: tuple[str, ...] = (), **config: Any) -> M:  # noqa: ANN401
    try:
        model, report = kind.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            dtype=torch.float32,
            attn_implementation="sdpa",
            output_loading_info=True,
            **_NO_DROPOUT,
            **config,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CardError(
            f"weights in `{folder}`",
            got=f"{type(error).__name__}: {str(error).splitlines()[0]}",
            wanted=f"safetensors of a {kind.__name__}",
            fix=f"Name another base, such as --base {MINILM}",
        ) from error
    missing = sorted(key for key in report["missing_keys"] if not key.startswith(optional))
    if missing:
        raise ConfigError(
            f"weights in `{folder}`",
            got=f"no `{missing[0]}`" + (f" and {len(missing) - 1} more tensors missing" if len(missing) > 1 else ""),
            wanted=f"all tensors of a {kind.__name__}",
            fix=f"Name another base; a reranker is made by: skillserve train reranker --base {MINILM}",
        )
    return cast("M", model.eval().to("cuda" if torch.cuda.is_available() else "cpu"))


def _open_tokenizer(folder: Path) -> Tokenizer:
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


def _write_tokenizer(draft: Path, source: Path) -> None:
    """Write tokenizer.json without the padding and truncation in it: the card alone decides about lengths."""
    tokenizer = _open_tokenizer(source)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    write_text(draft / "tokenizer.json", tokenizer.to_str())
