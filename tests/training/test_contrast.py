"""The embedder's objective: what is excluded, that memory-saving changes nothing, and that processes add up."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from skillserve.settings import TrainSettings
from skillserve.tensors import Ids
from skillserve_training.contrast import Contrast, Taught
from skillserve_training.pairs import EmbedderTexts, Pair

WORDS = 50


class Averager(nn.Module):
    """The smallest embedder: the mean of word vectors, made a unit row."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.words = nn.Embedding(WORDS, 8)

    def forward(self, sequences: Sequence[Ids]) -> Tensor:
        """Unit rows `[B, 8]`."""
        means = [self.words(torch.from_numpy(sequence.astype(np.int64))).mean(0) for sequence in sequences]
        return nn.functional.normalize(torch.stack(means), dim=-1)


def make_texts() -> EmbedderTexts:
    """Eight requests and skills; skills 0 and 1 both fit request 0."""
    draw = np.random.default_rng(0)
    ids = [draw.integers(0, WORDS, draw.integers(3, 9)).astype(np.int32) for _ in range(16)]
    golds = [frozenset({0, 1}), *(frozenset({i}) for i in range(1, 8))]
    parts = [[draw.integers(0, WORDS, 4).astype(np.int32) for _ in range(i % 4)] for i in range(8)]
    return EmbedderTexts(ids[:8], golds, ids[8:], list(range(8)), [], [], [], parts)


def make_rows() -> list[Pair]:
    """Each request with its skill, a hard negative, and at most two of its parts."""
    return [Pair(i, i, ((i + 3) % 8,), tuple(range(min(i % 4, 2)))) for i in range(8)]


@pytest.fixture
def gradients() -> Callable[..., tuple[float, Tensor]]:
    """Loss and gradient of one step over all eight pairs, with a hard negative each."""

    def step(taught: Taught | None = None, **changed: object) -> tuple[float, Tensor]:
        model = Averager()
        rows = make_rows()
        settings = TrainSettings().model_copy(update=changed)
        loss = Contrast(make_texts(), settings, taught).backward(model, rows, lambda _: nullcontext())
        assert model.words.weight.grad is not None
        return float(loss), model.words.weight.grad

    return step


@pytest.mark.parametrize("chunk", [1, 3, 100])
def test_a_chunk_at_a_time_gives_the_gradients_of_the_whole(
    gradients: Callable[..., tuple[float, Tensor]], chunk: int
) -> None:
    changed = {"matryoshka": (4,), "part_weight": 0.7, "num_parts": 3}
    (whole_loss, whole), (loss, gradient) = gradients(**changed), gradients(**changed, chunk_size=chunk)
    assert loss == pytest.approx(whole_loss, rel=1e-5)
    torch.testing.assert_close(gradient, whole, rtol=1e-4, atol=1e-6)


def test_another_gold_of_a_request_is_no_negative() -> None:
    contrast = Contrast(make_texts(), TrainSettings())
    assert contrast._excluded([0, 1], [0, 1]).tolist() == [[False, True], [False, False]]
    assert contrast._excluded([0, 0], [0, 1]).tolist() == [[False, True], [True, False]]


def test_parts_take_part_by_their_weight(gradients: Callable[..., tuple[float, Tensor]]) -> None:
    """As if each request were read with the part that suits a skill best; with no weight parts change nothing."""
    model, texts, rows = Averager(), make_texts(), make_rows()
    requests, skills = model(texts.requests), model(texts.documents)
    excluded = Contrast(texts, TrainSettings())._excluded(range(8), [*range(8), *(row.negatives[0] for row in rows)])
    columns = torch.cat([skills, skills[[row.negatives[0] for row in rows]]])
    scores = []
    for i, row in enumerate(rows):
        parts = [texts.parts[i][part] for part in row.parts] or [texts.requests[i]]
        scores.append((requests[i] @ columns.T + (model(parts) @ columns.T).amax(0)) / 2)
    logits = (20 * torch.stack(scores)).masked_fill(excluded, -torch.inf)
    expected = (cross_entropy(logits, torch.arange(8)) + cross_entropy(logits[:, :8].T, torch.arange(8))) / 2
    loss, _ = gradients(part_weight=1.0)
    assert loss == pytest.approx(float(expected.detach()), rel=1e-5)
    alone, _ = gradients(part_weight=0.0)
    assert alone != pytest.approx(loss, rel=1e-3)


def test_a_teacher_changes_what_is_learned_by_its_share(gradients: Callable[..., tuple[float, Tensor]]) -> None:
    draw = torch.Generator().manual_seed(4)
    rows = [nn.functional.normalize(torch.randn(8, 5, generator=draw), dim=-1) for _ in range(2)]
    taught = Taught(rows[0], rows[1])
    alone, _ = gradients()
    half, _ = gradients(taught, distil_weight=0.5)
    all_of_it, _ = gradients(taught, distil_weight=1.0)
    assert half == pytest.approx((alone + all_of_it) / 2, rel=1e-5)


CHUNKS = (0, 3)

PROCESS = """
import json, os, sys
from contextlib import nullcontext
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from skillserve.settings import TrainSettings
from skillserve_training.contrast import Contrast
sys.path.insert(0, {tests!r})
from test_contrast import Averager, make_rows, make_texts

distributed.init_process_group("gloo")
rank = distributed.get_rank()
rows = make_rows()[rank * 4 : rank * 4 + 4]
found = {{}}
for chunk in {chunks!r}:
    model = DistributedDataParallel(Averager())
    synchronise = lambda last: nullcontext() if last else model.no_sync()
    loss = Contrast(make_texts(), TrainSettings(chunk_size=chunk, part_weight=1.0)).backward(model, rows, synchronise)
    total = torch.tensor([float(loss)])
    distributed.all_reduce(total)
    found[chunk] = {{"loss": float(total) / 2, "gradient": model.module.words.weight.grad.tolist()}}
if rank == 0:
    print(json.dumps(found))
distributed.destroy_process_group()
sys.stdout.flush()
os._exit(0)  # as every command ends: threads of native libraries can abort the interpreter's teardown
"""


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Loss and gradient by chunk size, from one start of two processes."""
    script = tmp_path_factory.mktemp("processes") / "process.py"
    script.write_text(PROCESS.format(tests=str(Path(__file__).parent), chunks=CHUNKS))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.parametrize("chunk", CHUNKS)
def test_two_processes_see_each_others_negatives(
    gradients: Callable[..., tuple[float, Tensor]], chunk: int, of_two_processes: dict[str, Any]
) -> None:
    found = of_two_processes[str(chunk)]
    loss, gradient = gradients(part_weight=1.0)
    assert found["loss"] == pytest.approx(loss, rel=1e-5)
    torch.testing.assert_close(torch.tensor(found["gradient"]), gradient, rtol=1e-4, atol=1e-6)
