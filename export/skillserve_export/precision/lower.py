"""Rewrites a graph file in another precision: the layers of the encoder, and the table of word vectors.

A head works on one row a sequence instead of one a token: it costs nothing, and what it rounds nothing evens out
again. So it stays float32, and which layers belong to it is seen by running the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from skillserve.card import ModelCard
from skillserve.errors import ParityError
from skillserve.tensors import Ids, Precision
from skillserve_export.files import write_whole
from skillserve_export.precision.half import halve
from skillserve_export.precision.inner import Feeds, inner_tensors
from skillserve_export.precision.int8 import grouped, quantise_layers, quantise_words
from skillserve_export.precision.linear import Linear, linear_layers, norm_results, word_lookups
from skillserve_export.precision.scales import WEIGHT_BITS, smoothing
from skillserve_export.precision.stored import store
from skillserve_export.precision.transposed import fuse_transposed

__all__ = ["lower"]

Rows = Mapping[str, npt.NDArray[np.float32]]

_MOST_TOKENS = 1_024
"""Tokens whose activations are held at once."""


def lower(
    path: Path,
    precision: Precision,
    card: ModelCard,
    sequences: Sequence[Ids],
    feeds: Callable[[Sequence[Ids]], Feeds],
    *,
    bits: int = WEIGHT_BITS,
) -> None:
    """Rewrite the float32 graph at `path`, in place.

    `sequences` are what activations are seen on; which words they are made of hardly matters (docs/decisions.md).
    `feeds` makes the graph's inputs of them, `bits` is how finely int8 weights are cut.
    """
    if precision == "fp32":
        return
    model = onnx.load(path)
    sequences = _some(sequences)
    seen = inner_tensors(path, list(grouped(linear_layers(model))), feeds(sequences))
    layers = [layer for layer in linear_layers(model) if _num_rows(seen[layer.source]) != len(sequences)]
    if not layers:
        raise ParityError(
            f"graph of `{card.name}`",
            got="no linear layers that work on tokens",
            wanted=f"layers to compute in {precision}",
            fix="Export it in fp32, and report this model family.",
        )
    lookups = word_lookups(model, card.vocab_size)
    match precision:
        case "int8":
            ranks = {name: rows.ndim for name, rows in seen.items()}
            quantise_layers(model, layers, _factors(model, layers, seen), ranks, bits=bits)
            quantise_words(model, lookups)
            fuse_transposed(model)
        case "w8" | "w4":
            store(model, layers, precision)
            quantise_words(model, lookups)
        case "fp16" | "bf16":
            halve(model, layers, lookups, precision)
    write_whole(model, {}, path)


def _some(sequences: Sequence[Ids]) -> list[Ids]:
    """Sequences from all over the list, at least two, of about as many tokens as are held."""
    share = _MOST_TOKENS / sum(len(sequence) for sequence in sequences)
    count = min(len(sequences), max(2, int(share * len(sequences))))
    return [sequences[i] for i in np.linspace(0, len(sequences) - 1, count).astype(int)]


def _factors(model: onnx.ModelProto, layers: Sequence[Linear], seen: Rows) -> dict[str, npt.NDArray[np.float32]]:
    """How the channels of norms' results are evened out, where that helps.

    Their unevenness is the norm's own, in all texts alike. That of other activations lies in the texts: factors from
    some texts made others worse.
    """
    factors, norms = {}, norm_results(model)
    for x, readers in grouped(layers).items():
        if x not in norms:
            continue
        rows = seen[x].reshape(-1, seen[x].shape[-1])
        factor_K = smoothing(rows, [reader.numbers() for reader in readers])
        if factor_K is not None:
            factors[x] = factor_K
    return factors


def _num_rows(x: npt.NDArray[np.float32]) -> int:
    return int(np.prod(x.shape[:-1]))
