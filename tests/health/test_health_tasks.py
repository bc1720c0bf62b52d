"""Tasks that are trained together: which one is over-fitted or under-fitted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from afzal.health import Diagnosis
from afzal.health.curves import Curves
from afzal.health.tasks import tasks

START = (0.5, 0.4, 0.6)
FINE = (0.8, 0.7, 0.9)


def diagnosis_of(*accuracies: tuple[float, float, float]) -> Diagnosis | None:
    """The diagnosis of a run whose first task has these accuracies, and whose second task is fine."""
    records: list[Mapping[str, Any]] = []
    for step, first in enumerate(accuracies):
        record: dict[str, Any] = {"kind": "eval", "step": step}
        for k, (value, low, high) in enumerate((first, FINE)):
            record |= {f"tasks/accuracies/{k}": value, f"tasks/accuracies/{k}/low": low}
            record |= {f"tasks/accuracies/{k}/high": high}
        records.append(record)
    facts = {"data": {"tasks": [{"name": "sums"}, {"name": "poems"}]}}
    return tasks(Curves([], records, facts))


def diagnosed(*accuracies: tuple[float, float, float]) -> Diagnosis:
    diagnosis = diagnosis_of(*accuracies)
    assert diagnosis is not None
    return diagnosis


def test_one_evaluation_shows_nothing():
    assert diagnosis_of(START) is None


def test_a_task_is_over_fitted_if_an_earlier_interval_lies_above_the_last():
    diagnosis = diagnosed(START, (0.95, 0.6, 1.0), (0.9, 0.86, 0.93), (0.75, 0.7, 0.8))
    assert diagnosis.title == "tasks: over-fitted: sums (0.900 to 0.750)"
    assert diagnosis.severity == "watch"


def test_an_earlier_peak_within_the_uncertainty_is_not_over_fitted():
    assert diagnosed(START, (0.85, 0.75, 0.92), (0.75, 0.7, 0.8)).severity == "good"


@pytest.mark.parametrize(
    ("last", "severity"),
    [((0.55, 0.5, 0.6), "open"), ((0.55, 0.51, 0.6), "good"), ((0.45, 0.4, 0.5), "open")],
)
def test_a_task_is_under_fitted_if_its_last_interval_includes_chance(last: tuple[float, float, float], severity: str):
    assert diagnosed((0.5, 0.2, 0.8), last).severity == severity


def test_a_task_below_chance_is_not_called_better_than_chance():
    diagnosis = diagnosed((0.5, 0.2, 0.8), (0.4, 0.3, 0.49))
    assert diagnosis.title == "tasks: worse than chance: sums (0.400 [0.300, 0.490])"
    assert diagnosis.severity == "watch"
    assert "afzal check" in diagnosis.remedy
