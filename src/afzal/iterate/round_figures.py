"""The results of a round: figures of a policy's answers to held-out prompts, when to stop, and the report's texts.

Pure functions of the written rows. Every figure is a sum and a count over answers with a standard error over prompts,
so that figures of parts add up; nothing is a mean of means.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from afzal.report import FrontierChart, LineChart, PolicyPoint, Section, Series, Table
from afzal.report.svg import CHOSEN, HELD_OUT, OTHER, REJECTED, Rule
from afzal.stats.intervals import Cluster, Estimate, clustered, mean, share
from afzal.text import plural

Rows = Sequence[Mapping[str, Any]]

_LENGTH_ALARM = 1.5  # ratio of mean lengths to the first policy's, in either direction
_ENDS_ALARM = 0.2  # absolute fall of the share of answers that end with EOS
_LOST_ALARM = 0.05  # absolute rise of the share of answers rejected as empty or unfinished


@dataclass(frozen=True, slots=True)
class Round:
    """One round, or the first policy for ``number`` 0. ``policy`` is the path of its model in the run's folder.

    ``rejections`` counts them by reason; ``steps`` is the number of training updates, ``margin`` the reward gap of the
    pairs. ``measured`` holds the policy's figures: ``reward``, ``watch_reward``, ``kl`` in nats per response to the
    first policy, ``cost``, ``length`` in tokens, ``ended``, ``win_rate`` against the first policy by the reward; it is
    empty for an unmeasured round. ``parted`` says how the reward and the watched one part, if they do; ``multiplier``
    is the reward subtracted per unit of cost in the round's pairs.
    """

    number: int
    policy: str = ""
    prompts: int = 0
    samples: int = 0
    pairs: int = 0
    steps: int = 0
    rejections: Mapping[str, int] = field(default_factory=dict)
    margin: Estimate | None = None
    measured: Mapping[str, Estimate] = field(default_factory=dict)
    parted: str = ""
    multiplier: float | None = None

    def mean(self, name: str) -> float | None:
        """The mean of a figure; None if it was not measured."""
        known = self.measured.get(name)
        return None if known is None else known.mean


def estimate(values: Sequence[tuple[Any, float]]) -> Estimate:
    """One figure from the (prompt, value) of every answer; answers to one prompt are not independent, so its standard
    error is over prompts."""
    return _plain_count(mean(_clusters(values)))


def proportion(values: Sequence[tuple[Any, float]]) -> Estimate:
    """As :func:`estimate`, for values from 0 to 1, with an interval that keeps its coverage even if all are 0 or 1."""
    clusters = _clusters(values)
    return replace(_plain_count(mean(clusters)), stated=share(clusters).ends)


def _clusters(values: Sequence[tuple[Any, float]]) -> list[Cluster]:
    return clustered([prompt for prompt, _ in values], [value for _, value in values])


def _plain_count(figure: Estimate) -> Estimate:
    return replace(figure, count=int(figure.count))


def figures(rows: Rows, first: Rows, *, common: bool = True) -> dict[str, Estimate]:
    """The figures of a policy from its answers to the held-out prompts and the first policy's.

    Args:
        rows, first: ``prompt_index``, ``sample``, ``tokens``, ``stop``, ``kl`` and, if known, ``reward``,
            ``watch_reward`` and ``cost``.
        common: whether both were drawn with the same random numbers.
    """
    by_name = {}
    keys = {"reward": "reward", "watch_reward": "watch_reward", "cost": "cost", "kl": "kl", "length": "tokens"}
    for name, key in keys.items():
        if rows and rows[0].get(key) is not None:
            by_name[name] = estimate([(r["prompt_index"], float(r[key])) for r in rows])
    if rows:
        by_name["ended"] = proportion([(r["prompt_index"], float(r["stop"] == "eos")) for r in rows])
    if "reward" in by_name and (won := won_by(rows, first, common=common)):
        by_name["win_rate"] = proportion(won)
    return by_name


def change(before: Rows, after: Rows, name: str) -> Estimate:
    """The mean change of a value over the answers of equal prompt and number, with its standard error over prompts.

    Answers of equal number are drawn with the same random numbers, which makes the difference more precise.
    """
    was = {(row["prompt_index"], row["sample"]): row[name] for row in before}
    return estimate([(r["prompt_index"], r[name] - was[r["prompt_index"], r["sample"]]) for r in after])


def won_by(rows: Rows, first: Rows, *, common: bool = True) -> list[tuple[Any, float]]:
    """(prompt, 1, 0, or one half for equal rewards) of every answer against every independently drawn answer of the
    first policy to the same prompt.

    Policies answer with the same random numbers, which makes differences of means more precise. But answers with the
    same number then resemble each other, and their pairs would bias the win rate. They are left out, so with a single
    answer per prompt there is no win rate.
    """
    first_answers: dict[Any, list[Mapping[str, Any]]] = {}
    for row in first:
        first_answers.setdefault(row["prompt_index"], []).append(row)
    return [
        (row["prompt_index"], 1.0 if row["reward"] > o["reward"] else 0.5 if row["reward"] == o["reward"] else 0.0)
        for row in rows
        for o in first_answers.get(row["prompt_index"], ())
        if not common or row["sample"] != o["sample"]
    ]


def stop_reason(rounds: Sequence[Round], *, kl_budget: float | None, patience: int | None, min_gain: float) -> str:
    """The reason to stop before another round; empty if there is none.

    Args:
        rounds: the first policy and the rounds so far.
        kl_budget: nats per response; stop above it.
        patience: consecutive measurements without a held-out reward more than ``min_gain`` above the previous best.
    """
    known = [r for r in rounds if r.measured]
    last = rounds[-1]
    if kl_budget is not None and (last.mean("kl") or 0.0) > kl_budget:
        return "kl_budget"
    rewards = [m for r in known if (m := r.mean("reward")) is not None]
    if patience is not None and rewards and len(rewards) > patience:
        best = rewards[0]
        waited = 0
        for reward in rewards[1:]:
            best, waited = (reward, 0) if reward > best + min_gain else (best, waited + 1)
        if waited >= patience:
            return "plateau"
    return ""


def sound_rounds(rounds: Sequence[Round], kl_budget: float | None) -> list[Round]:
    """The measured rounds within the KL budget before the first alarm of :func:`alarms`, including the first policy."""
    sound = []
    for k, r in enumerate(rounds):
        if not r.measured:
            continue
        if k and alarms(rounds[: k + 1]):
            break
        if kl_budget is None or (r.mean("kl") or 0.0) <= kl_budget:
            sound.append(r)
    return sound


def within_bound(rounds: Sequence[Round], bound: float | None) -> list[Round]:
    """The rounds whose held-out cost is at most ``bound``; if there are none, the one with the lowest cost.

    All rounds if there is no bound.
    """
    if bound is None or not rounds:
        return list(rounds)
    cost = lambda r: r.mean("cost") or 0.0  # noqa: E731
    return [r for r in rounds if cost(r) <= bound] or [min(rounds, key=cost)]


def best_round(rounds: Sequence[Round], kl_budget: float | None, cost_bound: float | None = None) -> Round:
    """The round to use: the last sound one whose held-out reward is not clearly below that of an earlier sound one.

    With a bound on the cost only rounds that keep it count, or the one with the lowest cost if none does. A reward that
    rises during an alarm may be hacked, so the highest reward is not the criterion. The chosen round's figures must be
    measured again, since the existing ones selected it.
    """
    sound = within_bound(sound_rounds(rounds, kl_budget), cost_bound) or [rounds[0]]
    best = sound[0]
    for r in sound[1:]:
        old, new = best.measured.get("reward"), r.measured.get("reward")
        if old is None or new is None or old.mean - new.mean <= 2 * math.hypot(_finite(old.se), _finite(new.se)):
            best = r
    return best


def alarms(rounds: Sequence[Round]) -> list[str]:
    """Signs of a hacked reward (it rises while another falls, answers change length or no longer emit EOS), and of
    rejected answers that become more frequent, since they are never trained against."""
    known = [r for r in rounds if r.measured]
    first, last = known[0].measured, known[-1].measured
    signs = []
    if known[-1].parted:
        signs.append(known[-1].parted)
    elif "reward" in last and last["reward"].mean > first["reward"].mean and "watch_reward" in last:
        before, after = first["watch_reward"], last["watch_reward"]
        if before.mean - after.mean > 2 * math.hypot(before.se, after.se):
            signs.append(
                f"the reward rose from {first['reward'].mean:.3g} to {last['reward'].mean:.3g} while the watched one "
                f"fell from {before.mean:.3g} to {after.mean:.3g}: the reward is being hacked"
            )
        tops = [r.mean("watch_reward") or 0.0 for r in known]
        top = max(range(len(tops)), key=tops.__getitem__)
        if not signs and tops[top] - after.mean > 2 * math.hypot(known[top].measured["watch_reward"].se, after.se):
            signs.append(
                f"the watched reward was highest, {tops[top]:.3g}, in round {known[top].number} and is {after.mean:.3g}"
                ": stop there"
            )
    before, after = first["length"], last["length"]
    ratio = after.mean / before.mean if before.mean > 0 else 1.0
    clear = abs(after.mean - before.mean) > 2 * math.hypot(before.se, after.se)
    if clear and not 1 / _LENGTH_ALARM <= ratio <= _LENGTH_ALARM:
        signs.append(f"answers went from {before.mean:.3g} to {after.mean:.3g} tokens: part of the reward is length")
    if first["ended"].mean - last["ended"].mean > _ENDS_ALARM:
        signs.append(f"only {last['ended'].mean:.0%} of the answers end with EOS, down from {first['ended'].mean:.0%}")
    return [*signs, *_unseen(rounds)]


def _unseen(rounds: Sequence[Round]) -> list[str]:
    """Alarms for kinds of rejected answers whose share of all answers has grown."""
    sampled = [r for r in rounds if r.samples]
    signs = []
    for reason, words in (("empty", "are empty"), ("no_eos", "do not end")):
        shares = [r.rejections.get(reason, 0) / r.samples for r in sampled]
        if shares and shares[-1] - shares[0] > _LOST_ALARM:
            signs.append(
                f"{shares[-1]:.0%} of the answers {words}, from {shares[0]:.0%}: left out of the pairs, they are "
                "never trained against"
            )
    return signs


def line(r: Round, with_error: Sequence[str] = ("reward", "watch_reward", "cost", "kl")) -> str:
    """A round as one line: counts, rejections, and figures with 95% intervals."""
    rejections = ", ".join(f"{n} {reason}" for reason, n in r.rejections.items())
    counts = f"{plural(r.prompts, 'prompt')}, {plural(r.samples, 'answer')}, {plural(r.pairs, 'pair')}"
    counts += f" (lost: {rejections})" if rejections else ""
    counts += "" if r.multiplier is None else f", multiplier {r.multiplier:.3g}"
    head = f"round {r.number}: {counts}" if r.number else "first policy"
    figures_text = [_figure(name, r.measured[name], name in with_error) for name in _SHOWN if name in r.measured]
    return "; ".join([head, ", ".join(figures_text) if figures_text else "not measured"])


_SHOWN = {
    "reward": ("reward {}", "{:.3f}"),
    "watch_reward": ("watched reward {}", "{:.3f}"),
    "cost": ("cost {}", "{:.3f}"),
    "kl": ("KL to the first policy {} nats", "{:.3f}"),
    "length": ("{} tokens", "{:.1f}"),
    "ended": ("{} end with EOS", "{:.0%}"),
    "win_rate": ("{} win against the first policy", "{:.0%}"),
}


def _figure(name: str, value: Estimate, with_error: bool) -> str:
    words, shape = _SHOWN[name]
    figure = shape.format(value.mean)
    if with_error and math.isfinite(value.se) and value.se > 0:
        figure += f" ± {value.ends[1] - value.mean:.3f}"
    return words.format(figure)


def to_json(r: Round) -> dict[str, Any]:
    """A round as plain values, with sums and counts as well as means."""
    body: dict[str, Any] = {k: getattr(r, k) for k in ("number", "policy", "prompts", "samples", "pairs", "steps")}
    body["lost"] = dict(r.rejections)
    body |= {} if r.multiplier is None else {"multiplier": r.multiplier}
    by_name = dict(r.measured) | ({"margin": r.margin} if r.margin else {})
    return body | {name: plain(e) for name, e in by_name.items()}


def plain(e: Estimate) -> dict[str, float | int | None]:
    """A figure as plain values."""
    se = e.se if math.isfinite(e.se) else None
    return {"mean": e.mean, "sum": e.total, "count": e.count, "se": se}


def plain_with_interval(e: Estimate) -> dict[str, float | int | None]:
    """The same with the ends of its 95% interval over prompts, None if that is unknown."""
    low, high = e.ends if math.isfinite(e.se) else (None, None)
    return plain(e) | {"low": low, "high": high}


_COLUMNS = ("round", "prompts", "answers", "pairs", "reward", "KL, nats", "tokens", "ended", "win rate")
_MEANS = ("reward", "kl", "length", "ended", "win_rate")


def csv(rounds: Sequence[Round]) -> str:
    """CSV with one line per round: counts, then mean and standard error of every figure; empty if not measured."""
    costs = any(r.multiplier is not None for r in rounds)
    names = ["reward", "watch_reward", *(["cost"] if costs else []), "kl", "length", "ended", "win_rate", "margin"]
    extra_names = ["multiplier"] if costs else []
    lines = [",".join(["round", "prompts", "samples", "pairs", "steps", *(f"{n},{n}_se" for n in names), *extra_names])]
    for r in rounds:
        known = dict(r.measured) | ({"margin": r.margin} if r.margin else {})
        cells = [str(v) for v in (r.number, r.prompts, r.samples, r.pairs, r.steps)]
        for name in names:
            e = known.get(name)
            cells += ["", ""] if e is None else [repr(e.mean), repr(e.se) if math.isfinite(e.se) else ""]
        cells += ["" if r.multiplier is None else repr(r.multiplier)] if costs else []
        lines.append(",".join(cells))
    return "\n".join(lines) + "\n"


def rejection_counts(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Rejections by reason, the most frequent first."""
    return dict(Counter(str(row["reason"]) for row in rows).most_common())


def sections(rounds: Sequence[Round], words: str, cost_bound: float | None = None) -> list[Section]:
    """The report's sections on rounds: reward against KL, then cost, length, ends and wins."""
    known = [r for r in rounds if r.measured]
    text = "\n\n".join([words, *alarms(rounds)])
    return [
        Section("Rounds", text, _path(known), _table(rounds)),
        *([_by_round("Reward by round", known, _REWARDS, "reward")] if known[0].mean("reward") is not None else []),
        *([] if cost_bound is None else _costs(known, rounds, cost_bound)),
        _by_round("Length by round", known, (("length", "tokens", HELD_OUT),), "tokens"),
        _by_round("Ends and wins by round", known, _SHARES, "share"),
    ]


def _costs(known: Sequence[Round], rounds: Sequence[Round], bound: float) -> list[Section]:
    """Held-out cost with its bound, and the multiplier that enforces it, by round."""
    cost = LineChart((_series("cost", "cost", HELD_OUT, known),), "round", "cost", (Rule(bound, "bound"),))
    steps = tuple((float(r.number), r.multiplier) for r in rounds if r.multiplier is not None)
    multiplier = LineChart((Series("multiplier", steps, OTHER),), "round", "reward per cost")
    return [Section("Cost by round", "", cost), *([Section("Multiplier by round", "", multiplier)] if steps else [])]


_REWARDS = (("reward", "reward", HELD_OUT), ("watch_reward", "watched reward", REJECTED))
_SHARES = (("ended", "end with EOS", OTHER), ("win_rate", "win against the first policy", CHOSEN))


def _table(rounds: Sequence[Round]) -> Table:
    rows = [(r.number, r.prompts, r.samples, r.pairs, *map(r.mean, _MEANS)) for r in rounds]
    if all(r.multiplier is None for r in rounds):
        return Table(_COLUMNS, tuple(rows))
    extended = [(*row, r.mean("cost"), r.multiplier) for row, r in zip(rows, rounds, strict=True)]
    return Table((*_COLUMNS, "cost", "multiplier"), tuple(extended))


def _path(known: Sequence[Round]) -> FrontierChart | LineChart:
    """Reward against KL with one point per round; KL by round if no reward is known."""
    if known[0].mean("reward") is None:
        series = (_series("kl", "KL to the first policy", HELD_OUT, known),)
        return LineChart(series, x_label="round", y_label="nats")
    measurements = [(r.measured["kl"], r.measured["reward"], r.number) for r in known]
    policy_points = [
        PolicyPoint(f"round {k}" if k else "start", kl.mean, reward.mean, _finite(kl.se), _finite(reward.se))
        for kl, reward, k in measurements
    ]
    path = Series("rounds", tuple((kl.mean, reward.mean) for kl, reward, _ in measurements), HELD_OUT)
    return FrontierChart(
        tuple(policy_points), paths=(path,), x_label="KL to the first policy, nats", y_label="held-out reward"
    )


def _by_round(title: str, known: Sequence[Round], lines: Sequence[tuple[str, str, int]], unit: str) -> Section:
    series = tuple(_series(key, name, colour, known) for key, name, colour in lines if key in known[-1].measured)
    return Section(title, "", LineChart(series, x_label="round", y_label=unit))


def _series(key: str, name: str, colour: int, known: Sequence[Round]) -> Series:
    """One figure by round with its 95% band."""
    having = [(r.number, r.measured[key]) for r in known if key in r.measured]
    ends = [e.ends for _, e in having]
    return Series(
        name,
        tuple((float(k), e.mean) for k, e in having),
        colour,
        low=tuple(low for low, _ in ends),
        high=tuple(high for _, high in ends),
        label=name,
    )


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0
