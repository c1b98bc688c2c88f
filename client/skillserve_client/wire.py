"""What travels to the server and back, without a socket: served models, requests, answers.

Shape legend: B sequences of one request, L the longest of them, T their tokens, D embedding dimension.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from skillserve.errors import BundleError, RepositoryError, RequestRejected
from skillserve.max_sim import Interaction
from skillserve.tensors import (
    BUCKETS_PARAMETER,
    DIGEST_PARAMETER,
    EXECUTION_TOKENS_PARAMETER,
    GRAPH_DIGEST_PARAMETER,
    INPUT_IDS,
    LAYOUT_PARAMETER,
    MAX_SEQUENCE_TOKENS_PARAMETER,
    MAX_TOKENS_PARAMETER,
    MODEL_NAMES,
    OUTPUT_NAMES,
    PRECISION_PARAMETER,
    SCALE_PARAMETER,
    SEQ_LENS,
    VOCAB_SIZE_PARAMETER,
    WINDOW_PARAMETER,
    Ids,
    Role,
    pack,
    token_budget_batches,
)

__all__ = [
    "ATTENTION_MASK",
    "AsyncInference",
    "Describing",
    "Floats",
    "Inference",
    "Progress",
    "ServedModel",
    "Statistics",
    "collect",
    "cut",
    "encode",
    "require_digest",
]

Floats = npt.NDArray[np.float32]
"""Embeddings `[n, D]`, scores `[n]`, or token embeddings `[T, D]`."""

Progress = Callable[[int], object]
"""Called with the number of sequences that were just answered."""

ATTENTION_MASK = "attention_mask"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model as the server describes it."""

    role: Role
    name: str
    version: str
    layout: Literal["packed", "padded"]
    digest: str
    dim: int | None
    """Of embeddings, or of token embeddings; None for a reranker."""
    max_request_tokens: int | None
    """Most tokens of one request; None if the server names no limit."""
    max_sequence_tokens: int | None
    vocab_size: int | None
    max_batch_size: int
    """Most rows of one padded request."""
    graph_digest: str = ""
    """Of the graph's files; empty if the configuration does not say, like the next."""
    precision: str = ""
    execution_tokens: int = 0
    """Tokens that a packed graph computes at once, at most; 0: all of a batch."""
    buckets: tuple[int, ...] = ()
    """Lengths, ascending, that rows of a padded request are filled up to, so that the server can join it with others;
    empty: each to its longest sequence."""
    interaction: Interaction | None = None
    """Of a token embedder: what scores are made with of its rows."""

    @classmethod
    def from_config(
        cls,
        role: Role,
        *,
        version: str,
        parameters: Mapping[str, str],
        output_dims: Sequence[int],
        max_batch_size: int,
    ) -> ServedModel:
        """Read a model configuration; raises RepositoryError where skillserve's parameters are missing or wrong."""
        name = MODEL_NAMES[role]
        layout = parameters.get(LAYOUT_PARAMETER)
        if not parameters.get(DIGEST_PARAMETER) or layout not in ("packed", "padded"):
            raise RepositoryError(
                f"model `{name}` on the server",
                got=f"{DIGEST_PARAMETER}={parameters.get(DIGEST_PARAMETER)!r}, {LAYOUT_PARAMETER}={layout!r}",
                wanted="a digest and the layout `packed` or `padded` in its configuration",
                fix="Serve a repository that was written by `skillserve export`.",
            )

        def number(parameter: str, least: int = 1) -> int | None:
            text = parameters.get(parameter)
            if text is not None and not (text.isdecimal() and int(text) >= least):
                raise RepositoryError(
                    f"model `{name}` on the server",
                    got=f"{parameter}={text!r}",
                    wanted=f"a whole number of at least {least}",
                    fix="Serve a repository that was written by `skillserve export`.",
                )
            return None if text is None else int(text)

        buckets = parameters.get(BUCKETS_PARAMETER, "")
        ends = tuple(int(end) for end in buckets.split(",") if end.isdecimal())
        if ",".join(map(str, sorted(set(ends)))) != buckets or 0 in ends:
            raise RepositoryError(
                f"model `{name}` on the server",
                got=f"{BUCKETS_PARAMETER}={buckets!r}",
                wanted="ascending lengths, as 32,96,256",
                fix="Serve a repository that was written by `skillserve export`.",
            )
        return cls(
            role=role,
            name=name,
            version=version,
            layout="packed" if layout == "packed" else "padded",
            digest=parameters[DIGEST_PARAMETER],
            dim=None if role == "reranker" else int(output_dims[-1]),
            max_request_tokens=number(MAX_TOKENS_PARAMETER),
            max_sequence_tokens=number(MAX_SEQUENCE_TOKENS_PARAMETER),
            vocab_size=number(VOCAB_SIZE_PARAMETER),
            max_batch_size=max(max_batch_size, 1),
            graph_digest=parameters.get(GRAPH_DIGEST_PARAMETER, ""),
            precision=parameters.get(PRECISION_PARAMETER, ""),
            execution_tokens=number(EXECUTION_TOKENS_PARAMETER, least=0) or 0,
            buckets=ends,
            interaction=_interaction(name, parameters) if role == "token_embedder" else None,
        )

    def width(self, longest: int) -> int:
        """How long the rows of a padded request are whose longest sequence has so many tokens."""
        return next((end for end in self.buckets if end >= longest), longest)

    def num_rows(self, sequences: Sequence[Ids]) -> int:
        """Rows of the answer to these sequences: one for each of them, or for each of their tokens."""
        return sum(map(len, sequences)) if self.role == "token_embedder" else len(sequences)

    def no_rows(self) -> Floats:
        """The answer to no sequences: `[0, D]` or `[0]`."""
        return np.empty((0,) if self.dim is None else (0, self.dim), np.float32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Totals of one model since the server started; differences between two moments describe a load."""

    num_requests: int
    """Requests answered with success."""
    num_failed: int
    num_executions: int
    """Runs of the graph; fewer than requests when the server joined some."""
    queue_ms: float
    compute_ms: float
    """Running the graph; fetching its inputs and handing out its outputs are the next two."""
    input_ms: float = 0.0
    output_ms: float = 0.0
    batch_sizes: Mapping[int, int] = field(default_factory=dict)
    """Requests joined in one execution → executions."""

    def since(self, earlier: Statistics) -> Statistics:
        """What happened between two moments."""
        sizes = {size: num - earlier.batch_sizes.get(size, 0) for size, num in self.batch_sizes.items()}
        return Statistics(
            num_requests=self.num_requests - earlier.num_requests,
            num_failed=self.num_failed - earlier.num_failed,
            num_executions=self.num_executions - earlier.num_executions,
            queue_ms=self.queue_ms - earlier.queue_ms,
            compute_ms=self.compute_ms - earlier.compute_ms,
            input_ms=self.input_ms - earlier.input_ms,
            output_ms=self.output_ms - earlier.output_ms,
            batch_sizes={size: num for size, num in sorted(sizes.items()) if num},
        )

    def plus(self, other: Statistics) -> Statistics:
        """What happened in two stretches of time."""
        return Statistics(
            num_requests=self.num_requests + other.num_requests,
            num_failed=self.num_failed + other.num_failed,
            num_executions=self.num_executions + other.num_executions,
            queue_ms=self.queue_ms + other.queue_ms,
            compute_ms=self.compute_ms + other.compute_ms,
            input_ms=self.input_ms + other.input_ms,
            output_ms=self.output_ms + other.output_ms,
            batch_sizes=dict(sorted((Counter(self.batch_sizes) + Counter(other.batch_sizes)).items())),
        )

    @classmethod
    def from_messages(cls, messages: Iterable[Any]) -> Self:  # protobuf's, which only one module may import
        """Sum statistics messages, one of each server, over the versions of their model."""
        rows = [row for message in messages for row in message.model_stats]
        sizes: Counter[int] = Counter()
        for row in rows:
            sizes.update({int(batch.batch_size): int(batch.compute_infer.count) for batch in row.batch_stats})
        return cls(
            num_requests=sum(row.inference_stats.success.count for row in rows),
            num_failed=sum(row.inference_stats.fail.count for row in rows),
            num_executions=sum(row.execution_count for row in rows),
            queue_ms=sum(row.inference_stats.queue.ns for row in rows) / 1e6,
            compute_ms=sum(row.inference_stats.compute_infer.ns for row in rows) / 1e6,
            input_ms=sum(row.inference_stats.compute_input.ns for row in rows) / 1e6,
            output_ms=sum(row.inference_stats.compute_output.ns for row in rows) / 1e6,
            batch_sizes=dict(sizes),
        )


class Describing(Protocol):
    """Who can say which models there are."""

    def served(self, role: Role) -> ServedModel:
        """Describe the model of a role; raises RepositoryError if there is none."""
        ...


class Inference(Describing, Protocol):
    """What search and indexing need of a server; `Triton` is one, and so is anything that computes in-process."""

    def infer(
        self,
        role: Role,
        sequences: Sequence[Ids],
        *,
        timeout_s: float | None = None,
        progress: Progress | None = None,
        digest: str | None = None,
    ) -> Floats:
        """Embeddings `[n, D]`, scores `[n]` or token embeddings `[T, D]`, in the order of the sequences.

        Raises ServerError.
        `digest` is the model that the sequences are meant for; a server that runs another one is a BundleError.
        """
        ...


class AsyncInference(Protocol):
    """`Inference` to be awaited."""

    async def served(self, role: Role) -> ServedModel:
        """Describe the model of a role."""
        ...

    async def infer(
        self,
        role: Role,
        sequences: Sequence[Ids],
        *,
        timeout_s: float | None = None,
        progress: Progress | None = None,
        digest: str | None = None,
    ) -> Floats:
        """As `Inference.infer`."""
        ...


def require_digest(model: ServedModel, digest: str | None, *, subject: str) -> None:
    """Refuse a model that is not the one that was meant; raises BundleError."""
    if digest is not None and model.digest != digest:
        raise BundleError(
            subject,
            got=f"{model.role} {model.digest[:12]}, version {model.version}",
            wanted=f"{model.role} {digest[:12]}, which the bundle was built with and the server ran before",
            fix="Open the searcher again with a bundle of the new model, or serve that model.",
        )


def cut(sequences: Sequence[Ids], model: ServedModel, max_request_tokens: int) -> list[slice]:
    """Cut sequences, in order, into requests within the client's and the server's budget.

    A packed request costs its tokens, a padded one its rectangle. Raises RequestRejected for a sequence that
    the server would refuse, before anything is sent.
    """
    lens = [len(sequence) for sequence in sequences]
    server = model.max_request_tokens
    longest = min(limit for limit in (model.max_sequence_tokens, server, np.iinfo(np.int32).max) if limit is not None)
    for i, (sequence, length) in enumerate(zip(sequences, lens, strict=True)):
        if not 1 <= length <= longest:
            raise _malformed(model, i, f"{length} tokens", f"1 to {longest} tokens")
        if model.vocab_size is not None and not 0 <= sequence.min() <= sequence.max() < model.vocab_size:
            raise _malformed(
                model, i, f"token ids {sequence.min()} to {sequence.max()}", f"ids in [0, {model.vocab_size})"
            )
    budget = max_request_tokens if server is None else min(max_request_tokens, server)
    if model.layout == "packed":
        return list(token_budget_batches(lens, max_tokens=budget))
    widths = [model.width(length) for length in lens]
    return list(_rectangles(widths, max_tokens=budget, max_rows=model.max_batch_size))


def encode(sequences: Sequence[Ids], model: ServedModel) -> dict[str, npt.NDArray[np.int32]]:
    """The input tensors of one request, by name."""
    if model.layout == "packed":
        packed = pack(sequences)
        return {INPUT_IDS: packed.input_ids, SEQ_LENS: packed.seq_lens}
    lens = np.fromiter(map(len, sequences), np.int64, len(sequences))
    mask = np.arange(model.width(int(lens.max())))[None, :] < lens[:, None]
    input_ids_BL = np.zeros(mask.shape, np.int32)
    input_ids_BL[mask] = np.concatenate(sequences)
    return {INPUT_IDS: input_ids_BL, ATTENTION_MASK: mask.astype(np.int32)}


def collect(answer: npt.NDArray[np.generic] | None, num: int, model: ServedModel) -> Floats:
    """The `num` rows of one answer, `[num, D]` or `[num]`.

    RequestRejected where a row is NaN, RepositoryError where the shape is another.
    """
    shape = (num,) if model.dim is None else (num, model.dim)
    wanted = (1, *shape) if model.layout == "packed" else shape
    # Triton has no output without dimensions beside the batch: what a padded graph gives as [B] it hands on as [B, 1].
    accepted = (wanted, (num, 1)) if model.layout == "padded" and model.dim is None else (wanted,)
    if answer is None or answer.shape not in accepted or answer.dtype != np.float32:
        found = "nothing" if answer is None else f"{answer.dtype} {list(answer.shape)}"
        raise RepositoryError(
            f"output `{OUTPUT_NAMES[model.role]}` of `{model.name}`",
            got=found,
            wanted=f"float32 {list(wanted)}",
            fix="Export the model again, then restart the server: skillserve export WEIGHTS",
        )
    rows = np.asarray(answer, np.float32).reshape(shape)
    if not np.isfinite(rows).all():
        bad = np.flatnonzero(~np.isfinite(rows.reshape(num, -1)).all(axis=1))
        raise RequestRejected(
            f"answer of `{model.name}`",
            got=f"no finite number in {len(bad)} of {num} rows, first row {bad[0]}",
            wanted="finite numbers; the graph answers NaN to a malformed request",
            fix="Check that tokenizer and model belong together, then run: skillserve verify",
        )
    return rows


def _rectangles(lens: Sequence[int], *, max_tokens: int, max_rows: int) -> Iterator[slice]:
    """Runs of sequences whose padded rectangle stays within the budget; a longer sequence travels alone."""
    start = longest = 0
    for i, length in enumerate(lens):
        wider = max(longest, length)
        if i > start and ((i - start + 1) * wider > max_tokens or i - start >= max_rows):
            yield slice(start, i)
            start, wider = i, length
        longest = wider
    if start < len(lens):
        yield slice(start, len(lens))


def _interaction(name: str, parameters: Mapping[str, str]) -> Interaction:
    """What a token embedder's configuration says of scores; RepositoryError where it does not."""
    window, scale = parameters.get(WINDOW_PARAMETER, ""), parameters.get(SCALE_PARAMETER, "")
    found: Interaction | None
    try:
        found = Interaction(window=int(window), scale=float(scale))
    except ValueError:
        found = None
    if found is None or found.window < 1 or not 0 < found.scale < np.inf:
        raise RepositoryError(
            f"model `{name}` on the server",
            got=f"{WINDOW_PARAMETER}={window!r}, {SCALE_PARAMETER}={scale!r}",
            wanted="a whole number of tokens, and a factor above 0",
            fix="Serve a repository that was written by `skillserve export`.",
        )
    return found


def _malformed(model: ServedModel, i: int, got: str, wanted: str) -> RequestRejected:
    return RequestRejected(
        f"sequence {i} for `{model.name}`",
        got=got,
        wanted=wanted,
        fix="Tokenise with the model's own card and tokenizer.json.",
    )
