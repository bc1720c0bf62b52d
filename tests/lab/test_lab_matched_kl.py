"""Runs side by side: where a trajectory reaches a KL, the regret there, and whether a claim holds."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from afzal.lab import exact, matched_kl
from afzal.lab.exact import Frontier
from afzal.lab.matched_kl import Point, Trajectory

EDGE = Frontier(np.array([0.0, 1.0, 2.0]), np.array([1.0, 2.0, 2.5]))


def trajectory(method: str, seed: int, *points: tuple[float, float], setting: str = "") -> Trajectory:
    made = tuple(Point(step, kl, reward) for step, (kl, reward) in enumerate([(0.0, 1.0), *points]))
    return Trajectory(method, setting, seed, made)


def test_the_reward_at_a_kl_is_linear_between_evaluations():
    one = trajectory("a", 0, (0.5, 1.6), (1.5, 2.0))
    assert matched_kl.reward_at(one, 0) == 1.0
    assert matched_kl.reward_at(one, 0.25) == pytest.approx(1.3)
    assert matched_kl.reward_at(one, 0.5) == pytest.approx(1.6)
    assert matched_kl.reward_at(one, 1.0) == pytest.approx(1.8)
    assert matched_kl.reward_at(one, 1.5) == pytest.approx(2.0)
    assert matched_kl.reward_at(one, 1.51) is None


def test_the_first_time_counts_where_a_course_comes_back():
    one = trajectory("a", 0, (1.0, 2.0), (0.4, 1.2), (2.0, 0.0))
    assert matched_kl.reward_at(one, 0.8) == pytest.approx(1.8)
    assert matched_kl.reward_at(one, 1.2) == pytest.approx(1.2 - 0.8 / 1.6 * 1.2)


def test_the_best_of_several_settings_at_that_kl():
    runs = [
        trajectory("a", 0, (1.0, 1.5), (3.0, 2.0), setting="strong"),
        trajectory("a", 0, (1.0, 1.9), setting="weak"),
        trajectory("a", 1, (1.0, 9.0)),
        trajectory("b", 0, (1.0, 9.0)),
    ]
    assert matched_kl.best_at(runs, "a", 0, 1.0) == pytest.approx(1.9)
    assert matched_kl.best_at(runs, "a", 0, 2.0) == pytest.approx(1.75)
    assert matched_kl.best_at(runs, "a", 0, 3.5) is None
    assert matched_kl.best_at(runs, "c", 0, 1.0) is None


def test_regret_is_what_is_left_to_the_frontier_at_the_same_kl():
    runs = [trajectory("a", 0, (0.5, 1.3), (1.5, 2.2))]
    assert matched_kl.regret_at(runs, "a", 0, 0.5, EDGE) == pytest.approx(1.5 - 1.3)
    assert matched_kl.regret_at(runs, "a", 0, 1.0, EDGE) == pytest.approx(2.0 - 1.75)
    assert matched_kl.regret_at(runs, "a", 0, 1.5, EDGE) == pytest.approx(2.25 - 2.2)
    assert matched_kl.regret_at(runs, "a", 0, 2.0, EDGE) is None
    assert matched_kl.regret_at([trajectory("a", 0, (1.0, 2.0))], "a", 0, 1.0, EDGE) == pytest.approx(0)


RUNS = [
    trajectory("a", 0, (1.0, 2.0), (2.0, 2.4)),
    trajectory("a", 1, (1.0, 1.9), (2.0, 2.2)),
    trajectory("b", 0, (1.0, 1.5), (1.6, 2.5)),
    trajectory("b", 1, (1.0, 1.6), (1.6, 1.7)),
]
GRID = (0.5, 1.0, 1.5, 2.0)


def test_methods_are_compared_at_the_largest_kl_that_all_reach():
    assert matched_kl.common_kl(RUNS, ("a",), (0, 1), GRID) == 2.0
    assert matched_kl.common_kl(RUNS, ("a", "b"), (0, 1), GRID) == 1.5
    assert matched_kl.common_kl(RUNS, ("a", "b"), (0, 1), (0.5, 1.0)) == 1.0
    assert matched_kl.common_kl(RUNS, ("a", "c"), (0, 1), GRID) == 0.0
    assert matched_kl.common_kl(RUNS, ("a", "b"), (0, 1, 2), GRID) == 0.0


def test_a_claim_holds_when_it_holds_in_every_seed():
    """At 1.5: a has 2.2 and 2.05; b has 1.5 + 5/6 and 1.6 + 5/60."""
    one = matched_kl.claim_above("a above b", RUNS, ("a", "b"), (0, 1), GRID)
    assert (one.outcome, one.held, one.n) == ("does not reproduce", 1, 2)
    assert one.figures == "difference at a KL of 1.5: -0.13, +0.37; mean +0.12"
    other = matched_kl.claim_above("a above b", RUNS, ("a", "b"), (0, 1), (0.5, 1.0))
    assert (other.outcome, other.held) == ("reproduces", 2)
    assert matched_kl.claim_above("by .35", RUNS, ("a", "b"), (0, 1), (1.0,), by=0.35).held == 1
    none = matched_kl.claim_above("a above c", RUNS, ("a", "c"), (0, 1), GRID)
    assert (none.outcome, none.held) == ("not measured", 0)


def test_what_stays_low_is_judged_by_its_whole_course():
    low = [trajectory("low", s, (0.2, 1.4), (0.3, 1.3)) for s in (0, 1)]
    claim = matched_kl.claim_stays_low("low", [*RUNS, *low], "low", "a", (0, 1), kl=0.5, by=0.5)
    assert (claim.outcome, claim.held) == ("reproduces", 2)
    assert claim.figures.startswith("1.40 at most, KL up to 0.30, against 2.40")
    assert matched_kl.claim_stays_low("", [*RUNS, *low], "low", "a", (0, 1), kl=0.25, by=0.5).held == 0
    assert matched_kl.claim_stays_low("", [*RUNS, *low], "low", "a", (0, 1), kl=0.5, by=0.9).held == 1
    assert matched_kl.claim_stays_low("", RUNS, "low", "a", (0, 1), kl=0.5, by=0.5).outcome == "not measured"


def test_judging_needs_every_seed():
    assert matched_kl.claim_from_seeds("x", [True, True], "").outcome == "reproduces"
    assert matched_kl.claim_from_seeds("x", [True, False], "").outcome == "does not reproduce"
    assert matched_kl.claim_from_seeds("x", [True, None], "").outcome == "not measured"
    assert matched_kl.claim_from_seeds("x", [], "").outcome == "not measured"


def test_the_table_says_which_seeds_come_so_far():
    rows = matched_kl.table(RUNS, ("a", "b", "c"), (0, 1), (1.0, 1.8, 9.0), EDGE)
    assert rows[0] == ["a", "1.95 (1.90 to 2.00), 0.05", "2.23 (2.14 to 2.32), 0.17", ""]
    assert rows[1][1] == "1.55 (1.50 to 1.60), 0.45"
    assert rows[2] == ["c", "", "", ""]
    few = matched_kl.table([*RUNS, trajectory("b", 0, (2.0, 2.0))], ("b",), (0, 1), (1.8,), EDGE)
    assert few == [["b", "1.90 (1.90 to 1.90), 0.50 (1 of 2)"]]


@pytest.mark.parametrize("n", [1, 2, 3])
def test_best_of_n_is_the_sum_over_all_draws(n):
    """Every tuple of n draws with its probability; among equal scores each draw is kept equally often."""
    ref = np.array([[0.1, 0.4, 0.2, 0.25, 0.05], [0.3, 0.1, 0.1, 0.1, 0.4]])
    scores = np.array([[1.0, 0.0, 1.0, 2.0, -1.0], [0.0, 0.0, 3.0, 3.0, 1.0]])
    brute = np.zeros_like(ref)
    for x, draws in product(range(2), product(range(5), repeat=n)):
        top = max(scores[x, y] for y in draws)
        kept = [y for y in draws if scores[x, y] == top]
        for y in kept:
            brute[x, y] += np.prod(ref[x, list(draws)]) / len(kept)
    assert np.exp(exact.best_of(np.log(ref), scores, n)) == pytest.approx(brute, abs=1e-12)
