"""The embedder's objective: requests near their skills and away from the others of the batch, in bounded memory.

Legend: P pairs of this process, W processes, V parts of a request, D dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from skillserve.card import ModelCard
from skillserve.settings import TrainSettings
from skillserve.tensors import Ids
from skillserve_training.distributed import gather_lists, gather_rows
from skillserve_training.forward import autocast, embed, grouped
from skillserve_training.losses import nested, ranking_loss, relation_loss, scores_with_parts
from skillserve_training.objective import Synchronise, Trainee
from skillserve_training.pairs import EmbedderTexts, Pair
from skillserve_training.precision import Precision

__all__ = ["Contrast", "EmbedderTrainee", "Taught"]


class EmbedderTrainee(Trainee):
    """Sequences → unit rows `[B, D]`."""

    def __init__(self, pretrained: PreTrainedModel, card: ModelCard, precision: Precision) -> None:
        super().__init__()
        self.pretrained = pretrained
        self._card = card
        self._precision: Precision = precision

    def forward(self, sequences: Sequence[Ids]) -> Tensor:
        """Embeddings in the given order."""
        with autocast(self._precision, self.pretrained.device):
            return grouped(sequences, lambda group: embed(self.pretrained, group, self._card), self.pretrained.device)


@dataclass(frozen=True, slots=True)
class Taught:
    """A teacher's embeddings of everything that pairs point into."""

    requests: Tensor
    documents: Tensor


class Contrast:
    """Multiple-negatives ranking over the batches of all processes, with what the settings add to it."""

    def __init__(self, texts: EmbedderTexts, settings: TrainSettings, taught: Taught | None = None) -> None:
        self._texts = texts
        self._settings = settings
        self._dims = settings.matryoshka
        self._taught = taught

    def num_tokens(self, rows: Sequence[Pair]) -> int:
        """Of requests, their parts, documents and negatives."""
        documents = [document for row in rows for document in (row.document, *row.negatives)]
        read = [self._texts.requests[row.request] for row in rows] + [self._texts.documents[each] for each in documents]
        return sum(map(len, read)) + sum(len(part) for row in rows for part in self._parts(row))

    def backward(self, model: nn.Module, rows: Sequence[Pair], synchronise: Synchronise) -> Tensor:
        """One step. With `chunk_size` in two passes, so that only a chunk's activations are ever held."""
        negatives = [wrong for row in rows for wrong in row.negatives]
        documents = [row.document for row in rows] + negatives
        sequences = [self._texts.requests[row.request] for row in rows]
        sequences += [self._texts.documents[document] for document in documents]
        sequences += [part for row in rows for part in self._parts(row)]
        loss_of = partial(self._loss, rows=rows, documents=documents)
        if self._settings.chunk_size:
            return cached_backward(model, sequences, loss_of, self._settings.chunk_size, synchronise)
        with synchronise(True):
            loss = loss_of(model(sequences))
            loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _loss(self, vectors: Tensor, *, rows: Sequence[Pair], documents: list[int]) -> Tensor:
        num_pairs, settings = len(rows), self._settings
        all_requests, first = gather_rows(vectors[:num_pairs])
        paired, _ = gather_rows(vectors[num_pairs : 2 * num_pairs])
        extra, _ = gather_rows(vectors[2 * num_pairs : num_pairs + len(documents)])
        skills = torch.cat([paired, extra])
        columns = gather_lists(documents[:num_pairs]) + gather_lists(documents[num_pairs:])
        request_of_row = gather_lists([row.request for row in rows])
        excluded = self._excluded(request_of_row, columns).to(vectors.device)
        mine = torch.arange(first, first + num_pairs, device=vectors.device)

        sides = [all_requests, skills]
        if settings.part_weight:
            sides.append(gather_rows(vectors[self._places_of_parts(rows, behind=num_pairs + len(documents))])[0])

        def ranking(requests: Tensor, skills: Tensor, parts: Tensor | None = None) -> Tensor:
            if parts is None:
                scores = requests @ skills.T
            else:
                scores = scores_with_parts(requests, parts, skills, settings.part_weight)
            return ranking_loss(scores, excluded, mine, scale=settings.scale, symmetric=settings.symmetric)

        loss = nested(ranking, sides, self._dims)
        if self._taught is None:
            return loss
        taught = (
            self._taught.requests[request_of_row].to(vectors.device),
            self._taught.documents[columns].to(vectors.device),
        )
        distilled = relation_loss((all_requests, skills), taught, mine, scale=settings.scale)
        return (1 - settings.distil_weight) * loss + settings.distil_weight * distilled

    def _parts(self, row: Pair) -> list[Ids]:
        if not self._settings.part_weight:
            return []
        return [self._texts.parts[row.request][part] for part in row.parts]

    def _places_of_parts(self, rows: Sequence[Pair], *, behind: int) -> Tensor:
        """`[P, V]` int64: where the vectors of each row's parts are; a request without parts is its own only part.

        Where a request has fewer than V, its first part stands in, which changes no maximum.
        """
        places = torch.empty(len(rows), self._settings.num_parts, dtype=torch.int64)
        for place, row in enumerate(rows):
            own = list(range(behind, behind + len(row.parts))) or [place]
            places[place] = torch.tensor(own + own[:1] * (places.shape[1] - len(own)))
            behind += len(row.parts)
        return places

    def _excluded(self, requests: Sequence[int], documents: Sequence[int]) -> Tensor:
        """`[W·P, C]` bool: the document's skill fits the request, and is not the one it is paired with."""
        skills = np.array([self._texts.skill_of[document] for document in documents])
        fits = torch.from_numpy(np.stack([np.isin(skills, list(self._texts.golds[request])) for request in requests]))
        return fits.fill_diagonal_(False)


def cached_backward(
    model: nn.Module,
    sequences: Sequence[Ids],
    loss_of: partial[Tensor],
    chunk_size: int,
    synchronise: Synchronise,
) -> Tensor:
    """The gradients of a whole batch, chunk by chunk (GradCache: Gao et al., 2021, arXiv 2101.06983).

    First all rows without a graph, and the loss's gradient with respect to them; then each chunk again with its
    graph, which takes that gradient further to the weights. A third more work, and memory for one chunk.
    """
    order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
    chunks = [order[start : start + chunk_size] for start in range(0, len(order), chunk_size)]
    with torch.no_grad():
        found = torch.cat([model([sequences[i] for i in chunk]) for chunk in chunks])
    rows = torch.empty_like(found)
    rows[torch.tensor(order, device=found.device)] = found
    rows.requires_grad_()
    loss = loss_of(rows)
    (gradient,) = torch.autograd.grad(loss, rows)
    for number, chunk in enumerate(chunks, 1):
        with synchronise(number == len(chunks)):
            again = model([sequences[i] for i in chunk])
            (again * gradient[chunk]).sum().backward()
    return loss.detach()
