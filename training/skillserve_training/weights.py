"""Weights folders: opening those of a base, writing new ones whole or not at all.

A folder holds `model.safetensors`, `config.json`, `tokenizer.json` and `card.json`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from skillserve.card import ModelCard, write_card
from skillserve.framing import EmbedderTokens, RerankerTokens
from skillserve.publish import published_folder, write_text
from skillserve_training.base import Base
from skillserve_training.families import family_in
from skillserve_training.files import WEIGHTS, read_json, weight_files
from skillserve_training.tokenizer import open_tokenizer

__all__ = [
    "Dtype",
    "embedder_tokens",
    "open_embedder",
    "open_reranker",
    "reranker_tokens",
    "score_tokens",
    "write_stock",
    "write_trained",
]

Dtype = Literal["float32", "bfloat16"]

_DTYPES: dict[Dtype, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_ONE_FILE = 1 << 60
"""No model has so many bytes, so none is written in shards."""


def embedder_tokens(folder: Path, card: ModelCard) -> EmbedderTokens:
    """What turns texts into the ids that serving makes; CardError if tokenizer.json cannot be read."""
    return EmbedderTokens(card, open_tokenizer(folder))


def reranker_tokens(folder: Path, card: ModelCard) -> RerankerTokens:
    """The same for pairs of a request and a skill."""
    return RerankerTokens(card, open_tokenizer(folder))


def score_tokens(folder: Path, *, late: bool = False) -> tuple[int, ...]:
    """Token ids that a reranker's scoring depends on; CardError if its tokenizer does not have them."""
    return family_in(folder, late=late).score_tokens(folder)


def open_embedder(folder: Path) -> PreTrainedModel:
    """The encoder of a base or of a trained embedder, float32, in evaluation mode."""
    return family_in(folder).open_embedder(folder)


def open_reranker(folder: Path, *, new_head: bool = False, late: bool = False) -> PreTrainedModel:
    """A model that scores pairs, float32, in evaluation mode; with `new_head` its family's head may be missing.

    With `late` an encoder of either kind becomes one with late interaction.
    """
    return family_in(folder, late=late).open_reranker(folder, new_head=new_head)


def write_stock(out: Path, base: Base, card: ModelCard) -> ModelCard:
    """Write an untrained model's folder, its weights byte by byte if they are in one file; returns the stamped card."""
    # Opened before it is written: what does not load must not get a card.
    family = family_in(base.folder)
    (family.open_embedder if card.role == "embedder" else family.open_reranker)(base.folder)
    with published_folder(out) as draft:
        _write_whole(draft / WEIGHTS, weight_files(base.folder))
        architectures = {"architectures": [family.classes[card.role].__name__]}
        _write_config(draft, read_json(base.folder / "config.json") | architectures)
        _write_tokenizer(draft, base.folder)
        return write_card(draft, card)


def write_trained(
    out: Path,
    model: PreTrainedModel,
    base: Base,
    card: ModelCard,
    *,
    dtype: Dtype | None = None,
    report: Callable[[Path], None] | None = None,
) -> ModelCard:
    """Write a trained model's folder with its base's tokenizer; returns the stamped card.

    The weights are written as `dtype`, or as the base has them; the model itself keeps its precision. `report` adds
    to the folder what does not belong to the model, before it appears.
    """
    dtype = dtype or _dtype_of(base.folder)
    with published_folder(out) as draft:
        weights = _as_dtype(model.state_dict(), _DTYPES[dtype])
        model.save_pretrained(draft, state_dict=weights, safe_serialization=True, max_shard_size=_ONE_FILE)
        _write_config(draft, read_json(draft / "config.json") | {"dtype": dtype})
        # safetensors makes files that only their owner reads; an export or a server may run as somebody else.
        (draft / WEIGHTS).chmod(0o644)
        _write_tokenizer(draft, base.folder)
        if report is not None:
            report(draft)
        return write_card(draft, card)


def _dtype_of(folder: Path) -> Dtype:
    """bfloat16 where a base has nothing wider; float16, whose range training exceeds, is written as float32."""
    kinds: set[str] = set()
    for file in weight_files(folder):
        with safe_open(file, framework="pt") as tensors:
            kinds |= {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118 -- no mapping
    return "bfloat16" if kinds == {"BF16"} else "float32"


def _as_dtype(weights: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights to write; those that share memory still do, or tied ones would be written twice."""
    converted: dict[int, Tensor] = {}
    return {
        name: converted.setdefault(weight.data_ptr(), weight.to("cpu", dtype if weight.is_floating_point() else None))
        for name, weight in weights.items()
    }


def _write_config(draft: Path, config: Mapping[str, Any]) -> None:
    write_text(draft / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")


def _write_whole(file: Path, parts: list[Path]) -> None:
    if len(parts) == 1:
        shutil.copyfile(parts[0], file)
        return
    tensors = {name: tensor for part in parts for name, tensor in load_file(part).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    file.chmod(0o644)


def _write_tokenizer(draft: Path, source: Path) -> None:
    """Write tokenizer.json without the padding and truncation in it: the card alone decides about lengths."""
    tokenizer = open_tokenizer(source)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    write_text(draft / "tokenizer.json", tokenizer.to_str())
