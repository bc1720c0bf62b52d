"""Judging the answers of one or several models against those of another: ``afzal judge A B C --against D``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from afzal import data, report
from afzal.errors import AfzalError
from afzal.judge import outputs, people, win_rates
from afzal.judge.games import pairs_of
from afzal.judging.run import read_items, run_judges, slug, stem
from afzal.records import Item
from afzal.servers.cache import REPLIES

TABLE = "table"
"""Stem of the table's file names."""


def judge_against(
    sources: Sequence[str],
    other: str,
    specs: Sequence[str],
    out: Path,
    *,
    votes: str | None = None,
    prompts: str | None = None,
    cache: Path | None = None,
    resamples: int = 1000,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Judge every file of answers against the other's, and write the table of all of them into ``out``.

    The results of a single source are written to ``out`` itself. Several sources get a folder each, and
    ``out/rows.jsonl`` holds all their rows, for people to vote on.

    Args:
        votes: file of people's votes on the same answers, for all sources together.
        prompts: file of the prompts, whose columns functions may ask for.

    Returns:
        The table as plain values (:func:`afzal.judge.win_rates.table`), and the summaries by source name.

    Raises:
        AfzalError: as for :func:`afzal.judging.run.run_judges`; or two sources have the same name, or no vote is on
            one of these pairs.
    """
    names = [stem(source) for source in sources]
    if len({slug(name) for name in names}) < len(names):
        raise AfzalError(
            "two of the models have the same name",
            where=", ".join(sources),
            why="the name is that of a table column and of a folder",
            remedy="rename one of the folders or files",
        )
    rows = {name: read_items(source, other, specs, prompts) for name, source in zip(names, sources, strict=True)}
    voted = dict(zip(names, _rows_with_votes(list(rows.values()), votes, say), strict=True))
    replies, columns, written = cache or out / REPLIES, [], []
    for name, items in rows.items():
        folder = out if len(rows) == 1 else out / slug(name)
        with_votes = voted[name]
        summaries = run_judges(items, specs, folder, voted=with_votes, cache=replies, resamples=resamples, say=say)
        pairs = pairs_of(items)
        labels = None if with_votes is None else people.labels_on(with_votes, pairs)
        columns.append(
            win_rates.Column(name, summaries, win_rates.people_figures(items, pairs, labels, resamples=resamples))
        )
        if len(rows) > 1:
            written += _prefixed_rows(name, folder / outputs.ROWS)
    board = win_rates.table(columns, stem(other))
    report.write_board(out, board, TABLE)
    if written:
        data.write(written, out / outputs.ROWS, "afzal")
    return board, {c.name: list(c.summaries) for c in columns}


def _rows_with_votes(
    rows: Sequence[Sequence[Item]], votes: str | None, say: Callable[[str], None]
) -> list[list[Item] | None]:
    """The rows of each source with people's votes; None for a source without votes."""
    if votes is None:
        return [None] * len(rows)
    together = people.votes_on([item for items in rows for item in items], votes, say)
    voted, at = [], 0
    for items in rows:
        part = together[at : at + len(items)]
        voted.append(part if any(item.votes for item in part) else None)
        at += len(items)
    return voted


def _prefixed_rows(name: str, rows: Path) -> list[Item]:
    """The rows of one source with its name prefixed to their ids, so that ids differ between sources."""
    return [replace(item, id=f"{name}/{item.id}") for item in data.read(str(rows)).items]
