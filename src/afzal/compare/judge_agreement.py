"""Judges compared with the true reward, on the answers of every two policies to the same prompts.

Shapes: N pairs of answers, S seeds, X prompts. Outcomes are coded as in :mod:`afzal.stats.judging`: 1 the first answer,
2 the second, 0 a tie, -1 no verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from afzal import data
from afzal.compare.summary import Point
from afzal.config import CompareConfig
from afzal.judge.people import votes_on
from afzal.judge.summary import outcome_codes, points_of
from afzal.judging.judges import ResolvedJudge, card_facts, resolve_judge
from afzal.judging.run import judge_items
from afzal.records import Item, Response, Turns, turns_to_json
from afzal.runs.stage import key_of, read_stage, write_stage
from afzal.servers.cache import REPLIES
from afzal.stats.intervals import clustered, share
from afzal.stats.policy_comparison import same_draws, share_of_verdicts

Say = Callable[[str], None]
ChosenPoints = Mapping[str, Mapping[int, Point | None]]
"""The point at which each policy is judged, by name and seed; the start is last."""


@dataclass(frozen=True, slots=True)
class Match:
    """Two policies on one prompt (by number) with one seed, and the numbers of the compared answers."""

    ours: str
    theirs: str
    seed: int
    prompt: int
    answers: tuple[int, int]


def compare_judges(
    config: CompareConfig,
    chosen: ChosenPoints,
    prompts: Sequence[Turns],
    say: Say,
    columns: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Each judge's verdicts on every two policies, and the agreement of judges with each other, with people and with
    the true reward. Verdicts are kept in ``judged/`` under a hash of judge and answers.

    Args:
        columns: columns of each prompt's row, for functions that ask for them.

    Raises:
        AfzalError: as for :func:`afzal.judging.run.judge_items`.
    """
    if not config.judges:
        return {"judges": [], "judge_agreement": []}
    folder = Path(config.out) / "judged"
    matches = list(_matches(chosen, min(len(prompts), config.judge_prompts or len(prompts))))
    items = [_item(m, chosen, prompts) for m in matches]
    items = [replace(i, extra=columns[m.prompt]) for i, m in zip(items, matches, strict=True)] if columns else items
    folder.mkdir(parents=True, exist_ok=True)
    data.write(data.with_copied_media(items, folder), folder / "pairs.jsonl", "afzal")
    judges = {name: resolve_judge(spec) for name, spec in config.judges.items()}
    people = next((n.votes for n in judges.values() if n.votes), None)
    outcomes_of, lines = {}, []
    for name, spec in config.judges.items():
        say(f"judge {name}: {len(items)} pairs of answers")
        outcomes, figures = _verdicts(folder, name, spec, items, None if judges[name].votes else people, say)
        outcomes_of[name] = outcomes
        facts = {"name": name, **_facts(judges[name]), "wins": list(_wins(config, matches, outcomes))}
        lines.append(facts | {"summary": figures})
    outcomes_of[next(iter(config.rewards))] = _reward_outcomes(config, matches, chosen)
    return {"judges": lines, "judge_agreement": list(_agreement(outcomes_of, matches))}


def _matches(chosen: ChosenPoints, prompts: int) -> Iterator[Match]:
    """Matches of every two policies of the same seed on each prompt, by the first answers without shared random
    numbers."""
    for (ours, our_points), (theirs, their_points) in combinations(chosen.items(), 2):
        for seed, a in our_points.items():
            b = their_points.get(seed)
            if a is None or b is None:
                continue
            n, m = (p.answers.tokens.shape[1] for p in (a, b))
            i, j = np.argwhere(~same_draws(n, m, a.draws, b.draws))[0].tolist()
            yield from (Match(ours, theirs, seed, k, (i, j)) for k in range(prompts))


def _item(m: Match, chosen: ChosenPoints, prompts: Sequence[Turns]) -> Item:
    responses = []
    for name, k in zip((m.ours, m.theirs), m.answers, strict=True):
        point = chosen[name][m.seed]
        assert point is not None
        responses.append(Response(point.answers.texts[m.prompt][k], name))
    return Item(f"{m.ours}-{m.theirs}-{m.seed}-{m.prompt}", prompts[m.prompt], tuple(responses))


def _verdicts(
    folder: Path, name: str, spec: str, items: Sequence[Item], people: str | None, say: Say
) -> tuple[np.ndarray, dict[str, Any]]:
    """``[N]`` outcomes of one judge and its summary, from an earlier call's file if judge and answers are the same.

    Args:
        people: file of people's votes to compare the judge with.
    """
    texts = [[turns_to_json(item.prompt), *(turns_to_json(r.turns) for r in item.responses)] for item in items]
    texts += [dict(item.extra) for item in items if item.extra]  # columns that a function reads too
    key = key_of(
        resolve_judge(spec).fingerprint,
        texts,
        None if people is None else resolve_judge(f"people:{people}").fingerprint,
    )
    path = folder / f"{name}.json"
    body = read_stage(path, key)
    if body is None:
        voted_items = None if people is None else votes_on(items, people, say)
        judging = judge_items(spec, items, cache=folder / REPLIES, voted=voted_items, say=say)
        codes = outcome_codes(judging.pairs, judging.games, judging.rulings)[1]
        body = {"outcomes": codes.tolist(), "summary": judging.summary}
        write_stage(path, key, body)
    return np.asarray(body["outcomes"]), body["summary"]


def _facts(judge: ResolvedJudge) -> dict[str, Any]:
    facts = card_facts(judge)
    return {"kind": facts["kind"], "model": facts.get("model"), "sha256": judge.fingerprint}


def _wins(config: CompareConfig, matches: Sequence[Match], outcomes: np.ndarray) -> Iterator[dict[str, Any]]:
    """Wins, ties, losses, missing verdicts and win rate of each ordered pair of policies."""
    points = points_of(outcomes)
    rows_by_pair: dict[tuple[str, str], list[int]] = {}
    for k, m in enumerate(matches):
        rows_by_pair.setdefault((m.ours, m.theirs), []).append(k)
    for (ours, theirs), rows in rows_by_pair.items():
        seeds = [s for s in config.seeds if any(matches[k].seed == s for k in rows)]
        table = np.full((len(seeds), 1 + max(matches[k].prompt for k in rows)), np.nan)
        for k in rows:
            table[seeds.index(matches[k].seed), matches[k].prompt] = points[k]
        yield {"ours": ours, "theirs": theirs, **_won(table)}
        yield {"ours": theirs, "theirs": ours, **_won(1 - table)}


def _won(points: np.ndarray) -> dict[str, Any]:
    counts = {name: int((points == value).sum()) for name, value in (("win", 1.0), ("tie", 0.5), ("loss", 0.0))}
    counts["no_verdict"] = int(np.isnan(points).sum())
    rate = share_of_verdicts(points)
    return counts | ({"value": None, "low": None, "high": None, "n": 0} if rate is None else asdict(rate))


def _reward_outcomes(config: CompareConfig, matches: Sequence[Match], chosen: ChosenPoints) -> np.ndarray:
    """``[N]`` outcomes by the true reward on the same pairs."""
    chief, outcomes = next(iter(config.rewards)), []
    for m in matches:
        points = (chosen[m.ours][m.seed], chosen[m.theirs][m.seed])
        a, b = (p.answers.rewards[chief][m.prompt, k] for p, k in zip(points, m.answers, strict=True) if p is not None)
        outcomes.append(1 if a > b else 2 if b > a else 0)
    return np.array(outcomes)


def _agreement(outcomes_of: Mapping[str, np.ndarray], matches: Sequence[Match]) -> Iterator[dict[str, Any]]:
    """The agreement of every two judges, the true reward included (last in ``outcomes_of``): over pairs with two
    verdicts, and over pairs on which both name a winner. Intervals are over prompts."""
    prompts = [m.prompt for m in matches]
    for (first, a), (second, b) in combinations(outcomes_of.items(), 2):
        decided = (a >= 0) & (b >= 0)
        yield {
            "first": first,
            "second": second,
            "same": _share(a == b, decided, prompts),
            "same_winner": _share(a == b, decided & (a > 0) & (b > 0), prompts),
        }


def _share(equal: np.ndarray, use: np.ndarray, prompts: Sequence[int]) -> dict[str, Any] | None:
    if not use.any():
        return None
    rows = clustered([p for p, u in zip(prompts, use, strict=True) if u], equal[use].astype(float).tolist())
    return asdict(share(rows)) | {"pairs": int(use.sum())}
