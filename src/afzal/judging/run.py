"""Running judges on pairs of answers: ``judge_items`` for one judge, and ``run_judges``, the core of
``afzal judge``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from afzal import data, report
from afzal.errors import AfzalError
from afzal.judge import outputs, people, summary
from afzal.judge.card import card, pairs_to_read
from afzal.judge.controls import Control, compare_with_controls
from afzal.judge.games import CATEGORIES, Game, Pair, Ruling, pairs_of
from afzal.judge.labels import Labels
from afzal.judging.judges import (
    ResolvedJudge,
    card_facts,
    control_judges,
    functions_of,
    own_source,
    play_games,
    prices,
    resolve_judge,
)
from afzal.records import Item, Response, turns_to_json
from afzal.servers.cache import REPLIES


def read_items(
    source: str, against: str | None = None, specs: Sequence[str] = (), prompts: str | None = None
) -> list[Item]:
    """Rows with two answers or more; with ``against``, answers of two files to the same prompts, paired.

    Args:
        specs: the judges; the first file's category and the columns that functions ask for are kept.
        prompts: file of the answered prompts, for columns that the answers do not repeat.

    Raises:
        AfzalError: there is nothing to compare, or a function asks for a column that no row has.
    """
    functions = functions_of(specs)
    asked = data.merged_request(functions)
    ours = list(data.read(source, request=asked).items)
    if against is not None:
        ours = [replace(item, extra=_used_columns(item, asked)) for item in ours]
        ours = _paired_answers(ours, list(data.read(against, request=asked).items), stem(source), stem(against))
    items = [item for item in ours if len(item.responses) >= 2]
    if not items and against is not None:
        raise AfzalError(
            f"{source} and {against} have no prompt in common",
            why="answers are paired if their prompts are exactly equal",
            remedy="let both models answer the same file of prompts, with --prompts FILE or afzal generate",
        )
    if not items:
        raise AfzalError(
            "there are no two answers to one prompt",
            where=source,
            remedy="rows with several responses, or the answers of another model with --against FILE",
        )
    if prompts is not None:
        known = {_key(item): _used_columns(item, asked) for item in reversed(data.read(prompts, request=asked).items)}
        items = [replace(item, extra={**known.get(_key(item), {}), **item.extra}) for item in items]
    data.refuse_missing_columns(functions, items, source)
    return items


def _used_columns(item: Item, asked: data.ColumnRequest) -> dict[str, Any]:
    """The used columns of a row: those that functions ask for, and its category."""
    return asked.select(item.extra) | {name: item.extra[name] for name in CATEGORIES if name in item.extra}


def _key(item: Item) -> str:
    return json.dumps(turns_to_json(item.prompt))


def stem(source: str) -> str:
    """The name of a file of answers."""
    return Path(source).name.partition(".")[0]


def _paired_answers(ours: Sequence[Item], theirs: Sequence[Item], name: str, other: str) -> list[Item]:
    """One row per pair of answers to a prompt that both files answer: our k-th answer and their k-th."""
    if name == other:
        name, other = f"{name} (1)", f"{other} (2)"

    def by_prompt(items: Sequence[Item]) -> dict[str, list[tuple[Item, Response]]]:
        grouped: dict[str, list[tuple[Item, Response]]] = {}
        for item in items:
            answers = [(item, r) for r in item.responses]
            grouped.setdefault(_key(item), []).extend(answers)
        return grouped

    a, b = by_prompt(ours), by_prompt(theirs)
    rows = []
    for prompt, answers in a.items():
        for k, ((item, mine), (_, yours)) in enumerate(zip(answers, b.get(prompt, ()), strict=False)):
            both = (replace(mine, source=name), replace(yours, source=other))
            rows.append(Item(f"{item.id}/{k}", item.prompt, both, (), item.where, item.group, item.extra))
    return rows


@dataclass(frozen=True, slots=True, eq=False)
class JudgeResult:
    """The results of one judge on all pairs.

    Attributes:
        games, rulings: its questions and the result of each, in the same order.
        rows: the items with each verdict added as a vote under the judge's name.
        summary: its figures as plain values, as in ``summary.json``.
    """

    judge: ResolvedJudge
    pairs: Sequence[Pair]
    games: Sequence[Game]
    rulings: Sequence[Ruling]
    rows: Sequence[Item]
    summary: dict[str, Any]


def judge_items(
    spec: str,
    items: Sequence[Item],
    *,
    cache: Path,
    voted: Sequence[Item] | None = None,
    resamples: int = 1000,
    say: Callable[[str], None] = lambda line: None,
) -> JudgeResult:
    """Let one judge judge every pair of answers of every item.

    Args:
        spec: as for ``--judge``: a YAML file, a model folder, ``rule:longest``, ``file.py:function``, ``people:FILE``.
        items: with two responses or more each. If all responses come from two sources, the summary has the win rate of
            the first item's first source under ``models``.
        cache: file of a server's replies. A repeated call sends only requests that are missing from it.
        voted: the same items with people's votes, for comparison.
        say: called with progress lines.

    Raises:
        AfzalError: the judge cannot be opened, or its server does not answer; earlier replies are in the cache.
    """
    pairs, n = pairs_of(items), resolve_judge(spec)
    games, rulings = play_games(n, items, pairs, cache, say)
    known = summary.JudgeContext(_labels(voted, pairs), own=own_source(n, items), prices=prices(n))
    figures = summary.summary(n.name, items, pairs, games, rulings, known, resamples=resamples)
    rows = outputs.with_votes(items, n.name, games, rulings)
    compared = _run_controls(n, items, pairs, cache, say)
    if compared:
        about = {"resamples": resamples, "seed": 0}
        comparison = compare_with_controls(items, pairs, (games, rulings), compared, _labels(voted, pairs), **about)
        figures |= {"controls": comparison}
    return JudgeResult(n, pairs, games, rulings, rows, figures | {"sha256": n.fingerprint})


def _run_controls(
    n: ResolvedJudge, items: Sequence[Item], pairs: Sequence[Pair], cache: Path, say: Callable[[str], None]
) -> list[Control]:
    """The controls of a judge, run on the same pairs."""
    played_controls = []
    for control in control_judges(n):
        assert control.protocol is not None
        played_controls.append(Control(control.name, control.protocol, *play_games(control, items, pairs, cache, say)))
    return played_controls


def _labels(voted: Sequence[Item] | None, pairs: Sequence[Pair]) -> Labels | None:
    return None if voted is None else people.labels_on(voted, pairs)


def run_judges(
    items: Sequence[Item],
    specs: Sequence[str],
    out: Path,
    *,
    voted: Sequence[Item] | None = None,
    cache: Path | None = None,
    resamples: int = 1000,
    say: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """Let every judge judge every pair, write all results into ``out``, and return the summaries.

    Args:
        voted: the same rows with people's votes, for comparison.
        cache: file of replies; default ``out/replies.sqlite``.

    Raises:
        AfzalError: as for :func:`judge_items`, or two judges have the same name.
    """
    judges, pairs = [resolve_judge(spec) for spec in specs], pairs_of(items)
    if len({n.name for n in judges}) < len(judges):
        raise AfzalError(
            "two judges have the same name", where="--judge", remedy="give them a name in their YAML files"
        )
    labels, replies = _labels(voted, pairs), cache or out / REPLIES
    for note in people.pooled(voted):
        say(note)
    results_of = {n.name: play_games(n, items, pairs, replies, say) for n in judges}
    points = {name: summary.points_of(summary.outcome_codes(pairs, *both)[1]) for name, both in results_of.items()}
    verdicts, summaries, transcripts, rows = [], [], [], list(items)
    for n in judges:
        games, rulings = results_of[n.name]
        others = {name: p for name, p in points.items() if name != n.name}
        known = summary.JudgeContext(labels, others, own_source(n, items), prices(n))
        figures = summary.summary(n.name, items, pairs, games, rulings, known, resamples=resamples)
        compared = _run_controls(n, items, pairs, replies, say)
        if compared:
            about_resampling = {"resamples": resamples, "seed": 0}
            figures["controls"] = compare_with_controls(
                items, pairs, (games, rulings), compared, labels, **about_resampling
            )
        summaries.append(figures | {"sha256": n.fingerprint})
        for name, played_by in ((n.name, (games, rulings)), *((c.name, (c.games, c.rulings)) for c in compared)):
            results = list(zip(*played_by, strict=True))
            verdicts += [outputs.verdict_row(name, n.fingerprint, items, g, r) for g, r in results]
            transcripts += [outputs.transcript_row(name, items, g) for g, _ in results if g.transcript]
        rows = outputs.with_votes(rows, n.name, games, rulings)
        body = card(summaries[-1], card_facts(n), pairs_to_read(pairs, games, rulings, labels))
        body["texts"] += outputs.unreadable_replies(items, games, rulings) + outputs.transcripts_to_read(items, games)
        report.write_board(out, body, "judge_card" if len(judges) == 1 else f"judge_card-{slug(n.name)}")
    outputs.write(out, rows, verdicts, summaries, transcripts)
    return summaries


def slug(name: str) -> str:
    """A name made safe for use in a file name."""
    return "".join(c if c.isalnum() or c in "-_" else "-" for c in name)
