"""``afzal leaderboard``: models by strength, or judges by accuracy, from verdicts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from afzal.errors import AfzalError


def command(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Verdict files, or rows whose responses name their source.")
    ],
    of: Annotated[Literal["models", "judges"], typer.Option(help="Judges need the truth of each item.")] = "models",
    ties: Annotated[
        Literal["half", "davidson", "rao_kupper"],
        typer.Option(help="What a tie is: half a win, or a separate outcome."),
    ] = "half",
    length_control: Annotated[
        bool, typer.Option("--length-control", help="Also each model's win rate at equal lengths of the answers.")
    ] = False,
    beside: Annotated[
        str | None, typer.Option(metavar="FILE", help="Rank correlation with the leaderboard of another file.")
    ] = None,
    judge: Annotated[str | None, typer.Option(help="Count the verdicts of this judge or annotator only.")] = None,
    resamples: Annotated[
        int | None, typer.Option(min=2, help="Resamples of whole prompts. Default 500 for models, 2000 for judges.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the resamples.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Folder for the page, the drawing, CSV and JSON.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Rank models from votes or verdicts (Bradley-Terry with ties), or judges from items of known truth.

    Intervals are over prompts, since votes on one prompt are not independent. Models that were never compared, never
    lost or never won are named and get no number; the exit code is then 1.
    """
    from afzal import judge as judging

    if of == "judges" and (length_control or beside is not None):
        raise AfzalError("lengths and correlations are of models", where="--of judges", remedy="leave one out")
    said = judging.read(files)
    if judge is not None:
        said = _only(said, judge)
    source = ", ".join(Path(name).name for name in files)
    if of == "judges":
        body, whole = (
            judging.judges_as_plain(judging.of_judges(said, resamples=resamples or 2000, seed=seed), source),
            True,
        )
    else:
        board = judging.of_models(said, ties, resamples=resamples or 500, seed=seed)
        body, whole = judging.models_as_plain(board, ties, source), board.board is not None
        if length_control:
            body |= judging.lengths_as_plain(judging.at_equal_lengths(said, resamples=resamples or 500, seed=seed))
        if beside is not None:
            body["beside"] = judging.rank_correlation(
                board, judging.of_models(judging.read([beside]), ties, resamples=2)
            )
            body["findings"].append(_correlation(body["beside"], Path(beside).name))
    if as_json:
        typer.echo(json.dumps(body, indent=1, ensure_ascii=False))
    else:
        for line in _text(body):
            typer.echo(line)
    if out is not None:
        from afzal import report

        page = report.write_board(out, body)
        if not as_json:
            typer.echo(f"page: {page}")
    if not whole:
        raise typer.Exit(1)


def _correlation(found: Mapping[str, Any], name: str) -> str:
    shown = {key: "unknown" if found[key] is None else f"{found[key]:.2f}" for key in ("spearman", "kendall")}
    return f"Beside {name}: Spearman's rank correlation {shown['spearman']}, Kendall's tau {shown['kendall']}."


def _only(said: Any, judge: str) -> Any:
    from dataclasses import replace

    from afzal.config import suggestion

    kept = [v for v in said.verdicts if v.judge == judge]
    if not kept:
        known = sorted({v.judge for v in said.verdicts})
        raise AfzalError(f"no verdict of {judge!r}{suggestion(judge, known)}", remedy="one of " + ", ".join(known[:12]))
    return replace(said, verdicts=kept)


def _text(body: Mapping[str, Any]) -> list[str]:
    """The leaderboard in lines: what was found, then one line for each name."""
    from afzal.text import interval, number, visible

    lines = [visible(f"{body['title']}: {body['subtitle']}")]
    lines.append("  ".join(f"{name} {value}" for name, value in body["facts"]))
    width = max(len(visible(line["name"])) for line in body["lines"])
    for line in body["lines"]:
        cells = [f"{visible(line['name']):{width}}"]
        if line["value"] is not None:
            cells.append(f"{number(line['value'], 3):>7} {interval(line['low'], line['high']):18}")
        cells += [f"{key.replace('_', ' ')} {_shown(value)}" for key, value in line.items() if key in _IN_TEXT]
        lines.append("  ".join(cells).rstrip())
    for table in body.get("tables", []):
        lines.append(table["title"])
        lines += [visible("  " + "  ".join(row)) for row in (table["columns"], *table["rows"])]
    return [*lines, *map(visible, body["findings"])]


_IN_TEXT = ("rank", "win_rate", "won", "tied", "lost", "no_verdict", "consistent", "slot_bias", "slot_p")


def _shown(value: Any) -> str:
    from afzal.text import number

    return number(value, 3)
