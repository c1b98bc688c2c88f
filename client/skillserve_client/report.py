"""A calibration as a page to read: what was fitted, what it costs, what was measured elsewhere."""

from __future__ import annotations

from skillserve_client.calibration import Calibration
from skillserve_client.check import Check, Estimate

__all__ = ["markdown"]


def markdown(calibration: Calibration, measured: Check | None, plot: str) -> str:
    """Tables of both, around the plot; `plot` is its file name."""
    models = ", ".join(f"{role} {digest[:12]}" for role, digest in calibration.models.items())
    lines = f"""# Calibration

Fitted {calibration.created} on {calibration.num_answerable} answerable requests and {calibration.num_none} that no
skill fits. Catalogue {calibration.catalogue_digest[:12]}, {models}.

Assumed share of requests that no skill fits: {calibration.none_share:.0%}. Thresholds are chosen for a false
injection of {calibration.false_injection:.1%}: at most that share of them gets hits. Figures are cross-validated.

| stage | curve | threshold | no skill fits, answered | some skill fits, abstained | log loss | Brier | ECE |
|---|---|---:|---:|---:|---:|---:|---:|""".splitlines()
    for name, stage in calibration.stages.items():
        for kind, fit in stage.request_fits.items():
            chosen = kind == stage.request.kind
            at = stage.at_threshold
            cells = (f"{stage.threshold:.3f}", f"{at.injected:.1%}", f"{at.lost:.1%}") if chosen else ("", "", "")
            curve = f"{kind} of {' + '.join(stage.request.features)}"
            figures = (f"{fit.log_loss:.4f}", f"{fit.brier:.4f}", f"{fit.ece:.3f}")
            lines.append("| " + " | ".join((name, f"**{curve}**" if chosen else curve, *cells, *figures)) + " |")
    lines += [
        "",
        f"![risk, coverage and reliability]({plot})",
        "",
        "Features tried, by log loss of their Platt curve:",
        "",
    ]
    for name, stage in calibration.stages.items():
        tried = ", ".join(f"{features} {loss:.4f}" for features, loss in stage.feature_losses.items())
        lines.append(f"- {name}: {tried}")
    if measured:
        lines += ["", *_measured(measured)]
    return "\n".join(lines) + "\n"


def _measured(check: Check) -> list[str]:
    lines = f"""## Measured on other requests

{check.num_answerable} answerable requests and {check.num_none} that no skill fits; 95 % bootstrap intervals.

| stage | no skill fits: abstained | some skill fits, abstained | ECE | coverage | risk |
|---|---:|---:|---:|---:|---:|""".splitlines()
    for name, stage in check.stages.items():
        found = (stage.none_abstained, stage.answerable_lost, stage.ece, stage.coverage, stage.risk)
        lines.append("| " + " | ".join((name, *map(_cell, found))) + " |")
    return lines


def _cell(found: Estimate) -> str:
    return f"{found.value:.3f} ({found.low:.3f} to {found.high:.3f})"
