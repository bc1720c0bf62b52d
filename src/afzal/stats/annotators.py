"""From several annotators' labels to one distribution per item, with or without items of known truth.

Shapes: N items, R annotators, K classes; labels ``[N, R]`` int with -1 for a missing label, gold ``[N]`` int with -1
for an unknown truth.

Unsupervised aggregation trusts annotators who agree with the crowd. Annotators with shared errors, which language
models usually have, agree with each other, so it can reverse the answer: on 24 judges of LLMBar the majority is right
on 64% of items and Dawid-Skene on 53%. Ten items of known truth repair that (:func:`log_odds_vote`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from afzal.stats.agreement import counts


@dataclass(frozen=True, slots=True, eq=False)
class DawidSkene:
    """A fit of Dawid and Skene's model.

    Attributes:
        posterior: ``[N, K]``, the probability of each class for each item.
        confusion: ``[R, K, K]``, the probability that annotator r says l if the truth is c, at ``[r, c, l]``.
        prior: ``[K]``, class shares.
        log_likelihood: of the labels, nats.
        iterations: of the expectation-maximisation.
    """

    posterior: np.ndarray
    confusion: np.ndarray
    prior: np.ndarray
    log_likelihood: float
    iterations: int

    @property
    def accuracy(self) -> np.ndarray:
        """``[R]``: each annotator's accuracy by the model's own estimate, which is not reliable without gold."""
        return np.einsum("c,rcc->r", self.prior, self.confusion)


def vote_shares(labels: np.ndarray, n_classes: int) -> np.ndarray:
    """``[N, K]`` label shares of each item; NaN without labels."""
    table = counts(labels, n_classes)
    with np.errstate(invalid="ignore"):
        return table / table.sum(1, keepdims=True)


def majority(labels: np.ndarray, n_classes: int) -> np.ndarray:
    """``[N]`` the most frequent class of each item; -1 for a draw or without labels."""
    table = counts(labels, n_classes)
    highest = table.max(1)
    unique = ((table == highest[:, None]).sum(1) == 1) & (highest > 0)
    return np.where(unique, table.argmax(1), -1)


def dawid_skene(
    labels: np.ndarray,
    n_classes: int,
    *,
    gold: np.ndarray | None = None,
    smoothing: float = 0.01,
    tolerance: float = 1e-10,
    iterations: int = 2000,
) -> DawidSkene:
    """Dawid and Skene's model (1979): a confusion matrix per annotator, by expectation-maximisation from vote shares.

    Args:
        gold: known truths, at which the items' posteriors are fixed.
        smoothing: added to every expected count of a confusion matrix, so that no annotator is certain.
        tolerance: relative change of the log-likelihood at which the fit stops.

    Raises:
        ValueError: it did not converge within ``iterations``.
    """
    labels = np.asarray(labels)
    truths = np.full(len(labels), -1) if gold is None else np.asarray(gold)
    # items with the same labels and truth are pooled: few annotators give many items few distinct rows
    rows = np.column_stack([labels, truths.astype(labels.dtype)])
    patterns, place, times = np.unique(rows, axis=0, return_inverse=True, return_counts=True)
    known = np.flatnonzero(patterns[:, -1] >= 0)
    truth = np.eye(n_classes)[patterns[known, -1]]
    flat = _indicators(patterns[:, :-1], n_classes)
    posterior = counts(patterns[:, :-1], n_classes) + 1e-12
    posterior /= posterior.sum(1, keepdims=True)
    posterior[known] = truth
    previous = -np.inf
    for step in range(1, iterations + 1):
        prior = times @ posterior / len(labels)
        expected = ((times[:, None] * posterior).T @ flat).reshape(n_classes, -1, n_classes) + smoothing
        confusion = expected / expected.sum(-1, keepdims=True)
        scores = np.log(np.maximum(prior, 1e-300)) + flat @ np.log(confusion).reshape(n_classes, -1).T
        peak = scores.max(1, keepdims=True)
        likelihoods = np.exp(scores - peak)
        log_likelihood = float(times @ (peak[:, 0] + np.log(likelihoods.sum(1))))
        posterior = likelihoods / likelihoods.sum(1, keepdims=True)
        posterior[known] = truth
        if abs(log_likelihood - previous) < tolerance * max(1.0, abs(log_likelihood)):
            return DawidSkene(posterior[place.ravel()], confusion.transpose(1, 0, 2), prior, log_likelihood, step)
        previous = log_likelihood
    raise ValueError(f"Dawid and Skene's model did not converge within {iterations} iterations")


def _indicators(labels: np.ndarray, n_classes: int) -> Any:
    """``[N, R * K]`` 1 if an annotator gave a class; sparse if few labels are given."""
    from scipy.sparse import csr_array

    n, r = labels.shape
    row, column = np.nonzero(labels >= 0)
    place = column * n_classes + labels[row, column]
    indicators = csr_array((np.ones(len(row)), (row, place)), (n, r * n_classes))
    return indicators if len(row) < 0.1 * n * r else indicators.toarray()


def log_odds_weights(labels: np.ndarray, gold: np.ndarray, n_classes: int) -> np.ndarray:
    """``[R]`` the weight of each annotator's labels, from their accuracy on the items of known truth.

    The weight is log((K - 1) a / (1 - a)), a = (right + 1) / (labelled + K). It is optimal if annotators err
    independently and evenly over classes (Nitzan and Paroush 1982). Labels of annotators who are wrong more often than
    chance get a negative weight.

    Raises:
        ValueError: no item of known truth was labelled by anybody.
    """
    labels, gold = np.asarray(labels), np.asarray(gold)
    on_gold = (gold >= 0)[:, None] & (labels >= 0)
    if not on_gold.any():
        raise ValueError("weights from gold items need a labelled item of known truth")
    correct = (on_gold & (labels == gold[:, None])).sum(0) + 1.0
    accuracy = correct / (on_gold.sum(0) + float(n_classes))
    return np.log((n_classes - 1) * accuracy / (1 - accuracy))


def weighted_vote(labels: np.ndarray, weights: np.ndarray, n_classes: int) -> np.ndarray:
    """``[N, K]`` distributions from labels with log-odds weights ``[R]``; uniform without labels."""
    labels = np.asarray(labels)
    row, column = np.nonzero(labels >= 0)
    scores = np.zeros((len(labels), n_classes))
    np.add.at(scores, (row, labels[row, column]), weights[column])
    shares = np.exp(scores - scores.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


def log_odds_vote(labels: np.ndarray, gold: np.ndarray, n_classes: int) -> np.ndarray:
    """``[N, K]`` distributions from a vote with :func:`log_odds_weights`; items of known truth keep that truth.

    Raises:
        ValueError: no item of known truth was labelled by anybody.
    """
    gold = np.asarray(gold)
    shares = weighted_vote(labels, log_odds_weights(labels, gold, n_classes), n_classes)
    shares[gold >= 0] = np.eye(n_classes)[gold[gold >= 0]]
    return shares


@dataclass(frozen=True, slots=True, eq=False)
class CrowdBT:
    """Strengths ``theta`` ``[M]`` in nats (sum 0), and the annotators' reliabilities ``eta`` ``[R]``.

    An eta of 1/2 is a coin; below it the annotator's labels are reversed.
    """

    theta: np.ndarray
    eta: np.ndarray
    log_likelihood: float


def crowd_bt(
    first: np.ndarray,
    second: np.ndarray,
    outcome: np.ndarray,
    annotator: np.ndarray,
    *,
    n_models: int,
    n_annotators: int,
    ridge: float = 1.0,
) -> CrowdBT:
    """Bradley-Terry strengths with a reliability per annotator: P = eta sigma(d) + (1 - eta) sigma(-d).

    Chen et al. 2013, "Pairwise ranking aggregation in a crowdsourced setting", WSDM.

    Args:
        first, second: ``[V]`` the compared models.
        outcome: ``[V]`` 1 the first, 0 the second, 0.5 a tie (half of each).
        annotator: ``[V]`` the annotator's number.
        ridge: > 0, weight of the squared strengths. Without it they diverge: eta absorbs differences between prompts,
            and larger strengths compensate.

    Raises:
        ValueError: the ridge is not above 0, or the fit did not converge.
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    if not ridge > 0:
        raise ValueError("Crowd-BT needs a ridge above 0: without one its strengths diverge")
    # equal votes of one annotator on the same two models are pooled, with their number
    columns = np.stack([np.asarray(a, np.float64) for a in (first, second, annotator, outcome)])
    (first, second, annotator, outcome), times = np.unique(columns, axis=1, return_counts=True)
    first, second, annotator = (a.astype(np.int64) for a in (first, second, annotator))

    def value(x: np.ndarray) -> tuple[float, np.ndarray]:
        theta = np.append(x[: n_models - 1], -x[: n_models - 1].sum())
        eta = expit(x[n_models - 1 :])
        s = expit(theta[first] - theta[second])
        e = eta[annotator]
        p = np.clip(e * s + (1 - e) * (1 - s), 1e-12, 1 - 1e-12)
        loss = -times @ (outcome * np.log(p) + (1 - outcome) * np.log1p(-p)) + ridge * (theta**2).sum()
        to_p = times * (p - outcome) / (p * (1 - p))
        to_d = to_p * (2 * e - 1) * s * (1 - s)
        to_theta = np.bincount(first, to_d, n_models) - np.bincount(second, to_d, n_models) + 2 * ridge * theta
        to_eta = np.bincount(annotator, to_p * (2 * s - 1), n_annotators) * eta * (1 - eta)
        return float(loss), np.concatenate([to_theta[:-1] - to_theta[-1], to_eta])

    start = np.concatenate([1e-3 * np.arange(n_models - 1), np.full(n_annotators, 2.0)])
    fit = minimize(value, start, jac=True, method="L-BFGS-B", options={"maxiter": 2000, "ftol": 1e-14, "gtol": 1e-8})
    if not fit.success and np.abs(fit.jac).max() > 1e-3 * times.sum():
        raise ValueError(f"the fit of Crowd-BT did not converge: {fit.message}")
    theta = np.append(fit.x[: n_models - 1], -fit.x[: n_models - 1].sum())
    return CrowdBT(theta, expit(fit.x[n_models - 1 :]), -float(fit.fun))
