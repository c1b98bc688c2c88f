"""The report of both workloads: sentences, tables, and how it was measured."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from skillserve.machine import num_cores
from skillserve.settings import BenchSettings
from skillserve_bench.figures import times
from skillserve_bench.report import Findings
from skillserve_bench.speed.goals import goals
from skillserve_bench.speed.operators import Operators
from skillserve_bench.speed.outcome import Outcome
from skillserve_bench.speed.tables import TITLES, outcome_figures, outcome_tables
from skillserve_bench.speed.workload import Corpus

__all__ = ["speed_findings"]


def speed_findings(
    found: Sequence[tuple[Outcome, Mapping[str, Operators]]],
    corpus: Corpus,
    server: str,
    settings: BenchSettings,
    max_tokens: int,
    *,
    reranks: bool,
) -> Findings:
    """Both workloads in one report."""
    outcomes = [outcome for outcome, _ in found]
    summary = [sentence for outcome in outcomes for sentence in _summary(outcome)]
    if not reranks:
        summary.append("Reranking was not measured: no --reranker-weights.")
    return Findings(
        name="speed",
        title="How fast the exported graph is",
        passed=all(outcome.passed for outcome in outcomes),
        summary=summary,
        tables=[table for outcome, profiles in found for table in outcome_tables(outcome, profiles)],
        method=_method(outcomes, corpus, settings, max_tokens),
        server=server,
        figures={outcome.role: outcome_figures(outcome, profiles) for outcome, profiles in found},
    )


def _summary(outcome: Outcome) -> list[str]:
    title, judged = TITLES[outcome.role], goals(outcome)
    speeds = []
    for line in outcome.of_kind("packed"):
        per_s, share = line.per_s("ids"), outcome.share(line)
        if per_s is not None:
            of_limit = f", {share.median:.0%} of the machine's limit" if share else ""
            speeds.append(f"{line.contender.name} {per_s.median:.1f} sequences a second{of_limit}")
    wrong = [name for name, line in outcome.lines.items() if not line.passed]
    num_met, num_missed = sum(goal.met is True for goal in judged), sum(goal.met is False for goal in judged)
    return [
        f"{title}: {'; '.join(speeds)}.",
        (
            f"{title}: {times(num_met, 'goal')} met, {num_missed} MISSED, {len(judged) - num_met - num_missed} not "
            f"measured. Rows are {'all right' if not wrong else 'WRONG: ' + ', '.join(wrong)}."
        ),
    ]


def _method(outcomes: Sequence[Outcome], corpus: Corpus, settings: BenchSettings, max_tokens: int) -> list[str]:
    return [
        *(
            f"{TITLES[outcome.role]}: {outcome.num_sequences:,} sequences, {outcome.mean_tokens:.0f} tokens on "
            f"average; at most {outcome.at_once:,} tokens an execution."
            for outcome in outcomes
        ),
        (
            f"{len(corpus.skills):,} skills and {len(corpus.queries)} requests of the test split, shuffled, seed "
            f"{settings.seed}, cut into {times(settings.rounds, 'part')}: one a round, the same for everybody, in "
            "turns, after a warm-up. Ratios and shares are formed within a round."
        ),
        (
            "Operations: matrix products of the real tokens, linear layers and attention, padding not counted. The "
            "limit is the rate of the model's own linear products with as many tokens, measured in every round, by the "
            "kernels that are faster in the median. Attention counts at the rate of the precision, although an int8 "
            "graph computes it in fp32; the next column has it at fp32's rate."
        ),
        (
            "Our graphs join neighbours of the stream up to so many tokens, padding included where there is any; the "
            f"server gets requests of up to {max_tokens:,}. Padded graphs also run sorted by length within a part, and "
            "one by one."
        ),
        (
            "sentence-transformers: `encode`, or `predict` of its CrossEncoder, with its defaults (batches of 32, "
            "sorted by length), from texts to rows; ours are compared with it with tokenising. Skill sides of pairs "
            "are tokenised beforehand, as an index does."
        ),
        (
            f"Triton: {times(settings.num_clients, 'client')} of the asyncio client in this process; a text to be "
            "embedded is a request, and so are the candidates of a search. They get token ids, as the graph in process "
            "does."
        ),
        (
            "Every row of every contender is compared with the packed fp32 graph's, which ran each sequence alone. "
            "NDCG@10: embeddings by inner product over all skills, scores over the candidates."
        ),
        (
            f"Threads: {num_cores()} cores; OMP_NUM_THREADS {os.environ.get('OMP_NUM_THREADS', 'not set')}. ONNX "
            "Runtime's spin within a run and rest after it, ours and the server's; those of others are as they come."
        ),
        "Profile: ONNX Runtime's own, one batch, means of three runs; shares of the wall time.",
    ]
