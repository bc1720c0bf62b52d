"""What the rulings of one judge come to: win rates, both orders, length, people beside it. Plain values throughout.

Shapes: N pairs, R people. Outcomes are coded as in :mod:`afzal.stats.judging`: 1 the first answer, 2 the second, 0 a
tie, -1 no verdict.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np

from afzal.judge.games import Game, Pair, Ruling
from afzal.judge.labels import FIRST, SECOND, TIE, Labels
from afzal.judge.plain import finite, interval
from afzal.judge.verdicts import CODES
from afzal.records import Item, prompt_key
from afzal.stats import agreement, judging
from afzal.stats.intervals import Interval, clustered, share
from afzal.stats.resampling import numbered

_POINTS = {1: 1.0, 2: 0.0, 0: 0.5}
_OF_LABELS = {FIRST: 1, SECOND: 2, TIE: 0}


def codes(pairs: Sequence[Pair], games: Sequence[Game], rulings: Sequence[Ruling]) -> tuple[np.ndarray, np.ndarray]:
    """``[N, 2]`` outcomes as they stand and turned (-2 where that order was not played; first samples), and ``[N]``
    the outcome of all games together: what they agree on, a tie where they part, no verdict where one has none."""
    place = {pair: k for k, pair in enumerate(pairs)}
    table, together = np.full((len(pairs), 2), -2), np.full(len(pairs), -2)
    for game, ruling in zip(games, rulings, strict=True):
        k, code = place[game.pair], CODES[ruling.outcome]
        if game.sample == 0:
            table[k, int(game.turned)] = code
        before = together[k]
        together[k] = code if before == -2 else -1 if -1 in (before, code) else before if before == code else 0
    return table, together


def summary(
    name: str,
    items: Sequence[Item],
    pairs: Sequence[Pair],
    games: Sequence[Game],
    rulings: Sequence[Ruling],
    *,
    people: Labels | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """All figures of a judge; those that the data cannot give are left out.

    Args:
        people: labels of people on the same pairs, numbered alike.
    """
    table, together = codes(pairs, games, rulings)
    prompts = [prompt_key(items[pair.item]) for pair in pairs]
    found: dict[str, Any] = {
        "judge": name,
        "pairs": len(pairs),
        "prompts": len(set(prompts)),
        "games": len(games),
        "no_verdict": sum(r.outcome == "none" for r in rulings),
        "no_verdict_share": sum(r.outcome == "none" for r in rulings) / len(rulings),
        "why_none": dict(Counter(r.why for r in rulings if r.outcome == "none").most_common(8)),
        "tokens_in": sum(r.tokens[0] for r in rulings),
        "tokens_out": sum(r.tokens[1] for r in rulings),
        "outcomes": {word: int((together == code).sum()) for word, code in CODES.items() if word != "both_bad"},
    }
    both = (table > -2).all(1)
    if both.any():
        found["orders"] = _orders(judging.both_orders(table[both, 0], table[both, 1]))
    gap = np.array([len(p.answers[0]) - len(p.answers[1]) for p in pairs])
    found["longer_wins"] = _longer(together, gap, prompts)
    if (sides := two_models(items, pairs)) is not None:
        given = {"resamples": resamples, "seed": seed}
        found["models"] = _models(sides, together, gap, prompts, people, **given)
    if people is not None and (people.table >= 0).any():
        found["people"] = _beside_people(together, people, resamples, seed)
    return found


def _orders(seen: judging.Orders) -> dict[str, Any]:
    names = ("pairs", "contradictions", "consistent", "first_slot", "slot_bias", "slot_p")
    return {name: finite(getattr(seen, name)) for name in names}


def _longer(together: np.ndarray, gap: np.ndarray, prompts: Sequence[Hashable]) -> dict[str, Any] | None:
    """How often the longer answer wins, of the pairs that have a winner and differ in length."""
    use = (together > 0) & (gap != 0)
    if not use.any():
        return None
    won = ((together == 1) == (gap > 0))[use].astype(float)
    return _figure(share(clustered([p for p, u in zip(prompts, use, strict=True) if u], won.tolist())))


def two_models(items: Sequence[Item], pairs: Sequence[Pair]) -> tuple[str, str, np.ndarray] | None:
    """The two models of a comparison, the one that the first pair names first, and ``[N]`` +1 where it is first, -1
    where it is second; None where the answers are of one model, of several, or nameless."""
    named = [(items[p.item].responses[p.first].source, items[p.item].responses[p.second].source) for p in pairs]
    names = list(dict.fromkeys(name for both in named for name in both))
    if len(names) != 2 or None in names or any(a == b for a, b in named):
        return None
    ours, theirs = names
    assert ours is not None
    assert theirs is not None
    return ours, theirs, np.array([1 if a == ours else -1 for a, _ in named])


def _models(
    sides: tuple[str, str, np.ndarray],
    together: np.ndarray,
    gap: np.ndarray,
    prompts: Sequence[Hashable],
    people: Labels | None,
    *,
    resamples: int,
    seed: int,
) -> dict[str, Any]:
    """Win, tie and loss of the first model, its win rate, at equal lengths too, and corrected by people's labels."""
    ours, theirs, side = sides
    spoke = together >= 0
    points = np.array([_POINTS.get(int(c), math.nan) for c in together])
    points = np.where(side > 0, points, 1 - points)
    found: dict[str, Any] = {
        "ours": ours,
        "theirs": theirs,
        "win": int((points == 1).sum()),
        "tie": int((points == 0.5).sum()),
        "loss": int((points == 0).sum()),
        "no_verdict": int((~spoke).sum()),
    }
    if not spoke.any():
        return found
    of = [p for p, s in zip(prompts, spoke, strict=True) if s]
    means = judging.column_means(points[:, None], prompts, resamples=resamples, seed=seed)
    longest = np.where(gap * side > 0, 1.0, np.where(gap * side < 0, 0.0, 0.5))
    found |= {"win_rate": _figure(means.interval(0)), "win_rate_of_the_longer": float(longest.mean())}
    if np.ptp(gap[spoke]) > 0:
        controlled = judging.length_controlled(
            points[spoke], (gap * side)[spoke], of, resamples=min(resamples, 500), seed=seed
        )
        found["length_controlled"] = _figure(controlled.controlled) | {
            "slope": controlled.slope,
            "overlap": controlled.overlap,
            "extrapolated": controlled.extrapolated,
        }
    if people is not None and (corrected := _corrected(points, side, prompts, people)) is not None:
        found["with_people"] = corrected
    return found


def _corrected(
    points: np.ndarray, side: np.ndarray, prompts: Sequence[Hashable], people: Labels
) -> dict[str, Any] | None:
    """The prediction-powered win rate over prompts; None with fewer than three labelled prompts.

    Pairs of one prompt are first averaged, since what is independent are prompts.
    """
    said = np.where(people.table < len(_OF_LABELS), people.table, -1)
    value = np.array([_POINTS[_OF_LABELS[c]] for c in range(3)])
    with np.errstate(invalid="ignore"):
        human = np.where(said >= 0, value[np.maximum(said, 0)], 0.0).sum(1) / (said >= 0).sum(1)
    human = np.where(side > 0, human, 1 - human)
    place, spoke = numbered(prompts), np.isfinite(points)
    both = spoke & np.isfinite(human)
    labelled, judged = _by_prompt(human[both], place[both]), _by_prompt(points[both], place[both])
    if len(labelled) < 3:
        return None
    found = judging.prediction_powered(labelled, judged, _by_prompt(points[spoke], place[spoke]))
    return {
        "prompts": len(labelled),
        "corrected": _figure(found.value),
        "people_alone": _figure(found.people),
        "power": found.power,
    }


def _by_prompt(values: np.ndarray, place: np.ndarray) -> np.ndarray:
    """The mean of the rows ``[N]`` of each prompt that has any, by the prompts' numbers ``[N]``."""
    rows = np.bincount(place)
    return np.bincount(place, values)[rows > 0] / rows[rows > 0]


def _beside_people(together: np.ndarray, people: Labels, resamples: int, seed: int) -> dict[str, Any]:
    """Agreement of the judge with people and of people with each other, each against the mode of the other people."""
    judged = np.array([{1: FIRST, 2: SECOND, 0: TIE}.get(int(code), -1) for code in together])
    labels = people.table
    several = (labels >= 0).sum(1) >= 2
    found: dict[str, Any] = {"people": len(people.annotators), "labels": int((labels >= 0).sum())}
    single = np.where(labels >= 0, (labels == judged[:, None]).astype(float), np.nan)
    rows, of = np.where(labels >= 0)[0], people.prompts
    flat = judging.column_means(
        single[labels >= 0][:, None], [of[r] for r in rows], resamples=resamples, seed=seed
    ).interval(0)
    found["agreement"] = _figure(flat)
    if several.any():
        judge, ceiling = agreement.judge_with_rest(judged, labels, 4), agreement.agreement_with_rest(labels, 4)
        use = np.isfinite(judge) & np.isfinite(ceiling)
        columns = np.stack([judge[use], ceiling[use], (judge - ceiling)[use]], 1)
        where = [of[r] for r in np.where(use)[0]]
        means = judging.column_means(columns, where, resamples=resamples, seed=seed)
        for column, key in enumerate(("with_the_mode_of_others", "ceiling", "minus_ceiling")):
            found[key] = _figure(means.interval(column))
    if len(people.annotators) >= 3 and ((labels >= 0).sum(1) >= 3).any():
        found["alt_test"] = _alt_test(judged, labels)
    return found


def _alt_test(judged: np.ndarray, labels: np.ndarray) -> dict[str, Any] | None:
    try:
        tested = judging.alt_test(judged, labels)
    except ValueError:
        return None
    return {"winning_rate": tested.winning_rate, "advantage": tested.advantage, "passes": tested.passes, "epsilon": 0.2}


def _figure(known: Interval) -> dict[str, Any]:
    return interval(known) | {"n": known.n}


def lines(found: Mapping[str, Any], prices: tuple[float | None, float | None] = (None, None)) -> list[str]:
    """The summary in words."""
    said = [f"judge {found['judge']}: {found['pairs']} pairs of {found['prompts']} prompts, {found['games']} games"]
    if (m := found.get("models")) is not None:
        total = max(1, m["win"] + m["tie"] + m["loss"])
        record = ", ".join(f"{word} {100 * m[word] / total:.1f}" for word in ("win", "tie", "loss"))
        line = f"  {m['ours']} against {m['theirs']}: {record}"
        if "win_rate" in m:
            line += f"; win rate {_percent(m['win_rate'])}, by length alone {100 * m['win_rate_of_the_longer']:.1f}"
        said.append(line)
        if (c := m.get("length_controlled")) is not None:
            marked = " (extrapolated: one side is nearly always longer)" if c["extrapolated"] else ""
            said.append(f"  at equal lengths {_percent(c)}, lengths overlap on {c['overlap']:.0%}{marked}")
        if (w := m.get("with_people")) is not None:
            said.append(
                f"  with people's labels on {w['prompts']} prompts {_percent(w['corrected'])}; "
                f"people alone {_percent(w['people_alone'])}"
            )
    if (o := found.get("orders")) is not None:
        p = "" if o["slot_p"] is None else f" (p = {o['slot_p']:.2g})"
        bias = (
            ""
            if o["slot_bias"] is None
            else f", slot bias {100 * o['slot_bias']:+.1f} points{p}, where + is the first slot"
        )
        said.append(f"  consistent {100 * o['consistent']:.1f} %, contradictions {o['contradictions']}{bias}")
    none = f"  no verdict {100 * found['no_verdict_share']:.1f} %"
    if found["longer_wins"] is not None:
        none += f", the longer answer wins {_percent(found['longer_wins'])}"
    said.append(none)
    said += [f"    {n} x {why}" for why, n in found["why_none"].items()]
    if (h := found.get("people")) is not None:
        line = f"  agrees with people on {_percent(h['agreement'])} of {h['labels']} labels"
        if "ceiling" in h:
            line += (
                f"; with the mode of the others {_percent(h['with_the_mode_of_others'])}, where one of them reaches "
                f"{_percent(h['ceiling'])}: {100 * h['minus_ceiling']['value']:+.1f} points"
            )
        said.append(line)
        if h.get("alt_test"):
            passed = "passes" if h["alt_test"]["passes"] else "fails"
            said.append(
                f"  {passed} the alternative-annotator test at epsilon 0.2 (advantage {h['alt_test']['advantage']:.3f})"
            )
    if found["tokens_in"]:
        cost = sum(
            n * price / 1e6 for n, price in zip((found["tokens_in"], found["tokens_out"]), prices, strict=True) if price
        )
        said.append(
            f"  tokens: {found['tokens_in']:,} asked, {found['tokens_out']:,} answered"
            + (f", cost {cost:.2f}" if cost else "")
        )
    return said


def _percent(found: Mapping[str, Any]) -> str:
    if found["value"] is None:
        return "-"
    ends = "" if found["low"] is None else f" [{100 * found['low']:.1f}, {100 * found['high']:.1f}]"
    return f"{100 * found['value']:.1f} %{ends}"


def flat(found: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Every number of a summary by its dotted name, for ``--require``."""
    numbers: dict[str, float] = {}
    for key, value in found.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            numbers |= flat(value, f"{name}.")
            if isinstance(value.get("value"), int | float):
                numbers[name] = float(value["value"])
        elif isinstance(value, int | float) and not isinstance(value, bool):
            numbers[name] = float(value)
    return numbers
