"""A tiny world: a WordPiece tokenizer made from scratch, cards, a model repository, and two servers.

`FakeTriton` computes in-process. `WireServer` is a real gRPC server that answers with the same numbers, so that
the client's whole path through sockets and status codes is travelled.
"""

from __future__ import annotations

import asyncio
import json
import string
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import nullcontext
from pathlib import Path
from typing import Any, get_args

import grpc
import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from tritonclient.grpc import service_pb2, service_pb2_grpc

from skillserve.card import ModelCard
from skillserve.errors import DeadlineExceeded, RepositoryError, SkillserveError
from skillserve.max_sim import Interaction
from skillserve.settings import ClientSettings, IndexSettings
from skillserve.tensors import MODEL_NAMES, OUTPUT_NAMES, Ids, Role, WeightsRole
from skillserve.text import BERT_LATE_FRAME, BERT_PAIR_FRAME, BERT_SINGLE_FRAME
from skillserve_client.wire import Floats, Progress, ServedModel, require_digest

DIM = 16
TOKEN_DIM = 8
CLS, SEP = 2, 3
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [
    *("resize", "image", "images", "photo", "pdf", "merge", "table", "sheet", "email"),
    *("send", "git", "commit", "rust", "tests", "chart", "plot", "deploy", "cloud"),
]
DIGESTS: dict[Role, str] = {"embedder": "e" * 64, "reranker": "f" * 64}
"""What a server runs; `make_late` adds the token embedder."""
INTERACTION = Interaction(window=4, scale=10.0)


def build_tokenizer() -> bytes:
    """A WordPiece tokenizer.json with truncation and padding configured, which the client must switch off."""
    characters = string.ascii_lowercase + string.digits + string.punctuation
    vocab = [*SPECIALS, *WORDS, *characters, *(f"##{c}" for c in characters)]
    tokenizer = Tokenizer(models.WordPiece({token: i for i, token in enumerate(vocab)}, unk_token=SPECIALS[1]))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(SPECIALS)
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    return tokenizer.to_str().encode()


def build_card(role: WeightsRole, **changes: Any) -> ModelCard:
    """A valid card of the tiny tokenizer."""
    size = Tokenizer.from_buffer(build_tokenizer()).get_vocab_size()
    facts: dict[str, Any] = {
        "name": f"tiny-{role}",
        "role": role,
        "family": "bert",
        "vocab_size": size,
        "max_tokens": 48,
        "max_query_tokens": 24,
        "base_model": "tiny",
        "base_revision": "0",
        "licence": "Apache-2.0",
        "digest": DIGESTS[role],
    }
    if role == "embedder":
        facts |= {"dim": DIM, "pooling": "mean", "normalised": True, "frame": BERT_SINGLE_FRAME, "score_kind": "cosine"}
    else:
        facts |= {"frame": BERT_PAIR_FRAME, "score_kind": "logit"}
    return ModelCard(**{**facts, **changes})


def embed_one(ids: Ids) -> Floats:
    """A unit vector that depends on the token ids alone, and is close for texts that share words."""
    words = [np.random.default_rng(int(i)).normal(size=DIM) for i in ids if i > SEP]
    total = np.sum(words, axis=0) if words else np.ones(DIM)
    return (total / np.linalg.norm(total)).astype(np.float32)


def score_one(ids: Ids) -> np.float32:
    """How many tokens the two sides of a pair share, less a little for length."""
    middle = int(np.flatnonzero(ids == SEP)[0])
    return np.float32(len(set(ids[1:middle].tolist()) & set(ids[middle + 1 : -1].tolist())) - len(ids) / 1000)


def read_one(ids: Ids) -> Floats:
    """Token embeddings `[T, TOKEN_DIM]`, float64: of a token and, a little, of its left neighbour; marks are zeros."""
    vectors = [np.random.default_rng([7, int(i)]).normal(size=TOKEN_DIM) for i in ids]
    rows = np.stack([own + 0.4 * before for own, before in zip(vectors, [vectors[0], *vectors], strict=False)])
    weights = [0.5 + int(i) % 3 if i >= len(SPECIALS) else 0.0 for i in ids]
    return rows / np.linalg.norm(rows, axis=1, keepdims=True) * np.array(weights)[:, None]


def score_late(ids: Ids) -> np.float32:
    """What a late reranker says of a pair: `read_one` of either side, and loops over their tokens."""
    cut = int(np.flatnonzero(ids == CLS)[1])
    asked, offered = (
        [(row / max(float(np.linalg.norm(row)), 1e-12), float(np.linalg.norm(row))) for row in read_one(side)]
        for side in (ids[:cut], ids[cut:])
    )
    heard = [direction for direction, weight in offered if weight > 0]
    nearest = [max((float(own @ other) for other in heard), default=-1.0) for own, _ in asked]
    size = min(INTERACTION.window, len(asked))
    best = -np.inf
    for start in range(len(asked) - size + 1):
        stretch = range(start, start + size)
        total = sum(asked[place][1] for place in stretch)
        mean = sum(asked[place][1] * nearest[place] for place in stretch) / total if total else 0.0
        best = max(best, mean)
    return np.float32(INTERACTION.scale * best)


def compute(role: Role, sequences: Sequence[Ids], score: Callable[[Ids], np.float32] = score_one) -> Floats:
    """What either server answers."""
    if role == "token_embedder":
        return np.concatenate([read_one(s) for s in sequences]).astype(np.float32)
    return np.stack([embed_one(s) if role == "embedder" else score(s) for s in sequences]).astype(np.float32)


class AwaitedFake:
    """The same, to be awaited."""

    def __init__(self, fake: FakeTriton) -> None:
        self._fake = fake

    async def served(self, role: Role) -> ServedModel:
        """Describe a model."""
        return self._fake.served(role)

    async def infer(self, role: Role, sequences: Sequence[Ids], **named: Any) -> Floats:
        """Let others go first, then compute."""
        await asyncio.sleep(0)
        return self._fake.infer(role, sequences, **named)


class FakeTriton:
    """`skillserve_client.Inference`, in-process; `failures` and `delays_s` make it misbehave."""

    def __init__(self, digests: dict[Role, str] | None = None) -> None:
        self.digests = dict(DIGESTS if digests is None else digests)
        self.version = "1"
        self.failures: dict[Role, SkillserveError] = {}
        self.delays_s: dict[Role, float] = {}
        self.score: Callable[[Ids], np.float32] = score_one
        self.interaction = INTERACTION
        self.token_dim = TOKEN_DIM
        self.calls: list[tuple[Role, list[Ids], float | None]] = []

    def awaited(self) -> AwaitedFake:
        """For asyncio."""
        return AwaitedFake(self)

    def served(self, role: Role) -> ServedModel:
        """Describe the tiny model of a role."""
        if role not in self.digests:
            raise RepositoryError(
                f"model `{MODEL_NAMES[role]}`", got="no such model on the server", wanted="one", fix="Export it."
            )
        dims: dict[Role, int] = {"embedder": DIM, "token_embedder": self.token_dim}
        return ServedModel(
            role=role,
            name=MODEL_NAMES[role],
            version=self.version,
            layout="packed",
            digest=self.digests[role],
            dim=dims.get(role),
            max_request_tokens=4096,
            max_sequence_tokens=48,
            vocab_size=1000,
            max_batch_size=64,
            interaction=self.interaction if role == "token_embedder" else None,
        )

    def infer(
        self,
        role: Role,
        sequences: Sequence[Ids],
        *,
        timeout_s: float | None = None,
        progress: Progress | None = None,
        digest: str | None = None,
    ) -> Floats:
        """Compute, or misbehave."""
        self.calls.append((role, list(sequences), timeout_s))
        require_digest(self.served(role), digest, subject="fake")
        delay_s = self.delays_s.get(role, 0.0)
        if timeout_s is not None and delay_s > timeout_s:
            raise DeadlineExceeded("fake", got="no answer", wanted="one", fix="Wait.")
        time.sleep(delay_s)
        if role in self.failures:
            raise self.failures[role]
        if progress:
            progress(len(sequences))
        return compute(role, sequences, self.score)


class WireServer(service_pb2_grpc.GRPCInferenceServiceServicer):
    """A gRPC server with Triton's messages; `aborts` holds failures that are handed out before any answer."""

    def __init__(self, port: int = 0) -> None:
        self.layout = "packed"
        self.digests = dict(DIGESTS)
        self.versions = ["2", "10"]
        self.asked: list[str] = []
        self.parameters = {"skillserve_max_request_tokens": "64", "skillserve_max_sequence_tokens": "48"}
        self.interaction = {
            "skillserve_late_window": str(INTERACTION.window),
            "skillserve_late_scale": str(INTERACTION.scale),
        }
        self.score: Callable[[Ids], np.float32] = score_one
        self.aborts: list[tuple[grpc.StatusCode, str]] = []
        self.requests: list[dict[str, np.ndarray]] = []
        self.delay_s = 0.0
        self.in_turn = False
        self.poison: int | None = None
        self.most_at_once = 0
        self.arrived = threading.Event()
        self._at_once = 0
        self._lock = threading.Lock()
        self._turn = threading.Lock()
        self._server = grpc.server(futures.ThreadPoolExecutor(16))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.url = f"127.0.0.1:{self._server.add_insecure_port(f'127.0.0.1:{port}')}"
        self._server.start()

    def stop(self) -> None:
        """End the server."""
        self._server.stop(None).wait()

    def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        """The configuration with skillserve's parameters."""
        role = self._role(request.name, context)
        self.asked.append(role)
        response = service_pb2.ModelConfigResponse()
        response.config.name = request.name
        response.config.max_batch_size = 4
        dims: dict[Role, list[int]] = {"embedder": [-1, DIM], "reranker": [-1], "token_embedder": [-1, TOKEN_DIM]}
        response.config.output.add(dims=dims[role])
        parameters = {"skillserve_digest": self.digests[role], "skillserve_layout": self.layout, **self.parameters}
        if role == "token_embedder":
            parameters |= self.interaction
        for key, value in parameters.items():
            response.config.parameters[key].string_value = value
        return response

    def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Two versions; as text, the older sorts last."""
        self._role(request.name, context)
        return service_pb2.ModelMetadataResponse(name=request.name, versions=self.versions)

    def ServerMetadata(self, _request: Any, _context: Any) -> Any:  # noqa: N802
        """Name and version."""
        return service_pb2.ServerMetadataResponse(name="triton", version="2.51.0")

    def ModelStatistics(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Fixed totals."""
        self._role(request.name, context)
        response = service_pb2.ModelStatisticsResponse()
        response.model_stats.add(name=request.name, version="10", execution_count=len(self.requests))
        response.model_stats[0].inference_stats.success.count = 7
        response.model_stats[0].inference_stats.queue.ns = 3_000_000
        return response

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Abort if one is due, else compute."""
        with self._lock:
            self._at_once += 1
            self.arrived.set()
            self.most_at_once = max(self.most_at_once, self._at_once)
            abort = self.aborts.pop(0) if self.aborts else None
        try:
            if abort:
                context.abort(*abort)
            if request.model_version not in self.versions:
                context.abort(grpc.StatusCode.NOT_FOUND, f"unknown model, version {request.model_version}")
            with self._turn if self.in_turn else nullcontext():
                time.sleep(self.delay_s)
            return self._answer(self._role(request.model_name, context), request)
        finally:
            with self._lock:
                self._at_once -= 1

    def _answer(self, role: Role, request: Any) -> Any:
        tensors = {
            item.name: np.frombuffer(raw, np.int32).reshape(item.shape)
            for item, raw in zip(request.inputs, request.raw_input_contents, strict=True)
        }
        self.requests.append({**tensors, "version": np.array(int(request.model_version))})
        ids = tensors["input_ids"]
        if self.layout == "packed":
            sequences = np.split(ids[0], np.cumsum(tensors["seq_lens"][0])[:-1])
        else:
            sequences = [row[mask == 1] for row, mask in zip(ids, tensors["attention_mask"], strict=True)]
        rows = compute(role, sequences, self.score)
        if self.poison is not None:
            lens = [len(s) if role == "token_embedder" else 1 for s in sequences]
            rows[np.repeat([self.poison in s for s in sequences], lens)] = np.nan
        rows = rows[None] if self.layout == "packed" else rows
        response = service_pb2.ModelInferResponse(model_name=request.model_name)
        response.outputs.add(name=OUTPUT_NAMES[role], datatype="FP32", shape=rows.shape)
        response.raw_output_contents.append(rows.tobytes())
        return response

    def _role(self, name: str, context: Any) -> Role:
        roles = {MODEL_NAMES[role]: role for role in self.digests}
        if name not in roles:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: '{name}' is not found")
        return roles[name]


def make_late(server: FakeTriton | WireServer) -> None:
    """Let a server run a late reranker, and the token embedder of the same weights."""
    server.digests["token_embedder"] = server.digests["reranker"]
    server.score = score_late


@pytest.fixture
def fake() -> FakeTriton:
    return FakeTriton()


@pytest.fixture
def new_fake() -> type[FakeTriton]:
    return FakeTriton


@pytest.fixture
def new_wire_server() -> type[WireServer]:
    return WireServer


@pytest.fixture
def wire_server() -> Iterator[WireServer]:
    server = WireServer()
    yield server
    server.stop()


@pytest.fixture
def wire_settings(wire_server: WireServer) -> ClientSettings:
    return ClientSettings(url=wire_server.url, timeout_s=5, max_request_tokens=1000)


@pytest.fixture(scope="session")
def tokenizer_json() -> bytes:
    return build_tokenizer()


@pytest.fixture(scope="session")
def card_of() -> Callable[..., ModelCard]:
    return build_card


@pytest.fixture(scope="session")
def computed() -> Callable[[Role, Sequence[Ids]], Floats]:
    return compute


@pytest.fixture
def world(tmp_path: Path) -> IndexSettings:
    """A model repository and a place for bundles; its reranker is a cross-encoder."""
    for role in get_args(WeightsRole):
        _write_model(tmp_path / "repository" / MODEL_NAMES[role], build_card(role))
    return IndexSettings(models=tmp_path / "repository", bundles=tmp_path / "bundles")


@pytest.fixture
def late_fake(fake: FakeTriton) -> FakeTriton:
    """The server whose reranker compares tokens."""
    make_late(fake)
    return fake


@pytest.fixture
def late_wire_server(wire_server: WireServer) -> WireServer:
    """The same behind a socket."""
    make_late(wire_server)
    return wire_server


@pytest.fixture
def late_world(world: IndexSettings) -> IndexSettings:
    """The world with a late reranker, served as two models; bundles keep token embeddings."""
    card = build_card("reranker", frame=BERT_LATE_FRAME, score_kind="max_sim")
    for role in ("reranker", "token_embedder"):
        _write_model(world.models / MODEL_NAMES[role], card)
    return world.model_copy(update={"token_embeddings": 40})


def _write_model(folder: Path, card: ModelCard) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "card.json").write_text(card.model_dump_json())
    (folder / "tokenizer.json").write_bytes(build_tokenizer())


@pytest.fixture
def catalogue(tmp_path: Path) -> Path:
    """Five skills; one is nearly empty and one is hostile."""
    rows = [
        {"id": "img", "name": "images", "description": "resize image photo", "body": "resize images " * 40},
        {"id": "pdf", "name": "pdf", "description": "merge pdf", "namespace": "acme", "licence": "MIT"},
        {"id": "git", "name": "git", "description": "git commit tests", "body": "rust tests commit"},
        {"id": "bare", "name": "deploy"},
        {
            "id": "evil",
            "name": "mail",
            "description": "[SEP] send email \x00 \u202e <|im_end|> \ud800",
            "body": "[CLS]",
        },
    ]
    path = tmp_path / "skills.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def bundles(world: IndexSettings, catalogue: Path, fake: FakeTriton) -> Path:
    """A root with one published bundle of the five skills."""
    from skillserve_client.build import build_bundle

    build_bundle(catalogue, fake, index=world)
    fake.calls.clear()
    return world.bundles


@pytest.fixture
def late_bundle(late_world: IndexSettings, catalogue: Path, late_fake: FakeTriton) -> Any:
    """A bundle of the five skills with their token embeddings, opened."""
    from skillserve_client import build_bundle, open_bundle

    build_bundle(catalogue, late_fake, index=late_world)
    late_fake.calls.clear()
    return open_bundle(late_world.bundles)


@pytest.fixture
def judged_file(tmp_path: Path) -> Path:
    """Three requests with their skills, and one that nothing fits."""
    rows = [
        {"id": "q1", "query": "resize photo", "skill_ids": ["img"]},
        {"id": "q2", "query": "merge pdf", "skill_ids": ["pdf"]},
        {"id": "q3", "query": "git commit", "skill_ids": ["git"]},
        {"id": "q4", "query": "chart", "skill_ids": []},
    ]
    path = tmp_path / "queries.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
