"""The training loop, the same for every model: transformers' Trainer with our batches, checkpoints and messages.

The Trainer brings the optimiser, the schedule, several GPUs through `torchrun`, and checkpoints; the order of rows is
drawn before a run begins (`pairs.py`, `lists.py`), and no layer drops out, so a run that was killed and goes on sees
the same rows with the same weights as one that was not.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import SequentialSampler
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from skillserve.console import progress, talk
from skillserve.errors import ConfigError
from skillserve.settings import TrainSettings
from skillserve_training.checkpoints import Checkpoints, load_weights, save_weights
from skillserve_training.course import Course
from skillserve_training.distributed import is_main, wait_for_all
from skillserve_training.objective import Objective, Trainee
from skillserve_training.selection import ProgressBar, Selection

__all__ = ["fit", "learning_rate_share"]

Row = TypeVar("Row")

_LARGEST_GRADIENT_NORM = 1.0
_HEAD_RATE = 10.0
"""A new head starts at nothing and the encoder at something good: the head learns this much faster."""


def fit(
    trainee: Trainee,
    objective: Objective[Row],
    rows: Sequence[Row],
    steps: int,
    settings: TrainSettings,
    checkpoints: Checkpoints,
    *,
    measure: Callable[[], float | None],
    title: str,
) -> Course:
    """Train for `steps` steps over `rows`, in order; the trainee holds the chosen weights afterwards.

    `measure` gives NDCG@10 of the hold-out, or None without one. Raises ConfigError naming the step where a loss or
    gradient is not finite; checkpoints stay then.
    """
    wait_for_all()
    resume = checkpoints.latest()
    arguments = _arguments(settings, steps, len(rows) // steps, checkpoints.folder)
    trainer = _Trainer(trainee, objective, rows, arguments, linear=settings.schedule == "linear")
    selection = Selection(trainer, settings, steps, checkpoints, measure)
    started = time.perf_counter()
    with progress(title, steps) as bar:
        if resume is not None and is_main():
            talk(f"Going on from step {resume.step}, whose checkpoint is in {checkpoints.folder}.")
            bar.advance(resume.step)
        trainer.add_callback(ProgressBar(bar, lambda: trainer.num_tokens / trainer.seconds))
        trainer.add_callback(selection)
        trainer.train(resume_from_checkpoint=str(resume.folder) if resume else None)
    trainee.eval()
    best_step = selection.restore()
    wait_for_all()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    return Course(
        steps=trainer.state.global_step,
        planned_steps=steps,
        seconds=round(time.perf_counter() - started, 1),
        tokens_per_s=round(trainer.num_tokens / trainer.seconds) if trainer.seconds else None,
        peak_gpu_bytes=torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        resumed_from=resume.step if resume else None,
        losses=tuple(entry["loss"] for entry in logged),
        learning_rates=tuple(entry["learning_rate"] for entry in logged),
        holdout=selection.measured,
        best_step=best_step,
    )


def learning_rate_share(step: int, steps: int, warmup: int, *, linear: bool) -> float:
    """Share of the peak rate in a step, counted from 0: a straight rise that begins above zero, then a fall to zero.

    The Trainer's own schedule spends its first step at a rate of zero, and of a short run that is a large part.
    """
    if step < warmup:
        return (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return 1 - done if linear else 0.5 * (1 + math.cos(math.pi * done))


def _arguments(settings: TrainSettings, steps: int, batch_size: int, folder: Path) -> TrainingArguments:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if batch_size % world:
        raise ConfigError(
            "batch size",
            got=f"{batch_size} for {world} processes",
            wanted="the same number of rows for each",
            fix=f"Run it again with --batch-size {max(1, batch_size // world) * world}",
        )
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch_size // world,
        dataloader_drop_last=True,
        learning_rate=settings.learning_rate,
        warmup_steps=max(1, round(steps * settings.warmup_ratio)),
        weight_decay=settings.weight_decay,
        max_grad_norm=_LARGEST_GRADIENT_NORM,
        save_strategy="steps",
        save_steps=settings.checkpoint_steps,
        save_total_limit=1,
        logging_steps=1,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to=[],
        seed=settings.seed,
        use_cpu=not torch.cuda.is_available(),
        ddp_backend="gloo" if world > 1 and not torch.cuda.is_available() else None,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=False,
    )
    if arguments.n_gpu > 1:
        # One process has one GPU: copies of a model in threads (DataParallel) would each see all rows.
        arguments._n_gpu = 1  # noqa: SLF001
    return arguments


class _Trainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer over rows in a given order, whose objective runs its own backward passes."""

    def __init__(
        self,
        trainee: Trainee,
        objective: Objective[Row],
        rows: Sequence[Row],
        arguments: TrainingArguments,
        *,
        linear: bool,
    ) -> None:
        self._linear = linear
        self._objective = objective
        self.num_tokens = 0
        self.seconds = 0.0
        super().__init__(
            model=trainee,
            args=arguments,
            train_dataset=rows,
            data_collator=lambda batch: {"rows": batch},
        )
        self.remove_callback(PrinterCallback)

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:  # noqa: ANN401
        return SequentialSampler(train_dataset or self.train_dataset)

    def training_step(
        self,
        model: nn.Module,
        inputs: Mapping[str, Sequence[Any]],
        num_items_in_batch: Tensor | None = None,  # noqa: ARG002
    ) -> Tensor:
        model.train()
        started = time.perf_counter()
        loss = self._objective.backward(model, inputs["rows"], lambda last: _synchronise(model, last=last))
        self._require_finite("loss", loss)  # waits for a GPU, too
        self.seconds += time.perf_counter() - started
        self.num_tokens += self._objective.num_tokens(inputs["rows"])
        # Before the Trainer clips, which would spread one infinite gradient over all of them.
        self._require_finite("gradient", *(weight.grad for weight in model.parameters() if weight.grad is not None))
        return loss

    def create_optimizer(self) -> torch.optim.Optimizer:
        of_head = {id(weight) for module in self.model.new_head() for weight in module.parameters()}
        plain = [weight for weight in self.model.parameters() if weight.requires_grad and id(weight) not in of_head]
        head = [weight for weight in self.model.parameters() if weight.requires_grad and id(weight) in of_head]
        rate = self.args.learning_rate
        groups = [{"params": plain, "lr": rate}, {"params": head, "lr": rate * _HEAD_RATE}]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=rate, weight_decay=self.args.weight_decay
        )
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LambdaLR:
        warmup, linear = self.args.warmup_steps, self._linear
        self.lr_scheduler = LambdaLR(
            optimizer or self.optimizer,
            lambda step: learning_rate_share(step, num_training_steps, warmup, linear=linear),
        )
        return self.lr_scheduler

    def _save(self, output_dir: str | None = None, state_dict: object = None) -> None:  # noqa: ARG002
        save_weights(self.model.pretrained, Path(output_dir or self.args.output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Trainee | None = None) -> None:
        load_weights((model or self.model).pretrained, Path(resume_from_checkpoint))

    def _rotate_checkpoints(self, use_mtime: bool = False, output_dir: str | None = None) -> None:  # noqa: ARG002, FBT001, FBT002
        super()._rotate_checkpoints(use_mtime=False, output_dir=output_dir)  # their numbers tell their order

    def _require_finite(self, what: str, *found: Tensor) -> None:
        if bool(torch.stack([torch.isfinite(each).all() for each in found]).all()):
            return
        kept = self.state.global_step // self.state.save_steps * self.state.save_steps
        raise ConfigError(
            f"training step {self.state.global_step + 1} of {self.args.max_steps}",
            got=f"a {what} that is not finite",
            wanted="finite numbers"
            + (f"; the checkpoint of step {kept} is kept in {self.args.output_dir}" if kept else ""),
            fix=f"Run it into another folder, with a lower rate: --learning-rate {self.args.learning_rate / 10:g}",
        )


def _synchronise(model: nn.Module, *, last: bool) -> AbstractContextManager[object]:
    return nullcontext() if last or not isinstance(model, DistributedDataParallel) else model.no_sync()
