"""Settings: one section a command or a role, one field a flag; `skillserve.config` fills them in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from skillserve.tensors import Precision

__all__ = [
    "BenchSettings",
    "CalibrateSettings",
    "ClientSettings",
    "EvaluateSettings",
    "ExportSettings",
    "IndexSettings",
    "MineSettings",
    "RankWindow",
    "SearchSettings",
    "Section",
    "ServeSettings",
    "Settings",
    "TrainSettings",
    "window",
]

Port = Annotated[int, Field(ge=1, le=65535)]

_MAX_GRAPH = "largest graph that is loaded, with its external data, GiB"


def window(ranks: str) -> tuple[int, int]:
    """First and last rank of a `RankWindow`, counted from 1.

    >>> window("21-60")
    (21, 60)
    """
    first, last = map(int, ranks.split("-"))
    return first, last


def _in_order(ranks: str) -> str:
    first, last = window(ranks)
    if first > last:
        raise ValueError(f"the first rank is at most the last one, as in {last}-{first}")
    return ranks


RankWindow = Annotated[str, Field(pattern=r"^[1-9]\d*-[1-9]\d*$"), AfterValidator(_in_order)]
"""Ranks from the first to the last one, both included, such as `21-60`."""


def _words(value: object) -> object:
    """Text with commas as a tuple; anything else as it is."""
    return tuple(part for part in value.split(",") if part) if isinstance(value, str) else value


class Section(BaseModel):
    """A part of the settings; its fields' descriptions are the help of their flags."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    default_words: ClassVar[str] = "default: {}"
    """How help states a default."""


class ClientSettings(Section):
    """How a client reaches the server and how large its requests are."""

    url: str = Field("127.0.0.1:8001", description="gRPC address of the server, host:port")
    timeout_s: float = Field(60.0, gt=0, description="longest wait for one inference call, seconds")
    max_request_tokens: int = Field(
        4_096, gt=0, description="tokens per request in bulk work; the server joins requests, so small ones cost little"
    )
    num_in_flight: int = Field(16, ge=1, description="requests of one client that may be in flight at once")


class SearchSettings(Section):
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
    lexical_weight: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="weight of shared words, 0 for none; not set: the bundle's"
    )
    part_weight: float | None = Field(
        None, ge=0, allow_inf_nan=False, description="weight of a request's parts, 0 for none; not set: the bundle's"
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


class IndexSettings(Section):
    """Building a bundle."""

    models: Path = Field(
        Path("models"),
        description="model repository that the server runs: cards and tokenizers are read from it",
    )
    bundles: Path = Field(Path("bundles"), description="folder of bundles; CURRENT in it names the live one")
    keep: int = Field(
        5, ge=1, description="newest bundles that are kept; the live one and the one before it always are"
    )
    lexical_weight: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="weight of shared words in the first stage, such as 0.2"
    )
    part_weight: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="weight of a long request's parts in the first stage, such as 1; each part is embedded, too",
    )


class CalibrateSettings(Section):
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


class ExportSettings(Section):
    """From weights to a servable graph."""

    repository: Path = Field(Path("models"), description="model repository that `export` writes and `verify` checks")
    attention_core: Literal["loop", "gather"] = Field(
        "loop",
        description="`loop` visits sequence after sequence (best on CPU), `gather` pads inside attention only (GPU)",
    )
    precision: Precision = Field(
        "fp32",
        description="what the graph computes in: fp32, int8 for CPUs, bf16 or fp16 for GPUs; below fp32 rankings are "
        "judged as with --gate, on --data or else the sample",
    )
    device: Literal["cpu", "cuda"] = Field(
        "cpu", description="where the graph is run to be judged; what does not run there is not written"
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
    max_graph_gib: float = Field(64.0, gt=0, description=_MAX_GRAPH)
    gate_requests: int = Field(
        0, ge=0, description="judged requests that the rank gate asks, evenly spread over those of --data; 0: all"
    )
    gate_depth: int = Field(20, ge=1, description="candidates of a request that the rank gate has a reranker order")


class ServeSettings(Section):
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
    max_graph_gib: float = Field(64.0, gt=0, description=_MAX_GRAPH)
    log_file: Path | None = Field(
        None, description="file that the server's log is appended to; not set: a temporary one, named when it is ready"
    )


class TrainSettings(Section):
    """A training run. Where a value is not given, the recipe's holds, and then the default; the card records all."""

    default_words: ClassVar[str] = "the recipe's, else {}"

    epochs: float = Field(2.0, gt=0, description="passes over the training pairs")
    batch_size: int = Field(
        32,
        ge=1,
        description="pairs per step over all processes, for the embedder also its in-batch negatives plus one",
    )
    learning_rate: float = Field(1e-4, gt=0, description="peak learning rate")
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="share of the steps over which the learning rate rises")
    schedule: Literal["cosine", "linear"] = Field("cosine", description="how the learning rate falls to zero")
    weight_decay: float = Field(0.01, ge=0, description="pull of the weights towards zero, AdamW's")
    max_tokens: int = Field(256, ge=8, description="longest sequence when served; longer skills are cut")
    max_query_tokens: int | None = Field(
        None,
        ge=1,
        description="longest request when served; not set: all that the frame leaves, half of it for a reranker",
    )
    train_tokens: int = Field(
        256, ge=8, description="longest skill, or pair, in training, where every token costs; at most max_tokens"
    )
    train_query_tokens: int | None = Field(
        None, ge=1, description="longest request in training; not set: as when served, within train_tokens"
    )
    frozen_layers: int = Field(0, ge=0, description="lowest layers that keep their weights")
    freeze_embeddings: bool = Field(
        False, description="word vectors keep their weights: half of a small model, seldom better for a short run"
    )
    chunk_size: int = Field(
        0,
        ge=0,
        description="sequences whose activations are held at once, 0: all of a step, for a reranker at least a list; "
        "smaller ones need less memory and, for the embedder, a third more time, and change no result",
    )
    gradient_checkpointing: bool = Field(
        False, description="recompute activations in the backward pass: a third more time, much less memory"
    )
    scale: float = Field(20.0, gt=0, description="cosines are multiplied by this before the softmax, embedder only")
    symmetric: bool = Field(True, description="also rank the requests of a batch for each skill, embedder only")
    catalogue_share: float = Field(
        0.0, ge=0, description="pairs `description, rest of its skill` per pair of the data, embedder only"
    )
    section_share: float = Field(
        0.0, ge=0, description="pairs `section of a body, name and description` per pair of the data, embedder only"
    )
    matryoshka: tuple[int, ...] = Field(
        (), description="dimensions whose first entries shall rank too, as 256,128; embedder only"
    )
    distil_weight: float = Field(
        0.5, ge=0, le=1, description="share of the teacher's rankings in the loss, with --teacher; embedder only"
    )
    loss: Literal["listwise", "pointwise"] = Field(
        "listwise", description="right skill against its list, or each skill on its own; reranker only"
    )
    similarity_weight: float = Field(
        0.0,
        ge=0,
        description="weight of the first stage's similarity in the score that is trained, so that the reranker learns "
        "a correction of it; reranker only",
    )
    lexical_weight: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="weight of shared words in the first stage that the reranker follows, as the bundle will have it; "
        "the similarity weight is chosen for it; reranker only",
    )
    part_weight: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="weight of a request's parts in the first-stage score: an embedder is trained with it, and a "
        "reranker follows it",
    )
    num_parts: int = Field(
        4,
        ge=1,
        description="parts of a request that are read in a step, drawn anew for each pair; needs part_weight; "
        "embedder only",
    )
    num_negatives: int = Field(
        3, ge=1, description="wrong skills beside each right one; an embedder has them with --mined only"
    )
    random_share: float = Field(
        0.0, ge=0, le=1, description="share of the negatives that is drawn from the whole catalogue; reranker only"
    )
    redraw_negatives: bool = Field(
        False, description="draw a request's negatives anew in every pass, instead of once; reranker only"
    )
    ranks: RankWindow = Field(
        "1-30",
        description="ranks of the embedder that negatives come from, where none are mined; reranker only",
    )
    holdout_share: float = Field(
        0.1, ge=0, lt=1, description="share of the skills that is not trained on but measured on; 0 trains on all"
    )
    evals: int = Field(
        0, ge=0, description="measurements of the hold-out in the course of a run, the best weights are kept"
    )
    patience: int = Field(0, ge=0, description="stop after so many measurements without a better one; 0: never")
    checkpoint_steps: int = Field(
        100, ge=1, description="steps between two checkpoints, which a killed run goes on from"
    )
    fresh: bool = Field(False, description="start anew where a run was stopped, and remove its checkpoints")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="of matrix products; `auto` takes bfloat16 where the hardware has it"
    )
    seed: int = Field(13, ge=0, description="seed of everything random")

    @model_validator(mode="after")
    def _measures_what_it_decides_on(self) -> Self:
        if self.patience and not self.evals:
            raise ValueError("patience counts measurements: set evals, too")
        if self.evals and not self.holdout_share:
            raise ValueError("evals measure the hold-out: set holdout_share, too")
        return self

    @field_validator("matryoshka", mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        """Flags and variables bring text: `256,128`."""
        return _words(value)


class MineSettings(Section):
    """Mining hard negatives: wrong skills that several systems rank high, with guards against unjudged right ones."""

    ranks: RankWindow = Field(
        "21-60",
        description="wrong skills at these ranks of any system are candidates; later ranks hide fewer right ones, "
        "1-30 gives the hardest",
    )
    num_negatives: int = Field(15, ge=1, description="negatives drawn for each request, once")
    guard_top: bool = Field(False, description="leave out what another system ranks above the window")
    guard_names: bool = Field(True, description="leave out what is called as a fitting skill is")
    max_overlap: float = Field(
        0.5,
        gt=0,
        le=1,
        description="leave out texts that share more of their runs of five words with a fitting skill's",
    )
    max_share: float = Field(
        0.95,
        gt=0,
        description="leave out what is nearer to the request than this share of the nearest fitting skill; "
        "needs an embedder among the systems",
    )
    max_gold_similarity: float = Field(
        0.95, gt=0, description="leave out what is nearer than this to a fitting skill; needs an embedder"
    )
    seed: int = Field(13, ge=0, description="seed of the draw")


class EvaluateSettings(Section):
    """Measuring systems on judged requests."""

    depth: int = Field(100, ge=1, description="skills that each system ranks for a request")
    rerank_depth: int = Field(
        20, ge=0, description="candidates that a reranker reorders, the others follow as they stood; 0 for none"
    )
    lexical_weight: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="weight of shared words, in process; a bundle has its own"
    )
    part_weight: float = Field(
        0.0, ge=0, allow_inf_nan=False, description="weight of a request's parts, in process; a bundle has its own"
    )
    cutoffs: str = Field(
        "5,10,15",
        pattern=r"^[1-9]\d*(,[1-9]\d*)*$",
        description="ranks at which metrics are taken, with commas between; 10 always is one",
    )
    resamples: int = Field(10_000, ge=100, description="bootstrap samples of the requests, for intervals")
    seed: int = Field(13, ge=0, description="seed of the bootstrap")

    @property
    def ks(self) -> tuple[int, ...]:
        """The cutoffs as numbers, least first."""
        return tuple(sorted({int(cutoff) for cutoff in self.cutoffs.split(",")}))


class BenchSettings(Section):
    """A measurement."""

    rounds: int = Field(
        7, ge=1, description="rounds; each measures every contender once, figures are medians over them"
    )
    num_clients: int = Field(
        32, ge=1, description="clients at once, each sending its next request when the last one is answered"
    )
    num_requests: int = Field(640, ge=1, description="requests per contender and round")
    num_pairs: int = Field(200, ge=1, description="lone requests per length, each once in process and once served")
    seed: int = Field(13, ge=0, description="seed of lengths, of the choice of requests, and of arrivals")
    length: Literal["smoke", "full"] = Field(
        "full", description="`smoke` shows in a minute or two that everything works, `full` gives figures"
    )
    levels: tuple[Literal["embedder", "reranker", "search"], ...] = Field(
        ("embedder", "reranker", "search"), description="what is driven, as embedder,search"
    )
    scenarios: tuple[Literal["index", "single", "multi", "offline", "server", "overload"], ...] = Field(
        ("index", "single", "multi", "offline", "server", "overload"), description="what is measured, as single,server"
    )
    bound_ms: float = Field(100.0, gt=0, description="bound on the 99th percentile of latency in `server`")
    arrivals: Literal["poisson", "constant"] = Field("poisson", description="how an open loop's requests arrive")
    num_workers: int = Field(
        0, ge=0, description="load processes; 0: one for each two cores. Too few make a run invalid, and it says so"
    )
    regression_share: float = Field(
        0.05, ge=0, description="how much worse a figure may be before `compare` calls it a regression"
    )

    @field_validator("levels", "scenarios", mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        """Flags and variables bring text: `embedder,search`."""
        return _words(value)


class Settings(Section):
    """All sections; `Settings()` is every default."""

    client: ClientSettings = ClientSettings()
    search: SearchSettings = SearchSettings()
    index: IndexSettings = IndexSettings()
    calibrate: CalibrateSettings = CalibrateSettings()
    export: ExportSettings = ExportSettings()
    serve: ServeSettings = ServeSettings()
    train: TrainSettings = TrainSettings()
    mine: MineSettings = MineSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    bench: BenchSettings = BenchSettings()
