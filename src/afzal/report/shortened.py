"""What a page shows of a report with hundreds of names: those that matter, and how many are left out.

The JSON and the CSV keep all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

MOST = 60
"""The number of lines, rows or findings of one kind that a page shows in full."""
_OF_EACH = 15  # names shown for each reason
_FIRST = 45  # rows shown if there is no reason to prefer others


def shortened(body: Mapping[str, Any], kept_in: Mapping[str, str]) -> dict[str, Any]:
    """A board's values with long lists cut, for the page, its drawing and the terminal; short ones are unchanged.

    Annotators (lines of a body with ``remarks``) are chosen by remarks, the lowest agreement and the most labels;
    other lines and rows are the first ones.

    Args:
        kept_in: where all lines and all the rest are, by ``lines`` and ``rest``, such as a file name.
    """
    lines = body["lines"]
    if len(lines) > MOST:
        lines = _annotators(body) if "remarks" in body else lines[:_FIRST]
    short = {**body, "lines": lines, "findings": _findings(body, kept_in["rest"])}
    if len(lines) < len(body["lines"]):
        why = "those with remarks, the lowest agreement or the most labels" if "remarks" in body else "the first ones"
        short["lines_shown"] = f"{len(lines):,} of {len(body['lines']):,}"
        short["lines_words"] = f"{short['lines_shown']}: {why}. All of them: {kept_in['lines']}."
    if len(body["differences"]) > MOST:
        short["differences"] = body["differences"][:_FIRST]
        n_gaps = len(body["differences"])
        short["differences_words"] = _left_out(_FIRST, n_gaps, "pairs", kept_in["rest"])
    names = {line["name"] for line in body["lines"]} if len(lines) < len(body["lines"]) else set()
    shown = {line["name"] for line in lines}
    short["tables"] = [_table(table, names, shown, kept_in["rest"]) for table in body.get("tables", [])]
    return short


def _annotators(body: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The annotators that matter, in the order of the body."""
    lines = body["lines"]
    # the lowest by the upper end of the interval: with few labels, a low value is chance
    lowest = _most([line for line in lines if line["high"] is not None], lambda line: -line["high"])
    keep = {*_most_remarkable(body), *lowest, *_most(lines, _n_labels)}
    return [line for line in lines if line["name"] in keep]


def _most_remarkable(body: Mapping[str, Any]) -> list[str]:
    """Those with remarks who gave the most labels."""
    return _most([line for line in body["lines"] if line["name"] in body["remarks"]], _n_labels)


def _n_labels(line: Mapping[str, Any]) -> float:
    return line.get("labels") or line.get("scores") or 0


def _most(lines: Sequence[Mapping[str, Any]], figure: Callable[[Mapping[str, Any]], float]) -> list[str]:
    return [line["name"] for line in sorted(lines, key=figure, reverse=True)[:_OF_EACH]]


def _findings(body: Mapping[str, Any], place: str) -> list[str]:
    """The findings, without most of the remarks about single annotators if there are many."""
    remarks = {f"{name}: {remark}": name for name, of_one in body.get("remarks", {}).items() for remark in of_one}
    similar = body.get("similar_names", [])
    kept = set(similar[:_OF_EACH]) if len(similar) > MOST else set(similar)
    if len(remarks) <= MOST:
        kept |= remarks.keys()
    else:
        shown = _most_remarkable(body)
        kept |= {text for text, name in remarks.items() if name in shown}
    left_out = [text for text in (*remarks, *similar) if text not in kept]
    if not left_out:
        return list(body["findings"])
    hidden = set(left_out)
    findings = [finding for finding in body["findings"] if finding not in hidden]
    return [*findings, f"{len(left_out):,} more remarks about annotators are in {place}."]


def _table(table: Mapping[str, Any], names: set[str], shown: set[str], place: str) -> Mapping[str, Any]:
    """A table with the rows of the names shown, if its rows are about names, or else with the first rows."""
    rows = table["rows"]
    if len(rows) <= MOST:
        return table
    of_names = names and all(row[0] in names for row in rows)
    chosen = [row for row in rows if row[0] in shown] if of_names else rows[:_FIRST]
    left_out = _left_out(len(chosen), len(rows), "rows", place)
    return {**table, "rows": chosen, "words": f"{table['words']} {left_out}".strip(), "left_out": left_out}


def _left_out(shown: int, total: int, what: str, place: str) -> str:
    return f"{shown:,} of {total:,} {what} are shown. All of them: {place}."
