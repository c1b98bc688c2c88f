"""Everybody who takes part in one workload, and what is known of the model: opened before anything is measured."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self, get_args

from skillserve.card import ModelCard, read_card
from skillserve.errors import CardError, MissingExtraError, RepositoryError, ServerStartError
from skillserve.settings import BenchSettings
from skillserve.tensors import MODEL_NAMES, Ids, Layout, Precision, Role
from skillserve_bench.inprocess import LocalModel
from skillserve_bench.server import Server, started_server
from skillserve_bench.speed.contenders import Contender, Manner, graph_contender, joined
from skillserve_bench.speed.operators import Operators, read_profile
from skillserve_bench.speed.served import served_contender

__all__ = ["Graphs", "Servers", "profile"]

_PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_PROFILED_RUNS = 3
"""After one that is not counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Graphs:
    """One model in several precisions and layouts, all of the same weights."""

    role: Role
    card: ModelCard
    packed: Mapping[Precision, LocalModel]
    padded: Mapping[Precision, LocalModel]
    folders: Mapping[Precision, Path]
    """Repositories of the packed ones."""
    absent: Mapping[str, str]
    """Repositories without such a model."""

    @classmethod
    def opened(cls, role: Role, weights: Path, packed: Sequence[Path], padded: Sequence[Path]) -> Self:
        """Raises CardError or RepositoryError where they do not belong together, or packed fp32 is missing."""
        card = read_card(weights)
        if card.role != role:
            raise CardError(
                f"weights folder `{weights}`", got=f"a {card.role}", wanted=f"a {role}", fix="Name the other folder."
            )
        absent = {} if padded else {"padded graph": "no --padded repository was given"}
        found: dict[tuple[Layout, Precision], tuple[LocalModel, Path]] = {}
        layouts: list[tuple[Layout, Sequence[Path]]] = [("packed", packed), ("padded", padded)]
        for layout, folders in layouts:
            for folder in folders:
                if not (folder / MODEL_NAMES[role]).is_dir():
                    absent[f"{layout} graph of `{folder.name}`"] = f"the repository has no {role}"
                    continue
                local = LocalModel(folder, role)
                precision = _checked(local, layout, card)
                if (layout, precision) in found:
                    raise RepositoryError(
                        f"model folder `{local.folder}`",
                        got=f"{layout} {precision}, as in another repository",
                        wanted="one for each layout and precision",
                        fix="Leave one of them out.",
                    )
                found[layout, precision] = (local, folder)
        if ("packed", "fp32") not in found:
            raise RepositoryError(
                f"repositories of the {role}",
                got=", ".join(" ".join(each) for each in found) or "none",
                wanted="packed fp32, which the others are compared with",
                fix=f"Export it: skillserve export {weights} --precision fp32",
            )
        return cls(
            role=role,
            card=card,
            packed={precision: local for (layout, precision), (local, _) in found.items() if layout == "packed"},
            padded={precision: local for (layout, precision), (local, _) in found.items() if layout == "padded"},
            folders={precision: folder for (layout, precision), (_, folder) in found.items() if layout == "packed"},
            absent=absent,
        )

    @property
    def reference(self) -> LocalModel:
        """The packed fp32 graph."""
        return self.packed["fp32"]

    def at_once(self, max_tokens: int) -> int:
        """Tokens of an execution, where `max_tokens` are joined: fewer, where the packed graph computes in turns."""
        turn = self.reference.model.execution_tokens
        return min(max_tokens, turn) if turn else max_tokens

    def contenders(self, *, max_tokens: int) -> list[Contender]:
        """Packed as requests arrive, padded in three ways."""
        return [
            *(
                graph_contender(local, precision, "in arrival order", max_tokens=max_tokens)
                for precision, local in self.packed.items()
            ),
            *(
                graph_contender(local, precision, manner, max_tokens=max_tokens)
                for precision, local in self.padded.items()
                for manner in get_args(Manner)
            ),
        ]


class Servers:
    """One for each packed repository, running until the stack ends; where none starts, the reason is kept."""

    def __init__(self, stack: ExitStack, folders: Mapping[Precision, Path]) -> None:
        self.running: dict[Precision, Server] = {}
        self.absent: dict[str, str] = {}
        for precision, folder in folders.items():
            try:
                self.running[precision] = stack.enter_context(started_server(folder))
            except (ServerStartError, MissingExtraError) as error:
                # What else it says are lines of a log, which no cell of a table holds.
                self.absent[f"Triton {precision}"] = error.got.partition("\n")[0]

    @property
    def version(self) -> str:
        """What the report names as the server."""
        return next((server.version for server in self.running.values()), "no server")

    def contenders(self, graphs: Graphs, settings: BenchSettings, *, max_tokens: int) -> list[Contender]:
        """The packed graphs behind them."""
        return [
            served_contender(
                server,
                graphs.role,
                precision,
                num_clients=settings.num_clients,
                max_tokens=max_tokens,
                digest=graphs.card.digest,
            )
            for precision, server in self.running.items()
            if precision in graphs.packed
        ]


def profile(graphs: Graphs, sequences: Sequence[Ids], *, max_tokens: int) -> dict[str, Operators]:
    """Where the packed graphs' time goes, for as many sequences as one execution joins."""
    found = {}
    for precision, folder in graphs.folders.items():
        with tempfile.TemporaryDirectory() as name:
            local = LocalModel(folder, graphs.role, profile=Path(name) / "profile")
            batch = joined(sequences, local.model, max_tokens)[0]
            for _ in range(1 + _PROFILED_RUNS):
                local.run(batch)
            found[f"packed {precision}"] = read_profile(local.end_profiling(), skip_runs=1)
    return found


def _checked(local: LocalModel, layout: Layout, card: ModelCard) -> Precision:
    """The precision of a graph that is of the right layout and weights."""
    model = local.model
    precision = next((each for each in _PRECISIONS if each == model.precision), None)
    if precision is None or (model.layout, model.digest) != (layout, card.digest):
        raise RepositoryError(
            f"model folder `{local.folder}`",
            got=f"layout {model.layout}, precision {model.precision or 'not stated'}, digest {model.digest[:12]}",
            wanted=f"layout {layout}, one of {', '.join(_PRECISIONS)}, digest {card.short_digest} of the weights",
            fix=f"Export them: skillserve export WEIGHTS --layout {layout}",
        )
    return precision
