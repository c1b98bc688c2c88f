"""What happens beside the steps of a run: measuring the hold-out, keeping the best weights, the progress bar."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from skillserve.console import Bar
from skillserve.settings import TrainSettings
from skillserve_training.checkpoints import Checkpoints
from skillserve_training.distributed import is_main, of_main, wait_for_all

__all__ = ["ProgressBar", "Selection"]

_HOLDOUT = "holdout"
"""Name of the hold-out's figure in the Trainer's log."""


class Selection(TrainerCallback):  # type: ignore[misc]
    """Measures the hold-out in the course of a run, keeps the best weights, and stops a run that gets no better."""

    def __init__(
        self,
        trainer: Trainer,
        settings: TrainSettings,
        steps: int,
        checkpoints: Checkpoints,
        measure: Callable[[], float | None],
    ) -> None:
        self._trainer = trainer
        self._patience = settings.patience
        self._at = {round(steps * part / settings.evals) for part in range(1, settings.evals + 1)}
        self._checkpoints = checkpoints
        self._measure = measure

    @property
    def measured(self) -> dict[int, float]:
        """Step → figure, those from before a continuation included: the Trainer's log is in its checkpoints."""
        return {entry["step"]: entry[_HOLDOUT] for entry in self._trainer.state.log_history if _HOLDOUT in entry}

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: object,
    ) -> None:
        """Save as often as this command says, not as the one whose checkpoint the state came from."""
        state.save_steps = args.save_steps

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,
        **_: object,
    ) -> TrainerControl:
        """Measure where it is time to, and stop a run that gets no better."""
        if state.global_step not in self._at or state.global_step in self.measured:
            return control
        before = self.measured
        figure = of_main(self._measure())
        if figure is None:
            return control
        # Not through the Trainer, which would take it for the log of this step.
        state.log_history.append({_HOLDOUT: figure, "step": state.global_step})
        if is_main() and figure > max(before.values(), default=-math.inf):
            self._checkpoints.keep_best(self._trainer.model.pretrained)
        measured = list(self.measured.values())
        since_best = len(measured) - 1 - measured.index(max(measured))
        control.should_training_stop |= 0 < self._patience <= since_best
        return control

    def restore(self) -> int:
        """Load the best weights, if they are not those of the last step; returns their step."""
        measured = self.measured
        last: int = self._trainer.state.global_step
        best = max(measured, key=lambda step: measured[step], default=last)
        wait_for_all()
        if best != last:
            self._checkpoints.restore_best(self._trainer.model.pretrained)
        return best


class ProgressBar(TrainerCallback):  # type: ignore[misc]
    """The bar on stderr: steps, loss, rate."""

    def __init__(self, bar: Bar, tokens_per_s: Callable[[], float]) -> None:
        self._bar = bar
        self._tokens_per_s = tokens_per_s

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        logs: Mapping[str, float],
        **_: object,
    ) -> None:
        """Move on by a step."""
        if "loss" in logs:
            rate = self._tokens_per_s()
            self._bar.advance(note=f"loss {logs['loss']:.3f} · lr {logs['learning_rate']:.1e} · {rate:,.0f} tokens/s")
