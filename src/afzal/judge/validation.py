"""A judge compared with people on the same pairs: agreement and its ceiling, calibration, a combined win rate.

Shapes: N pairs, R people. Label classes are those of :mod:`afzal.judge.labels`; a judge's outcomes are coded as in
:mod:`afzal.stats.judging`: 1 the first answer, 2 the second, 0 a tie, below 0 no verdict.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from afzal.judge.figures import figure, finite
from afzal.judge.labels import CLASSES, FIRST, SECOND, TIE, Labels
from afzal.stats import agreement, judging
from afzal.stats.calibration import calibration
from afzal.stats.intervals import clustered, share
from afzal.stats.resampling import numbered

EPSILONS = (0.0, 0.1, 0.2)
"""Margins of the alternative-annotator test: 0.2 if the annotators are experts, 0.1 for crowds."""
_CLASS_OF = {1: FIRST, 2: SECOND, 0: TIE}
_POINTS = np.array([1.0, 0.0, 0.5])


def compare_with_people(codes: np.ndarray, people: Labels, *, resamples: int, seed: int) -> dict[str, Any]:
    """A judge's ``[N]`` agreement with people. A missing verdict counts as disagreement, but ``verdicts_only`` and
    ``without_ties`` leave it out."""
    classes, equal = _classes(codes), equal_labels(codes, people)
    labels, labelled = people.table, people.table >= 0
    resampling = {"resamples": resamples, "seed": seed}
    equal_with_verdict = np.where((classes >= 0)[:, None], equal, np.nan)
    winners = (labels <= SECOND) & (classes <= SECOND)[:, None]
    figures: dict[str, Any] = {
        "people": len(people.annotators),
        "labels": int(labelled.sum()),
        "agreement": _share(equal, people.prompts),
        "verdicts_only": _share(equal_with_verdict, people.prompts),
        "without_ties": _share(np.where(winners, equal_with_verdict, np.nan), people.prompts),
    }
    if (labelled.sum(1) >= 2).any():
        figures["with_the_majority"] = _with_majority(classes, labels, people.prompts)
        figures |= _against_ceiling(classes, labels, people.prompts, **resampling)
    if labels.shape[1] >= 3 and (labelled.sum(1) >= 3).any():
        tests = {str(epsilon): _alt_test(classes, labels, people.prompts, epsilon) for epsilon in EPSILONS}
        figures["alt_test"] = {epsilon: test for epsilon, test in tests.items() if test is not None}
    return figures


def _classes(codes: np.ndarray) -> np.ndarray:
    return np.array([_CLASS_OF.get(int(code), -1) for code in codes])


def equal_labels(codes: np.ndarray, people: Labels) -> np.ndarray:
    """``[N, R]`` 1 if judge and person agree, 0 if not, NaN without a label of the person."""
    equal = people.table == _classes(codes)[:, None]
    return np.where(people.table >= 0, equal.astype(float), np.nan)


def _share(values: np.ndarray, prompts: Sequence[Hashable]) -> dict[str, Any] | None:
    """The mean of the finite ``[N, R]`` shares with a score interval over prompts; ``pairs`` is their number."""
    rows, columns = np.nonzero(np.isfinite(values))
    if not len(rows):
        return None
    known = share(clustered([prompts[r] for r in rows.tolist()], values[rows, columns].tolist()))
    return figure(known) | {"pairs": len(rows)}


def _difference(values: np.ndarray, prompts: Sequence[Hashable], **resampling: int) -> dict[str, Any] | None:
    """The mean of the finite ``[N, R]`` paired differences with an interval over prompts; ``pairs`` is their number."""
    rows, columns = np.nonzero(np.isfinite(values))
    if not len(rows):
        return None
    row_prompts = [prompts[r] for r in rows.tolist()]
    return figure(judging.mean_difference(values[rows, columns], row_prompts, **resampling)) | {"pairs": len(rows)}


def _with_majority(classes: np.ndarray, labels: np.ndarray, prompts: Sequence[Hashable]) -> dict[str, Any]:
    """Agreement with the most frequent label of each pair: shares, Cohen's kappa, and means over the classes."""
    votes = agreement.counts(labels, len(CLASSES))
    top = votes == votes.max(1, keepdims=True)
    majority = np.where((votes.sum(1) > 0) & (top.sum(1) == 1), votes.argmax(1), -1)
    use = majority >= 0
    if not use.any():
        return {}
    equal = (classes == majority).astype(float)
    with_verdict, decided = use & (classes >= 0), use & (classes >= 0) & (classes <= SECOND) & (majority <= SECOND)
    over = lambda where: np.where(where, equal, np.nan)[:, None]  # noqa: E731
    return {
        "agreement": _share(over(use), prompts),
        "verdicts_only": _share(over(with_verdict), prompts),
        "without_ties": _share(over(decided), prompts),
        "cohen": finite(agreement.cohen(classes[with_verdict], majority[with_verdict])) if with_verdict.any() else None,
        **_by_class(classes[use], majority[use]),
    }


def _by_class(classes: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Macro-averaged precision, recall and F1 over the classes that occur; a missing verdict is a miss."""
    shares = []
    for label in np.unique(np.concatenate([truth, classes[classes >= 0]])).tolist():
        hits = float(((classes == label) & (truth == label)).sum())
        precision = hits / max(1, int((classes == label).sum()))
        recall = hits / max(1, int((truth == label).sum()))
        shares.append((precision, recall, 2 * precision * recall / (precision + recall) if hits else 0.0))
    return dict(zip(("precision", "recall", "f1"), np.mean(shares, 0).tolist(), strict=True))


def _against_ceiling(
    classes: np.ndarray, labels: np.ndarray, prompts: Sequence[Hashable], **resampling: int
) -> dict[str, Any]:
    """Agreement of the judge and of each person with the mode of the other people: the same references for both."""
    judge = agreement.judge_with_rest(classes, labels, len(CLASSES))
    ceiling = agreement.agreement_with_rest(labels, len(CLASSES))
    use = np.isfinite(judge) & np.isfinite(ceiling)
    if not use.any():
        return {}
    known = lambda values: np.where(use, values, np.nan)  # noqa: E731
    return {
        "with_the_mode_of_others": _share(known(judge), prompts),
        "ceiling": _share(known(ceiling), prompts),
        "minus_ceiling": _difference(known(judge - ceiling), prompts, **resampling),
    }


def _alt_test(
    classes: np.ndarray, labels: np.ndarray, prompts: Sequence[Hashable], epsilon: float
) -> dict[str, Any] | None:
    try:
        tested = judging.alt_test(classes, labels, prompts, epsilon=epsilon)
    except ValueError:
        return None
    return {
        "winning_rate": tested.winning_rate,
        "advantage": tested.advantage,
        "advantages": list(tested.advantages),
        "p_values": list(tested.p_values),
        "passes": tested.passes,
    }


def points_of_people(people: Labels) -> np.ndarray:
    """``[N]`` mean points of the first answer over the labels that order a pair (a tie is 0.5); NaN without any."""
    labels = np.where(people.table < len(_POINTS), people.table, -1)
    ordered = labels >= 0
    with np.errstate(invalid="ignore"):
        return np.where(ordered, _POINTS[np.maximum(labels, 0)], 0.0).sum(1) / ordered.sum(1)


def prediction_powered_win_rate(
    points: np.ndarray, human: np.ndarray, prompts: Sequence[Hashable]
) -> dict[str, Any] | None:
    """The prediction-powered win rate over prompts; None for fewer than three labelled prompts.

    Pairs of one prompt are averaged first, since only prompts are independent.

    Args:
        points: ``[N]`` of the judge, NaN without a verdict.
        human: ``[N]`` of people, NaN without a label.
    """
    place, with_verdict = numbered(prompts), np.isfinite(points)
    both = with_verdict & np.isfinite(human)
    labelled, by_judge = _by_prompt(human[both], place[both]), _by_prompt(points[both], place[both])
    if len(labelled) < 3:
        return None
    rate = judging.prediction_powered(labelled, by_judge, _by_prompt(points[with_verdict], place[with_verdict]))
    return {
        "prompts": len(labelled),
        "corrected": figure(rate.value),
        "people_alone": figure(rate.people),
        "power": rate.power,
    }


def _by_prompt(values: np.ndarray, place: np.ndarray) -> np.ndarray:
    """Means of the values ``[N]`` by prompt number ``[N]``, for the prompts that occur."""
    rows = np.bincount(place)
    return np.bincount(place, values)[rows > 0] / rows[rows > 0]


def calibration_figures(p_first: np.ndarray, human: np.ndarray, prompts: Sequence[Hashable]) -> dict[str, Any] | None:
    """Calibration of a judge's stated probabilities ``[N]`` against people's labels; None without any."""
    use = np.isfinite(p_first) & np.isfinite(human)
    if not use.any():
        return None
    p = np.clip(p_first[use], 1e-12, 1 - 1e-12)
    known = calibration(np.log(p / (1 - p)), human[use], [p for p, u in zip(prompts, use, strict=True) if u])
    return {key: finite(value) for key, value in asdict(known).items()}


def self_preference(
    wrote: np.ndarray,
    points: np.ndarray,
    other_points: Mapping[str, np.ndarray],
    prompts: Sequence[Hashable],
    **resampling: int,
) -> dict[str, Any] | None:
    """Self-preference: the share of points a judge gives to its own model's answers, and the share others give them.

    Args:
        wrote: ``[N]`` 1 if only the first answer is by the judge's model, -1 if only the second is, else 0.
        points: ``[N]`` of the judge for the first answer, NaN without a verdict.
        other_points: points ``[N]`` of people or of other judges, by name.
    """
    for_own = np.where(wrote > 0, points, np.where(wrote < 0, 1 - points, np.nan))
    if not np.isfinite(for_own).any():
        return None
    figures: dict[str, Any] = {"share": _share(for_own[:, None], prompts), "beside": {}}
    for name, other in other_points.items():
        reference = np.where(wrote > 0, other, np.where(wrote < 0, 1 - other, np.nan))
        gap = for_own - reference
        if np.isfinite(gap).any():
            both = np.where(np.isfinite(gap), reference, np.nan)
            figures["beside"][name] = {
                "share": _share(both[:, None], prompts),
                "difference": _difference(gap[:, None], prompts, **resampling),
            }
    return figures
