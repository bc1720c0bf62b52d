"""From scored rows to the next questions, with a report on them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from afzal.errors import AfzalError
from afzal.records import Item, axes_of, pooled_axes
from afzal.stats.intervals import Interval

from .choose import HARMFUL, By, Question, RuleInputs, choose, question_rows
from .curve import BestModel, Curve, LabelledPairs, best_model, learning_curve, model_curve
from .features import reduced, row_features
from .matches import matches_of
from .pool import Pool, Votes, pool_of, refuse_nothing_to_ask, votes_of

_BY_SCORES = ("d_optimal", "bald", "entropy", "max_margin")
_SHOWN = 12
_RUNS = 5


@dataclass(frozen=True, slots=True)
class AskOptions:
    """How to choose.

    Attributes:
        source: name of the pool in messages.
        seeds: simulations of the learning curve; 0 for none. Curves of models use five times as many, which are cheap.
        labels: labels or votes at the end of the curve.
        axis: use only votes on this axis; None for all.
    """

    source: str
    by: By
    n: int
    random_share: float
    ridge: float
    seed: int
    seeds: int
    labels: int
    axis: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ScoredItems:
    """Rows with the scores or features of their responses.

    Attributes:
        items: the rows.
        members: per item ``[K, M]`` scores by M scorers or heads; None if the linear model scores.
        features: per item ``[K, D]``; None to use the words of the responses.
        hidden: whether the features are hidden states, whose scale has no meaning.
        unread: number of skipped rows, of which a model could not read a response.
    """

    items: Sequence[Item]
    members: Sequence[np.ndarray] | None = None
    features: Sequence[np.ndarray] | None = None
    hidden: bool = False
    unread: int = 0


@dataclass(frozen=True, slots=True)
class AskReport:
    """The questions as rows, report lines, warnings, and the same as plain values."""

    rows: list[Item]
    lines: list[str]
    warnings: list[str]
    plain: dict[str, Any]


def with_row_features(items: Sequence[Item]) -> ScoredItems:
    """Rows with the features that they contain."""
    return ScoredItems(items, features=row_features(items))


def ask(scored: ScoredItems, voted: ScoredItems | None, options: AskOptions) -> AskReport:
    """The next questions, and the learning curve if requested.

    Args:
        scored: the pool.
        voted: the rows with the votes so far, which need not be in the pool; None for the votes in the pool itself.

    Raises:
        AfzalError: a score is not a finite number, nothing is left to ask, or the rule lacks data that it needs.
    """
    pool = pool_of(scored.items)
    refuse_nothing_to_ask(pool, options.source)
    voted_pool = pool if voted is None else pool_of(voted.items)
    _refuse_other_axis(voted_pool, options)
    votes = votes_of(voted_pool, axis=options.axis)
    inputs = _rule_inputs(options.by, (pool, scored), (pool, scored) if voted is None else (voted_pool, voted))
    lines, figures = _pool_lines(pool, votes, scored.unread + (voted.unread if voted else 0)), {}
    if options.by == "information" or options.by == "closest":
        models = matches_of(pool, votes)
        lines += _decision(best_model(models, votes, seed=options.seed), figures)
        if options.seeds:
            curve = model_curve(models, options.by, runs=_RUNS * options.seeds, votes=options.labels, seed=options.seed)
            lines += _curve(curve, figures)
    elif options.seeds and inputs is not None:
        lines += _curve(_simulate(options, votes, inputs), figures)
    shares = {"seed": options.seed, "random_share": options.random_share, "ridge": options.ridge}
    questions = choose(pool, votes, inputs, options.n, options.by, **shares)
    if not questions and not options.seeds:
        raise AfzalError(
            "every pair of the pool has votes",
            where=options.source,
            remedy="--votes nobody ignores the votes in the pool; --by repeat asks again about pairs in dispute",
        )
    warnings = [HARMFUL[options.by]] if options.by in HARMFUL else []
    warnings += _missing_data_warnings(options.by, inputs, votes)
    if options.axis is None and (axes := pooled_axes(voted_pool.items)):
        warnings.append(f"votes on {axes} are pooled as if they answered one question; choose one axis with --axis")
    figures = {"rule": options.by, "pairs": len(pool.pairs), "voted": int(votes.cast.sum()), **figures}
    figures |= {"questions": len(questions), "by_rule": dict(Counter(q.rule for q in questions)), "warnings": warnings}
    return AskReport(question_rows(pool, questions), [*lines, *_question_lines(options, questions)], warnings, figures)


def _rule_inputs(by: By, asked: tuple[Pool, ScoredItems], voted: tuple[Pool, ScoredItems]) -> RuleInputs | None:
    """The rule's inputs for the pairs of the pool and for those voted on; None if it needs none."""
    if by not in _BY_SCORES:
        return None

    def of_both(read: Callable[[Pool, ScoredItems], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        values = read(*asked)
        if voted[0] is asked[0]:
            return values, values
        return values, read(*voted) if voted[0].pairs else values[:0]

    margins = None
    if asked[1].members is not None:
        a, b = of_both(lambda pool, scored: pool.differences(scored.members or ()))
        margins = a.T, b.T
    if asked[1].features is not None:
        features = of_both(lambda pool, scored: pool.differences(scored.features or ()))
        return RuleInputs(reduced(*features) if asked[1].hidden else features, margins)
    return RuleInputs(of_both(lambda pool, _: pool.words), margins)


def _refuse_other_axis(pool: Pool, options: AskOptions) -> None:
    """Raise AfzalError if the votes have axes and none is on the given one."""
    axes = axes_of(pool.items)
    if options.axis is not None and axes and options.axis not in axes:
        raise AfzalError(
            f"no vote is on the axis {options.axis!r}", where="--axis", remedy=f"there are votes on {', '.join(axes)}"
        )


def _simulate(options: AskOptions, votes: Votes, inputs: RuleInputs) -> Curve:
    voted = votes.weight > 0
    prompts = [prompt for prompt, has_votes in zip(votes.pool.prompts, voted, strict=True) if has_votes]
    margins = None if inputs.margins is None else inputs.margins[1][:, voted]
    labelled = LabelledPairs(inputs.features[1][voted], votes.p_first[voted], votes.weight[voted], prompts, margins)
    assert options.by in ("d_optimal", "bald", "entropy", "max_margin")
    return learning_curve(
        labelled, options.by, seeds=options.seeds, most=options.labels, ridge=options.ridge, seed=options.seed
    )


def _missing_data_warnings(by: By, inputs: RuleInputs | None, votes: Votes) -> list[str]:
    """A warning for a rule that has nothing to distinguish the pairs by."""
    if by not in ("entropy", "max_margin") or votes.weight.any() or (inputs and inputs.margins is not None):
        return []
    return [f"there are neither votes nor scores, so {by} orders the questions at random"]


def _pool_lines(pool: Pool, votes: Votes, unread: int) -> list[str]:
    counts = (
        (pool.short, "rows with fewer than two answers"),
        (pool.repeated, "pairs that repeat earlier ones"),
        (pool.identical, "pairs of equal answers"),
        (unread, "rows that a model could not read"),
    )
    skipped = [f"{count} {description}" for count, description in counts if count]
    votes_line = f"known: {len(votes.p):,} votes on {int(votes.cast.sum()):,} pairs"
    unordered = int(np.isnan(votes.p).sum())
    return [
        f"pool: {len(pool.items):,} rows, {len(pool.pairs):,} pairs of different answers",
        *([f"skipped: {', '.join(skipped)}"] if skipped else []),
        votes_line + (f", of which {unordered} order nothing (both bad)" if unordered else ""),
    ]


def _question_lines(options: AskOptions, chosen: Sequence[Question]) -> list[str]:
    if not chosen:
        return ["no pairs without votes are left to ask about"]
    scores = [q.score for q in chosen if q.rule == options.by]
    parts = [f"{len(chosen) - len(scores)} at random"]
    if options.by == "random":
        parts = ["all at random"]
    elif scores:
        parts = [f"{len(scores)} by {options.by} (score {scores[0]:.3g} to {scores[-1]:.3g})", *parts]
    short = [f"{options.n} were requested, but no more are left"] if len(chosen) < options.n else []
    return [f"{len(chosen)} questions: {', '.join(parts)}", *short]


def _decision(decided: BestModel | None, plain: dict[str, Any]) -> list[str]:
    """The stop rule of a leaderboard."""
    plain["decided"] = None if decided is None else asdict(decided) | {"settled": decided.settled}
    if decided is None:
        return ["the votes so far do not give every model a finite strength: not decided, keep asking"]
    leads = f"{decided.leader} leads in {100 * decided.share:.1f}% of resamples of {decided.prompts} prompts"
    return [leads + (": decided at 95%, you may stop" if decided.settled else ": not decided at 95%, keep asking")]


def _curve(curve: Curve, figures: dict[str, Any]) -> list[str]:
    """A learning curve as a table, with its conclusions."""
    figures["curve"] = asdict(curve) | {"better": curve.better, "worse": curve.worse, "flat": curve.flat}
    where = f"{curve.seeds} simulations"
    if curve.held_out:
        where += f", {curve.held_out} held-out pairs on {curve.prompts} prompts"
    lines = [f"learning curve: {curve.what} ({where})", f"  {curve.unit:>6}  {curve.rule:<22}  random"]
    every_nth = math.ceil(len(curve.marks) / _SHOWN)
    for k, mark in enumerate(curve.marks):
        if k % every_nth == 0 or k == len(curve.marks) - 1:
            lines.append(f"  {mark:>6}  {_figure(curve.ours[k]):<22}  {_figure(curve.random[k])}")
    verdict = "better than random" if curve.better else "worse than random" if curve.worse else "no clear difference"
    stop = "no clear gain, you may stop" if curve.flat else "keep asking"
    return [
        *lines,
        f"mean gain over random: {_points(curve.gain)}: {verdict}",
        f"100 more {curve.unit} add, over the second half: {_points(curve.slope)}: {stop}",
    ]


def _figure(value: Interval) -> str:
    ends = "" if value.low is None or value.high is None else f" [{value.low:.3f}, {value.high:.3f}]"
    return f"{value.value:.3f}{ends}"


def _points(value: Interval) -> str:
    ends = "" if value.low is None or value.high is None else f" [{100 * value.low:+.1f}, {100 * value.high:+.1f}]"
    return f"{100 * value.value:+.1f} points{ends}"
