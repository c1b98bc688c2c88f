"""The parity gate: does a graph compute what its weights say?

The reference is Optimum's stock export of the same weights (`stock`): no line of it is shared with the graph that
is judged.

The order follows what can go wrong first: names and types, shapes, finite numbers, values, then a row alone
against the same row first and last in a batch, then malformed neighbours, then rankings.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from skillserve.card import ModelCard
from skillserve.errors import ParityError
from skillserve.tensors import OUTPUT_NAMES, Ids, Precision, Role
from skillserve_export.precision.inner import first_overflow
from skillserve_export.sample import ParitySample
from skillserve_export.served import PackedGraph, PaddedGraph, ServedGraph, TokenGraph
from skillserve_export.stock import BATCH_TOKENS, Rows, StockGraph, neighbours

__all__ = [
    "Check",
    "PackedGraph",
    "PaddedGraph",
    "ServedGraph",
    "StockGraph",
    "check_parity",
    "require",
    "where_overflows",
]

VALUE_TOLERANCE = 2e-6
"""Largest difference from the stock export, relative to the largest value where that exceeds 1. Two orders of
adding the same float32 numbers differed by 2e-7 on MiniLM; ten times that still separates rounding from error."""

ROUNDED_TOLERANCE: dict[Precision, float] = {"fp16": 2e-3, "bf16": 2e-2, "int8": 5e-2, "w8": 5e-2, "w4": 2e-1}
"""The same below float32. It finds what is broken; what is coarse, the rank gate does. all-MiniLM-L6-v2 and random
models of every family stayed below half of it."""

INVARIANCE_TOLERANCE = 1e-6
"""Largest difference between a row alone and in company. Kernels may block a larger product differently. GPUs choose
kernels by shape, and where numbers are rounded a sum in another order may round otherwise: below float32 a row may
there be as far from itself as from the stock export."""

TIE_TOLERANCE = 1e-6
"""Reference scores that differ by less are tied, and may stand in either order: half the room that values have,
so that rankings can fail where values pass."""

SCORE_SLACK = 5.0
"""Scores are allowed so many times what embeddings are. They are no unit rows but sums over whole states, and a gap is
a difference of two of them: behind 22 random layers of ModernBERT two orders of adding differed by 3e-6, behind 28 of
Qwen3 by 5e-6, where embeddings of the same models stayed below 8e-7."""

TOP_K = 10
"""Rankings are compared down to this rank."""

Malformed = Mapping[str, tuple[list[int], list[int]]]
"""Requests (ids, lengths) by what is wrong with them."""

_EDGE_LENGTHS = (1, 2, 3)
"""Sequence lengths at which layouts break, beside the model's longest."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the gate's report."""

    name: str
    passed: bool
    figure: float
    limit: float
    detail: str

    def to_dict(self) -> dict[str, Any]:
        """As `export.json` keeps it."""
        return asdict(self)


def check_parity(
    graph: ServedGraph,
    stock: StockGraph,
    card: ModelCard,
    sample: ParitySample,
    advance: Callable[[], None] = lambda: None,
    *,
    precision: Precision = "fp32",
) -> list[Check]:
    """Run every check; stops early where later ones would be meaningless. `advance` is called after each.

    A graph of token embeddings is judged as the reranker that its rows make. Rankings are compared in float32 only:
    rounding moves near-ties, and the rank gate judges how many.
    """
    checks: list[Check] = []

    def note(check: Check) -> bool:
        checks.append(check)
        advance()
        return check.passed

    if not note(_interface(graph, card)):
        return checks
    sequences = [*sample.sequences, *_edge_sequences(card, sample.tokens)]
    rows = np.concatenate([graph.run(part) for part in _parts(sequences)])
    reference = stock.run(sequences, sample.tokens)
    shape = (len(sequences),) if card.dim is None else (len(sequences), card.dim)
    if not note(_shape_and_finite(rows, shape, graph, sequences)):
        return checks
    slack = 1.0 if card.role == "embedder" else SCORE_SLACK
    rounding = ROUNDED_TOLERANCE.get(precision, VALUE_TOLERANCE)
    unmoved = INVARIANCE_TOLERANCE if precision == "fp32" or graph.device == "cpu" else rounding
    note(_values(rows, reference, slack * rounding))
    note(_invariance(graph, sequences, rows, slack * unmoved))
    if isinstance(graph, PackedGraph):  # a padded batch has no boundaries that a request could shift
        malformed = malformed_requests(card, () if isinstance(graph, TokenGraph) else sample.tokens)
        note(_isolation(graph, malformed, sequences, slack * unmoved))
    if precision == "fp32":
        note(_rankings(rows, reference, sample, slack * TIE_TOLERANCE))
    return checks


def require(checks: Sequence[Check], subject: str, *, fix: str) -> None:
    """Raise ParityError when a check failed, with the figures of all that did, and the caller's advice."""
    failed = [check for check in checks if not check.passed]
    if failed:
        raise ParityError(
            subject,
            got="; ".join(f"{check.name}: {check.detail}" for check in failed),
            wanted="every check of the parity gate to pass",
            fix=fix,
        )


def _interface(graph: ServedGraph, card: ModelCard) -> Check:
    wanted = {name: ("tensor(int32)", rank) for name, rank in graph.inputs.items()}
    role: Role = "token_embedder" if isinstance(graph, TokenGraph) else card.role
    wanted[OUTPUT_NAMES[role]] = ("tensor(float)", 1 if role == "reranker" else 2)
    found = {
        put.name: (put.type, len(put.shape)) for put in (*graph.session.get_inputs(), *graph.session.get_outputs())
    }
    detail = "names, types and ranks as agreed" if found == wanted else f"{found}, wanted {wanted}"
    return Check("interface", found == wanted, float(found != wanted), 0.0, detail)


def where_overflows(graph: ServedGraph, sequences: Sequence[Ids], rows: Rows) -> str:
    """The end of a sentence: behind which layer the first sequence stops being finite whose row is not."""
    first = next(i for i, row in enumerate(rows) if not np.isfinite(row).all())
    layer = first_overflow(graph.path, graph.feeds([sequences[first]]), graph.device)
    return f", first behind {layer}" if layer else ", though alone every layer of the first of them is finite"


def _shape_and_finite(rows: Rows, shape: tuple[int, ...], graph: ServedGraph, sequences: Sequence[Ids]) -> Check:
    fits = rows.shape == shape
    broken = int((~np.isfinite(rows)).sum()) if fits else rows.size
    detail = f"shape {rows.shape} for {shape}, {broken} numbers not finite"
    if fits and broken:
        detail += where_overflows(graph, sequences, rows)
    return Check("shape and finite", fits and broken == 0, float(broken), 0.0, detail)


def _values(rows: Rows, reference: Rows, limit: float) -> Check:
    worst = _difference(rows, reference)
    return Check("values", worst <= limit, worst, limit, f"largest difference {worst:.1e} (limit {limit:.0e})")


def _invariance(graph: ServedGraph, sequences: Sequence[Ids], rows: Rows, limit: float) -> Check:
    worst = 0.0
    for i in (0, len(sequences) // 2, len(sequences) - 1):
        # Fewer beside a long one: padded to its length, they must still fit into memory.
        company = list(sequences[: max(1, min(6, BATCH_TOKENS // len(sequences[i]) - 1))])
        alone = graph.run([sequences[i]])
        first = graph.run([sequences[i], *company])[:1]
        last = graph.run([*company, sequences[i]])[-1:]
        worst = max(worst, *(_difference(row, rows[i : i + 1]) for row in (alone, first, last)))
    detail = f"a row alone, first and last in a batch differs by {worst:.1e} (limit {limit:.0e})"
    return Check("batch invariance", worst <= limit, worst, limit, detail)


def _isolation(graph: PackedGraph, malformed: Malformed, sequences: Sequence[Ids], limit: float) -> Check:
    """One malformed request of each kind among sound ones: its rows are NaN, theirs are unmoved."""
    good: list[tuple[Ids, list[int]]] = [(sequence, [len(sequence)]) for sequence in sequences[:4]]
    expected = _run_joined(graph, good)
    first = graph.num_rows(*good[0])
    worst, faults = 0.0, []
    for name, (ids, lens) in malformed.items():
        request = np.array(ids, np.int32), lens
        rows = _run_joined(graph, [good[0], request, *good[1:]])
        behind = first + graph.num_rows(*request)
        difference = _difference(np.concatenate([rows[:first], rows[behind:]]), expected)
        worst = max(worst, difference)
        if difference > limit or not np.isnan(rows[first:behind]).all():
            faults.append(name)
    detail = f"neighbours of malformed requests differ by {worst:.1e}"
    if faults:
        detail += f"; failed: {', '.join(faults)}"
    return Check("isolation", not faults, worst, limit, detail)


def _run_joined(graph: PackedGraph, requests: Sequence[tuple[Ids, list[int]]]) -> Rows:
    """One execution of requests, ids and lengths of each."""
    return graph.run_raw(
        np.concatenate([ids for ids, _ in requests]),
        np.concatenate([lens for _, lens in requests]),
        np.cumsum([len(ids) for ids, _ in requests]),
        np.cumsum([len(lens) for _, lens in requests]),
    )


def _difference(found: Rows, wanted: Rows) -> float:
    """Largest difference, relative to the largest value where that exceeds 1; infinite if anything is not finite."""
    if found.shape != wanted.shape or not np.isfinite(found).all():
        return math.inf
    return float(np.abs(found - wanted).max()) / max(1.0, float(np.abs(wanted).max()))


def malformed_requests(card: ModelCard, tokens: Sequence[int] = ()) -> Malformed:
    """One request (ids, lengths) of every malformed kind that has tokens and sequences; `tokens` are the sample's.

    Without them no sequence has to be a pair.
    """
    word = card.vocab_size // 2
    too_long = card.max_tokens + 1
    malformed = {
        "lengths sum too high": ([word] * 5, [6]),
        "lengths sum too low": ([word] * 5, [4]),
        "negative length": ([word] * 10, [14, -4]),
        "zero length": ([word] * 5, [5, 0]),
        "lengths that overflow 32 bits": ([word] * 2, [2**31 - 1, 2**31 - 1, 4]),
        "id below zero": ([word, -1, word], [3]),
        "id above the vocabulary": ([word, card.vocab_size, word], [3]),
        "sequence too long": ([word] * too_long, [too_long]),
    }
    if card.score_kind == "max_sim" and tokens:
        [opening] = tokens
        malformed |= {
            "pair of one text": ([opening, word, word], [3]),
            "pair that nothing opens": ([word, opening, word], [3]),
            "pair of one token": ([opening], [1]),
        }
    return malformed


def _rankings(rows: Rows, reference: Rows, sample: ParitySample, tie: float) -> Check:
    """Top-k order of every request; a swap counts only if the reference tells the two apart."""
    found, wanted = _score_table(rows, sample), _score_table(reference, sample)
    margin = tie * max(1.0, float(np.abs(wanted).max()))
    differing = 0
    for scores, truth in zip(found, wanted, strict=True):
        order, ideal = (np.argsort(-row, kind="stable")[:TOP_K] for row in (scores, truth))
        differing += bool((np.abs(truth[order] - truth[ideal]) > margin).any())
    detail = f"top-{TOP_K} order differs for {differing} of {sample.num_queries} requests"
    return Check("rankings", differing == 0, float(differing), 0.0, detail)


def _score_table(rows: Rows, sample: ParitySample) -> Rows:
    """`[Q, K]` scores of every request for every skill."""
    num_queries, num_skills = sample.num_queries, sample.num_skills
    if rows.ndim == 1:
        return rows[: num_queries * num_skills].reshape(num_queries, num_skills)
    return np.asarray(rows[:num_queries] @ rows[num_queries : num_queries + num_skills].T)


def _edge_sequences(card: ModelCard, tokens: Sequence[int]) -> list[Ids]:
    """The shortest sequences and the longest, with the lowest and the highest token id."""
    rng = np.random.default_rng(1)
    edges = [rng.integers(0, card.vocab_size, n).astype(np.int32) for n in (*_EDGE_LENGTHS, card.max_tokens)]
    edges[-1][:2] = 0, card.vocab_size - 1
    if card.score_kind != "max_sim":
        return edges
    # Two texts that each begin with their opening token, of no word, of one, and of as many as there is room for.
    texts = [np.insert(words, 0, tokens) for words in (edges[0][:0], edges[0], edges[-1][: card.max_tokens - 3])]
    pairs = ((0, 0), (0, 1), (1, 0), (1, 2), (2, 1))
    return [np.concatenate([texts[request], texts[skill]]) for request, skill in pairs]


def _parts(sequences: Sequence[Ids]) -> list[Sequence[Ids]]:
    return [sequences[cut] for cut in neighbours(sequences, BATCH_TOKENS)]
