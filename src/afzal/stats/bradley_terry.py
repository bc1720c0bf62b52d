"""Strengths of models from comparisons: Bradley and Terry's model with ties, and intervals for its estimates.

Shapes: M models, C comparisons, R resamples. A strength theta is in nats: P(i beats j) = sigma(theta_i - theta_j)
without ties. Strengths sum to 0.

A finite maximum exists only if the comparisons are strongly connected: for every division of the models in two, a
model of each side has beaten one of the other (Ford 1957). Otherwise there are no estimates, and :func:`connection`
says which models are the reason.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from afzal.stats.intervals import LEVEL, Interval
from afzal.stats.resampling import draws, numbered, percentiles

Ties = Literal["half", "davidson", "rao_kupper"]
ELO_PER_NAT = 400 / math.log(10)
_DIGITS = 6  # of a strength; the fits with ties are exact to about as many
_ROUNDING = 1e-12  # relative rounding error of a sum over all comparisons; a smaller decrease is ignored


@dataclass(frozen=True, slots=True, eq=False)
class Games:
    """Comparisons; equal ones are pooled.

    Attributes:
        first, second: ``[C]`` int, the compared models.
        outcome: ``[C]`` 1 the first won, 0 the second, 0.5 a tie.
        weight: ``[C]`` multiplicity.
        prompt: ``[C]`` int, number of the prompt, from 0.
        n_models: M.
    """

    first: np.ndarray
    second: np.ndarray
    outcome: np.ndarray
    weight: np.ndarray
    prompt: np.ndarray
    n_models: int

    @property
    def n_prompts(self) -> int:
        """The number of prompts, which are the independent units."""
        return int(self.prompt.max()) + 1 if len(self.prompt) else 0


def games(
    first: Sequence[int], second: Sequence[int], outcome: Sequence[float], prompts: Sequence[Hashable], n_models: int
) -> Games:
    """Pool comparisons with the same prompt, models and outcome.

    Raises:
        ValueError: an outcome is not 0, 0.5 or 1, or a model is compared with itself.
    """
    i, j, y = np.asarray(first, np.int64), np.asarray(second, np.int64), np.asarray(outcome, np.float64)
    if not np.isin(y, (0.0, 0.5, 1.0)).all():
        raise ValueError("outcomes are 1 (the first won), 0 (the second) or 0.5 (a tie)")
    if (i == j).any():
        raise ValueError("a model cannot be compared with itself")
    swapped = i > j
    i, j, y = np.where(swapped, j, i), np.where(swapped, i, j), np.where(swapped, 1 - y, y)
    key = ((numbered(prompts) * n_models + i) * n_models + j) * 3 + (2 * y).astype(np.int64)
    distinct, place = np.unique(key, return_inverse=True)
    weight = np.bincount(place).astype(np.float64)
    pair = distinct // 3
    return Games(
        pair // n_models % n_models, pair % n_models, (distinct % 3) / 2, weight, pair // n_models**2, n_models
    )


@dataclass(frozen=True, slots=True)
class Connection:
    """How comparisons connect the models, which explains missing finite strengths.

    Attributes:
        groups: weakly connected components; models of different groups are not compared, not even through others.
        parts: strongly connected components; models of different parts of a group met, but one side never won.
        unbeaten, winless: single models that never lost, or never won, against any model they met.
    """

    groups: tuple[tuple[int, ...], ...]
    parts: tuple[tuple[int, ...], ...]
    unbeaten: tuple[int, ...]
    winless: tuple[int, ...]

    @property
    def connected(self) -> bool:
        """Whether strengths are finite and can be compared."""
        return len(self.parts) == 1


def connection(played: Games) -> Connection:
    """The connection of the models by comparisons; a tie connects both ways."""
    beats = _table(played, played.weight) > 0
    met = beats | beats.T
    unbeaten = np.flatnonzero(met.any(1) & ~beats.any(0))
    winless = np.flatnonzero(met.any(1) & ~beats.any(1))
    groups, parts = _components(beats, "weak"), _components(beats, "strong")
    return Connection(groups, parts, tuple(unbeaten.tolist()), tuple(winless.tolist()))


def _components(beats: np.ndarray, kind: Literal["weak", "strong"]) -> tuple[tuple[int, ...], ...]:
    from scipy.sparse.csgraph import connected_components

    n, component = connected_components(beats, directed=True, connection=kind)
    return tuple(sorted(tuple(np.flatnonzero(component == k).tolist()) for k in range(n)))


def _table(played: Games, weight: np.ndarray) -> np.ndarray:
    """``[M, M]`` wins of the row model over the column model; a tie is half a win each way."""
    size = played.n_models
    index = played.first * size + played.second
    won = np.bincount(index, weight * played.outcome, size * size).reshape(size, size)
    lost = np.bincount(index, weight * (1 - played.outcome), size * size).reshape(size, size)
    return won + lost.T


@dataclass(frozen=True, slots=True, eq=False)
class Strengths:
    """``theta`` ``[M]`` in nats (sum 0), the tie parameter (None for half ties), and the log-likelihood in nats."""

    theta: np.ndarray
    tie: float | None
    log_likelihood: float


def strengths(played: Games, ties: Ties = "half", *, ridge: float = 0.0) -> Strengths:
    """Maximum-likelihood strengths.

    Args:
        ties: ``half`` counts a tie as half a win each way; ``davidson`` (1970), P(tie) = 2 nu / Z with
            Z = e^(d/2) + e^(-d/2) + 2 nu, and ``rao_kupper`` (1967), P(win) = sigma(d - ln nu), give ties a
            separate probability, and their log-likelihoods can be compared.
        ridge: weight of the squared strengths; above 0 there is always a finite solution, shrunk towards 0.

    Raises:
        ValueError: there is no finite maximum (see :func:`connection`) and no ridge, or the fit did not converge.
    """
    if not ridge and not connection(played).connected:
        raise ValueError("there is no finite maximum: the comparisons do not connect all models both ways")
    if ties == "half":
        theta = _newton(_table(played, played.weight), ridge)
        return Strengths(theta, None, _half_likelihood(played, theta))
    return _with_ties(played, ties, ridge)


def _half_likelihood(played: Games, theta: np.ndarray) -> float:
    d = theta[played.first] - theta[played.second]
    losses = played.outcome * np.logaddexp(0, -d) + (1 - played.outcome) * np.logaddexp(0, d)
    return -float((played.weight * losses).sum())


def _newton(wins: np.ndarray, ridge: float) -> np.ndarray:
    """Strengths from ``[M, M]`` wins by Newton's method with step halving."""
    size = len(wins)
    meetings = wins + wins.T

    def height(theta: np.ndarray) -> float:
        d = theta[:, None] - theta[None]
        return -float((wins * np.logaddexp(0, -d)).sum()) - ridge * float((theta**2).sum())

    theta = np.zeros(size)
    for _ in range(100):
        p = 1 / (1 + np.exp(-(theta[:, None] - theta[None])))
        slope = (wins - meetings * p).sum(1) - 2 * ridge * theta
        bend = meetings * p * (1 - p)
        bend = np.diag(bend.sum(1)) - bend + (1 / size + 2 * ridge * np.eye(size) if ridge else 1 / size)
        step, scale, current = np.linalg.solve(bend, slope), 1.0, height(theta)
        while scale > 1e-6 and height(theta + scale * step) < current - _ROUNDING * abs(current):
            scale /= 2
        theta = theta + scale * step
        if np.abs(step).max() < 1e-10:
            return np.round(theta - theta.mean(), 12) + 0.0  # equal strengths stay equal; 0 is not -1e-17
    raise ValueError("the fit of Bradley and Terry's model did not converge")


def _with_ties(played: Games, ties: Ties, ridge: float) -> Strengths:
    from scipy.optimize import minimize

    if not (played.outcome == 0.5).any():
        raise ValueError(f"{ties} needs ties to fit: there are none, so half ties give the same")
    size, y, w = played.n_models, played.outcome, played.weight

    def value(x: np.ndarray) -> tuple[float, np.ndarray]:
        theta = np.append(x[: size - 1], -x[: size - 1].sum())
        d = theta[played.first] - theta[played.second]
        terms, to_d, to_tie = (_davidson if ties == "davidson" else _rao_kupper)(d, x[-1], y)
        to_theta = np.bincount(played.first, w * to_d, size) - np.bincount(played.second, w * to_d, size)
        to_theta = to_theta - 2 * ridge * theta
        loss = -(w * terms).sum() + ridge * (theta**2).sum()
        return float(loss), -np.append(to_theta[:-1] - to_theta[-1], (w * to_tie).sum())

    start = np.append(np.zeros(size - 1), -1.0)
    fit = minimize(value, start, jac=True, method="BFGS", options={"gtol": 1e-8 * w.sum(), "maxiter": 1000})
    if np.abs(fit.jac).max() > 1e-5 * w.sum():
        raise ValueError(f"the fit with ties did not converge: {fit.message}")
    theta = np.append(fit.x[: size - 1], -fit.x[: size - 1].sum())
    tie = math.exp(fit.x[-1]) / 2 if ties == "davidson" else math.exp(math.exp(fit.x[-1]))
    return Strengths(theta, float(tie), -float(fit.fun) + ridge * float((theta**2).sum()))


def _davidson(d: np.ndarray, log_tie: float, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-likelihood of each outcome, and its derivatives in d and in log 2 nu."""
    log_z = np.logaddexp(np.logaddexp(d / 2, -d / 2), log_tie)
    first, second, tied = (np.exp(part - log_z) for part in (d / 2, -d / 2, np.full_like(d, log_tie)))
    terms = np.where(y == 0.5, log_tie, np.where(y == 1, d / 2, -d / 2)) - log_z
    to_d = np.where(y == 0.5, 0.0, np.where(y == 1, 0.5, -0.5)) - (first - second) / 2
    return terms, to_d, (y == 0.5) - tied


def _rao_kupper(d: np.ndarray, log_a: float, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same for a = ln nu = e^log_a, with derivatives in d and in log_a."""
    a = np.exp(log_a)
    won, lost = -np.logaddexp(0, a - d), -np.logaddexp(0, a + d)
    p_not_won, p_not_lost = 1 - np.exp(won), 1 - np.exp(lost)  # sigma(a - d) and sigma(a + d)
    tied = np.log(np.maximum(np.expm1(2 * a), 1e-300)) + won + lost
    terms = np.where(y == 0.5, tied, np.where(y == 1, won, lost))
    to_d = np.where(y == 0.5, p_not_won - p_not_lost, np.where(y == 1, p_not_won, -p_not_lost))
    width = 2 / -np.expm1(-2 * a)
    to_a = np.where(y == 0.5, width - p_not_won - p_not_lost, np.where(y == 1, -p_not_won, -p_not_lost))
    return terms, to_d, to_a * a


@dataclass(frozen=True, slots=True)
class Place:
    """One line of a leaderboard: model number, strength with interval over prompts, rank (1 is best) with interval, the
    mean share of points (a tie is half) and the number of comparisons."""

    model: int
    theta: Interval
    rank: int
    best_rank: int
    worst_rank: int
    win_rate: float
    comparisons: int

    @property
    def elo(self) -> float:
        """The strength on the Elo scale, with a mean of 1000."""
        return 1000 + ELO_PER_NAT * self.theta.value


@dataclass(frozen=True, slots=True, eq=False)
class Board:
    """A leaderboard: its places, best first, and the resampled strengths ``[R, M]``, which give the differences of any
    two models. ``unconnected`` resamples had no finite strengths and are left out."""

    places: tuple[Place, ...]
    samples: np.ndarray
    fit: Strengths
    unconnected: int

    @property
    def theta(self) -> np.ndarray:
        """``[M]`` strengths, nats."""
        return self.fit.theta

    def difference(self, first: int, second: int) -> Interval:
        """One model's theta less another's, with a paired interval over the same resamples."""
        gaps = self.samples[:, first] - self.samples[:, second]
        value = float(self.theta[first] - self.theta[second])
        return _with_width(percentiles(value, gaps, self.places[0].theta.n))


def leaderboard(played: Games, ties: Ties = "half", *, resamples: int = 500, seed: int = 0) -> Board:
    """A leaderboard with percentile intervals over resamples of whole prompts.

    Votes on one prompt are not independent: on real votes, intervals over single votes are two to three times too
    narrow.

    Raises:
        ValueError: as for :func:`strengths`.
    """
    fit = strengths(played, ties)
    theta = fit.theta
    samples, unconnected = _resampled(played, ties, resamples, seed)
    table = _table(played, played.weight)
    places = []
    ranks, best_ranks, worst_ranks = _ranks(theta, samples)
    for model in np.argsort(ranks, kind="stable").tolist():
        played_by = float(table[model].sum() + table[:, model].sum())
        rank, best, worst = int(ranks[model]), None, None
        if len(samples) > 1:
            best = int(np.quantile(best_ranks[:, model], (1 - LEVEL) / 2))
            worst = int(np.quantile(worst_ranks[:, model], (1 + LEVEL) / 2))
        interval = _with_width(percentiles(float(theta[model]), samples[:, model], played.n_prompts))
        points_share = float(table[model].sum()) / played_by
        places.append(Place(model, interval, rank, best or rank, worst or rank, points_share, round(played_by)))
    return Board(tuple(places), samples, fit, unconnected)


def _ranks(theta: np.ndarray, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ranks ``[M]`` (1 is best), and in the resamples ``[R, M]`` as the best and as the worst of equal models.

    Equal models share a rank. Strengths are equal if they differ by less than the fit's precision.
    """
    from scipy.stats import rankdata

    rounded = -np.round(samples, _DIGITS)
    best, worst = (rankdata(rounded, method, axis=1) if len(samples) else samples for method in ("min", "max"))
    return rankdata(-np.round(theta, _DIGITS), "min"), best, worst


def _with_width(interval: Interval) -> Interval:
    """No interval if all resamples are the same, as when every game is a tie: they do not show its width."""
    no_width = interval.low is not None and interval.high is not None and interval.high - interval.low < 10**-_DIGITS
    return replace(interval, low=None, high=None) if no_width else interval


def _resampled(played: Games, ties: Ties, resamples: int, seed: int) -> tuple[np.ndarray, int]:
    """Strengths ``[R, M]`` of resamples of whole prompts, and the number of resamples without finite strengths."""
    size, rows, unconnected = played.n_prompts, [], 0
    for times in draws(size, resamples=resamples if size > 1 else 0, seed=seed):
        theta = _finite_strengths(replace(played, weight=played.weight * times[played.prompt]), ties)
        if theta is None:
            unconnected += 1
        else:
            rows.append(theta)
    return np.array(rows).reshape(len(rows), played.n_models), unconnected


def _finite_strengths(played: Games, ties: Ties) -> np.ndarray | None:
    table = _table(played, played.weight)
    if len(_components(table > 0, "strong")) > 1:
        return None
    if ties == "half":
        return _newton(table, 0.0)
    tied = bool((played.weight * (played.outcome == 0.5)).any())
    return _with_ties(played, ties, 0.0).theta if tied else None
