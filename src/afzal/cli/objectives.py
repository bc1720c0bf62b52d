"""``afzal objectives``: the objectives there are, with their formulas, needs, defaults and papers."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from afzal.errors import AfzalError

if TYPE_CHECKING:
    from afzal.objectives import Objective

_COLUMNS = ("name", "needs", "defaults", "formula", "paper")


def command(
    name: Annotated[str | None, typer.Argument(help="Show this one only; or file.py:function.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """List the objectives for `afzal train prefer --objective NAME`, or show one."""
    from afzal import objectives

    try:
        chosen = [objectives.get(name)] if name else list(objectives.REGISTRY.values())
    except ValueError as error:
        raise AfzalError(str(error), remedy="afzal objectives") from error
    facts = [facts_of(objective) for objective in chosen]
    if as_json:
        print(json.dumps(facts[0] if name else facts, indent=2, ensure_ascii=False))
    elif name:
        _print_one(facts[0])
    elif sys.stdout.isatty():
        _print_table(facts)
    else:
        _print_plain(facts)


def facts_of(objective: Objective) -> dict[str, Any]:
    """All that is known about an objective, as plain values."""
    from afzal.objectives import ALIASES

    return {
        "name": objective.name,
        "aliases": sorted(alias for alias, real in ALIASES.items() if real == objective.name),
        "formula": objective.formula,
        "unit": objective.unit,
        "needs": needs_of(objective),
        "uses": sorted(objective.uses),
        "defaults": objective.parameters,
        "limits": {key: _limit(objective, key) for key in objective.parameters},
        "learnable": sorted(objective.learnable),
        "at_reference": objective.at_reference(objective.parameters),
        "bounded": objective.bounded,
        "couples_batch": objective.couples_batch,
        "length_normalised": objective.length_normalised,
        "shift_invariant": objective.shift_invariant,
        "trains": objective.scores,
        "paper": objective.paper,
    }


def needs_of(objective: Objective) -> list[str]:
    """What an objective cannot do without, in a few words."""
    data = {
        "pair": "pairs",
        "response": "labelled responses",
        "group": "rankings or ratings",
        "token": "good responses",
    }
    found = [data[objective.unit]]
    if objective.needs_live_reference:
        found.append("a reference that can be run")
    elif objective.needs_reference:
        found.append("reference")
    if objective.statistics:
        found.append("logits")
    if objective.statistic is not None:
        found.append("two prompts per update")
    return found


def _limit(objective: Objective, key: str) -> str:
    limit = objective.limit(key)
    return f"one of {', '.join(limit)}" if isinstance(limit, tuple) else str(limit)


def _cells(facts: Mapping[str, Any]) -> list[str]:
    defaults = ", ".join(f"{key}={value}" for key, value in facts["defaults"].items())
    return [facts["name"], ", ".join(facts["needs"]), defaults or "-", facts["formula"], facts["paper"]]


def _print_plain(rows: Sequence[Mapping[str, Any]]) -> None:
    """Tab-separated with a heading, for ``cut``, ``awk`` and spreadsheets."""
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
