"""How fast is the exported graph: beside what the machine can do, beside others, and behind a server?

Everybody gets the same parts of the same workload, in turns, and so do the matrix products that the machine's limit
is measured with. Embedding: skills and requests, shuffled. Reranking: the best candidates of every request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from skillserve.console import progress, talk
from skillserve.errors import ConfigError
from skillserve.settings import BenchSettings
from skillserve.tensors import Ids
from skillserve_bench.alternation import alternate
from skillserve_bench.figures import times
from skillserve_bench.processor import Meter
from skillserve_bench.report import Findings
from skillserve_bench.speed.check import agreement
from skillserve_bench.speed.contenders import Contender, Pass, whole
from skillserve_bench.speed.field import Graphs, Servers, profile
from skillserve_bench.speed.flops import read_shapes
from skillserve_bench.speed.gemm import MEASURED_S, Gemm, gemms
from skillserve_bench.speed.operators import Operators
from skillserve_bench.speed.outcome import Line, Outcome
from skillserve_bench.speed.peers import open_peers, openers
from skillserve_bench.speed.summary import speed_findings
from skillserve_bench.speed.tables import TITLES
from skillserve_bench.speed.workload import Corpus, Embedding, Part, Reranking, Workload
from skillserve_client.tokens import embedder_tokens, reranker_tokens
from skillserve_client.wire import Floats

__all__ = ["Subject", "measure_speed"]

_TRIAL = 32
"""Sequences of the warm-up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Whose speed is measured."""

    weights: Path
    """Of the embedder."""
    reranker_weights: Path | None
    """None leaves reranking out."""
    packed: Sequence[Path]
    """Repositories, one for each precision; with a reranker in each if its weights are given."""
    padded: Sequence[Path]
    """The same weights in the padded layout."""


def measure_speed(subject: Subject, corpus: Corpus, *, settings: BenchSettings, max_tokens: int) -> Findings:
    """Measure both workloads; `max_tokens` is what one execution joins.

    Raises ContractError, UsageError or ServerError.
    """
    graphs = Graphs.opened("embedder", subject.weights, subject.packed, subject.padded)
    rerankers = (
        Graphs.opened("reranker", subject.reranker_weights, subject.packed, subject.padded)
        if subject.reranker_weights
        else None
    )
    if settings.rounds > len(corpus.queries):
        raise ConfigError(
            "setting --rounds",
            got=f"{settings.rounds}, for {times(len(corpus.queries), 'request')}",
            wanted="at most one round a request: each round has a part of them",
            fix="Take fewer rounds, or more requests.",
        )
    with ExitStack() as stack:
        servers = Servers(stack, graphs.folders)
        field = _Field(servers, settings, max_tokens)
        tokens = embedder_tokens(graphs.card, (graphs.reference.folder / "tokenizer.json").read_bytes())
        embedding = Embedding(corpus, tokens, seed=settings.seed)
        rows = _reference(embedding, graphs)
        found = [field.measured(embedding, graphs, rows, subject.weights)]
        if rerankers and subject.reranker_weights:
            pair_tokens = reranker_tokens(rerankers.card, (rerankers.reference.folder / "tokenizer.json").read_bytes())
            reranking = Reranking(corpus, pair_tokens, embedding.similarities(rows), seed=settings.seed)
            scores = _reference(reranking, rerankers)
            found.append(field.measured(reranking, rerankers, scores, subject.reranker_weights))
    return speed_findings(found, corpus, servers.version, settings, max_tokens, reranks=rerankers is not None)


@dataclass(frozen=True, slots=True)
class _Field:
    """What both workloads have in common."""

    servers: Servers
    settings: BenchSettings
    max_tokens: int

    def measured(
        self, workload: Workload, graphs: Graphs, reference: Floats, weights: Path
    ) -> tuple[Outcome, dict[str, Operators]]:
        """One workload: everybody, in turns."""
        parts = workload.parts(self.settings.rounds)
        at_once = graphs.at_once(self.max_tokens)
        tokenised = [part.tokenised() for part in parts]
        lens = [[len(sequence) for sequence in sequences] for sequences in tokenised]
        first = parts[0]
        trial = workload.part(first.places[: max(_TRIAL // first.num_together, 1) * first.num_together])
        peers, absent = open_peers(openers(graphs.role, weights, graphs.card), trial)
        contenders = [
            *graphs.contenders(max_tokens=at_once),
            *self.servers.contenders(graphs, self.settings, max_tokens=self.max_tokens),
            *peers,
        ]
        shapes = read_shapes(weights, graphs.role)
        kernels: list[Gemm] = []
        if shapes is None:
            absent["share of the machine's limit"] = f"operations of family {graphs.card.family} are not counted"
        else:
            num_tokens = min(at_once, *(sum(each) for each in lens))
            kernels, missing = gemms(shapes.products, num_tokens=num_tokens, options=graphs.reference.options)
            absent |= missing
        passes, rates = self._in_turns(contenders, kernels, parts, trial)
        lines = {each.name: self._line(each, passes[each.name], parts, workload, reference) for each in contenders}
        outcome = Outcome(
            role=graphs.role,
            lines=lines,
            absent={**graphs.absent, **absent, **self.servers.absent},
            flops=None if shapes is None else [shapes.flops(each) for each in tokenised],
            rates=rates,
            num_sequences=workload.size,
            at_once=at_once,
            mean_tokens=float(np.mean([length for each in lens for length in each])),
            reference_ndcg=workload.ndcg(reference),
        )
        return outcome, profile(graphs, tokenised[0], max_tokens=at_once)

    def _in_turns(
        self, contenders: Sequence[Contender], kernels: Sequence[Gemm], parts: Sequence[Part], trial: Part
    ) -> tuple[dict[str, list[Pass]], dict[str, list[float]]]:
        """Passes by contender, rates by kernel; one a round."""
        rates: dict[str, list[float]] = {each.name: [] for each in kernels}

        def multiply(kernel: Gemm, number: int) -> Pass | None:
            rate = kernel.rate(seconds=MEASURED_S if number >= 0 else 0.0)
            if number >= 0:
                rates[kernel.name].append(rate)
            return None

        def compute(contender: Contender, number: int) -> Pass | None:
            part = parts[number] if number >= 0 else trial
            meter = Meter(self._server_pid(contender))
            found = contender.measure(part)
            return replace(found, usage=meter.usage())

        takers: dict[str, Callable[[int], Pass | None]] = {each.name: partial(multiply, each) for each in kernels}
        takers |= {each.name: partial(compute, each) for each in contenders}
        title = TITLES[trial.workload.role].lower()
        with progress(title, (len(parts) + 1) * len(takers)) as bar:
            measured = alternate(takers, rounds=len(parts), advance=bar.advance)
        passes = {each.name: [found for found in measured[each.name] if found is not None] for each in contenders}
        return passes, rates

    def _server_pid(self, contender: Contender) -> int | None:
        """Of the contender's own server; beside the others any one tells whether the machine was quiet."""
        running = self.servers.running
        own = running.get(contender.precision) if contender.kind == "served" else None
        server = own or next(iter(running.values()), None)
        return None if server is None else server.pid

    def _line(
        self, contender: Contender, passes: Sequence[Pass], parts: Sequence[Part], workload: Workload, wanted: Floats
    ) -> Line:
        rows = whole(passes, parts)
        return Line(contender=contender, passes=passes, agreement=agreement(rows, wanted), ndcg=workload.ndcg(rows))


def _reference(workload: Workload, graphs: Graphs) -> Floats:
    """Rows of the packed fp32 graph, each sequence alone."""
    talk(f"{TITLES[workload.role]}: reference rows")
    sequences = workload.tokenised(np.arange(workload.size))
    with progress("reference", len(sequences)) as bar:

        def alone(sequence: Ids) -> Floats:
            bar.advance()
            return graphs.reference.run([sequence])

        return np.concatenate([alone(sequence) for sequence in sequences])
