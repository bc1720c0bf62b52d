"""Rejected answers and the pairing of the others, by hand; the law of rejection sampling, by enumeration."""

from __future__ import annotations

import itertools
import math
from collections import Counter

import pytest

from afzal.iterate.pairing import (
    Candidate,
    Pair,
    acceptance,
    paired_item,
    pairs_of,
    rejection_sample,
    spin_item,
    split_rejected,
    uniforms,
)
from afzal.records import Comparison, Message, labels, preferences


def candidates(*rewards: float) -> list[Candidate]:
    return [Candidate(f"answer {k}", r) for k, r in enumerate(rewards)]


def matched(pairing, *rewards: float, numbers=(), **settings):
    """Pairs as (better, worse), and the reasons for lost answers."""
    given = candidates(*rewards)
    pairs, lost = pairs_of(given, range(len(given)), pairing, iter(numbers), **settings)
    return [(p.better, p.worse) for p in pairs], [r.reason for r in lost]


# --- rejected answers --------------------------------------------------------------------------------------------


def test_empty_answers_are_rejected():
    kept, lost = split_rejected([Candidate("a"), Candidate(""), Candidate(" \n")])
    assert kept == [0]
    assert [(r.reason, r.unit) for r in lost] == [("empty", "response")] * 2


def test_truncated_answers_are_rejected_unless_allowed():
    given = [Candidate("a", ended=False), Candidate("b")]
    kept, lost = split_rejected(given)
    assert (kept, [r.reason for r in lost]) == ([1], ["no_eos"])
    assert split_rejected(given, require_eos=False) == ([0, 1], [])


def test_of_answers_with_the_same_text_the_first_stays():
    given = [Candidate(text) for text in ("a", "b", " a", "a", "b ")]
    kept, lost = split_rejected(given)
    assert kept == [0, 1]
    assert [r.detail for r in lost] == [
        "answer 2 is answer 0 again",
        "answer 3 is answer 0 again",
        "answer 4 is answer 1 again",
    ]
    assert split_rejected(given, repeats="keep")[0] == [0, 1, 2, 3, 4]


def test_an_answer_is_lost_for_one_reason_and_an_unfinished_one_makes_no_duplicate():
    given = [Candidate("a", ended=False), Candidate("a"), Candidate("")]
    kept, lost = split_rejected(given)
    assert kept == [1]
    assert [r.reason for r in lost] == ["no_eos", "empty"]


def test_a_prompt_with_fewer_than_two_answers_is_lost():
    for kept in ([], [1]):
        pairs, lost = pairs_of(candidates(1.0, 2.0, 3.0), kept, "best_worst", iter(()))
        assert pairs == []
        assert [(r.reason, r.unit) for r in lost] == [("too_few", "item")]


# --- pairing of answers ------------------------------------------------------------------------------------------


def test_best_is_paired_with_worst_and_of_equals_the_first():
    assert matched("best_worst", 0.2, 0.9, 0.1, 0.5) == ([(1, 2)], [])
    assert matched("best_worst", 3.0, 1.0, 3.0, 1.0) == ([(0, 1)], [])


def test_best_is_paired_with_a_random_other():
    for number, other in ((0.0, 0), (0.34, 2), (0.99, 3)):
        assert matched("best_random", 0.2, 0.9, 0.1, 0.5, numbers=[number]) == ([(1, other)], [])


def test_all_pairs_have_the_better_first():
    assert matched("all", 0.2, 0.9, 0.1) == ([(1, 0), (0, 2), (1, 2)], [])


def test_with_two_answers_every_pairing_is_the_same_pair():
    for pairing in ("best_worst", "best_random", "all"):
        assert matched(pairing, 1.0, 2.0, numbers=[0.5]) == ([(1, 0)], [])


def test_margins_must_exceed_the_least_one():
    assert matched("best_worst", 1.0, 1.0) == ([], ["margin"])
    assert matched("best_worst", 1.0, 1.5, min_margin=0.5) == ([], ["margin"])
    assert matched("best_worst", 1.0, 1.75, min_margin=0.5) == ([(1, 0)], [])
    pairs, lost = matched("all", 0.0, 0.5, 2.0, min_margin=1.0)
    assert (pairs, lost) == ([(2, 0), (2, 1)], ["margin"])


def test_only_answers_that_were_kept_are_paired():
    pairs, _ = pairs_of(candidates(9.0, 1.0, 2.0, -9.0), [1, 2], "best_worst", iter(()))
    assert pairs == [Pair(2, 1, 1.0)]


def test_best_against_worst_of_five_is_further_apart_than_a_random_pair():
    """Over every draw of five from a grid of m values: E range = sum_j (1 - (j/m)^5 - (1 - j/m)^5) / m against
    E |x - y| = (m^2 - 1) / 3m^2 (order statistics); equal rewards make no pair and count 0."""
    m, n = 5, 5
    grid = [(2 * k + 1) / (2 * m) for k in range(m)]
    widest = others = 0.0
    for draw in itertools.product(grid, repeat=n):
        given = candidates(*draw)
        widest += sum(p.margin for p in pairs_of(given, range(n), "best_worst", iter(()))[0])
        others += sum(p.margin for p in pairs_of(given, range(n), "all", iter(()))[0])
    assert widest / m**n == pytest.approx(sum(1 - (j / m) ** n - (1 - j / m) ** n for j in range(1, m)) / m)
    assert others / m**n / math.comb(n, 2) == pytest.approx((m**2 - 1) / (3 * m**2))
    assert widest > 1.5 * others / math.comb(n, 2)


# --- rejection sampling ------------------------------------------------------------------------------------------

REFERENCE = [0.4, 0.3, 0.2, 0.1]
REWARDS = [0.0, 1.0, -0.5, 2.0]
BETA = 0.7


def target() -> list[float]:
    """The target distribution pi_ref exp(r / beta) / Z."""
    weights = [p * math.exp(r / BETA) for p, r in zip(REFERENCE, REWARDS, strict=True)]
    return [w / sum(weights) for w in weights]


def test_accepted_answers_follow_the_closed_form_by_enumeration():
    """Every answer with its probability, every number of a fine grid: acceptance follows pi_ref exp(r/beta) / Z."""
    cells = 20_000
    accepted = []
    for p, probability in zip(REFERENCE, acceptance(REWARDS, BETA), strict=True):
        accepted.append(p * sum((k + 0.5) / cells < probability for k in range(cells)) / cells)
    shares = [a / sum(accepted) for a in accepted]
    assert shares == pytest.approx(target(), abs=1e-4)


def test_the_best_answer_is_always_accepted_and_beta_rules_the_rest():
    assert acceptance([1.0, 3.0], 2.0) == [pytest.approx(math.exp(-1)), 1.0]
    assert acceptance([1.0, 3.0], 1e-3)[0] < 1e-300 or acceptance([1.0, 3.0], 1e-3)[0] == 0.0
    assert min(acceptance([1.0, 3.0], 1e6)) > 0.999


def test_many_samples_of_a_prompt_are_accepted_by_the_closed_form():
    """64 draws per prompt, 8 accepted, as in the paper: far closer to the target than the draws; fixed seed."""
    number, drawn, kept = uniforms("law"), Counter(), Counter()
    edges = list(itertools.accumulate(REFERENCE))
    for _ in range(1500):
        answers = [next(y for y, edge in enumerate(edges) if u < edge) for u in itertools.islice(number, 64)]
        drawn.update(answers)
        kept.update(answers[k] for k in rejection_sample([REWARDS[y] for y in answers], 8, BETA, number))

    def distance(counts: Counter) -> float:
        return 0.5 * sum(abs(counts[y] / counts.total() - p) for y, p in enumerate(target()))

    assert kept.total() == 1500 * 8
    assert distance(drawn) > 0.4
    assert distance(kept) < 0.03


def test_the_first_accepted_of_many_follows_the_law_within_chance():
    """One accepted of 64: the maximum is nearly always that of all answers, and the order is that of the draws."""
    number, kept = uniforms("first"), Counter()
    edges = list(itertools.accumulate(REFERENCE))
    n = 6000
    for _ in range(n):
        answers = [next(y for y, edge in enumerate(edges) if u < edge) for u in itertools.islice(number, 64)]
        kept.update(answers[k] for k in rejection_sample([REWARDS[y] for y in answers], 1, BETA, number))
    square = sum((kept[y] - n * p) ** 2 / (n * p) for y, p in enumerate(target()))
    assert square < 16.3  # chi-square with 3 degrees of freedom, 99.9%


def test_rejection_sampling_of_two_by_enumeration():
    """Of two answers the worse comes first with probability exp(-gap / beta), else the better one, which must pass."""
    cells, gap = 1000, 0.5
    worse_first = sum(
        rejection_sample([1.0 - gap, 1.0], 1, BETA, iter([(k + 0.5) / cells, 0.999999])) == [0] for k in range(cells)
    )
    assert worse_first / cells == pytest.approx(math.exp(-gap / BETA), abs=2 / cells)


def test_rejection_sampling_continues_until_it_has_enough_or_nothing_is_left():
    assert sorted(rejection_sample([0.0, 5.0, 10.0], 3, 0.01, uniforms("a"))) == [0, 1, 2]
    assert rejection_sample([0.0, 5.0, 10.0], 3, 0.01, uniforms("a")) == [2, 1, 0]  # each pass has its own maximum
    assert len(rejection_sample([1.0] * 10, 4, 0.5, uniforms("b"))) == 4
    assert rejection_sample([1.0], 4, 0.5, uniforms("c")) == [0]


def test_accepted_answers_are_paired_and_equal_texts_are_not():
    numbers = [0.0] * 20
    pairs, lost = matched("rso", 1.0, 4.0, 2.0, 3.0, numbers=numbers, rso_accepted=4)
    assert (pairs, lost) == ([(1, 0), (3, 2)], [])
    given = [Candidate("same", 1.0), Candidate("same ", 1.0)]
    assert pairs_of(given, [0, 1], "rso", iter(numbers))[1][0].reason == "duplicate"


def test_random_numbers_depend_only_on_the_name():
    first = list(itertools.islice(uniforms("0/r001-00000"), 3))
    assert first == list(itertools.islice(uniforms("0/r001-00000"), 3))
    assert first != list(itertools.islice(uniforms("1/r001-00000"), 3))
    many = list(itertools.islice(uniforms("x"), 4000))
    assert all(0 <= u < 1 for u in many)
    assert sum(many) / 4000 == pytest.approx(0.5, abs=0.02)


# --- items -------------------------------------------------------------------------------------------------------


def test_pairs_become_an_item_without_the_answers_that_no_pair_names():
    item = paired_item("r001-00002", "Q", candidates(1.0, 5.0, 2.0), [Pair(1, 0, 4.0)])
    assert [r.turns for r in item.responses] == ["answer 0", "answer 1"]
    assert [r.source for r in item.responses] == ["answer 0", "answer 1"]
    assert item.votes == (Comparison(1, 0, "first", strength=4.0),)
    (p,) = preferences(item)
    assert (item.responses[p.i].turns, p.p, p.margin) == ("answer 1", 1.0, 4.0)


def test_answers_to_a_conversation_are_the_assistants_messages():
    prompt = (Message("user", "Q"),)
    item = paired_item("x", prompt, candidates(1.0, 5.0), [Pair(1, 0, 4.0)])
    assert item.responses[0].turns == (Message("assistant", "answer 0"),)


def test_the_datas_answer_wins_against_each_of_the_policys_own():
    given = [Candidate("mine"), Candidate("theirs "), Candidate("other")]
    item, lost = spin_item("x", "Q", "theirs", given, [0, 1, 2])
    assert item is not None
    assert [r.turns for r in item.responses] == ["theirs", "mine", "other"]
    assert labels(item) == (True, False, False)
    assert [(p.i, p.j) for p in preferences(item)] == [(0, 1), (0, 2)]
    assert [r.reason for r in lost] == ["duplicate"]


def test_a_policy_that_says_what_the_data_says_leaves_nothing_to_learn():
    item, lost = spin_item("x", "Q", "theirs", [Candidate("theirs")], [0])
    assert item is None
    assert [r.reason for r in lost] == ["duplicate", "too_few"]
