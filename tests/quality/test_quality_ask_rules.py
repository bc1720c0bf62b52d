"""Rules of choice against closed forms, brute force and symmetries."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import betainc

from afzal.quality.ask import linear, matches, rules
from afzal.quality.ask.features import reduced

RULES = ("d_optimal", "bald", "entropy", "max_margin", "random")


def belief(seed: int = 0, n: int = 12, d: int = 3, members: int = 1) -> rules.Belief:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d))
    a = rng.normal(size=(d, d))
    margins = rng.normal(size=(members, n)) if members > 1 else (x @ rng.normal(size=d))[None]
    return rules.Belief(margins, x, a @ a.T + np.eye(d))


def swapped(b: rules.Belief, which: np.ndarray) -> rules.Belief:
    sign = np.where(which, -1.0, 1.0)
    return rules.Belief(b.margins * sign, b.features * sign[:, None], b.precision)


def log_det(a: np.ndarray) -> float:
    return float(np.linalg.slogdet(a)[1])


def test_the_gain_of_d_optimal_is_the_difference_of_log_determinants_step_by_step():
    b = belief()
    p = b.p_first
    information = b.precision
    taken: set[int] = set()
    for choice in rules.d_optimal(b, len(p), np.arange(len(p))):
        gains = {
            k: log_det(information + p[k] * (1 - p[k]) * np.outer(b.features[k], b.features[k])) - log_det(information)
            for k in range(len(p))
            if k not in taken
        }
        assert choice.pair == max(gains, key=gains.__getitem__)
        assert choice.score == pytest.approx(gains[choice.pair], rel=1e-9)
        information = information + p[choice.pair] * (1 - p[choice.pair]) * np.outer(
            b.features[choice.pair], b.features[choice.pair]
        )
        taken.add(choice.pair)


@pytest.mark.parametrize("seed", range(5))
def test_greedy_d_optimal_is_within_one_less_one_over_e_of_the_best_three_of_ten(seed):
    b = belief(seed, n=10)
    p = b.p_first

    def gain(chosen) -> float:
        more = sum(p[k] * (1 - p[k]) * np.outer(b.features[k], b.features[k]) for k in chosen)
        return log_det(b.precision + more) - log_det(b.precision)

    chosen = rules.d_optimal(b, 3, np.arange(10))
    best = max(gain(three) for three in itertools.combinations(range(10), 3))
    assert sum(c.score for c in chosen) == pytest.approx(gain([c.pair for c in chosen]), rel=1e-9)
    assert (1 - 1 / math.e) * best <= gain([c.pair for c in chosen]) <= best + 1e-12


def test_d_optimal_scores_fall_from_choice_to_choice():
    scores = [c.score for c in rules.d_optimal(belief(3, n=40), 40, np.arange(40))]
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(scores))


def test_bald_is_0_for_a_certain_posterior_and_grows_with_its_variance():
    mean = np.array([-2.0, 0.0, 1.0])
    assert rules.information(mean, np.zeros(3)).tolist() == [0, 0, 0]
    few, more = rules.information(mean, np.full(3, 0.1)), rules.information(mean, np.full(3, 1.0))
    assert (few > 0).all()
    assert (more > few).all()


def test_bald_of_a_normal_margin_is_the_integral():
    mean, sd = 0.7, 1.3
    d = np.linspace(mean - 9 * sd, mean + 9 * sd, 20001)
    weight = np.exp(-0.5 * ((d - mean) / sd) ** 2)
    weight /= weight.sum()
    p = 1 / (1 + np.exp(-d))
    entropy = lambda q: -(q * np.log(q) + (1 - q) * np.log(1 - q))  # noqa: E731
    wanted = entropy(weight @ p) - weight @ entropy(p)
    assert rules.information(np.array([mean]), np.array([sd**2]))[0] == pytest.approx(wanted, abs=1e-6)


def test_disagreement_is_0_iff_all_members_agree_and_ln_2_at_most():
    same = np.repeat(np.random.default_rng(0).normal(size=(1, 6)), 4, axis=0)
    assert rules.disagreement(same).tolist() == [0] * 6
    assert rules.disagreement(same[:1]).tolist() == [0] * 6
    far = np.array([[50.0, 0.5], [-50.0, -0.5]])
    assert rules.disagreement(far)[0] == pytest.approx(math.log(2), abs=1e-12)
    assert 0 < rules.disagreement(far)[1] < 0.1
    p = 1 / (1 + math.exp(-0.5))
    assert rules.disagreement(far)[1] == pytest.approx(math.log(2) + p * math.log(p) + (1 - p) * math.log(1 - p))


def test_entropy_is_largest_at_even_odds_and_max_margin_is_its_reverse():
    margins = np.array([[-3.0, 0.0, 1.0, 0.2]])
    assert rules.entropy(margins)[1] == pytest.approx(math.log(2))
    assert np.argsort(-rules.entropy(margins)).tolist() == np.argsort(rules.max_margin(margins)).tolist()


@pytest.mark.parametrize("rule", RULES)
@given(
    which=st.lists(st.booleans(), min_size=12, max_size=12), members=st.sampled_from([1, 3]), seed=st.integers(0, 50)
)
@settings(max_examples=25, deadline=None)
def test_swapping_the_responses_of_pairs_changes_no_choice(rule, which, members, seed):
    b = belief(seed, members=members)
    order = np.random.default_rng(seed).permutation(12)
    ours = rules.ranked(rule, b, 8, order)
    theirs = rules.ranked(rule, swapped(b, np.array(which)), 8, order)
    assert [c.pair for c in ours] == [c.pair for c in theirs]
    assert [c.score for c in ours] == pytest.approx([c.score for c in theirs], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("rule", RULES)
@given(seed=st.integers(0, 100), members=st.sampled_from([1, 3]), level=st.sampled_from([0.0, 0.7]))
@settings(max_examples=10, deadline=None)
def test_a_constant_scorer_gives_the_order_of_random_questions(rule, seed, members, level):
    order = np.random.default_rng(seed).permutation(30)
    constant = rules.Belief(np.full((members, 30), level), np.full((30, 2), level), np.eye(2))
    chosen = [c.pair for c in rules.ranked(rule, constant, 10, order)]
    assert chosen == order[:10].tolist()


def test_choices_are_distinct_and_no_more_than_there_are():
    for rule in RULES:
        chosen = rules.ranked(rule, belief(), 100, np.arange(12))
        assert sorted(c.pair for c in chosen) == list(range(12))


def test_a_batch_of_bald_does_not_ask_the_same_thing_twice():
    x = np.array([[2.0, 0.0], [2.0, 0.0], [0.0, 1.5]])
    b = rules.Belief(np.zeros((1, 3)), x, np.eye(2) * 0.5)
    assert [c.pair for c in rules.bald(b, 2, np.arange(3))] == [0, 2]


def test_may_be_wrong_by_hand():
    points, weight = np.array([1.0, 2.0, 1.0, 0.0, 5.0]), np.array([2.0, 3.0, 3.0, 1.0, 6.0])
    chances = rules.may_be_wrong(points, weight)
    assert chances[:4] == pytest.approx([1 / 2, 5 / 16, 5 / 16, 1 / 4])
    assert chances[4] == pytest.approx(betainc(6, 2, 0.5))


def test_the_fit_is_at_a_maximum_and_turns_with_the_pairs():
    rng = np.random.default_rng(1)
    x, y, w = rng.normal(size=(40, 4)), rng.random(40), rng.integers(1, 4, 40).astype(float)
    fitted = linear.fit(x, y, w, 0.5)

    def loss(theta: np.ndarray) -> float:
        d = x @ theta
        return float(w @ (y * np.logaddexp(0, -d) + (1 - y) * np.logaddexp(0, d)) + 0.25 * theta @ theta)

    for k in range(4):
        step = np.eye(4)[k] * 1e-4
        assert (loss(fitted.theta + step) - loss(fitted.theta - step)) / 2e-4 == pytest.approx(0, abs=1e-6)
        second = (loss(fitted.theta + step) - 2 * loss(fitted.theta) + loss(fitted.theta - step)) / 1e-8
        assert second == pytest.approx(fitted.precision[k, k], rel=1e-4)
    sign = np.where(rng.random(40) < 0.5, -1.0, 1.0)
    turned = linear.fit(x * sign[:, None], np.where(sign > 0, y, 1 - y), w, 0.5)
    assert turned.theta == pytest.approx(fitted.theta, abs=1e-9)


def test_separable_votes_and_no_votes_have_a_finite_fit():
    x = np.array([[1.0], [2.0]])
    assert 0 < linear.fit(x, np.ones(2), np.full(2, 1e6), 1.0).theta[0] < 50
    assert linear.fit(np.zeros((0, 3)), np.zeros(0), np.zeros(0), 1.0).theta.tolist() == [0, 0, 0]
    with pytest.raises(ValueError, match="ridge"):
        linear.fit(x, np.ones(2), np.ones(2), 0.0)


def test_expected_drop_is_that_of_the_summed_variance():
    x = np.array([[1.0, -1.0, 0.0], [1.0, 0.0, -1.0], [0.0, 1.0, -1.0]])
    precision = 0.1 * np.eye(3) + (x * np.array([[3.0], [0.0], [1.0]])).T @ x
    p = np.array([0.5, 0.7, 0.9])
    held = precision + np.full((3, 3), 1 / 3)
    for k in range(3):
        after = held + p[k] * (1 - p[k]) * np.outer(x[k], x[k])
        wanted = np.trace(np.linalg.inv(held)) - np.trace(np.linalg.inv(after))
        assert matches.expected_drop(x, p, precision)[k] == pytest.approx(wanted, rel=1e-9)


def test_reduced_features_keep_the_margins_geometry_and_turn_with_the_pairs():
    rng = np.random.default_rng(2)
    ours, theirs = rng.normal(size=(30, 6)) * 50, rng.normal(size=(5, 6)) * 50
    a, b = reduced(ours, theirs, most=6)
    assert (a**2).mean() == pytest.approx(1)
    scale = np.linalg.norm(a[0]) / np.linalg.norm(ours[0])
    assert b @ a.T == pytest.approx(scale**2 * (theirs @ ours.T))
    few, _ = reduced(ours, theirs, most=2)
    turned, _ = reduced(-ours, theirs, most=2)
    assert few.shape == (30, 2)
    assert turned @ turned.T == pytest.approx(few @ few.T)
    assert not reduced(np.zeros((3, 2)), np.zeros((1, 2)))[0].any()
