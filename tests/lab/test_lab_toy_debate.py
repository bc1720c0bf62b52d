"""Debate without words: the known accuracies, and what symmetry requires."""

from __future__ import annotations

import numpy as np
import pytest

from afzal.lab import language
from afzal.lab.toy_debate import (
    Evidence,
    accuracy,
    aware_judge,
    count_judge,
    naive_judge,
    positions,
    probability,
    show_evidence,
    toy,
)
from afzal.stats.intervals import clustered, mean

# Of 7 pieces from N(0, 1), 200,000 draws: people-and-judges, section 2.5
KNOWN = {
    ("random", 2): (0.679, 0.679),
    ("consultant", 2): (0.515, 0.748),
    ("debate", 2): (0.808, 0.808),
    ("random", 4): (0.773, 0.773),
    ("consultant", 4): (0.571, 0.856),
    ("debate", 4): (0.893, 0.911),
    ("random", 6): (0.877, 0.877),
    ("consultant", 6): (0.779, 0.939),
    ("debate", 6): (0.964, 0.974),
}


@pytest.fixture(scope="module")
def accuracies():
    return toy()


@pytest.mark.parametrize(("protocol", "k"), KNOWN)
def test_accuracies_of_the_toy(accuracies, protocol, k):
    known = accuracies[f"{protocol}, k = {k}"]
    assert (known["naive"], known["aware"]) == pytest.approx(KNOWN[protocol, k], abs=0.005)


def test_everything_shown_is_always_right():
    pieces = np.random.default_rng(0).standard_normal((500, 6))
    for protocol in ("random", "consultant", "debate"):
        seen = show_evidence(pieces, 6, protocol, np.random.default_rng(1))
        assert accuracy(naive_judge(seen), pieces.sum(1)).tolist() == [1.0] * 500


def test_answers_in_the_other_order_give_the_other_verdict():
    rng = np.random.default_rng(2)
    pieces = rng.standard_normal((400, 7))
    one, other = (show_evidence(p, 2, "debate", rng) for p in (pieces, -pieces))
    assert other.pieces[:, ::-1].tolist() == one.pieces.tolist()
    np.testing.assert_allclose(naive_judge(other), -naive_judge(one))
    # a judge whose past has every case in both orders gives 1 - p exactly
    totals = np.concatenate([pieces.sum(1), -pieces.sum(1)])
    past = Evidence(*(np.concatenate([getattr(s, f) for s in (one, other)]) for f in ("pieces", "values", "side")))
    expected = [aware_judge(past, totals, seen) for seen in (past, one, other)]
    p, q = (probability(e, expected[0], totals) for e in expected[1:])
    np.testing.assert_allclose(expected[2], -expected[1], atol=1e-9)
    np.testing.assert_allclose(p + q, 1.0, atol=1e-2)


def test_identical_answers_are_a_coin():
    seen = show_evidence(np.zeros((3, 4)), 2, "debate", np.random.default_rng(0))
    assert naive_judge(seen).tolist() == [0.0] * 3
    assert accuracy(naive_judge(seen), np.zeros(3)).tolist() == [0.5] * 3
    past = np.array([-1.0, 1.0])
    assert probability(np.zeros(1), np.zeros(2), past).tolist() == [0.5]


def test_each_side_shows_what_helps_it():
    seen = show_evidence(np.array([[0.5, -2.0, 3.0, 1.0]]), 2, "debate", np.random.default_rng(0))
    assert seen.pieces.tolist() == [[2, 1]]
    sides = {
        tuple(show_evidence(np.array([[0.5, -2.0, 3.0]]), 1, "consultant", np.random.default_rng(s)).pieces[0])
        for s in range(9)
    }
    assert sides == {(2,), (1,)}


def test_an_odd_number_cannot_be_shared_by_two_sides():
    with pytest.raises(ValueError, match="debate"):
        show_evidence(np.zeros((1, 4)), 3, "debate", np.random.default_rng(0))


def language_cases(prompts, n, seed):
    policy = language.sft_policy(prompts)
    pairs = language.sample_pairs(policy, n, np.random.default_rng(seed))
    rewards = language.reward(prompts)
    gaps = rewards[pairs[0], pairs[1]] - rewards[pairs[0], pairs[2]]
    return tuple(part[gaps != 0] for part in pairs), gaps[gaps != 0]


def test_positions_add_up_to_the_reward_without_length_and_parity():
    prompts = language.prompts()[0]
    pairs, gaps = language_cases(prompts, 3000, 0)
    _, a, b = pairs
    parity = [np.where(language.RESPONSES >= 0, language.RESPONSES, 0).sum(1)[y] % 2 for y in (a, b)]
    same = (language.LENGTHS[a] == language.LENGTHS[b]) & (parity[0] == parity[1])
    np.testing.assert_allclose(positions(prompts, pairs).sum(1)[same], gaps[same], atol=1e-9)


def test_on_the_language_debate_beats_a_consultant_who_beats_the_judge_alone():
    train, held = language.prompts()
    (past, past_gaps), (now, gaps) = language_cases(train, 60_000, 1), language_cases(held, 20_000, 2)
    right_by = {}
    for number, protocol in enumerate(("random", "consultant", "debate")):
        rng = np.random.default_rng(number)
        before = show_evidence(positions(train, past), 2, protocol, rng)
        seen = show_evidence(positions(held, now), 2, protocol, rng)
        right_by[protocol] = accuracy(count_judge(before, past_gaps, seen), gaps)
    for better, worse in (("consultant", "random"), ("debate", "consultant")):
        gain = mean(clustered(now[0].tolist(), (right_by[better] - right_by[worse]).tolist()))
        assert gain.prompts == len(held)
        assert gain.ends[0] > 0.01, (better, worse)
