"""Settings of a training run."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from skillserve.settings.ranks import RankWindow
from skillserve.settings.section import Section, words

__all__ = ["TrainSettings"]


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
    scale: float = Field(
        20.0,
        gt=0,
        description="factor of cosines: of an embedder's before the softmax, of those of late interaction always",
    )
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
    interaction: Literal["full", "late"] = Field(
        "full",
        description="the texts of a pair are read as one sequence, or apart and then compared token by token, which "
        "begins where the embedder is; reranker only",
    )
    window: int = Field(
        32,
        ge=1,
        description="tokens of a request that are compared together, the best stretch counts; late interaction only",
    )
    loss: Literal["listwise", "pointwise"] = Field(
        "listwise", description="right skill against its list, or each skill on its own; reranker only"
    )
    similarity_weight: float = Field(
        0.0,
        ge=0,
        description="weight of the first-stage score in the score that is trained, so that the reranker learns a "
        "correction of it; reranker only",
    )
    lexical_weight: float = Field(
        0.0,
        ge=0,
        allow_inf_nan=False,
        description="weight of shared words in the first stage that the reranker follows, as the bundle will have it: "
        "negatives, loss and hold-out know its scores; reranker only",
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
        description="most parts of a request that are read in a step, evenly spread over it; needs part_weight; "
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
        description="ranks of the first stage that negatives come from, where none are mined; reranker only",
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
        return words(value)
