"""The quality of a judge: its two games of each pair, agreement compared with the ceiling of people, and its value
added to a few labels.

Verdicts name the better of two responses in the item's numbering: 1 the first, 2 the second, 0 a tie, and -1 no
verdict, which is a separate class and never silently a tie or a loss. In the second game of a pair the responses are
shown in the other order.

Shapes: N pairs of responses, J judges, R annotators.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from afzal.stats.agreement import MISSING, cohen
from afzal.stats.intervals import Interval, clustered, mean, share, t95, wilson
from afzal.stats.resampling import draws, numbered, percentiles, prompt_resamples

FIRST, SECOND, TIE = 1, 2, 0
_ROUNDING = 1e-12  # relative rounding error of a sum over all rows; a smaller decrease is ignored


@dataclass(frozen=True, slots=True)
class Orders:
    """A judge's behaviour when two responses change places.

    Attributes:
        pairs: N.
        no_verdict: games without a verdict, of 2 N.
        contradictions: pairs whose games named different winners.
        consistent: share of all pairs whose two games gave the same verdict.
        first_slot: share of games with a winner in which the response shown first won.
        slot_bias: share of pairs won by the first slot in both games less the share won by the second, among pairs with
            two verdicts: 0 is fair, 1 means always the first.
        slot_p: exact p-value of no slot bias, by a sign test over prompts; None if no pair went to the same slot twice.
        always_first, always_second: pairs whose winner was shown first, or second, in both games.
        kappa: Cohen's kappa between the two games, over pairs with two verdicts; NaN if expected agreement is 1.
    """

    pairs: int
    no_verdict: int
    contradictions: int
    consistent: float
    first_slot: float
    slot_bias: float
    slot_p: float | None
    always_first: int
    always_second: int
    kappa: float


def both_orders(first_game: np.ndarray, second_game: np.ndarray, prompts: Sequence[Hashable] = ()) -> Orders:
    """The figures of the two games ``[N]`` of each pair, with verdicts in the item's numbering.

    Args:
        prompts: ``[N]`` the prompt of each pair; empty if all differ.

    Raises:
        ValueError: there are no pairs.
    """
    first, second = np.asarray(first_game), np.asarray(second_game)
    if not len(first):
        raise ValueError("a judge needs at least one pair")
    answered = (first >= 0) & (second >= 0)
    to_first, to_second = (first == FIRST) & (second == SECOND), (first == SECOND) & (second == FIRST)
    always_first, always_second = int(to_first.sum()), int(to_second.sum())
    slots = np.concatenate([first[first > 0] == FIRST, second[second > 0] == SECOND])
    decided = always_first + always_second
    return Orders(
        pairs=len(first),
        no_verdict=int((first < 0).sum() + (second < 0).sum()),
        contradictions=decided,
        consistent=float((answered & (first == second)).mean()),
        first_slot=float(slots.mean()) if len(slots) else math.nan,
        slot_bias=(always_first - always_second) / int(answered.sum()) if answered.any() else math.nan,
        slot_p=sign_p(to_first.astype(int) - to_second, prompts or range(len(first))) if decided else None,
        always_first=always_first,
        always_second=always_second,
        kappa=cohen(first[answered], second[answered]) if answered.any() else math.nan,
    )


def sign_p(signs: np.ndarray, prompts: Sequence[Hashable]) -> float:
    """Exact two-sided p-value that neither sign is more likely, by the sign test over prompts.

    Signs on one prompt are not independent, so each prompt counts once, by the sign of its sum; a sum of 0 counts for
    neither. With no other prompts the p-value is 1.

    Args:
        signs: ``[N]`` +1, -1, or 0 for neither.
        prompts: ``[N]``.
    """
    from scipy.stats import binomtest

    sums = np.bincount(numbered(prompts), signs)
    decided = int((sums != 0).sum())
    return float(binomtest(int((sums > 0).sum()), decided).pvalue) if decided else 1.0


def agreed(first_game: np.ndarray, second_game: np.ndarray) -> np.ndarray:
    """``[N]`` the verdict of both games together: their common verdict, a tie if they differ, -1 if a game has no
    verdict."""
    first, second = np.asarray(first_game), np.asarray(second_game)
    return np.where((first < 0) | (second < 0), MISSING, np.where(first == second, first, TIE))


def accuracy(verdicts: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """``[N]`` 1 if a verdict is the known truth, else 0; a missing verdict is never right."""
    return (np.asarray(verdicts) == np.asarray(gold)).astype(np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Means:
    """Means ``[J]`` of a table's J columns, and resamples of them ``[S, J]`` over whole prompts. All columns share the
    resamples, so that any two are compared on the same prompts."""

    values: np.ndarray
    samples: np.ndarray
    n_prompts: int

    def interval(self, column: int) -> Interval:
        """The mean of a column with its interval."""
        return percentiles(float(self.values[column]), self.samples[:, column], self.n_prompts)

    def difference(self, first: int, second: int) -> Interval:
        """The mean of one column less that of another, with a paired interval."""
        gap = float(self.values[first] - self.values[second])
        return _paired(gap, self.samples[:, first] - self.samples[:, second], self.n_prompts)

    def separable(self) -> int:
        """The number of the J (J - 1) / 2 paired differences whose interval excludes 0."""
        clear = 0
        for a in range(len(self.values)):
            for b in range(a + 1, len(self.values)):
                gap = self.difference(a, b)
                clear += gap.low is not None and gap.high is not None and (gap.low > 0 or gap.high < 0)
        return clear


def _paired(gap: float, samples: np.ndarray, n: int) -> Interval:
    """A paired difference with the percentile interval of its resamples ``[S]`` over ``n`` prompts.

    If all prompts have the same difference, so do all resamples. The number of prompts that would differ the other way
    is then still unknown; Wilson's interval of a share of 1 bounds it, so that two prompts alone separate nobody.
    """
    interval = percentiles(gap, samples, n)
    if interval.low is None or interval.high is None or interval.high - interval.low > _ROUNDING:
        return interval
    opposite = gap * (2 * wilson(n, n)[0] - 1)
    return Interval(gap, min(gap, opposite), max(gap, opposite), n)


def mean_difference(gaps: np.ndarray, prompts: Sequence[Hashable], *, resamples: int, seed: int) -> Interval:
    """The mean of paired differences ``[N]`` over prompts; rows with NaN do not count."""
    use = np.flatnonzero(np.isfinite(gaps)).tolist()
    means = column_means(gaps[use][:, None], [prompts[k] for k in use], resamples=resamples, seed=seed)
    return _paired(float(means.values[0]), means.samples[:, 0], means.n_prompts)


def column_shares(values: np.ndarray, prompts: Sequence[Hashable]) -> list[Interval]:
    """The mean of each column of shares ``[N, J]`` with a score interval over prompts; NaN entries do not count.

    Raises:
        ValueError: a column has no row.
    """
    table = np.asarray(values, np.float64)
    shares = []
    for column in table.T:
        use = np.flatnonzero(np.isfinite(column)).tolist()
        shares.append(share(clustered([prompts[k] for k in use], column[use].tolist())))
    return shares


def column_means(values: np.ndarray, prompts: Sequence[Hashable], *, resamples: int = 2000, seed: int = 0) -> Means:
    """Means of the columns of ``[N, J]``; NaN entries do not count."""
    table = np.asarray(values, np.float64)
    finite = np.isfinite(table)
    filled = np.where(finite, table, 0.0)
    place, columns = numbered(prompts), range(table.shape[1])
    n = int(place.max()) + 1 if len(place) else 0
    # rows of a prompt are drawn together, so only their sums are needed
    totals = np.stack([np.bincount(place, filled[:, c], n) for c in columns], 1)
    counts = np.stack([np.bincount(place, finite[:, c], n) for c in columns], 1)
    weights = np.array(list(draws(n, resamples=resamples, seed=seed)))
    with np.errstate(invalid="ignore"):
        samples = (weights @ totals) / (weights @ counts)
        means = filled.sum(0) / finite.sum(0)
    return Means(means, samples, n)


@dataclass(frozen=True, slots=True)
class AltTest:
    """Whether the judge can stand in for an annotator. ``winning_rate`` is the share of annotators that it beats at the
    allowed margin; it passes at one half. ``advantages`` ``[R]`` are the shares of items on which it is at least as
    good as the left-out annotator, and ``p_values`` ``[R]`` are those of the tests."""

    winning_rate: float
    advantages: tuple[float, ...]
    p_values: tuple[float, ...]

    @property
    def advantage(self) -> float:
        """The mean advantage over the annotators."""
        return float(np.mean(self.advantages))

    @property
    def passes(self) -> bool:
        return self.winning_rate >= 0.5


def alt_test(
    verdicts: np.ndarray,
    labels: np.ndarray,
    prompts: Sequence[Hashable] = (),
    *,
    epsilon: float = 0.2,
    level: float = 0.05,
) -> AltTest:
    """The alternative-annotator test (Calderon, Reichart and Dror 2025, arXiv 2501.10970).

    On each item, judge and annotator are scored by their agreement with the remaining annotators. A one-sided t-test
    per annotator asks whether the annotator is better by less than ``epsilon``, with Benjamini and Yekutieli's
    correction. Items of one prompt are not independent, so the error of the mean is over prompts; with one item per
    prompt this is the paper's test.

    Args:
        verdicts: ``[N]``.
        labels: ``[N, R]``.
        prompts: ``[N]`` the prompt of each item; empty if all differ.
        epsilon: margin by which a judge may be worse, since it is cheaper: 0.2 for experts, 0.1 for crowds.

    Raises:
        ValueError: an annotator has fewer than two items with a verdict and another annotator's label, or all of them
            are on one prompt.
    """
    verdicts, labels = np.asarray(verdicts), np.asarray(labels)
    p_values, advantages, keys = [], [], prompts or range(len(verdicts))
    for a in range(labels.shape[1]):
        others = np.delete(labels, a, 1)
        voted = others >= 0
        use = (labels[:, a] >= 0) & (verdicts >= 0) & voted.any(1)
        if use.sum() < 2:
            raise ValueError(f"annotator {a} has fewer than two items in common with the judge and another annotator")
        others, voted = others[use], voted[use]
        judge_score = ((others == verdicts[use][:, None]) & voted).sum(1) / voted.sum(1)
        annotator_score = ((others == labels[use, a][:, None]) & voted).sum(1) / voted.sum(1)
        gap = (annotator_score >= judge_score).astype(float) - (judge_score >= annotator_score)
        advantages.append(float((judge_score >= annotator_score).mean()))
        p_values.append(_one_sided(gap, [keys[k] for k in np.flatnonzero(use).tolist()], epsilon))
    rejected = _benjamini_yekutieli(p_values, level)
    return AltTest(sum(rejected) / len(rejected), tuple(advantages), tuple(p_values))


def _one_sided(gap: np.ndarray, prompts: Sequence[Hashable], epsilon: float) -> float:
    """The p-value of Student's t that the mean is below ``epsilon``, with the error of the mean over prompts."""
    from scipy.special import stdtr

    known = mean(clustered(prompts, gap.tolist()))
    if known.prompts < 2:
        raise ValueError("the items in common are all on one prompt, so that the error of their mean is not known")
    if np.ptp(gap) == 0:  # no spread: the t statistic is infinite, and its sign decides
        return 0.0 if gap[0] < epsilon else 1.0
    off = known.mean - epsilon
    if known.se == 0:  # rows differ within prompts, but prompts do not
        return 0.0 if off < 0 else 1.0
    return float(stdtr(known.prompts - 1, off / known.se))


def _benjamini_yekutieli(p_values: Sequence[float], level: float) -> list[bool]:
    """Which hypotheses are rejected at a false-discovery rate of ``level`` under any dependence (2001)."""
    m = len(p_values)
    harmonic = sum(1 / k for k in range(1, m + 1))
    order = np.argsort(p_values, kind="stable")
    last = max((k for k in range(1, m + 1) if p_values[order[k - 1]] <= k * level / (m * harmonic)), default=0)
    rejected = [False] * m
    for place in order[:last]:
        rejected[place] = True
    return rejected


@dataclass(frozen=True, slots=True)
class PredictionPoweredMean:
    """A mean over all rows from a few labels and a judge's scores of all; ``power`` in [0, 1] is the judge's weight (0:
    labels alone), and ``people`` the estimate from the labels alone."""

    value: Interval
    people: Interval
    power: float


def prediction_powered(labelled: np.ndarray, predicted: np.ndarray, all_predicted: np.ndarray) -> PredictionPoweredMean:
    """PPI++ (Angelopoulos et al. 2023, arXiv 2311.01453): the judge's mean on all rows, corrected by its error on the
    labelled ones. It is unbiased for any judge if the labelled rows were drawn at random.

    In the paper, labelled and unlabelled rows are disjoint. Here the labelled rows are among all rows. So the judge's
    weight is the slope of a regression on its score, without the paper's 1 / (1 + n / N), and the error includes the
    covariance of the judge's mean with its correction. With every row labelled, the result is that of the labels.

    Args:
        labelled: ``[n]`` people's scores of the labelled rows, one row per prompt (1 first better, 0.5 tie, 0).
        predicted: ``[n]`` the judge's scores of the same rows.
        all_predicted: ``[N]`` the judge's scores of all rows, including the labelled ones.

    Raises:
        ValueError: fewer than three rows are labelled.
    """
    y, f, f_all = (np.asarray(a, np.float64) for a in (labelled, predicted, all_predicted))
    n, total = len(y), len(f_all)
    if n < 3:
        raise ValueError(f"{n} labelled rows are too few for a corrected mean; at least 3")
    spread = float(f.var(ddof=1))
    power = min(max(float(np.cov(y, f)[0, 1]) / spread, 0.0), 1.0) if spread > 0 else 0.0
    residual = y - power * f
    value = power * f_all.mean() + residual.mean()
    shared = 2 * power * float(np.cov(f, residual)[0, 1]) / total
    error = math.sqrt(max(power**2 * f_all.var(ddof=1) / total + residual.var(ddof=1) / n + shared, 0.0))
    alone = float(y.std(ddof=1)) / math.sqrt(n)
    return PredictionPoweredMean(_by_t(float(value), error, n), _by_t(float(y.mean()), alone, n), power)


def _by_t(value: float, error: float, n: int) -> Interval:
    """An interval by Student's t over the labelled rows, since a few of them do not determine their spread well."""
    margin = t95(n - 1) * error
    return Interval(value, value - margin, value + margin, n)


@dataclass(frozen=True, slots=True)
class LengthControl:
    """A win rate at equal lengths.

    Attributes:
        raw, controlled: win rates, with intervals over prompts.
        slope: log-odds that the longer response gains, per unit of tanh(difference / deviation).
        deviation: standard deviation of the difference in length, in the unit of the lengths.
        overlap: twice the smaller of the two shares of pairs in which either side is longer.
        extrapolated: one side is longer in more than nine pairs of ten, so that the controlled figure says more about
            the model of lengths than about the responses.
    """

    raw: Interval
    controlled: Interval
    slope: Interval
    deviation: float
    overlap: float
    extrapolated: bool


def separated_by_length(score: np.ndarray, longer_by: np.ndarray) -> bool:
    """Whether lengths alone decide who won: up to some difference one side always won, and beyond it the other.

    Then a logistic fit on the difference has no maximum: verdicts that follow the lengths say nothing about equal
    lengths. Pairs of equal lengths that were won by both sides rule this out.

    Args:
        score: ``[N]`` 1 ours won, 0.5 tie, 0 lost; a mean of votes is allowed.
        longer_by: ``[N]`` length of ours less that of theirs.
    """
    y, d = np.asarray(score, np.float64), np.asarray(longer_by, np.float64)
    both_won = lambda rows: (rows < 0.5).any() and (rows > 0.5).any()  # noqa: E731
    if not both_won(y) or both_won(y[d == 0]) or not np.ptp(d) > 0:
        return False
    return any((s * d)[y < 1].max() <= (s * d)[y > 0].min() for s in (1, -1))


def length_controlled(
    score: np.ndarray,
    longer_by: np.ndarray,
    prompts: Sequence[Hashable],
    *,
    ridge: float = 0.0,
    expected_slope: float = 1.0,
    resamples: int = 500,
    seed: int = 0,
) -> LengthControl | None:
    """The win rate at equal lengths: a logistic fit of the score on tanh(difference / its deviation).

    After AlpacaEval 2 (Dubois et al. 2024, arXiv 2404.04475). If lengths hardly overlap, a free fit is off by up to 28
    points; a ridge towards the usual slope of judges corrects that.

    Args:
        score: ``[N]`` 1 ours won, 0.5 tie, 0 lost; a mean of votes is allowed.
        longer_by: ``[N]`` length of ours less that of theirs, in any unit.
        ridge: pseudo-observations in favour of ``expected_slope``.
        expected_slope: log-odds per deviation that a longer response gains.

    Returns:
        None if lengths alone decide who won (:func:`separated_by_length`) and no ridge bounds the fit.

    Raises:
        ValueError: the difference in length is the same for all pairs, so nothing can be controlled.
    """
    y, d = np.asarray(score, np.float64), np.asarray(longer_by, np.float64)
    deviation = float(d.std(ddof=1)) if len(d) > 1 else 0.0
    if not deviation > 0:
        raise ValueError("length control needs pairs that differ in length")
    if not ridge > 0 and separated_by_length(y, d):
        return None
    from scipy.special import expit  # exact at log-odds of any size, which separated resamples reach

    raw, n, ahead, behind = share(clustered(prompts, y.tolist())), len(set(prompts)), (d > 0).mean(), (d < 0).mean()
    overlap = {"overlap": 2 * float(min(ahead, behind)), "extrapolated": bool(max(ahead, behind) > 0.9)}
    if not np.ptp(y) > 0 and not ridge > 0:  # the fit is this share at every difference, and so is every resample's
        return LengthControl(raw, raw, Interval(0.0, None, None, n), deviation, **overlap)
    x = np.stack([np.ones(len(d)), np.tanh(d / deviation)], 1)
    fit = _logistic(x, y, np.ones(len(y)), ridge, expected_slope)
    weights = list(prompt_resamples(prompts, resamples=resamples, seed=seed))
    fits = np.array([_logistic(x, y, w, ridge, expected_slope) for w in weights])
    controlled = percentiles(float(expit(fit[0])), expit(fits[:, 0]), n)
    return LengthControl(raw, controlled, percentiles(float(fit[1]), fits[:, 1], n), deviation, **overlap)


def _logistic(x: np.ndarray, y: np.ndarray, w: np.ndarray, ridge: float, towards: float) -> np.ndarray:
    """Coefficients of a logistic fit by Newton's method with step halving; the last is shrunk to ``towards``."""
    from scipy.special import expit

    pull = np.zeros(x.shape[1])
    pull[-1] = ridge / 4  # an observation at even odds has information 1 / 4
    centre = np.zeros(x.shape[1])
    centre[-1] = towards

    def height(b: np.ndarray) -> float:
        t = x @ b
        return -float(
            (w * (y * np.logaddexp(0, -t) + (1 - y) * np.logaddexp(0, t))).sum() + (pull * (b - centre) ** 2).sum() / 2
        )

    b = centre * (ridge > 0)
    for _ in range(100):
        p = expit(x @ b)
        slope = x.T @ (w * (y - p)) - pull * (b - centre)
        bend = (x * (w * p * (1 - p))[:, None]).T @ x + np.diag(pull) + 1e-12 * np.eye(len(b))
        step, scale, current = np.linalg.solve(bend, slope), 1.0, height(b)
        while scale > 1e-6 and height(b + scale * step) < current - _ROUNDING * abs(current):
            scale /= 2
        b = b + scale * step
        if np.abs(step).max() < 1e-10:
            break
    return b
