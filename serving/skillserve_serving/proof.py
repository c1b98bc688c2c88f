"""Proof that a server which was just started serves: every model answers its probe with the right numbers, in time."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from skillserve.errors import RepositoryError, ServerError, ServerStartError
from skillserve.tensors import DIGEST_PARAMETER
from skillserve_serving.health import Finding, Health
from skillserve_serving.process import ServerProcess
from skillserve_serving.repository import ServedModel

__all__ = ["Proof", "check_digest"]

_POLL_S = 0.05
_PROBES_AT_START = 3
"""A model that is loaded and fails this often in a row will not get better by waiting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Proof:
    """One start under observation."""

    process: ServerProcess
    health: Health
    repository: Path
    """What errors are about."""

    def wait(self, models: Iterable[ServedModel], *, deadline_s: float) -> None:
        """Return when all models answer.

        Raises ServerStartError when the server dies or the time is over, RepositoryError if a model's files are at
        fault, ServerError for wrong numbers.
        """
        deadline = time.monotonic() + deadline_s
        waiting = list(models)
        failures = 0
        last = "the models are still loading"
        while waiting:
            self._raise_if_doomed(dead=self.process.wait(_POLL_S))
            if time.monotonic() > deadline:
                raise self._start_error(f"no right answer in {deadline_s:g} s; {last}")
            if not self.health.ready(waiting[0].name):
                continue
            finding = self.health.probe(waiting[0])
            last = f"{finding.model}: {finding.detail}"
            if finding.state == "green":
                check_digest(self.health, waiting.pop(0))
                failures = 0
            elif finding.state == "wrong":
                raise _wrong_numbers(finding)
            elif finding.state == "failing":
                failures += 1
                if failures == _PROBES_AT_START:
                    raise self._start_error(f"model `{finding.model}` fails: {finding.detail}")

    def _raise_if_doomed(self, *, dead: bool) -> None:
        """A fatal line in the log ends the waiting: with a broken stub the server itself would load for ever."""
        failure = self.process.log.failure()
        if failure is None:
            if dead:
                raise self._start_error("the server ended by itself")
            return
        if failure.blames_repository:
            raise RepositoryError(
                f"model `{failure.model}`",
                got=failure.cause,
                wanted="a model that the server can load",
                fix=f"Export it again: skillserve export. The server's log: {self.process.log.path}",
            )
        model = f"model `{failure.model}`: " if failure.model else ""
        raise self._start_error(f"{model}{failure.cause}")

    def _start_error(self, got: str) -> ServerStartError:
        log = self.process.log
        return ServerStartError(
            f"Triton on `{self.repository}`",
            got=got,
            wanted="a server whose models answer",
            fix=f"Read its log {log.path}; the last lines:\n{log.tail()}",
        )


def check_digest(health: Health, model: ServedModel) -> None:
    """Raise RepositoryError unless the server read the model that its card names."""
    served = health.parameters(model.name).get(DIGEST_PARAMETER, "none")
    if served != model.card.digest:
        raise RepositoryError(
            f"model folder `{model.folder}`",
            got=f"a configuration with digest {served[:12]}",
            wanted=f"{model.card.short_digest}, as its card says",
            fix="Its files come from different exports: skillserve export WEIGHTS",
        )


def _wrong_numbers(finding: Finding) -> ServerError:
    return ServerError(
        f"model `{finding.model}`",
        got=finding.detail,
        wanted="the numbers of its probe",
        fix="Export the model again, and check the environment: pip install 'skillserve[serving]'",
    )
