"""`skillserve mine`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from skillserve.console import out as stdout
from skillserve.console import print_json, talk
from skillserve.errors import UsageError
from skillserve.flags import Json, with_settings
from skillserve.runs import require_writable
from skillserve.settings import Settings
from skillserve.systems import SYSTEMS, open_system
from skillserve_training.dataset import hold_out
from skillserve_training.loader import read_training_data
from skillserve_training.mined import write_mined
from skillserve_training.mining import mine as mine_negatives

__all__ = ["mine"]


@with_settings("mine", "train.holdout_share", "evaluate.rerank_depth", "client")
def mine(
    *,
    data: Annotated[
        str, typer.Option(help="folder in SkillRet's layout, or hub:org/name@revision; its train split is mined")
    ],
    systems: Annotated[
        list[str],
        typer.Option(
            "--with",
            metavar="SYSTEM",
            help=f"once for each system that ranks: {'; '.join(kind.help for kind in SYSTEMS.values())}",
        ),
    ],
    out: Annotated[Path, typer.Option(help="Parquet file that is written, whole or not at all")],
    settings: Settings,
    as_json: Json = False,
) -> None:
    """Find hard negatives: wrong skills that systems rank high, without those that probably fit after all."""
    if len(set(systems)) < len(systems):
        raise UsageError(
            "option --with",
            got=f"a system named twice: {', '.join(systems)}",
            wanted="each system once",
            fix="Remove the second one.",
        )
    require_writable(out, option="--out")
    read = read_training_data(data)
    part, _ = hold_out(read, share=settings.train.holdout_share)
    opened = [open_system(spec, settings) for spec in systems]
    rows, provenance = mine_negatives(read, part, opened, settings.mine)
    write_mined(out, rows, provenance)
    if as_json:
        print_json({"file": str(out), **provenance})
    else:
        table = Table("fact", "value", title=f"negatives at ranks {settings.mine.ranks} of {', '.join(systems)}")
        for fact, value in _facts(provenance):
            table.add_row(fact, value)
        stdout.print(table)
    talk(f"Wrote {out}. Train on it: skillserve train reranker --data {data} --mined {out} …")


def _facts(provenance: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    counts = provenance["counts"]
    yield "requests", f"{counts['requests']:,} (data {provenance['data'][:12]}, {provenance['cut'] or 'no hold-out'})"
    yield "never candidates", f"{counts['golds']:,} golds, {counts['held_out_skills']:,} skills that are held out"
    yield "candidates", f"{counts['candidates']:,} out of {counts['skills']:,} skills"
    for guard, number in counts["left_out"].items():
        yield f"left out by guard `{guard}`", f"{number:,} ({number / max(1, counts['candidates']):.1%})"
    yield "negatives drawn", f"{counts['drawn']:,} ({counts['drawn'] / counts['requests']:.1f} a request)"
    yield "requests with fewer than wanted", f"{counts['short']:,}"
