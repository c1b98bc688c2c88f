"""Configuration: a TOML file, then `SKILLSERVE_*` environment variables, then flags; the later one wins.

Every flag has a field here, and every field can be set in all three ways:

    skillserve.toml            environment                        flag
    [search]
    candidates = 100           SKILLSERVE_SEARCH_CANDIDATES=100   --candidates 100

An empty variable counts as not set.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skillserve.errors import ConfigError

__all__ = [
    "BenchSettings",
    "CalibrateSettings",
    "ClientSettings",
    "ExportSettings",
    "IndexSettings",
    "SearchSettings",
    "ServeSettings",
    "Settings",
    "TrainSettings",
    "load_settings",
]

ENV_PREFIX = "SKILLSERVE_"
CONFIG_VARIABLE = "SKILLSERVE_CONFIG"
TRACEBACK_VARIABLE = "SKILLSERVE_TRACEBACK"
"""Set: an unexpected exception is shown with its traceback. The command line reads it, not a section."""
DEFAULT_FILE = Path("skillserve.toml")

_NOT_SETTINGS = re.compile(
    # The second line: what Kubernetes puts into every pod beside a Service called `skillserve`.
    rf"{CONFIG_VARIABLE}$|{TRACEBACK_VARIABLE}$"
    rf"|{ENV_PREFIX}(SERVICE_(HOST|PORT)|PORT)(_.*)?$"
)

Port = Annotated[int, Field(ge=1, le=65535)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ClientSettings(_Section):
    """How a client reaches the server and how large its requests are."""

    url: str = Field("127.0.0.1:8001", description="gRPC address of the server, host:port")
    timeout_s: float = Field(60.0, gt=0, description="longest wait for one inference call, seconds")
    max_request_tokens: int = Field(
        4_096, gt=0, description="tokens per request in bulk work; the server joins requests, so small ones cost little"
    )
    num_in_flight: int = Field(16, ge=1, description="requests of one client that may be in flight at once")


class SearchSettings(_Section):
    """One search: how many candidates, how many of them reranked, how many shown, and by when."""

    candidates: int = Field(
        50,
        ge=1,
        description="skills taken from the index before reranking; more finds more",
    )
    rerank_depth: int | None = Field(
        None,
        ge=0,
        description="candidates that are reranked, 0 for none; not set: 20, or 0 where the bundle says it hurts",
    )
    top_k: int = Field(5, ge=1, description="hits in the answer")
    deadline_ms: float | None = Field(
        None,
        gt=0,
        description="answer by then, without reranking if need be, or fail; not set: no deadline",
    )
    abstain: bool = Field(
        default=True,
        description="give no hits where probably no skill fits; needs a calibrated bundle (`skillserve calibrate`)",
    )


class IndexSettings(_Section):
    """Building a bundle."""

    models: Path = Field(
        Path("models"),
        description="model repository that the server runs: cards and tokenizers are read from it",
    )
    bundles: Path = Field(Path("bundles"), description="folder of bundles; CURRENT in it names the live one")
    keep: int = Field(
        5, ge=1, description="newest bundles that are kept; the live one and the one before it always are"
    )


class CalibrateSettings(_Section):
    """From scores to probabilities, and the threshold below which a search abstains."""

    none_share: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="assumed share of requests that no skill fits; probabilities depend on it, refusals do not",
    )
    left_out_share: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="share of their weight carried by answerable requests whose own skills were left out; in a large "
        "catalogue others fit those, and probabilities become too low",
    )
    false_injection: float = Field(
        0.05,
        gt=0,
        lt=1,
        description="most requests that no skill fits, as a share of them, that may get hits all the same",
    )
    num_folds: int = Field(5, ge=2, description="folds of the cross-validation")
    num_resamples: int = Field(1_000, ge=100, description="bootstrap resamples behind the intervals of --check")
    seed: int = Field(13, ge=0, description="seed of folds and resamples")


class ExportSettings(_Section):
    """From weights to a servable graph."""

    repository: Path = Field(Path("models"), description="model repository that `export` writes and `verify` checks")
    attention_core: Literal["loop", "gather"] = Field(
        "loop",
        description="`loop` visits sequence after sequence (best on CPU), `gather` pads inside attention only (GPU)",
    )
    max_batch_size: int = Field(64, ge=1, description="requests that the server may join in one execution")
    max_queue_delay_microseconds: int = Field(
        0,
        ge=0,
        description="how long the server waits for company; a lone request pays it in full",
    )
    max_request_tokens: int = Field(32_768, ge=1, description="most tokens the server accepts in one request")
    num_threads: int = Field(0, ge=0, description="intra-op threads of ONNX Runtime; 0: all cores")
    version: int = Field(
        1, ge=1, description="model version that is written and served; the folder holds this one only"
    )


class ServeSettings(_Section):
    """Starting a server."""

    repository: Path = Field(Path("models"), description="model repository that is served")
    tritonserver: Path | None = Field(
        None, description="server binary; not set: `tritonserver` on PATH, then the embedded one"
    )
    host: str = Field(
        "127.0.0.1", description="address to bind; anything but loopback exposes a server without authentication"
    )
    http_port: Port = Field(8000, description="HTTP port, also used for health checks")
    grpc_port: Port = Field(8001, description="gRPC port")
    metrics_port: Port = Field(8002, description="Prometheus metrics port")
    start_deadline_s: float = Field(
        120.0, gt=0, description="give up when the models are not answering by then, seconds"
    )
    health_interval_s: float = Field(5.0, gt=0, description="pause between two health inferences, seconds")
    log_file: Path | None = Field(
        None, description="file that the server's log is appended to; not set: a temporary one, named when it is ready"
    )


class TrainSettings(_Section):
    """A training run. What is not set is chosen for the role; the card records what was used."""

    epochs: float | None = Field(None, gt=0, description="passes over the training pairs; not set: the role's own")
    batch_size: int | None = Field(
        None,
        ge=1,
        description="pairs per step, for the embedder also its in-batch negatives plus one; not set: the role's own",
    )
    learning_rate: float | None = Field(None, gt=0, description="peak learning rate; not set: the role's own")
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="share of the steps over which the learning rate rises")
    max_tokens: int = Field(256, ge=8, description="longest sequence when served; longer skills are cut")
    max_query_tokens: int | None = Field(
        None,
        ge=1,
        description="longest request when served; not set: all that the frame leaves, half of it for a reranker",
    )
    train_tokens: int | None = Field(
        None, ge=8, description="longest sequence in training, where every token costs; not set: the role's own"
    )
    frozen_layers: int | None = Field(
        None, ge=0, description="lowest layers that keep their weights, as embeddings do; not set: the role's own"
    )
    num_negatives: int = Field(3, ge=1, description="wrong skills beside each right one, reranker only")
    holdout_share: float = Field(
        0.1, ge=0, lt=1, description="share of the skills that is not trained on but measured on; 0 trains on all"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of matrix products; `auto` takes bfloat16 where the hardware has it"
    )
    seed: int = Field(13, ge=0, description="seed of everything random")


class BenchSettings(_Section):
    """A measurement."""

    rounds: int = Field(
        7, ge=1, description="rounds; each measures every contender once, figures are medians over them"
    )
    num_clients: int = Field(
        32, ge=1, description="clients at once, each sending its next request when the last one is answered"
    )
    num_requests: int = Field(640, ge=1, description="requests per contender and round")
    num_pairs: int = Field(200, ge=1, description="lone requests per length, each once in process and once served")
    seed: int = Field(13, ge=0, description="seed of lengths, and of the choice of requests")


class Settings(_Section):
    """All sections; `Settings()` is every default."""

    client: ClientSettings = ClientSettings()
    search: SearchSettings = SearchSettings()
    index: IndexSettings = IndexSettings()
    calibrate: CalibrateSettings = CalibrateSettings()
    export: ExportSettings = ExportSettings()
    serve: ServeSettings = ServeSettings()
    train: TrainSettings = TrainSettings()
    bench: BenchSettings = BenchSettings()


def load_settings(
    file: Path | None = None,
    *,
    flags: Mapping[str, object] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Merge file, environment and flags (`{"search.candidates": 100}`; None = not given). Raises ConfigError.

    Without `file`, `SKILLSERVE_CONFIG` names it, else `skillserve.toml` in the working folder is read if there.
    """
    environ = os.environ if environ is None else environ
    given = [*_from_file(file, environ), *_from_environment(environ), *_from_flags(flags or {})]
    merged: dict[str, dict[str, object]] = {}
    for value in given:  # later ones win
        merged.setdefault(value.section, {})[value.name] = value.value
    source = {(value.section, value.name): value.source for value in given}
    try:
        return Settings.model_validate(merged)
    except ValidationError as error:
        first = error.errors()[0]
        section, name = str(first["loc"][0]), str(first["loc"][1])
        if first["type"] == "extra_forbidden":
            known = sorted(type(getattr(Settings(), section)).model_fields)
            raise _unknown(f"setting {name}", source[section, name], known) from error
        raise ConfigError(
            f"setting {source[section, name]}",
            got=repr(first["input"]),
            wanted=first["msg"],
            fix="Correct it and run the command again.",
        ) from error


@dataclass(frozen=True, slots=True)
class _Given:
    """One value that the user set, and where."""

    section: str
    name: str
    value: object
    source: str


def _from_file(file: Path | None, environ: Mapping[str, str]) -> Iterator[_Given]:
    named = file or (Path(environ[CONFIG_VARIABLE]) if environ.get(CONFIG_VARIABLE) else None)
    if named is None and not DEFAULT_FILE.is_file():
        return
    path = named or DEFAULT_FILE
    for section, values in _read_toml(path).items():
        if section not in Settings.model_fields or not isinstance(values, dict):
            raise _unknown(f"section [{section}]", str(path), sorted(Settings.model_fields))
        for name, value in values.items():
            yield _Given(section, name, value, f"[{section}] {name} in {path}")


def _from_environment(environ: Mapping[str, str]) -> Iterator[_Given]:
    for variable in sorted(environ):
        if variable.startswith(ENV_PREFIX) and environ[variable] and not _NOT_SETTINGS.match(variable):
            section, _, name = variable.removeprefix(ENV_PREFIX).lower().partition("_")
            if section not in Settings.model_fields:
                known = [f"{ENV_PREFIX}{known.upper()}_…" for known in Settings.model_fields]
                raise _unknown(f"variable {variable}", "the environment", known)
            yield _Given(section, name, environ[variable], variable)


def _from_flags(flags: Mapping[str, object]) -> Iterator[_Given]:
    for path, value in flags.items():
        if value is not None:
            section, name = path.split(".")
            yield _Given(section, name, value, f"--{name.replace('_', '-')}")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(
            f"configuration file `{path}`",
            got=str(error),
            wanted="a readable TOML file",
            fix="Correct the file or name another one with --config.",
        ) from error


def _unknown(subject: str, source: str, known: list[str]) -> ConfigError:
    return ConfigError(
        subject, got=f"an unknown name in {source}", wanted=f"one of {', '.join(known)}", fix="Correct the name."
    )
