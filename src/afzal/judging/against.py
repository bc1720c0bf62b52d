"""The answers of one model or several, judged against those of one other: ``afzal judge A B C --against D``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from afzal import data, report
from afzal.errors import AfzalError
from afzal.judge import against, outputs, people
from afzal.judge.games import pairs_of
from afzal.judging.run import judged, read_items, slug, stem
from afzal.records import Item
from afzal.servers.cache import REPLIES

TABLE = "table"
"""Name of the table's files, without their endings."""


def judged_against(
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
    """Judge every file of answers beside the other's, and write the table of all of them into ``out``.

    What is written of one source stands in ``out``; of several, in a folder each, and ``out/rows.jsonl`` holds the rows
    of all, for people to vote on.

    Args:
        votes: file of people's votes on the same answers, of all sources together.
        prompts: the file of the prompts, whose columns functions may ask for.

    Returns:
        the table as plain values (:func:`afzal.judge.against.table`), and the summaries of each source by its name.

    Raises:
        AfzalError: as for :func:`afzal.judging.run.judged`, two sources have the same name, or the votes are on none of
            these pairs.
    """
    names = [stem(source) for source in sources]
    if len({slug(name) for name in names}) < len(names):
        raise AfzalError(
            "two of the models have the same name",
            where=", ".join(sources),
            why="a column of the table and a folder are called by it",
            remedy="rename one of the folders or files",
        )
    rows = {name: read_items(source, other, specs, prompts) for name, source in zip(names, sources, strict=True)}
    voted = dict(zip(names, _voted(list(rows.values()), votes), strict=True))
    replies, columns, written = cache or out / REPLIES, [], []
    for name, items in rows.items():
        folder = out if len(rows) == 1 else out / slug(name)
        beside = voted[name]
        found = judged(items, specs, folder, voted=beside, cache=replies, resamples=resamples, say=say)
        pairs = pairs_of(items)
        labels = None if beside is None else people.labels_on(beside, pairs)
        columns.append(against.Column(name, found, against.of_people(items, pairs, labels, resamples=resamples)))
        if len(rows) > 1:
            written += _own(name, folder / outputs.ROWS)
    board = against.table(columns, stem(other))
    report.write_board(out, board, TABLE)
    if written:
        data.write(written, out / outputs.ROWS, "afzal")
    return board, {c.name: list(c.summaries) for c in columns}


def _voted(rows: Sequence[Sequence[Item]], votes: str | None) -> list[list[Item] | None]:
    """The rows of each source with people's votes; None for a source without any."""
    if votes is None:
        return [None] * len(rows)
    together = people.votes_on([item for items in rows for item in items], votes)
    found, at = [], 0
    for items in rows:
        own = together[at : at + len(items)]
        found.append(own if any(item.votes for item in own) else None)
        at += len(items)
    return found


def _own(name: str, rows: Path) -> list[Item]:
    """The rows of one source with its name before their ids, so that those of all sources differ."""
    return [replace(item, id=f"{name}/{item.id}") for item in data.read(str(rows)).items]
