"""Learning curves of a rule against random questions, and rules for when to stop asking.

Shapes: N labelled pairs, D features, C marks along a curve, S seeds, X held-out prompts, M models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from afzal.errors import AfzalError
from afzal.stats import bradley_terry as bt
from afzal.stats.intervals import LEVEL, Interval, over_seeds
from afzal.stats.policy_comparison import over_seeds_and_prompts, share_of_verdicts, share_of_wins
from afzal.stats.resampling import numbered

from .linear import fit
from .matches import Matches, MatchRule, simulate, strengths
from .pool import Votes
from .rules import Belief, Rule, ranked

START, BATCH = 20, 10
FEWEST = 3 * START
HELD_OUT = 0.3


@dataclass(frozen=True, slots=True, eq=False)
class LabelledPairs:
    """Pairs with recorded answers.

    Attributes:
        features: ``[N, D]`` of the first response minus the second.
        p_first: ``[N]`` share of the votes for the first response; 0.5 is a tie, used for training but not for testing.
        weight: ``[N]`` number of votes.
        prompts: ``[N]`` prompt of each pair.
        margins: ``[M, N]`` of given scorers, by which the rule chooses; None if it uses the learning model.
    """

    features: np.ndarray
    p_first: np.ndarray
    weight: np.ndarray
    prompts: Sequence[str]
    margins: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Curve:
    """The learning curve of a rule and of random questions.

    Attributes:
        rule: the rule's name.
        what: the measured quantity in words; larger is better.
        unit: the unit along the curve.
        marks: numbers of labels or votes.
        ours, random: the measured quantity at each mark.
        gain: the rule's mean over the marks minus that of random questions.
        slope: gain of the rule per 100 further labels, over the second half of its curve.
        held_out, prompts: pairs and prompts for the measurement; 0 if it uses simulated leaderboards.
        seeds: number of repetitions, each with different questions at the start.
    """

    rule: str
    what: str
    unit: str
    marks: tuple[int, ...]
    ours: tuple[Interval, ...]
    random: tuple[Interval, ...]
    gain: Interval
    slope: Interval
    held_out: int
    prompts: int
    seeds: int

    @property
    def better(self) -> bool:
        """Whether the gain's interval lies above 0."""
        return self.gain.low is not None and self.gain.low > 0

    @property
    def worse(self) -> bool:
        """Whether the gain's interval lies below 0."""
        return self.gain.high is not None and self.gain.high < 0

    @property
    def flat(self) -> bool:
        """The stop rule: further labels no longer help measurably, as the slope's interval includes 0 or is below
        it."""
        return self.slope.low is not None and self.slope.low <= 0


def simulate_asking(
    labelled: LabelledPairs,
    train: np.ndarray,
    start: np.ndarray,
    rule: Rule,
    most: int,
    rng: np.random.Generator,
    ridge: float,
) -> dict[int, np.ndarray]:
    """The parameters ``[D]`` learned from 20, 30, ... labels, by number of labels; the rule chooses each batch of ten
    from the remaining pairs of ``train``.

    Args:
        train: numbers of the pairs that may be asked about.
        start: numbers of the pairs asked about first.
        most: number of labels at which to stop.
    """
    asked_pairs, learned = start.tolist(), {}
    while True:
        model = fit(labelled.features[asked_pairs], labelled.p_first[asked_pairs], labelled.weight[asked_pairs], ridge)
        learned[len(asked_pairs)] = model.theta
        remaining = np.setdiff1d(train, asked_pairs)
        if len(asked_pairs) >= most or not len(remaining):
            return learned
        order = rng.permutation(len(remaining))
        x = labelled.features[remaining]
        margins = (x @ model.theta)[None] if labelled.margins is None else labelled.margins[:, remaining]
        chosen = ranked(rule, Belief(margins, x, model.precision), BATCH, order)
        asked_pairs += [int(remaining[c.pair]) for c in chosen]


def learning_curve(
    labelled: LabelledPairs, rule: Rule, *, seeds: int = 10, most: int = 200, ridge: float = 1.0, seed: int = 0
) -> Curve:
    """Held-out accuracy by number of labels, for the rule and for random questions.

    The same prompts are held out for all seeds, so all seeds are measured on the same pairs, and intervals are over
    seeds and prompts (:func:`afzal.stats.policy_comparison.share_of_verdicts`, and for differences
    :func:`afzal.stats.policy_comparison.over_seeds_and_prompts`). Both sides start from the same 20 labels.

    Raises:
        AfzalError: there are too few labelled pairs or prompts.
    """
    train, test, prompt = _divided(labelled, seed)
    marks = list(range(START, min(most, len(train)) + 1, BATCH))
    sign = np.sign(labelled.p_first[test] - 0.5)
    right: dict[str, np.ndarray] = {}
    for name in dict.fromkeys((rule, "random")):
        of_seeds = []
        for k in range(seeds):
            rng = np.random.default_rng([seed, k])
            start = rng.permutation(train)[:START]
            learned = simulate_asking(labelled, train, start, name, marks[-1], rng, ridge)
            margins = np.stack([labelled.features[test] @ learned[m] for m in marks])
            of_seeds.append(_by_prompt((np.sign(margins) * sign + 1) / 2, prompt))
        right[name] = np.stack(of_seeds)
    by_rule, chance = right[rule], right["random"]
    return Curve(
        rule,
        "held-out accuracy",
        "labels",
        tuple(marks),
        _accuracies(by_rule),
        _accuracies(chance),
        over_seeds_and_prompts((by_rule - chance).mean(1)),
        over_seeds_and_prompts(_slopes(by_rule, marks)),
        len(test),
        int(prompt.max()) + 1,
        seeds,
    )


def _divided(labelled: LabelledPairs, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs to ask about, the pairs to measure on, and the prompt number of each of the latter, from 0."""
    prompts = numbered(labelled.prompts)
    count = int(prompts.max()) + 1 if len(prompts) else 0
    held_out_prompts = np.random.default_rng([seed, 1]).permutation(count)[: int(HELD_OUT * count)]
    is_held_out = np.isin(prompts, held_out_prompts)
    train = np.flatnonzero(~is_held_out)
    test = np.flatnonzero(is_held_out & (labelled.p_first != 0.5))
    if len(train) < FEWEST or len(np.unique(prompts[test])) < 10:
        raise AfzalError(
            f"{len(prompts)} pairs with votes, on {count} prompts, are too few for a learning curve",
            where="--curve",
            why=f"{len(train)} can be asked about and {len(test)} are left to measure on; 60 and 10 prompts are needed",
            remedy="leave out --curve, or give more rows with votes",
        )
    return train, test, np.unique(prompts[test], return_inverse=True)[1]


def _accuracies(right: np.ndarray) -> tuple[Interval, ...]:
    """The accuracy at each mark, from ``[S, C, X]``, with an interval within 0 and 1."""
    intervals = (share_of_verdicts(right[:, c]) for c in range(right.shape[1]))
    return tuple(interval for interval in intervals if interval is not None)


def _by_prompt(values: np.ndarray, prompt: np.ndarray) -> np.ndarray:
    """``[C, X]`` means over the pairs of each prompt, of values ``[C, T]`` per pair."""
    size = np.bincount(prompt)
    return np.stack([np.bincount(prompt, row) for row in values]) / size


def _slopes(values: np.ndarray, marks: Sequence[int]) -> np.ndarray:
    """``[S, X]`` least-squares gain per 100 labels over the second half of the marks, of values ``[S, C, X]``."""
    half = len(marks) // 2
    hundreds = np.asarray(marks[half:], float) / 100
    deviations = hundreds - hundreds.mean()
    if not deviations.any():
        return np.zeros((values.shape[0], values.shape[2]))
    return np.einsum("c,scx->sx", deviations, values[:, half:]) / (deviations @ deviations)


def model_curve(matches: Matches, rule: MatchRule, *, runs: int = 50, votes: int = 300, seed: int = 0) -> Curve:
    """How often the best model is found by number of votes, for the rule and for random pairs of models.

    Votes are sampled from the recorded ones, whose leader counts as the best. Intervals are over runs: they show the
    precision of the simulation, not the reliability of the record.

    Raises:
        AfzalError: the record has votes on fewer than three models.
    """
    has_votes = matches.weight > 0
    names = matches.x[has_votes].any(0) if has_votes.any() else np.zeros(0)
    if names.sum() < 3:
        raise AfzalError(
            "a learning curve of models needs votes on at least three models",
            where="--curve",
            remedy="leave out --curve, or give rows with votes and the model of each response as its source",
        )
    x = matches.x[has_votes]
    answers = [_record(p, w) for p, w in zip(matches.points[has_votes], matches.weight[has_votes], strict=True)]
    best = int(np.argmax(strengths(x, matches.points[has_votes], matches.weight[has_votes]).theta))
    step = max(5, votes // 10 // 5 * 5)
    marks = list(range(step, votes + 1, step))
    right: dict[str, np.ndarray] = {}
    for name in dict.fromkeys((rule, "random")):
        runs_of = []
        for k in range(runs):
            thetas = simulate(x, answers, name, votes, np.random.default_rng([seed, k]))
            runs_of.append([float(np.argmax(thetas[m // 5 - 1]) == best) for m in marks])
        right[name] = np.array(runs_of)
    by_rule, chance = right[rule], right["random"]
    return Curve(
        rule,
        f"how often {matches.names[best]} is named the best model",
        "votes",
        tuple(marks),
        tuple(share_of_wins(by_rule[:, c], 1) for c in range(len(marks))),
        tuple(share_of_wins(chance[:, c], 1) for c in range(len(marks))),
        over_seeds((by_rule - chance).mean(1).tolist()),
        over_seeds(_slopes(by_rule[:, :, None], marks)[:, 0].tolist()),
        0,
        0,
        runs,
    )


def _record(points: float, weight: float) -> np.ndarray:
    """Single votes that sum to these points; all but one are 0 or 1."""
    count = max(1, round(weight))
    share = points / weight * count
    return np.clip(share - np.arange(count), 0.0, 1.0)


@dataclass(frozen=True, slots=True)
class BestModel:
    """The leading model, and the share of the resamples of prompts in which it leads."""

    leader: str
    share: float
    prompts: int

    @property
    def settled(self) -> bool:
        """Whether the leader leads in at least 95% of the resamples: the stop rule of a leaderboard."""
        return self.share >= LEVEL


def best_model(matches: Matches, votes: Votes, *, resamples: int = 500, seed: int = 0) -> BestModel | None:
    """The model that leads after the votes so far; None as long as not every model has a finite strength.

    A resample whose votes do not connect all models counts as one in which nobody leads.
    """
    first, second, outcome, prompts = [], [], [], []
    number = {name: k for k, name in enumerate(matches.names)}
    for models, pair, p in zip(votes.writers, votes.pair.tolist(), votes.p.tolist(), strict=True):
        if models is not None and p == p:
            first.append(number[models[0]])
            second.append(number[models[1]])
            outcome.append(1.0 if p > 0.5 else 0.0 if p < 0.5 else 0.5)
            prompts.append(votes.pool.prompts[pair])
    played = bt.games(first, second, outcome, prompts, len(number))
    if not first or not bt.connection(played).connected:
        return None
    board = bt.leaderboard(played, resamples=resamples, seed=seed)
    leader = board.places[0].model
    leads = int((np.argmax(board.samples, 1) == leader).sum()) if len(board.samples) else 0
    n_samples = len(board.samples) + board.unconnected
    return BestModel(matches.names[leader], leads / n_samples if n_samples else 0.0, played.n_prompts)
