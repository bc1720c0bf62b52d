"""Resamples of whole prompts: rows of one prompt count alike, and intervals are percentiles."""

from __future__ import annotations

import numpy as np
import pytest

from afzal.stats.resampling import draws, numbered, percentiles, prompt_resamples, resampled


def test_whole_prompts_are_drawn():
    prompts = ["a", "a", "b", "c", "c", "c"]
    for weights in prompt_resamples(prompts, resamples=20, seed=3):
        assert weights[0] == weights[1]
        assert weights[3] == weights[4] == weights[5]
        assert weights[0] + weights[2] + weights[3] == 3


def test_rows_in_another_order_give_the_same_draws():
    prompts = ["b", "a", "c", "a"]
    turned = [prompts[k] for k in (3, 2, 1, 0)]
    for one, two in zip(
        prompt_resamples(prompts, resamples=5, seed=1), prompt_resamples(turned, resamples=5, seed=1), strict=True
    ):
        assert one.tolist() == two[::-1].tolist()
    assert numbered([("x", 1), "a", ("x", 0)]).tolist() == [2, 0, 1]


def test_draws_by_number_are_those_by_name():
    by_name = prompt_resamples(["a", "b", "c"], resamples=4, seed=9)
    by_number = draws(3, resamples=4, seed=9)
    assert [w.tolist() for w in by_name] == [w.tolist() for w in by_number]


def test_percentiles_by_hand():
    interval = percentiles(7.0, np.append(np.arange(1001.0), np.nan), 12)
    assert (interval.value, interval.n) == (7.0, 12)
    assert interval.ends == pytest.approx((25.0, 975.0))


def test_no_ends_where_nothing_is_known_of_them():
    assert resampled(lambda w: float(w.sum()), ["a", "a"]).low is None
    assert percentiles(0.5, np.array([0.5, np.nan]), 3).high is None
