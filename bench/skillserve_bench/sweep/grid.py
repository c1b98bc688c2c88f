"""The grid of a sweep: servers by repository and tuning, points by server and by how searches ask."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from skillserve.card import read_card
from skillserve.errors import RepositoryError, UsageError
from skillserve.recommendation import Asking, ServedAs, Tuning
from skillserve.settings import SweepSettings
from skillserve.tensors import MODEL_NAMES, PRECISION_PARAMETER
from skillserve_bench.figures import times
from skillserve_client.configuration import read_configuration

__all__ = ["Host", "Point", "Subject", "make_grid", "names_apart", "read_subjects"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A repository; several of the same weights are how precisions are compared."""

    repository: Path
    name: str
    """Of its folder, after those of as many folders around it as tell it from the others."""
    models: Mapping[str, ServedAs]

    @property
    def reranks(self) -> bool:
        """Whether it has a reranker."""
        return MODEL_NAMES["reranker"] in self.models

    @property
    def about(self) -> str:
        """`skill_embedder int8 3f2a1b…, …`."""
        return ", ".join(f"{name} {each.precision} {each.digest[:12]}" for name, each in self.models.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One way to serve a subject; started once in every round."""

    subject: Subject
    tuning: Tuning
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One way to serve and to ask."""

    number: int
    """From 1, as tables and charts call it."""
    host: Host
    asking: Asking
    name: str
    """What tells it from the others; the settings that are the same everywhere stand in the method."""

    @property
    def title(self) -> str:
        """Number and name."""
        return f"{self.number}: {self.name}"


def read_subjects(repositories: Sequence[Path]) -> list[Subject]:
    """The models of each repository; raises UsageError for one that is named twice, RepositoryError or CardError."""
    paths = [path.resolve() for path in repositories]
    if twice := [path for path, num in Counter(paths).items() if num > 1]:
        raise UsageError(
            f"option --repository {twice[0].name}", got="it twice", wanted="each once", fix="Leave one of them out."
        )
    return [
        Subject(repository=given, name=name, models=_models(given))
        for given, name in zip(repositories, names_apart(paths), strict=True)
    ]


def names_apart(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of absolute paths that no other one shares; of equal paths, the paths.

    >>> names_apart([Path("/data/fp32/models"), Path("/data/int8/models"), Path("/data/old")])
    ['fp32/models', 'int8/models', 'old']
    """
    found = []
    for path in paths:
        ends = (
            (str(Path(*path.parts[-num:])), sum(other.parts[-num:] == path.parts[-num:] for other in paths))
            for num in range(1, len(path.parts))
        )
        found.append(next((end for end, num_alike in ends if num_alike == 1), str(path)))
    return found


def _models(repository: Path) -> dict[str, ServedAs]:
    folders = sorted(path.parent for path in repository.glob("[!.]*/config.pbtxt"))
    if MODEL_NAMES["embedder"] not in {folder.name for folder in folders}:
        raise RepositoryError(
            f"model repository `{repository}`",
            got=", ".join(folder.name for folder in folders) or "no model",
            wanted=f"at least `{MODEL_NAMES['embedder']}`, since whole searches are measured",
            fix="Export one: skillserve export WEIGHTS --repository FOLDER",
        )
    return {
        folder.name: ServedAs(
            digest=read_card(folder).digest,
            precision=read_configuration(folder).parameters[PRECISION_PARAMETER].string_value,
        )
        for folder in folders
    }


def make_grid(subjects: Sequence[Subject], settings: SweepSettings) -> list[Point]:
    """Every combination, servers in their order; raises UsageError if none is left.

    A depth beyond the candidates is none of its own, and without a reranker the only depth is 0.
    """
    tunings = [
        Tuning(
            num_instances=instances,
            num_threads=threads,
            max_batch_size=batch,
            max_queue_delay_microseconds=delay,
        )
        for instances, threads, batch, delay in itertools.product(
            settings.instances or (None,),
            settings.threads or (None,),
            settings.max_batch_sizes or (None,),
            settings.max_queue_delay_us or (None,),
        )
    ]
    found = []
    for subject, tuning in itertools.product(subjects, tunings):
        host = Host(subject=subject, tuning=tuning, name=_host_name(subject, tuning, subjects, settings))
        found += [(host, asking) for asking in _askings(subject, settings)]
    if not found:
        raise UsageError(
            "grid of the sweep",
            got=f"candidates {settings.candidates}, all below the rerank depths {settings.rerank_depths}",
            wanted="at least one point",
            fix="Add more --candidates, or a smaller depth: --rerank-depths 0,10",
        )
    return [
        Point(number=number, host=host, asking=asking, name=_name(host, asking, settings))
        for number, (host, asking) in enumerate(found, 1)
    ]


def _askings(subject: Subject, settings: SweepSettings) -> list[Asking]:
    depths = settings.rerank_depths if subject.reranks else (0,)
    return [
        Asking(candidates=candidates, rerank_depth=depth, max_request_tokens=budget)
        for budget, candidates, depth in itertools.product(settings.token_budgets, settings.candidates, depths)
        if depth <= candidates
    ]


def _host_name(subject: Subject, tuning: Tuning, subjects: Sequence[Subject], settings: SweepSettings) -> str:
    parts = [subject.name] if len(subjects) > 1 else []
    for values, spoken in (
        (settings.instances, times(tuning.num_instances or 0, "instance")),
        (settings.threads, times(tuning.num_threads or 0, "thread")),
        (settings.max_batch_sizes, f"{tuning.max_batch_size} a batch"),
        (settings.max_queue_delay_us, f"{tuning.max_queue_delay_microseconds} µs delay"),
    ):
        if len(values) > 1:
            parts.append(spoken)
    return ", ".join(parts)


def _name(host: Host, asking: Asking, settings: SweepSettings) -> str:
    parts = [host.name] if host.name else []
    for values, spoken in (
        (settings.token_budgets, f"{times(asking.max_request_tokens, 'token')} a request"),
        (settings.candidates, times(asking.candidates, "candidate")),
        (settings.rerank_depths, f"{asking.rerank_depth} reranked"),
    ):
        if len(values) > 1:
            parts.append(spoken)
    return ", ".join(parts) or "the only point"
