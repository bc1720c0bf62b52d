"""From votes to pairs, labels and scores: probabilities, weights and margins by hand."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest

from afzal.records import Comparison, Item, Preference, Rating, Response, Vote, labels, preferences, scores


def item(n: int, *votes: Vote) -> Item:
    return Item("a", "Q", tuple(Response(f" {k}") for k in range(n)), votes)


def said(first: int, second: int, outcome: str = "first", **facts) -> Comparison:
    return Comparison(first, second, outcome, **facts)  # pyright: ignore[reportArgumentType]


def test_votes_on_one_pair_are_pooled_by_weight():
    """p = (3 * 1 + 1 * 0) / 4, the weight is the mean 2, and strengths keep their sides: (2 - 1) / 2."""
    (pair,) = preferences(item(2, said(0, 1, weight=3.0, strength=2.0), said(0, 1, "second", strength=1.0)))
    assert pair == Preference(0, 1, 0.75, 2.0, 0.5)


def test_the_better_one_comes_first_and_the_margin_is_its_own():
    (pair,) = preferences(item(2, said(0, 1, "second", strength=3.0), said(1, 0, probability=0.9)))
    assert (pair.i, pair.j) == (1, 0)
    assert pair.p == pytest.approx(0.95)
    assert pair.margin == 3.0
    (against,) = preferences(item(2, said(0, 1, weight=9.0, strength=1.0), said(0, 1, "second", strength=4.0)))
    assert (against.i, against.j, against.margin) == (0, 1, -1.5)


def test_a_tie_keeps_the_lower_index_first_and_has_no_margin():
    (pair,) = preferences(item(2, said(1, 0, "tie", strength=2.0)))
    assert pair == Preference(0, 1, 0.5, 1.0, 0.0)
    assert pair.swap() == Preference(1, 0, 0.5, 1.0, 0.0)
    assert Preference(0, 1, 0.75, 2.0, 1.5).swap() == Preference(1, 0, 0.25, 2.0, -1.5)


@pytest.mark.parametrize("k", [2, 3, 4])
def test_an_item_counts_once_however_many_responses_were_compared_or_rated(k):
    """Comparisons of all pairs weigh the same as ratings that give the same order: 1 / C(K, 2) each."""
    compared = preferences(item(k, *(said(i, j) for i, j in combinations(range(k), 2))))
    rated = preferences(item(k, *(Rating(i, float(k - i), "score") for i in range(k))))
    assert [(p.i, p.j, p.p, p.weight) for p in compared] == [(p.i, p.j, p.p, p.weight) for p in rated]
    assert {p.weight for p in compared} == {2 / (k * (k - 1))}


def test_of_some_pairs_each_weighs_its_share_of_its_votes():
    """Two pairs, one voted on twice with 1 and 3, the other once with 1: (2, 1) / 2."""
    pairs = preferences(item(3, said(0, 1), said(0, 1, weight=3.0), said(2, 0)))
    assert [(p.i, p.j, p.weight) for p in pairs] == [(0, 1, 1.0), (2, 0, 0.5)]
    assert [p.weight for p in preferences(item(3, said(0, 1), said(1, 2, weight=0.0)))] == [1.0]


def test_ratings_order_by_score_and_ranks_the_other_way():
    """A response's score is the weighted mean of its ratings: (3 * 1 + 1 * 5) / 4 = 2 against 3."""
    by_score = item(2, Rating(0, 1.0, "score", 3.0), Rating(0, 5.0, "score"), Rating(1, 3.0, "score"))
    assert preferences(by_score) == (Preference(1, 0, 1.0, 1.0, 1.0),)
    assert scores(by_score) == (2.0, 3.0)
    by_rank = item(2, Rating(0, 1.0, "rank"), Rating(1, 0.0, "rank"))
    assert preferences(by_rank) == (Preference(1, 0, 1.0, 1.0, 1.0),)
    assert scores(by_rank) == (-1.0, 0.0)
    assert preferences(item(2, Rating(0, 1.0, "score"), Rating(1, 1.0, "score"))) == (Preference(0, 1, 0.5, 1.0, 0.0),)


def test_both_bad_says_that_neither_is_good_and_orders_nothing():
    """Labels for KTO and BCO; no pair. A response that won elsewhere and was called bad here has no label."""
    both = said(0, 1, "both_bad")
    assert labels(item(2, both)) == (False, False)
    assert preferences(item(2, both)) == ()
    assert labels(item(3, both, said(0, 2))) == (None, False, False)
    assert labels(item(2, replace(both, weight=0.0))) == (None, None)
    assert labels(item(2, both, Rating(0, 1.0, "label"))) == (True, None)
    assert labels(item(3, said(0, 1), said(1, 2))) == (True, None, False)
    assert labels(item(2, said(0, 1, "tie"))) == (None, None)


def test_comparisons_are_scores_only_if_they_give_one_order():
    whole = [said(0, 1), said(0, 2), said(2, 1)]
    assert scores(item(3, *whole)) == (2.0, 0.0, 1.0)
    assert scores(item(3, *whole[:2])) == (None, None, None)
    assert scores(item(3, said(0, 1), said(1, 2), said(2, 0))) == (None, None, None)
    assert scores(item(3, *whole[:2], said(2, 1, "tie"))) == (None, None, None)
    assert scores(item(3, said(0, 2))) == (1.0, None, 0.0)
