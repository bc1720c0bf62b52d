"""``afzal objectives``: all objectives, with their formulas, requirements, defaults and papers."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

_COLUMNS = ("name", "needs", "defaults", "formula", "paper")


def command(
    name: Annotated[str | None, typer.Argument(help="Show only this one; or file.py:function.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the objectives for `afzal train prefer --objective NAME`, or show one."""
    from afzal.api.inspecting import objectives

    facts = objectives(name)
    if as_json:
        print(json.dumps(facts[0] if name else facts, indent=2, ensure_ascii=False))
    elif name:
        _print_one(facts[0])
    elif sys.stdout.isatty():
        _print_table(facts)
    else:
        _print_plain(facts)


def _cells(facts: Mapping[str, Any]) -> list[str]:
    defaults = ", ".join(f"{key}={value}" for key, value in facts["defaults"].items())
    return [facts["name"], ", ".join(facts["needs"]), defaults or "-", facts["formula"], facts["paper"]]


def _print_plain(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print tab-separated values with a heading, for ``cut``, ``awk`` and spreadsheets."""
    for cells in (list(_COLUMNS), *map(_cells, rows)):
        print("\t".join(cells))


def _print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from afzal.terminal.console import VisibleConsole

    table = Table(box=None, pad_edge=False, header_style="bold", show_lines=False)
    for name in _COLUMNS:
        table.add_column(name, overflow="fold", no_wrap=name == "name")
    for row in rows:
        table.add_row(*(Text(cell) for cell in _cells(row)))
    VisibleConsole().print(table)


def _print_one(facts: Mapping[str, Any]) -> None:
    for key, value in facts.items():
        print(f"{key.replace('_', ' '):18} {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {item}" for key, item in value.items()) or "-"
    if isinstance(value, list):
        return ", ".join(value) or "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    return {None: "depends on the data", True: "yes", False: "no"}.get(value, str(value))
