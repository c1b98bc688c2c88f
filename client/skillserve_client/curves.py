"""The one door to Matplotlib: the risk-coverage curve and the reliability diagram of a calibration, as one PNG."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from skillserve_client.calibration import Calibration, StageCalibration, StageName

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw"]

_TITLES: dict[StageName, str] = {"rerank": "reranked answers", "embed": "embed-only answers"}
_WIDTH_IN, _HEIGHT_IN, _DPI = 13.0, 5.0, 110
_LINE, _MARK, _FAINT = "#1f5fa8", "#c23b22", "#888888"


def draw(calibration: Calibration) -> bytes:
    """One row of two plots for each stage; drawn without a display and without pyplot's global state."""
    stages = sorted(calibration.stages.items(), reverse=True)
    figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN * len(stages)), layout="constrained")
    axes = figure.subplots(len(stages), 2, squeeze=False)
    for (name, stage), (left, right) in zip(stages, axes, strict=True):
        _risk_coverage(left, stage, f"Risk and coverage, {_TITLES[name]}")
        _reliability(right, stage, f"Reliability, {_TITLES[name]}")
    figure.suptitle(
        f"Catalogue {calibration.catalogue_digest[:12]}, {calibration.num_answerable} answerable requests and "
        f"{calibration.num_none} that no skill fits, cross-validated; {calibration.none_share:.0%} of the weight on "
        "the latter"
    )
    canvas = FigureCanvasAgg(figure)
    png = io.BytesIO()
    canvas.print_figure(png, format="png", dpi=_DPI)
    return png.getvalue()


def _risk_coverage(axes: Axes, stage: StageCalibration, title: str) -> None:
    points, chosen = stage.points, stage.at_threshold
    coverage = [point.coverage for point in points]
    axes.plot(coverage, [point.risk for point in points], color=_LINE, label="risk: first hit does not fit")
    axes.plot(coverage, [point.injected for point in points], color=_MARK, label="no skill fits, yet answered")
    axes.plot(coverage, [point.lost for point in points], color=_FAINT, label="some skill fits, yet abstained")
    axes.axvline(chosen.coverage, color="black", linestyle="--", linewidth=1)
    left = chosen.coverage > 0.5  # the words stand where there is room
    axes.annotate(
        f"threshold {stage.threshold:.3f}\ninjected {chosen.injected:.1%}, lost {chosen.lost:.1%}",
        (chosen.coverage, 0.97),
        xytext=(-6 if left else 6, 0),
        textcoords="offset points",
        va="top",
        ha="right" if left else "left",
        fontsize=9,
    )
    axes.set(title=title, xlabel="coverage: share of requests answered", ylabel="share", xlim=(0, 1), ylim=(0, 1))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, fontsize=8, frameon=False)
    axes.grid(alpha=0.3)


def _reliability(axes: Axes, stage: StageCalibration, title: str) -> None:
    said = [each.probability for each in stage.bins]
    axes.plot([0, 1], [0, 1], color=_FAINT, linestyle=":", label="perfect")
    axes.plot(said, [each.rate for each in stage.bins], color=_LINE, marker="o", label="bins of equal weight")
    axes.axvline(stage.threshold, color="black", linestyle="--", linewidth=1, label=f"threshold {stage.threshold:.3f}")
    error = stage.request_fits[stage.request.kind].ece
    axes.set(
        title=f"{title}, ECE {error:.3f}",
        xlabel="probability that some skill fits",
        ylabel="share of requests that some skill fits",
        xlim=(0, 1),
        ylim=(0, 1),
    )
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, fontsize=8, frameon=False)
    axes.grid(alpha=0.3)
