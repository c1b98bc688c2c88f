"""The one door to matplotlib: what a run leaves for people to look at, beside its weights.

`training/` in a weights folder holds `report.json`, the run in numbers step by step, and `curves.png`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from skillserve.publish import write_text
from skillserve_training.course import Course

__all__ = ["REPORT_FOLDER", "write_report"]

REPORT_FOLDER = "training"

_SMOOTH_SHARE = 0.05
"""The line through a curve is its mean over this share of the steps."""
_INCHES = (8.0, 6.0)


def write_report(folder: Path, *, title: str, course: Course, training: Mapping[str, Any]) -> None:
    """Write `report.json` and `curves.png` into the weights folder `folder`; `training` is the card's summary."""
    target = folder / REPORT_FOLDER
    target.mkdir()
    steps = {
        "loss": course.losses,
        "learning_rate": course.learning_rates,
        "holdout_ndcg_at_10": {str(step): figure for step, figure in course.holdout.items()},
    }
    report = {"title": title, **training, "planned_steps": course.planned_steps, "resumed_from": course.resumed_from}
    write_text(target / "report.json", json.dumps({**report, "curves": steps}, indent=2) + "\n")
    _draw(title, course).savefig(target / "curves.png", dpi=110)


def _draw(title: str, course: Course) -> Figure:
    figure = Figure(figsize=_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    at = np.arange(1, len(course.losses) + 1)
    loss.plot(at, course.losses, color="0.75", linewidth=0.8, label="loss of a step")
    loss.plot(at, _smooth(course.losses), color="C0", label="its running mean")
    loss.set_ylabel("loss")
    loss.set_title(title)
    handles, labels = loss.get_legend_handles_labels()
    if course.holdout:
        quality = loss.twinx()
        (line,) = quality.plot(list(course.holdout), list(course.holdout.values()), "o-", color="C1")
        quality.axvline(course.best_step, color="C1", linestyle=":")
        quality.set_ylabel("NDCG@10 of the hold-out")
        handles, labels = [*handles, line], [*labels, f"hold-out, best at step {course.best_step}"]
    loss.legend(handles, labels, loc="upper right")
    rate.plot(at, course.learning_rates, color="C2")
    rate.set_ylabel("learning rate")
    rate.set_xlabel("step")
    return figure


def _smooth(values: Sequence[float]) -> list[float]:
    """Mean of each value and those before it, over a share of the run."""
    width = max(1, round(len(values) * _SMOOTH_SHARE))
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - width, 0)
    smoothed: list[float] = ((sums[ends] - sums[starts]) / (ends - starts)).tolist()
    return smoothed
