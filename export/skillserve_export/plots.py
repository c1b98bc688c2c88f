"""The one door to Matplotlib in this room: the two pictures of a gate's report, as PNG."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

__all__ = ["draw_overlaps", "draw_scores"]

_INCHES = (6.0, 5.0)
_DPI = 110
_LINE, _FAINT = "#1f5fa8", "#888888"


def draw_scores(points: npt.NDArray[np.float32], title: str) -> bytes:
    """Scores of the candidate over those of the reference; `points` is `[P, 2]`, the reference first."""
    figure = Figure(figsize=_INCHES, layout="constrained")
    axes = figure.subplots()
    ends = [float(points.min()), float(points.max())]
    axes.plot(ends, ends, color=_FAINT, linestyle=":", label="equal")
    axes.scatter(points[:, 0], points[:, 1], s=6, alpha=0.4, color=_LINE, label=f"{len(points):,} among the first ten")
    axes.set(title=title, xlabel="score of the reference", ylabel="score of the candidate")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    return _png(figure)


def draw_overlaps(overlaps: Sequence[float], title: str) -> bytes:
    """How many requests share how much of their first ten; shares are in [0, 1]."""
    figure = Figure(figsize=_INCHES, layout="constrained")
    axes = figure.subplots()
    axes.hist(overlaps, bins=np.linspace(-0.05, 1.05, 12).tolist(), color=_LINE, edgecolor="white")
    axes.set(title=title, xlabel="share of the first ten that is the same", ylabel="requests", xlim=(-0.05, 1.05))
    axes.set_yscale("symlog", linthresh=1)  # most requests agree, and the others are what one looks for
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_figure(content, format="png", dpi=_DPI)
    return content.getvalue()
