"""Whether a server answers, and answers rightly: readiness here is a real inference with known numbers.

Triton's own readiness stays true when a model's stub was killed, and every inference fails; its gRPC health
says SERVING for any name. Only an answer proves a server, and only the right numbers prove an answer.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from skillserve.errors import ServerError, ServerUnreachable
from skillserve.probe import Probe
from skillserve.tensors import INPUT_IDS, LAYOUT_PARAMETER, SEQ_LENS
from skillserve_serving.repository import ServedModel
from skillserve_serving.spec import ATTENTION_MASK

__all__ = ["CONTROL_HEADER", "Finding", "Health"]

CONTROL_HEADER = "skillserve-control"
"""HTTP header with the key of a server whose control interfaces are closed to others."""

PROBE_TIMEOUT_S = 10.0
"""Far above any answer of a healthy server; a busy one may need it, see `Health.probe`."""
_FLAG_TIMEOUT_S = 2.0
"""For what a server answers without asking a model."""
_LIVE_TIMEOUT_S = 5.0
"""For a sign of life before a server is killed: the stronger the remedy, the longer the patience."""
_UNLOAD_TIMEOUT_S = 15.0
"""An unload is acknowledged at once and finished in the background."""
_LOAD_TIMEOUT_S = 120.0
_UNLOAD_POLL_S = 0.05
_OVERLOAD = ("Exceeds maximum queue size", "Request timeout expired")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one health inference found."""

    model: str
    state: Literal["green", "busy", "failing", "wrong"]
    """`busy`: no answer in time, but the model keeps finishing other work; to reload it would only do harm."""
    detail: str


class Health:
    """Asks one server over HTTP, with the standard library alone."""

    def __init__(self, base_url: str, *, control_key: str = "", timeout_s: float = PROBE_TIMEOUT_S) -> None:
        self._base_url = base_url.rstrip("/")
        self._headers = {CONTROL_HEADER: control_key} if control_key else {}
        self._timeout_s = timeout_s
        # A proxy of the environment must not stand between a server and the check of its health.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._finished: dict[str, int] = {}

    def server_version(self) -> str:
        """Version of the running server, as `2.51.0`."""
        return str(self._call("/v2")["version"])

    def live(self) -> bool:
        """Whether the server itself still answers, whatever its models do."""
        return self._flag("/v2/health/live", _LIVE_TIMEOUT_S)

    def ready(self, model: str) -> bool:
        """Triton's own readiness flag of a model: necessary, not sufficient."""
        return self._flag(f"/v2/models/{model}/ready", _FLAG_TIMEOUT_S)

    def parameters(self, model: str) -> dict[str, str]:
        """Parameters of the model's live configuration."""
        config = self._call(f"/v2/models/{model}/config")
        return {key: value.get("string_value", "") for key, value in config.get("parameters", {}).items()}

    def probe(self, model: ServedModel) -> Finding:
        """Ask the model's known question and compare the numbers; never raises for what the server does."""
        probe = model.probe
        try:
            padded = self.parameters(model.name).get(LAYOUT_PARAMETER) == "padded"
            body = {"inputs": _padded_inputs(probe) if padded else _packed_inputs(probe)}
            started = time.monotonic()
            answer = self._call(f"/v2/models/{model.name}/infer", body)
            elapsed_ms = 1000 * (time.monotonic() - started)
            output = next(tensor for tensor in answer["outputs"] if tensor["name"] == probe.output)
            difference = probe.differs_by(np.asarray(output["data"], np.float32))
        except ServerError as error:
            state: Literal["busy", "failing"] = "busy" if self._is_busy(model.name, error) else "failing"
            return Finding(model=model.name, state=state, detail=error.got)
        except (KeyError, StopIteration, TypeError, ValueError) as error:
            detail = f"an answer without a usable output `{probe.output}` ({type(error).__name__}: {error})"
            return Finding(model=model.name, state="wrong", detail=detail)
        if difference > probe.tolerance:
            return Finding(
                model=model.name,
                state="wrong",
                detail=f"the server answers wrongly: off by {difference:.3g}, tolerance {probe.tolerance:.3g} "
                "(another model's weights, or numpy 2 under a stub that corrupts numbers in silence)",
            )
        return Finding(model=model.name, state="green", detail=f"{elapsed_ms:.1f} ms")

    def reload(self, model: str) -> None:
        """Unload, then load a model; raises ServerError, ServerUnreachable if the server itself does not answer.

        `load` alone does not mend a model whose stub was killed: the server believes it is loaded already.
        """
        self._call(f"/v2/repository/models/{model}/unload", {}, timeout_s=_UNLOAD_TIMEOUT_S)
        patience = time.monotonic() + self._timeout_s
        while self.ready(model) and time.monotonic() < patience:  # the unload is finished in the background
            time.sleep(_UNLOAD_POLL_S)
        self._call(f"/v2/repository/models/{model}/load", {}, timeout_s=_LOAD_TIMEOUT_S)

    def _flag(self, path: str, timeout_s: float) -> bool:
        try:
            self._call(path, timeout_s=timeout_s)
        except ServerError:
            return False
        return True

    def _is_busy(self, model: str, error: ServerError) -> bool:
        """Whether a missing answer is explained by other work: shed at the door, or late while others are served."""
        if any(words in error.got for words in _OVERLOAD):
            return True
        if not isinstance(error.__cause__, TimeoutError):
            return False
        try:
            stats = self._call(f"/v2/models/{model}/stats", timeout_s=_FLAG_TIMEOUT_S)["model_stats"][0]
            finished = int(stats["inference_stats"]["success"]["count"])
        except (ServerError, KeyError, IndexError, ValueError):
            return False
        before = self._finished.get(model)
        self._finished[model] = finished
        return before is None or finished > before

    def _call(self, path: str, body: object = None, *, timeout_s: float | None = None) -> Any:  # noqa: ANN401 - JSON
        """GET, or POST if there is a body; returns the JSON of the answer. Raises ServerError, `got` is one line."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base_url + path, data=data, headers=self._headers)  # noqa: S310 - http
        subject = f"server at {self._base_url}"
        try:
            with self._opener.open(request, timeout=timeout_s or self._timeout_s) as response:
                content = response.read()
            return json.loads(content) if content else {}
        except urllib.error.HTTPError as error:
            raise ServerError(
                subject, got=_message(error), wanted=f"an answer to {path}", fix="Read the server's log."
            ) from error
        except (OSError, http.client.HTTPException, ValueError) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            cause = reason if isinstance(reason, Exception) else error
            got = f"no answer in {timeout_s or self._timeout_s:g} s" if isinstance(cause, TimeoutError) else str(reason)
            raise ServerUnreachable(
                subject, got=got, wanted=f"an answer to {path}", fix="Start it: skillserve serve"
            ) from cause


def _message(error: urllib.error.HTTPError) -> str:
    """Triton's own words, on one line."""
    content = error.read().decode("utf-8", errors="replace")
    try:
        text = str(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError):
        text = content
    return f"HTTP {error.code}: {' '.join(text.split())}"


def _packed_inputs(probe: Probe) -> list[dict[str, object]]:
    return [_tensor(INPUT_IDS, [probe.input_ids]), _tensor(SEQ_LENS, [probe.seq_lens])]


def _padded_inputs(probe: Probe) -> list[dict[str, object]]:
    """The probe's sequences as `[n, L]`, padded with token 0 and masked."""
    longest = max(probe.seq_lens)
    ids: list[tuple[int, ...]] = []
    masks: list[tuple[int, ...]] = []
    start = 0
    for length in probe.seq_lens:
        filler = (0,) * (longest - length)
        ids.append(probe.input_ids[start : start + length] + filler)
        masks.append((1,) * length + filler)
        start += length
    return [_tensor(INPUT_IDS, ids), _tensor(ATTENTION_MASK, masks)]


def _tensor(name: str, rows: list[tuple[int, ...]]) -> dict[str, object]:
    """One INT32 tensor in Triton's JSON."""
    flat = [number for row in rows for number in row]
    return {"name": name, "shape": [len(rows), len(rows[0])], "datatype": "INT32", "data": flat}
