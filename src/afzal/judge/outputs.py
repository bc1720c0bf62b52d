"""The files of a judge: verdicts, rows with its votes, summaries and transcripts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from afzal import data
from afzal.judge.games import Game, Ruling
from afzal.records import Comparison, Item

VERDICTS, ROWS, SUMMARY, TRANSCRIPTS = "verdicts.jsonl", "rows.jsonl", "summary.json", "transcripts.jsonl"
_SHOWN = 20  # transcripts on a page
_UNREAD, _LONGEST = 5, 2000  # replies without a verdict on a page, and characters of one


def verdict_row(judge: str, fingerprint: str, items: Sequence[Item], game: Game, ruling: Ruling) -> dict[str, Any]:
    """One game as JSON values."""
    pair = game.pair
    return {
        "id": items[pair.item].id,
        "pair": [pair.first, pair.second],
        "judge": judge,
        "sha256": fingerprint,
        "order": [pair.second, pair.first] if game.swapped else [pair.first, pair.second],
        "sample": game.sample,
        "verdict": ruling.outcome,
        "p_first": ruling.p_first,
        "why_none": ruling.why or None,
        "tokens": list(ruling.tokens),
    }


def transcript_row(judge: str, items: Sequence[Item], game: Game) -> dict[str, Any]:
    """The transcript of one game, as JSON values."""
    pair = game.pair
    order = [pair.second, pair.first] if game.swapped else [pair.first, pair.second]
    header = {"id": items[pair.item].id, "pair": [pair.first, pair.second], "judge": judge, "order": order}
    return {**header, "sample": game.sample, "transcript": game.transcript}


def transcripts_to_read(items: Sequence[Item], games: Sequence[Game]) -> list[dict[str, str]]:
    """The first transcripts for a page, from games with the answers in their original order."""
    argued = [game for game in games if game.transcript and not game.swapped][:_SHOWN]
    return [
        {"title": f"What was argued about {items[game.pair.item].id}", "text": _question_text(game) + game.transcript}
        for game in argued
    ]


def unreadable_replies(items: Sequence[Item], games: Sequence[Game], rulings: Sequence[Ruling]) -> list[dict[str, str]]:
    """A few replies without a verdict for a page: one per reason first; of long replies, the end."""
    unreadable = [
        (game, ruling) for game, ruling in zip(games, rulings, strict=True) if ruling.unreadable_reply.strip()
    ]
    first = {ruling.why: k for k, (_, ruling) in reversed(list(enumerate(unreadable)))}
    order = [*sorted(first.values()), *(k for k in range(len(unreadable)) if k not in first.values())][:_UNREAD]
    return [
        {
            "title": f"A reply without a verdict: {unreadable[k][1].why} ({items[unreadable[k][0].pair.item].id})",
            "text": (" … " if len(unreadable[k][1].unreadable_reply) > _LONGEST else "")
            + unreadable[k][1].unreadable_reply[-_LONGEST:],
        }
        for k in order
    ]


def _question_text(game: Game) -> str:
    first, second = game.shown
    return f"{game.pair.prompt}\n\n[Answer A]\n{first}\n\n[Answer B]\n{second}\n\n"


def with_votes(items: Sequence[Item], judge: str, games: Sequence[Game], rulings: Sequence[Ruling]) -> list[Item]:
    """The rows with each verdict added as a vote under the judge's name; a game without a verdict adds none.

    :data:`~afzal.data.judged_by.JUDGED_BY` lists these judges, so that nobody takes their votes for people's.
    """
    votes: dict[int, list[Comparison]] = {}
    for game, ruling in zip(games, rulings, strict=True):
        pair = game.pair
        if ruling.outcome == "none":
            continue
        shown_first = pair.second if game.swapped else pair.first
        vote = Comparison(
            pair.first,
            pair.second,
            ruling.outcome,
            probability=ruling.p_first,
            annotator=judge,
            shown_first=shown_first,
        )
        votes.setdefault(pair.item, []).append(vote)
    rows = []
    for k, item in enumerate(items):
        if verdicts := votes.get(k):
            item = replace(item, votes=(*item.votes, *verdicts), extra=data.naming(item, [judge]))
        rows.append(item)
    return rows


def write(
    folder: Path,
    items: Sequence[Item],
    verdicts: Sequence[Mapping[str, Any]],
    summaries: Sequence[Mapping[str, Any]],
    transcripts: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write the verdicts, the rows with votes, the summaries, and the transcripts, if there are any."""
    from afzal.runs import atomic_write, make_folder

    make_folder(folder)
    for name, rows in ((VERDICTS, verdicts), (TRANSCRIPTS, transcripts)):
        if rows or name == VERDICTS:
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            atomic_write(folder / name, lines.encode("utf-8", "surrogatepass"))
    data.write(data.with_copied_media(items, folder), folder / ROWS, "afzal")
    atomic_write(folder / SUMMARY, json.dumps(list(summaries), indent=1, ensure_ascii=False) + "\n")
