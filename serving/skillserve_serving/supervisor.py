"""Keeps a server answering: asks it again and again, mends a model, restarts the server, and knows when to give up."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NoReturn

from skillserve.errors import ServerError, ServerUnreachable, SkillserveError
from skillserve_serving.commandline import STOP_GRACE_S
from skillserve_serving.health import Finding
from skillserve_serving.launcher import Triton
from skillserve_serving.repository import ServedModel

__all__ = ["Event", "Limits", "Supervisor"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that an operator wants to know."""

    kind: Literal["busy", "unhealthy", "repaired", "died", "restarted", "model_changed"]
    detail: str
    model: str | None = None
    """None if it concerns the whole server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When the next stronger remedy is due."""

    repairs: int = 3
    """Failed repairs of a model in a row before the server is restarted."""
    restarts: int = 5
    """Restarts within `window_s` before giving up: what five did not mend, a sixth will not."""
    window_s: float = 600.0
    backoff_s: float = 1.0
    """Pause before the second restart of a window; doubles with each further one."""


class Supervisor:
    """Watches one running server; `tell` is called with every event."""

    def __init__(self, server: Triton, *, tell: Callable[[Event], None], limits: Limits | None = None) -> None:
        self._server = server
        self._tell = tell
        self._limits = limits or Limits()
        self._failed_repairs: dict[str, int] = {}
        self._restarts: deque[float] = deque()

    def run(self) -> NoReturn:
        """Watch until interrupted; raises ServerError when the server cannot be kept up."""
        while True:
            self._server.wait(self._server.settings.health_interval_s)
            self.check()

    def check(self) -> None:
        """One round: every model is asked, what is red is mended. Raises ServerError when giving up."""
        if self._server.wait(0):
            self._tell(Event(kind="died", detail="the server process is gone"))
            self._restart()
            return
        for model in self._server.models:
            finding = self._server.health.probe(model)
            if finding.state == "green":
                self._failed_repairs.pop(model.name, None)
            elif finding.state == "busy":
                self._tell(Event(kind="busy", model=model.name, detail=finding.detail))
            elif not self._server.health.live():
                self._tell(Event(kind="died", detail="the server itself does not answer"))
                self._restart(grace_s=0)
                return
            elif not self._repaired(model, finding):
                self._restart()
                return

    def _repaired(self, model: ServedModel, finding: Finding) -> bool:
        """Unload and load a red model; False when the remedies at this level are used up."""
        self._tell(Event(kind="unhealthy", model=model.name, detail=finding.detail))
        started = time.monotonic()
        try:
            with self._changes_told():
                again = self._server.reload(model.name)
            outcome = again.detail
            mended = again.state == "green"
        except ServerUnreachable as error:  # to ask it again would cost the same patience again
            self._tell(Event(kind="unhealthy", model=model.name, detail=f"repair given up: {error.got}"))
            return False
        except SkillserveError as error:
            outcome, mended = error.got, False
        if mended:
            self._failed_repairs.pop(model.name, None)
            took = f"unloaded and loaded in {time.monotonic() - started:.1f} s"
            self._tell(Event(kind="repaired", model=model.name, detail=took))
            return True
        failed = self._failed_repairs.get(model.name, 0) + 1
        self._failed_repairs[model.name] = failed
        self._tell(Event(kind="unhealthy", model=model.name, detail=f"repair {failed} failed: {outcome}"))
        return failed < self._limits.repairs

    def _restart(self, *, grace_s: float = STOP_GRACE_S) -> None:
        """Restart the server, again if it does not come up, until the bound is reached."""
        self._failed_repairs.clear()
        while True:
            self._count_restart()
            try:
                with self._changes_told():
                    self._server.stop(keep_log=True, grace_s=grace_s)
                    self._server.start()
            except (SkillserveError, OSError) as error:
                got = error.got if isinstance(error, SkillserveError) else str(error)
                self._tell(Event(kind="died", detail=f"it did not start again: {got}"))
            else:
                self._tell(Event(kind="restarted", detail=f"process {self._server.pid}, all models answer"))
                return

    def _digests(self) -> dict[str, str]:
        return {model.name: model.card.short_digest for model in self._server.models}

    @contextmanager
    def _changes_told(self) -> Iterator[None]:
        """Say which models turn out to have been exported anew when the block reads their files again."""
        before = self._digests()
        try:
            yield
        finally:
            now = self._digests()
            for name in sorted(before | now):
                old, new = before.get(name, "none"), now.get(name, "none")
                if old != new:
                    self._tell(Event(kind="model_changed", model=name, detail=f"digest {old} → {new}"))

    def _count_restart(self) -> None:
        now = time.monotonic()
        while self._restarts and now - self._restarts[0] > self._limits.window_s:
            self._restarts.popleft()
        done = len(self._restarts)
        if done >= self._limits.restarts:
            raise ServerError(
                f"Triton on `{self._server.settings.repository}`",
                got=f"{done} restarts within {self._limits.window_s:g} s",
                wanted="a server that stays up",
                fix=f"Read its log: {self._server.log_path}",
            )
        if done:
            time.sleep(self._limits.backoff_s * 2 ** (done - 1))
        self._restarts.append(time.monotonic())
