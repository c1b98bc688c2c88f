"""How many floating-point operations a model's matrix products take, from its shapes and the real tokens.

Shape legend: H hidden size, I intermediate size, N heads, K key heads, D head dimension, L tokens of a sequence.

A product `[m, k] · [k, n]` is 2·m·k·n operations. A layer's linear products take, for each token,

    BERT, XLM-RoBERTa   2 · (4·H² + 2·H·I)                    query, key, value, output; up, down
    ModernBERT          2 · (4·H² + 3·H·I)                    the same; up has a gate
    Qwen3               2 · (2·H·N·D + 2·H·K·D + 3·H·I)       query and output; key and value; gate, up, down

and attention takes 4·N·D for each pair of a query and a key that it may see: two products of length D a head. A
sequence has L² pairs, or those inside a window, or those on and below the diagonal. A reranker's head adds a little
for each sequence. Kaplan et al. (arXiv 2001.08361, table 1) count the same way. Lookups, norms, softmax and
activations are not counted: they are work, but no matrix products. Padding is never counted.

Late interaction (late-bert) reads either side of a pair as BERT reads a sequence, a request once for candidates that
follow one another, and takes 2·H for each pair of a token of the request and one of the skill.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from skillserve.errors import CardError
from skillserve.pairs import sides
from skillserve.tensors import Ids, Role

__all__ = ["Flops", "Product", "Shapes", "read_shapes"]

Lens = npt.NDArray[np.int64]
"""Tokens of each text, `[S]`."""


@dataclass(frozen=True, slots=True)
class Product:
    """A linear layer, applied to every token."""

    num_inputs: int
    num_outputs: int
    num: int
    """How many of this shape the whole model has."""


@dataclass(frozen=True, slots=True)
class Flops:
    """Operations of some sequences."""

    linear: float
    attention: float
    """Products of states with states; comparing the sides of a pair is one, too."""

    @property
    def total(self) -> float:
        """Both."""
        return self.linear + self.attention


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """What of a model costs operations."""

    products: tuple[Product, ...]
    head_flops: float
    """Of a sequence's head."""
    heads_dim: int
    """N·D: all query heads together."""
    reaches: tuple[tuple[int | None, int | None], ...]
    """For each layer how many tokens before and after itself a token sees; None: all."""
    compared_dim: int = 0
    """H of a model that reads the sides of a pair apart and compares their tokens; 0: a pair is one text."""

    def flops(self, sequences: Sequence[Ids]) -> Flops:
        """Operations of sequences in this order."""
        lens_S, num_compared = _texts(sequences) if self.compared_dim else (_lens(sequences), 0)
        per_token = sum(2 * each.num_inputs * each.num_outputs * each.num for each in self.products)
        pairs = sum(float(_pairs(lens_S, *reach).sum()) for reach in self.reaches)
        return Flops(
            linear=float(per_token * int(lens_S.sum()) + self.head_flops * len(lens_S)),
            attention=4.0 * self.heads_dim * pairs + 2.0 * self.compared_dim * num_compared,
        )


def read_shapes(weights: Path, role: Role) -> Shapes | None:
    """Shapes from a weights folder's config.json; None for a family that is not counted. Raises CardError."""
    path = weights / "config.json"
    try:
        config = json.loads(path.read_bytes())
        count = _FAMILIES.get(config["model_type"])
        return None if count is None else count(config, role)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CardError(
            f"`{path}`",
            got=f"{type(error).__name__}: {error}",
            wanted="the configuration of a transformers model, with its sizes",
            fix="Name the weights folder that the repositories were exported from.",
        ) from error


def _lens(texts: Sequence[Ids]) -> Lens:
    return np.array([len(text) for text in texts], np.int64)


def _texts(pairs: Sequence[Ids]) -> tuple[Lens, int]:
    """Lengths of the texts that are read, none twice in a row, and how many pairs of tokens are compared."""
    texts: list[Ids] = []
    num_compared = 0
    before: Ids | None = None
    for request, skill in map(sides, pairs):
        if before is None or not np.array_equal(request, before):
            texts.append(request)
        texts.append(skill)
        num_compared += len(request) * len(skill)
        before = request
    return _lens(texts), num_compared


def _pairs(lens_S: Lens, before: int | None, after: int | None) -> Any:  # noqa: ANN401 -- as numpy's arithmetic gives it
    """Pairs of query and visible key in each sequence: all L², less the two triangles out of reach."""
    unseen = [np.maximum(lens_S - 1 - reach, 0) for reach in (before, after) if reach is not None]
    return lens_S**2 - sum(width * (width + 1) // 2 for width in unseen)


def _bert(config: Mapping[str, Any], role: Role) -> Shapes:
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    return Shapes(
        products=(
            Product(hidden, hidden, 4 * layers),
            Product(hidden, inner, layers),
            Product(inner, hidden, layers),
        ),
        head_flops=_dense_and_logit(hidden, role),
        heads_dim=hidden,
        reaches=((None, None),) * layers,
    )


def _late_bert(config: Mapping[str, Any], role: Role) -> Shapes:  # noqa: ARG001 -- rerankers only, without a head
    return replace(_bert(config, "embedder"), compared_dim=config["hidden_size"])


def _modernbert(config: Mapping[str, Any], role: Role) -> Shapes:
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    side = config["local_attention"] // 2
    every = config["global_attn_every_n_layers"]
    return Shapes(
        products=(
            Product(hidden, 3 * hidden, layers),
            Product(hidden, hidden, layers),
            Product(hidden, 2 * inner, layers),
            Product(inner, hidden, layers),
        ),
        head_flops=_dense_and_logit(hidden, role),
        heads_dim=hidden,
        reaches=tuple((None, None) if layer % every == 0 else (side, side) for layer in range(layers)),
    )


def _qwen3(config: Mapping[str, Any], role: Role) -> Shapes:
    hidden, inner, layers = config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    window = config.get("sliding_window") if config.get("use_sliding_window") else None
    first = config.get("max_window_layers", layers)
    return Shapes(
        products=(
            Product(hidden, queries, layers),
            Product(hidden, keys, 2 * layers),
            Product(queries, hidden, layers),
            Product(hidden, inner, 2 * layers),
            Product(inner, hidden, layers),
        ),
        head_flops=2.0 * hidden if role == "reranker" else 0.0,
        heads_dim=queries,
        reaches=tuple((window - 1 if window and layer >= first else None, 0) for layer in range(layers)),
    )


def _dense_and_logit(hidden: int, role: Role) -> float:
    """A dense layer on one state of each sequence, and one logit."""
    return 2.0 * hidden * (hidden + 1) if role == "reranker" else 0.0


_FAMILIES: dict[str, Callable[[Mapping[str, Any], Role], Shapes]] = {
    "bert": _bert,
    "late-bert": _late_bert,
    "xlm-roberta": _bert,
    "modernbert": _modernbert,
    "qwen3": _qwen3,
}
