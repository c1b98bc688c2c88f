"""What Triton's C++ ONNX Runtime backend does with a batch of requests, in numpy, testable without a server.

Shape legend: R requests joined in one execution, b batch dimension of a request (1 from our client), T tokens
of a request, n its sequences, S rows of the graph's output (Σ b·n, of token embedders Σ b·T), D embedding dimension.

    packed    input_ids [b, T], seq_lens [b, n]        → graph [ΣbT], [Σbn], batch inputs [R] → [S, …] → [b, n or T, …]
    padded    input_ids [b, L], attention_mask [b, L]  → graph [Σb, L], [Σb, L]               → [Σb, …] → [b, …]

Two things are added. A malformed request is refused before the graph sees it and its neighbours are answered
all the same. One execution never carries more than `max_request_tokens` tokens: the server counts requests
when it joins them, and memory is eaten by tokens. With `execution_tokens` a packed batch is computed in turns of so
many, cut between sequences, whoever they belong to: their rows do not depend on each other, and activations that stay
in the processor's caches are faster than those that do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod

import numpy as np
import numpy.typing as npt

from skillserve.tensors import INPUT_IDS, SEQ_LENS, token_budget_batches
from skillserve_serving.spec import ModelSpec

__all__ = ["Feeds", "Graph", "Refusal", "Rows", "Wire", "answer", "check_request", "join"]

Ints = npt.NDArray[np.int32]
Rows = npt.NDArray[np.float32]
Wire = Mapping[str, Ints]
"""One request: its two inputs as they came over the wire."""
Feeds = dict[str, Ints]
"""What the graph is given."""
Graph = Callable[[Feeds], Rows]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why one request gets no rows."""

    message: str
    cause: Exception | None = None
    """What the graph raised; None if the request itself is at fault."""
    malformed: bool = True


def answer(spec: ModelSpec, graph: Graph, requests: Sequence[Wire]) -> list[Rows | Refusal]:
    """Answer every request of a batch, in order: its output rows as they go over the wire, or a refusal."""
    answers: list[Rows | Refusal | None] = [_shape_refusal(spec, request) for request in requests]
    open_requests = [i for i, refusal in enumerate(answers) if refusal is None]
    for members in _cut(spec, requests, open_requests):
        feeds = join(spec, [requests[i] for i in members])
        sound = members
        if not _all_sound(spec, feeds, [requests[i] for i in members]):
            for i in members:
                if fault := check_request(spec, requests[i]):
                    answers[i] = Refusal(fault)
            sound = [i for i in members if answers[i] is None]
            if not sound:
                continue
            feeds = join(spec, [requests[i] for i in sound])
        for i, rows in zip(sound, _run(spec, graph, feeds, [requests[i] for i in sound]), strict=True):
            answers[i] = rows
    return [rows for rows in answers if rows is not None]


def check_request(spec: ModelSpec, request: Wire) -> str | None:
    """What is wrong with one request, as subject, got and wanted; None if nothing is."""
    if refusal := _shape_refusal(spec, request):
        return refusal.message
    ids, other = (request[name] for name in spec.inputs)
    if (worst := _outside(ids, 0, spec.vocab_size - 1)) is not None:
        return f"input_ids: got token id {worst}; wanted ids in [0, {spec.vocab_size})"
    if spec.layout == "padded":
        return _mask_fault(other)
    if (worst := _outside(other, 1, spec.max_sequence_tokens)) is not None:
        return f"seq_lens: got a sequence of {worst} tokens; wanted 1 to {spec.max_sequence_tokens}"
    total = int(other.sum(dtype=np.int64))
    if total != ids.size:
        return f"seq_lens: got lengths that sum to {total}; wanted {ids.size}, the number of input_ids"
    return None


def _mask_fault(mask: Ints) -> str | None:
    if (worst := _outside(mask, 0, 1)) is not None:
        return f"attention_mask: got {worst}; wanted 1 for tokens and 0 for padding"
    if not mask.any(axis=1).all():
        return "attention_mask: got a sequence without tokens; wanted at least one token in each"
    return None


def _outside(values: Ints, low: int, high: int) -> int | None:
    """A value outside `[low, high]`, if there is one."""
    least, greatest = int(values.min()), int(values.max())
    return least if least < low else greatest if greatest > high else None


def join(spec: ModelSpec, requests: Sequence[Wire]) -> Feeds:
    """The graph's inputs for one execution; a lone request is passed on without a copy."""
    if spec.layout == "padded":
        return {name: _concatenate([request[name] for request in requests]) for name in spec.inputs}
    feeds = {name: _concatenate([request[name].reshape(-1) for request in requests]) for name in spec.inputs}
    for entry in spec.batch_inputs:
        counts = accumulate(request[entry.source].size for request in requests)
        feeds[entry.target] = np.array(list(counts), np.int32)
    return feeds


def _concatenate(parts: Sequence[Ints]) -> Ints:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _shape_refusal(spec: ModelSpec, request: Wire) -> Refusal | None:
    """Faults that the shapes alone show; what passes can be joined and counted."""
    ids, other = (request[name] for name in spec.inputs)
    if ids.size < 1:
        return Refusal(f"input_ids: got no tokens, shape {list(ids.shape)}; wanted at least one")
    if ids.size > spec.max_request_tokens:
        return Refusal(f"input_ids: got {ids.size} tokens; wanted at most {spec.max_request_tokens} in one request")
    if spec.layout == "packed":
        if other.size < 1:
            return Refusal(f"seq_lens: got no sequences, shape {list(other.shape)}; wanted at least one")
    elif ids.shape != other.shape:
        return Refusal(f"attention_mask: got shape {list(other.shape)}; wanted that of input_ids, {list(ids.shape)}")
    elif ids.shape[1] > spec.max_sequence_tokens:
        return Refusal(f"input_ids: got {ids.shape[1]} tokens a sequence; wanted at most {spec.max_sequence_tokens}")
    return None


def _cut(spec: ModelSpec, requests: Sequence[Wire], members: Sequence[int]) -> Iterator[list[int]]:
    """Cut a batch, in order, into executions of at most `max_request_tokens` tokens."""
    run: list[int] = []
    tokens = 0
    for i in members:
        size = requests[i][INPUT_IDS].size
        if run and tokens + size > spec.max_request_tokens:
            yield run
            run, tokens = [], 0
        run.append(i)
        tokens += size
    if run:
        yield run


def _all_sound(spec: ModelSpec, feeds: Feeds, requests: Sequence[Wire]) -> bool:
    """Whether `check_request` would pass every one of the joined requests, found in three passes over the batch.

    Read as unsigned numbers, negative ones are huge: one maximum sees both ends of a range.
    """
    ids, other = (feeds[name] for name in spec.inputs)
    if int(ids.view(np.uint32).max()) >= spec.vocab_size:
        return False
    if spec.layout == "padded":
        return int(other.view(np.uint32).max()) <= 1 and bool(other.any(axis=1).all())
    if int((other.view(np.uint32) - np.uint32(1)).max()) >= spec.max_sequence_tokens:
        return False
    first = list(accumulate((request[SEQ_LENS].size for request in requests[:-1]), initial=0))
    totals: list[int] = np.add.reduceat(other, first, dtype=np.int64).tolist()
    return totals == [request[INPUT_IDS].size for request in requests]


def _run(spec: ModelSpec, graph: Graph, feeds: Feeds, requests: Sequence[Wire]) -> list[Rows | Refusal]:
    """Execute once and bring the rows home; if the joined execution fails, each request is tried alone."""
    try:
        rows = [graph(turn) for turn in _turns(spec, feeds)]
        return _scatter(spec, rows[0] if len(rows) == 1 else np.concatenate(rows), requests)
    except Exception as error:  # noqa: BLE001 - whatever the runtime raises is the answer to these requests
        if len(requests) == 1:
            return [Refusal("the graph failed on this request; the server's log says why", error, malformed=False)]
        return [_run(spec, graph, join(spec, [request]), [request])[0] for request in requests]


def _turns(spec: ModelSpec, feeds: Feeds) -> Iterator[Feeds]:
    """The feeds of sound requests, or parts of them that hold `execution_tokens` tokens at most."""
    if not spec.execution_tokens or feeds[INPUT_IDS].size <= spec.execution_tokens:
        yield feeds
        return
    ids, lens = feeds[INPUT_IDS], feeds[SEQ_LENS]
    start = 0
    for members in token_budget_batches(lens.tolist(), max_tokens=spec.execution_tokens):
        end = start + int(lens[members].sum(dtype=np.int64))
        yield join(spec, [{INPUT_IDS: ids[start:end], SEQ_LENS: lens[members]}])
        start = end


def _scatter(spec: ModelSpec, rows: Rows, requests: Sequence[Wire]) -> list[Rows | Refusal]:
    source = spec.rows_of
    lead = [request[source].shape if spec.layout == "packed" else request[source].shape[:1] for request in requests]
    counts = [prod(shape) for shape in lead]
    if rows.shape != (sum(counts), *spec.row_shape):
        raise ValueError(f"the graph gave {list(rows.shape)}, wanted {[sum(counts), *spec.row_shape]}")
    finite = bool(np.isfinite(rows).all())
    answers: list[Rows | Refusal] = []
    start = 0
    for shape, count in zip(lead, counts, strict=True):
        own = rows[start : start + count].reshape(*shape, *spec.row_shape)
        start += count
        if finite or np.isfinite(own).all():
            answers.append(own)
        else:
            answers.append(Refusal("the graph gave numbers that are not finite for this request", malformed=False))
    return answers
