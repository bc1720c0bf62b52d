"""``afzal runs``: the runs in a folder and how each one ended."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from afzal.terminal import one_line

_COLUMNS = ("name", "method", "status", "steps", "train_loss", "loss", "accuracy", "of", "started", "path")
_HEADINGS = {"train_loss": "train loss", "loss": "held-out loss", "accuracy": "held-out accuracy"}
_NUMBERS = ("steps", "train_loss", "loss", "accuracy", "of")
_COLOURS = {"finished": "green", "running": "cyan", "failed": "red", "interrupted": "red", "stopped": "yellow"}


def command(
    root: Annotated[Path, typer.Argument(help="Folder to search, six levels down.")] = Path("."),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the runs in a folder and how each one ended.

    The train loss is from the last update. Held-out figures are from the last evaluation, and `of` is the number of
    held-out items; both are empty if nothing was held out.
    """
    from afzal import runs

    rows = [runs.summary(run) for run in runs.find(root)]
    if as_json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
    elif not rows:
        print(f"no runs below {root}", file=sys.stderr)
    elif sys.stdout.isatty():
        _print_table(rows)
    else:
        _print_plain(rows)


def _cells(row: Mapping[str, Any]) -> list[str]:
    step, steps = row["step"], row["steps"]
    shown = {
        **row,
        "steps": f"{step}/{steps}" if steps is not None else step,
        **{k: None if row[k] is None else f"{row[k]:.4f}" for k in ("train_loss", "loss")},
        "accuracy": None if row["accuracy"] is None else f"{row['accuracy']:.1%}",
        "started": str(row["started"] or "").replace("T", " ")[:16] or None,
    }
    return ["-" if shown[name] is None else one_line(str(shown[name])) for name in _COLUMNS]


def _print_plain(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print tab-separated values with a heading, for ``cut``, ``awk`` and spreadsheets."""
    for cells in ([_HEADINGS.get(name, name) for name in _COLUMNS], *map(_cells, rows)):
        print("\t".join(cells))


def _print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from afzal.terminal.console import VisibleConsole

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in _COLUMNS:
        heading, side = _HEADINGS.get(name, name), "right" if name in _NUMBERS else "left"
        table.add_column(heading, justify=side, overflow="fold")
    for row in rows:
        cells = [Text(cell) for cell in _cells(row)]
        cells[_COLUMNS.index("status")].stylize(_COLOURS.get(row["status"], ""))
        table.add_row(*cells)
    VisibleConsole(emoji=False).print(table)
