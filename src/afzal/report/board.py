"""Named figures with intervals (a leaderboard, a judge's card) as a page, a drawing, CSV, JSON and Markdown.

All five come from the same plain values (the JSON file), so they cannot disagree. JSON and CSV are complete; the others
shorten long lists.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from afzal._version import __version__
from afzal.report import svg
from afzal.report.card import plain
from afzal.report.forest import ForestRow, forest_svg
from afzal.report.phone_layout import PHONE, is_wide
from afzal.report.shortened import shortened
from afzal.report.template import rendered
from afzal.runs import atomic_write, make_folder
from afzal.text import interval, number, sign

SCHEMA = "afzal.board/1"
_CORRECTED = "Corrected for chance, except the first two; 1 is perfect, 0 is chance level."


def write_board(folder: Path, body: Mapping[str, Any], stem: str = "leaderboard") -> Path:
    """Write the five files into a folder, which is created if needed; return the path of the page.

    Args:
        stem: stem of the file names.
        body: ``title``, ``subtitle``, ``findings`` (sentences), ``facts`` (pairs), ``unit``, ``rule`` (the value of no
            difference), ``lines`` (mappings with ``name``, ``value``, ``low``, ``high`` and further figures) and
            ``differences`` (mappings with ``first``, ``second``, ``value``, ``low``, ``high``). Optional: ``tables`` of
            cells, ``remarks`` (lists by name; all of them are findings too), ``similar_names`` (such findings),
            ``texts``, ``worst`` (pairs of answers to read) and ``gallery`` (images and sounds: mappings with ``kind``,
            ``title``, ``source``, a data URI, and ``said``: who, what, ``right`` or ``wrong``).
    """
    data = {"schema": SCHEMA, "afzal": __version__, **body}
    make_folder(folder)
    atomic_write(folder / f"{stem}.json", json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False) + "\n")
    atomic_write(folder / f"{stem}.csv", to_csv(data))
    shown = shortened(data, {"lines": f"{stem}.csv", "rest": f"{stem}.json"})
    atomic_write(folder / f"{stem}.md", to_markdown(shown).encode("utf-8", "replace"))
    atomic_write(folder / f"{stem}.html", to_html(shown).encode("utf-8", "replace"))
    if drawing := _drawing(shown):
        atomic_write(folder / f"{stem}.svg", svg.standalone(drawing))
    return folder / f"{stem}.html"


def to_csv(body: Mapping[str, Any]) -> str:
    """One row per line of the leaderboard, with all its figures."""
    columns = list(dict.fromkeys(key for line in body["lines"] for key in line))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(body["lines"])
    return out.getvalue()


def to_html(body: Mapping[str, Any]) -> str:
    """The page. Every value is escaped by the template; only the drawing is markup."""
    from markupsafe import Markup

    return rendered(
        "board.html.j2",
        title=body["title"],
        subtitle=body["subtitle"],
        findings=body["findings"],
        facts=body["facts"],
        drawing=Markup(_drawing(body)),
        on_a_phone=Markup(_drawing(body, PHONE)),
        drawn_as=_drawn_as(body),
        tables=[table | {"wide": table_is_wide(table)} for table in _tables(body)],
        texts=body.get("texts", []),
        worst=body.get("worst", []),
        gallery=body.get("gallery", []),
    )


def _drawn_as(body: Mapping[str, Any]) -> str:
    shown = f", {body['lines_shown']}" if "lines_shown" in body else ""
    return f"{body['unit'][:1].upper()}{body['unit'][1:]}, with 95% intervals over prompts{shown}"


def to_markdown(body: Mapping[str, Any]) -> str:
    """The page as Markdown; all text is escaped."""
    parts = [f"# {plain(body['title'])}", plain(body["subtitle"])]
    parts.append("\n".join(f"- {plain(line)}" for line in body["findings"]))
    parts.append("\n".join(f"- {plain(name)}: {plain(str(value))}" for name, value in body["facts"]))
    for table in _tables(body):
        parts += [f"## {plain(table['title'])}", plain(table["words"]), _markdown_table(table)]
    for text in body.get("texts", []):
        parts += [f"## {plain(text['title'])}", _quoted(text["text"])]
    if body.get("gallery"):
        parts += ["## Images and sounds", _markdown_table(_gallery(body["gallery"]))]
    if body.get("worst"):
        parts.append("## Pairs to read")
        for pair in body["worst"]:
            notes = [pair["why"], pair.get("verdicts"), pair.get("people") and f"people: {pair['people']}"]
            parts.append(f"**{plain('; '.join(filter(None, notes)))}**")
            parts += [f"{name}\n\n{_quoted(pair[name])}" for name in ("prompt", "first", "second")]
    return "\n\n".join(part for part in parts if part) + "\n"


def _gallery(examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The gallery's texts as a table; Markdown does not show data URIs."""
    names = list(dict.fromkeys(name for example in examples for name, _, _ in example["said"]))
    rows = [
        [example["title"], *({n: f"{text} ({r})" for n, text, r in example["said"]}.get(k, "") for k in names)]
        for example in examples
    ]
    return {"columns": ["truth", *names], "rows": rows}


def _markdown_table(table: Mapping[str, Any]) -> str:
    rows = [table["columns"], ["---"] * len(table["columns"]), *table["rows"]]
    escaped = [row if k == 1 else [plain(cell) for cell in row] for k, row in enumerate(rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in escaped)


def _quoted(text: str) -> str:
    return "\n".join(f"> {plain(line)}" for line in text.split("\n"))


def _tables(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """All tables of the page: titles, words, columns and cells."""
    title = "Figures" if "lines_words" in body else "All figures"
    tables = [{"title": title, "words": body.get("lines_words", ""), **_lines(body)}]
    if body.get("figures"):
        words = body.get("figures_words", _CORRECTED)
        tables.insert(0, {"title": "Agreement", "words": words, **_figure_table(body["figures"])})
    if body["differences"]:
        words = "Both sides of a pair use the same resamples of whole prompts. An interval without 0 tells them apart."
        words = f"{words} {body.get('differences_words', '')}".rstrip()
        tables.append({"title": "Paired differences", "words": words, **_differences(body)})
    return [*tables, *body.get("tables", [])]


def table_is_wide(table: Mapping[str, Any]) -> bool:
    """Whether a board's table (``columns`` and ``rows``) is too wide for a phone."""
    return is_wide(table["columns"], [[str(cell) for cell in row] for row in table["rows"]])


def _drawing(body: Mapping[str, Any], width: int = 680) -> str:
    """The drawing of the figures that have an interval, or of all figures if none has."""
    lines = [x for x in body["lines"] if x["value"] is not None]
    with_interval = [x for x in lines if x["low"] is not None] or lines
    rows = [ForestRow(x["name"], x["value"], x["low"], x["high"]) for x in with_interval]
    return forest_svg(rows, x_label=body["unit"], title=body["title"], rule=body["rule"], width=width) if rows else ""


_FOLDED = ("low", "high", "best_rank", "worst_rank")  # shown in the cell of the figure they belong to


def _lines(body: Mapping[str, Any]) -> dict[str, Any]:
    present = dict.fromkeys(
        k for line in body["lines"] for k, value in line.items() if value is not None or k == "value"
    )
    ends = {f"{key}_{end}" for key in present for end in ("low", "high")}
    keys = [key for key in present if key not in _FOLDED and key not in ends]
    rows = [[_line_cell(line, key) for key in keys] for line in body["lines"]]
    return {"columns": [body["unit"] if key == "value" else key.replace("_", " ") for key in keys], "rows": rows}


def _line_cell(line: Mapping[str, Any], key: str) -> str:
    if key == "value":
        return _interval(line)
    if key == "rank" and line.get("best_rank") is not None:
        return f"{line['rank']} [{line['best_rank']}, {line['worst_rank']}]"
    ends = interval(line.get(f"{key}_low"), line.get(f"{key}_high"))
    return f"{_cell(line.get(key))} {ends}".rstrip()


def _differences(body: Mapping[str, Any]) -> dict[str, Any]:
    rows = [
        [f"{gap['first']} over {gap['second']}", _interval(gap), "yes" if sign(gap) else "no"]
        for gap in body["differences"]
    ]
    return {"columns": ["pair", body["unit"], "told apart"], "rows": rows}


def _figure_table(figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {"columns": ["figure", "value"], "rows": [[figure["name"], _interval(figure)] for figure in figures]}


def _interval(line: Mapping[str, Any]) -> str:
    return f"{number(line['value'], 3)} {interval(line['low'], line['high'])}".rstrip()


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else number(value, 3)
