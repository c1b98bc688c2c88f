"""`skillserve serve`: a model repository becomes a running Triton that is watched until it is stopped."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import Any

from skillserve.console import out, print_json, progress, talk
from skillserve.flags import Json, with_settings
from skillserve.settings import Settings
from skillserve_serving.launcher import Triton, running_server
from skillserve_serving.supervisor import Event, Supervisor

__all__ = ["serve"]


class _Stopped(BaseException):
    """A signal to stop arrived. Not an Exception, so that no handler on the way takes it for a failure."""


@with_settings("serve")
def serve(*, settings: Settings, as_json: Json = False) -> None:
    """Run a model repository on Triton until stopped."""

    def tell(event: Event) -> None:
        talk(f"{event.kind}: {event.model or 'server'}: {event.detail}")
        if as_json:
            print_json({"event": event.kind, "model": event.model, "detail": event.detail})

    with suppress(_Stopped), _signals_raise(), ExitStack() as stack:
        with progress("starting Triton", None):
            server = stack.enter_context(running_server(settings.serve))
        for sentence in server.told:
            talk(sentence)
        _announce(server, json=as_json)
        Supervisor(server, tell=tell).run()


def _announce(server: Triton, *, json: bool) -> None:
    """The one ready line."""
    ready = describe(server)
    if json:
        print_json(ready)
        return
    models = "  ".join(f"{model['name']} v{model['version']} {model['digest'][:12]}" for model in ready["models"])
    kind, version = ready["server"]["kind"], ready["server"]["version"]
    line = (
        f"ready  grpc {ready['grpc']}  http {ready['http']}  {models}  (Triton {version}, {kind}, pid {ready['pid']})"
    )
    out.print(line, markup=False, soft_wrap=True)
    talk(f"metrics {ready['metrics']}, log {ready['log']}; stop with Ctrl-C.")


def describe(server: Triton) -> dict[str, Any]:
    """A running server as the `ready` event of `--json` says it."""
    return {
        "event": "ready",
        "grpc": server.grpc_address,
        "http": server.http_url,
        "metrics": server.metrics_url,
        "models": [
            {
                "name": model.name,
                "role": model.role,
                "version": max(model.versions),
                "digest": model.card.digest,
            }
            for model in server.models
        ],
        "server": {"kind": server.installation.kind, "version": server.version},
        "profile": server.settings.profile,
        "tuning": server.tuning.changes,
        "pid": server.pid,
        "log": str(server.log_path),
    }


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Signals to stop raise `_Stopped` in the main thread, once: nothing interrupts the stopping itself."""
    caught = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as `nohup` leaves it: then a lost terminal is nothing
        caught.append(signal.SIGHUP)

    def stop(_signal: int, _frame: FrameType | None) -> None:
        for number in caught:
            signal.signal(number, signal.SIG_IGN)
        raise _Stopped

    before = {number: signal.signal(number, stop) for number in caught}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
