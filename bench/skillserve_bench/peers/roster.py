"""Who can be measured beside us, and what each is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from skillserve.errors import UsageError

__all__ = ["PADDED", "ROSTER", "Peer", "chosen"]

_REQUIREMENTS = Path(__file__).parent / "requirements"

PADDED = "triton-padded"
"""The one peer that is no daemon: Triton again, on a repository of the padded layout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Another way to serve a search."""

    name: str
    about: str
    engine: str | None = None
    """Of the daemon; None: it runs in the environment of skillserve itself."""
    main_package: str | None = None
    """The distribution whose version says which release was measured."""

    @property
    def requirements(self) -> Path | None:
        """Pinned packages of its environment; None if it has none of its own."""
        return _REQUIREMENTS / f"{self.name}.txt" if self.engine else None


ROSTER: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer(
            name="st",
            about="sentence-transformers and its CrossEncoder in process, PyTorch; one search at a time",
            engine="torch",
            main_package="sentence-transformers",
        ),
        Peer(
            name="st-onnx",
            about="the same through the library's ONNX backend",
            engine="onnx",
            main_package="sentence-transformers",
        ),
        Peer(
            name="st-openvino",
            about="the same through the library's OpenVINO backend, bfloat16 where the processor has it",
            engine="openvino",
            main_package="sentence-transformers",
        ),
        Peer(
            name="infinity",
            about="infinity's server, asked over HTTP; joins what comes together",
            engine="infinity",
            main_package="infinity-emb",
        ),
        Peer(
            name="onnx-int8",
            about="a daemon as agents carry it: dynamic int8 in ONNX Runtime, one text at a time",
            engine="int8",
            main_package="onnxruntime",
        ),
        Peer(
            name=PADDED,
            about="Triton as transformer-deploy configures it: padded, nothing joined; asked by skillserve's client",
        ),
    )
}


def chosen(names: Sequence[str]) -> list[Peer]:
    """The peers of these names, each once, in their order; UsageError for an unknown one."""
    unknown = [name for name in names if name not in ROSTER]
    if unknown:
        raise UsageError(
            f"peer `{unknown[0]}`", got="no peer of that name", wanted=f"one of {', '.join(ROSTER)}", fix="Correct it."
        )
    return [ROSTER[name] for name in dict.fromkeys(names)]
