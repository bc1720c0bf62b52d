"""Agreement between annotators, corrected for chance or not, with intervals over prompts.

Shapes: N items, R annotators, K classes. Labels are ``[N, R]`` int, from 0 to K - 1, and -1 for a missing label, which
is never a class. ``repeats`` ``[N]`` says how often an item counts; whole prompts are resampled by it. All coefficients
are 1 for perfect agreement and 0 for chance agreement.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np

from afzal.stats.intervals import Interval, clustered, share

Level = Literal["nominal", "ordinal", "interval"]
MISSING = -1


def counts(labels: np.ndarray, n_classes: int) -> np.ndarray:
    """``[N, K]``: how many annotators gave each class to each item."""
    labels = np.asarray(labels)
    return np.stack([(labels == c).sum(1) for c in range(n_classes)], 1).astype(np.float64)


def raw_sums(table: np.ndarray) -> np.ndarray:
    """``[N, 2]`` the number of label pairs of each item and of equal ones among them, from counts ``[N, K]``."""
    n = table.sum(1)
    return np.stack([n * (n - 1), (table * (table - 1)).sum(1)], 1)


def raw_of(sums: np.ndarray) -> np.ndarray:
    """The share of equal label pairs, from ``[..., 2]`` sums."""
    return sums[..., 1] / sums[..., 0]


def with_width(raw: Interval, table: np.ndarray, prompts: Sequence[Hashable]) -> Interval:
    """Raw agreement with its percentile interval, or with a score interval over prompts (:func:`.intervals.share`) if
    it is 0 or 1: then all resamples are the same, and their percentiles have no width.

    Args:
        table: ``[N, K]`` counts; items with fewer than two labels have no pair.
        prompts: of each item.
    """
    if raw.value not in (0, 1):
        return raw
    used = np.flatnonzero(table.sum(1) >= 2).tolist()
    return share(clustered([prompts[k] for k in used], [raw.value] * len(used)))


def raw(table: np.ndarray, repeats: np.ndarray | None = None) -> float:
    """Share of equal label pairs within items, pooled over items; not corrected for chance.

    Args:
        table: ``[N, K]`` counts; items with fewer than two labels have no pair.

    Raises:
        ValueError: no item has two labels.
    """
    table, repeats = _usable(table, repeats)
    return float(raw_of(repeats @ raw_sums(table)))


def cohen(first: np.ndarray, second: np.ndarray, repeats: np.ndarray | None = None) -> float:
    """Cohen's kappa (1960) of two annotators ``[N]`` on the items that both labelled; NaN if expected agreement is 1.

    Raises:
        ValueError: there is no such item.
    """
    first, second = np.asarray(first), np.asarray(second)
    shared = (first >= 0) & (second >= 0)
    if not shared.any():
        raise ValueError("kappa needs an item that both annotators labelled")
    weights = np.ones(len(first)) if repeats is None else np.asarray(repeats, np.float64)
    a, b, w = first[shared], second[shared], weights[shared]
    size, n = int(max(a.max(), b.max())) + 1, float(w.sum())
    observed = float(w[a == b].sum())
    # from counts, not shares: shares whose sum is rounded would give a kappa even if both use only one class
    expected = float(np.bincount(a, w, size) @ np.bincount(b, w, size)) / n
    return (observed - expected) / (n - expected) if expected < n else float("nan")


def fleiss(table: np.ndarray, repeats: np.ndarray | None = None) -> float:
    """Fleiss' kappa (1971) of counts ``[N, K]``.

    Raises:
        ValueError: items have different numbers of labels; use :func:`krippendorff` then.
    """
    table, repeats = _usable(table, repeats)
    n = table.sum(1)
    if (n != n[0]).any():
        raise ValueError("Fleiss' kappa needs equally many labels for every item; use Krippendorff's alpha")
    return float(fleiss_of(repeats @ gwet_sums(table)))


def gwet_sums(table: np.ndarray) -> np.ndarray:
    """``[N, K + 2]`` per item with at least two labels: 1, the share of equal pairs, the class shares; else 0."""
    n = table.sum(1)
    paired = n >= 2
    observed = (table * (table - 1)).sum(1) / np.maximum(n * (n - 1), 1)
    return np.column_stack([np.ones(len(table)), observed, table / np.maximum(n, 1)[:, None]]) * paired[:, None]


def gwet_of(sums: np.ndarray) -> np.ndarray:
    """Gwet's AC1 from ``[..., K + 2]`` sums."""
    observed, shares = sums[..., 1] / sums[..., 0], sums[..., 2:] / sums[..., :1]
    expected = (shares * (1 - shares)).sum(-1) / (shares.shape[-1] - 1)
    return np.where(expected < 1, (observed - expected) / (1 - expected), np.nan)


def gwet(table: np.ndarray, repeats: np.ndarray | None = None) -> float:
    """Gwet's AC1 (2008) of counts ``[N, K]``: more stable than kappa if one class is rare."""
    table, repeats = _usable(table, repeats)
    return float(gwet_of(repeats @ gwet_sums(table)))


def fleiss_of(sums: np.ndarray) -> np.ndarray:
    """Fleiss' kappa from the sums of :func:`gwet_sums`, for items with the same number of labels each."""
    observed, shares = sums[..., 1] / sums[..., 0], sums[..., 2:] / sums[..., :1]
    expected = (shares**2).sum(-1)
    return np.where(expected < 1, (observed - expected) / (1 - expected), np.nan)


def alpha_sums(table: np.ndarray) -> np.ndarray:
    """``[N, K * K]`` coincidences of each item with two labels or more, the summands of Krippendorff's alpha."""
    n = table.sum(1)
    pairs = table[:, :, None] * table[:, None, :] - table[:, :, None] * np.eye(table.shape[1])
    return (pairs / np.where(n >= 2, n - 1, np.inf)[:, None, None]).reshape(len(table), -1)


def alpha_of(sums: np.ndarray, level: Level = "nominal", values: Sequence[float] = ()) -> np.ndarray:
    """Krippendorff's alpha from ``[..., K * K]`` sums of coincidences."""
    size = round(sums.shape[-1] ** 0.5)
    pairs = sums.reshape(*sums.shape[:-1], size, size)
    totals = pairs.sum(-2)
    distance = _distances(level, totals, values)
    alone = totals[..., :, None] * np.eye(size)
    n = totals.sum(-1)
    expected = (totals[..., :, None] * totals[..., None, :] - alone) / (n - 1)[..., None, None]
    chance = (expected * distance).sum((-2, -1))
    return np.where(chance > 0, 1 - (pairs * distance).sum((-2, -1)) / np.where(chance > 0, chance, 1), np.nan)


def krippendorff(
    table: np.ndarray, level: Level = "nominal", values: Sequence[float] = (), repeats: np.ndarray | None = None
) -> float:
    """Krippendorff's alpha of counts ``[N, K]``, with any number of labels per item; items with one label do not count.

    Args:
        level: scale of the classes. ``ordinal`` uses only their order, ``interval`` the distances of their ``values``.
            An ordinal scale treated as nominal makes near misses as bad as opposites.
        values: ``[K]``, for ``interval``.

    Raises:
        ValueError: no item has two labels, or the values are missing.
    """
    table, repeats = _usable(table, repeats)
    return float(alpha_of(repeats @ alpha_sums(table), level, values))


def _distances(level: Level, totals: np.ndarray, values: Sequence[float]) -> np.ndarray:
    """``[K, K]`` squared class distances; ``[..., K, K]`` if they depend on the totals ``[..., K]``."""
    size = totals.shape[-1]
    if level == "nominal":
        return 1.0 - np.eye(size)
    if level == "interval":
        if len(values) != size:
            raise ValueError(f"alpha on an interval scale needs the value of each of {size} classes")
        points = np.asarray(values, np.float64)
        return (points[:, None] - points[None]) ** 2
    # the number of labels between two classes, with half of the labels at both ends
    midpoints = totals.cumsum(-1) - totals / 2
    return (midpoints[..., :, None] - midpoints[..., None, :]) ** 2


def agreement_with_rest(labels: np.ndarray, n_classes: int) -> np.ndarray:
    """``[N, R]``: the probability that each label equals the mode of the item's other labels, drawn among tied modes.

    This is the ceiling of people. A judge must be measured against the same reference, the mode of the others. NaN if a
    label is missing or the only one of its item.
    """
    labels = np.asarray(labels)
    index = np.nonzero(labels >= 0)
    credit = np.full(labels.shape, np.nan)
    credit[index] = credit_with_rest(labels, n_classes)
    return credit


def credit_with_rest(labels: np.ndarray, n_classes: int) -> np.ndarray:
    """The same for the given labels only, in the order of ``np.nonzero(labels >= 0)``, since tables of thousands of
    annotators are mostly empty."""
    labels = np.asarray(labels)
    rows, columns = np.nonzero(labels >= 0)
    classes = labels[rows, columns]
    others = counts(labels, n_classes)[rows] - (classes[:, None] == np.arange(n_classes))
    return _credit(others[:, None], classes[:, None], np.ones((len(classes), 1), bool))[:, 0]


def judge_with_rest(verdicts: np.ndarray, labels: np.ndarray, n_classes: int) -> np.ndarray:
    """``[N, R]``: the same for a judge ``[N]`` in place of each annotator; a missing verdict agrees with nobody.

    NaN without a label of the annotator, so that judge and people are measured on the same references.
    """
    verdicts, labels = np.asarray(verdicts), np.asarray(labels)
    indicators = (labels[:, :, None] == np.arange(n_classes)).astype(np.float64)
    others = counts(labels, n_classes)[:, None, :] - indicators
    repeated = np.broadcast_to(verdicts[:, None], labels.shape)
    credit = _credit(others, np.where(repeated >= 0, repeated, 0), labels >= 0)
    return np.where(np.isnan(credit) | (repeated >= 0), credit, 0.0)


def _credit(others: np.ndarray, labels: np.ndarray, labelled: np.ndarray) -> np.ndarray:
    """1 / (number of modes) if a label is among the modes of the others ``[N, R, K]``, else 0."""
    modes = others == others.max(-1, keepdims=True)
    hit = np.take_along_axis(modes, labels[:, :, None], -1)[:, :, 0]
    credit = hit / modes.sum(-1)
    return np.where(labelled & (others.sum(-1) > 0), credit, np.nan)


def _usable(table: np.ndarray, repeats: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The counted items with at least two labels, and how often each counts."""
    table = np.asarray(table, np.float64)
    weights = np.ones(len(table)) if repeats is None else np.asarray(repeats, np.float64)
    usable = (table.sum(1) >= 2) & (weights > 0)
    if not usable.any():
        raise ValueError("agreement needs an item with at least two labels")
    return table[usable], weights[usable]
