"""Strengths by hand and recovered from planted ones; models without a finite strength are named; intervals."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from afzal.stats import bradley_terry as bt
from afzal.stats.intervals import Interval


def two(wins: int, losses: int, ties: int = 0) -> bt.Games:
    """Comparisons of model 0 with model 1, each on a different prompt."""
    outcome = [1.0] * wins + [0.0] * losses + [0.5] * ties
    return bt.games([0] * len(outcome), [1] * len(outcome), outcome, range(len(outcome)), 2)


def test_two_models_by_hand():
    # P = 3/4, so that theta_0 - theta_1 = ln 3
    fit = bt.strengths(two(3, 1))
    assert fit.theta == pytest.approx([math.log(3) / 2, -math.log(3) / 2])
    assert fit.log_likelihood == pytest.approx(3 * math.log(3 / 4) + math.log(1 / 4))
    assert bt.strengths(two(2, 0, 2)).theta == pytest.approx(fit.theta)  # half wins: 3 to 1


@pytest.mark.parametrize("ties", ["davidson", "rao_kupper"])
def test_ties_by_hand(ties):
    """With two models three free probabilities are fitted exactly: 4, 1 and 3 of 8."""
    fit = bt.strengths(two(4, 1, 3), ties)
    assert fit.log_likelihood == pytest.approx(4 * math.log(4 / 8) + math.log(1 / 8) + 3 * math.log(3 / 8), abs=1e-8)
    d, nu = fit.theta[0] - fit.theta[1], fit.tie
    if ties == "davidson":  # P(win) / P(loss) = e^d, P(tie)^2 / (P(win) P(loss)) = 4 nu^2
        assert d == pytest.approx(math.log(4), abs=1e-5)
        assert nu == pytest.approx(0.75, abs=1e-5)
    else:  # sigma(d - ln nu) = 1/2 and sigma(-d - ln nu) = 1/8
        assert d == pytest.approx(math.log(nu), abs=1e-5)
        assert nu == pytest.approx(math.sqrt(7), abs=1e-4)


@pytest.mark.parametrize("ties", ["davidson", "rao_kupper"])
def test_slopes_equal_finite_differences(ties):
    slopes = bt._davidson if ties == "davidson" else bt._rao_kupper
    d, y, x, step = np.array([-1.2, 0.3, 2.0]), np.array([1.0, 0.5, 0.0]), 0.2, 1e-6
    _, to_d, to_tie = slopes(d, x, y)
    assert to_d == pytest.approx((slopes(d + step, x, y)[0] - slopes(d - step, x, y)[0]) / (2 * step), abs=1e-7)
    assert to_tie == pytest.approx((slopes(d, x + step, y)[0] - slopes(d, x - step, y)[0]) / (2 * step), abs=1e-7)


def test_names_and_sides_play_no_part():
    generator = np.random.default_rng(0)
    i = generator.integers(4, size=200)
    j = (i + 1 + generator.integers(3, size=200)) % 4
    y = generator.choice([0.0, 0.5, 1.0], 200)
    prompts = generator.integers(30, size=200).tolist()
    theta = bt.strengths(bt.games(i, j, y, prompts, 4)).theta
    assert bt.strengths(bt.games(j, i, 1 - y, prompts, 4)).theta == pytest.approx(theta)
    assert bt.strengths(bt.games(3 - i, 3 - j, y, prompts, 4)).theta[::-1] == pytest.approx(theta)
    assert theta.sum() == pytest.approx(0.0, abs=1e-12)


def test_alike_comparisons_are_pooled():
    played = bt.games([0, 1, 0], [1, 0, 1], [1, 0, 1], ["p", "p", "q"], 2)
    assert played.weight.tolist() == [2.0, 1.0]
    assert played.n_prompts == 2


def test_models_that_never_met_are_named():
    played = bt.games([0, 1, 2, 3], [1, 0, 3, 2], [1, 1, 1, 1], "abcd", 4)
    links = bt.connection(played)
    assert links.groups == ((0, 1), (2, 3))
    assert not links.connected
    with pytest.raises(ValueError, match="no finite maximum"):
        bt.strengths(played)


def test_a_model_that_never_lost_has_no_strength():
    played = bt.games([0, 0, 1, 2], [1, 2, 2, 1], [1, 1, 1, 1], "abcd", 3)
    links = bt.connection(played)
    assert (links.groups, links.parts) == (((0, 1, 2),), ((0,), (1, 2)))
    assert (links.unbeaten, links.winless) == ((0,), ())
    with pytest.raises(ValueError, match="no finite maximum"):
        bt.strengths(played)
    drawn_in = bt.strengths(played, ridge=0.1).theta
    assert drawn_in.argmax() == 0
    assert np.isfinite(drawn_in).all()


def test_a_model_that_never_won_is_named_too():
    links = bt.connection(bt.games([0, 1, 0, 1], [1, 0, 2, 2], [1, 1, 1, 1], "abcd", 3))
    assert (links.unbeaten, links.winless) == ((), (2,))


def test_one_tie_connects_both_ways():
    assert bt.connection(bt.games([0, 1, 0], [1, 2, 2], [1, 1, 0.5], "abc", 3)).connected


def test_outcomes_are_checked():
    with pytest.raises(ValueError, match=r"0\.5"):
        bt.games([0], [1], [0.7], ["a"], 2)
    with pytest.raises(ValueError, match="itself"):
        bt.games([1], [1], [1], ["a"], 2)
    with pytest.raises(ValueError, match="there are none"):
        bt.strengths(two(3, 1), "davidson")


def test_votes_on_one_prompt_are_drawn_together():
    """Ten equal votes on a prompt say no more than one."""
    outcome, prompts = [1, 0, 1, 1, 0, 1, 1, 0], list(range(8))
    once = bt.leaderboard(bt.games([0] * 8, [1] * 8, outcome, prompts, 2), resamples=200)
    tenfold = bt.leaderboard(bt.games([0] * 80, [1] * 80, outcome * 10, prompts * 10, 2), resamples=200)
    for ours, theirs in zip(tenfold.places, once.places, strict=True):
        assert ours.theta.value == pytest.approx(theirs.theta.value, abs=1e-8)
        assert [ours.theta.low, ours.theta.high] == pytest.approx([theirs.theta.low, theirs.theta.high], abs=1e-8)
    assert tenfold.places[0].comparisons == 80


def test_the_range_of_a_rank_is_that_of_95_percent_of_the_draws():
    rng = np.random.default_rng(0)
    sides = [(a, b) for _ in range(6) for a in range(7) for b in range(a)]
    outcome = [float(rng.random() < 0.6) for _ in sides]
    board = bt.leaderboard(bt.games(*zip(*sides, strict=True), outcome, list(range(len(sides))), 7), resamples=400)
    for place in board.places:
        ranks = 1 + (board.samples > board.samples[:, [place.model]]).sum(1)
        low, high = np.percentile(ranks, [2.5, 97.5]).astype(int)
        assert (place.best_rank, place.worst_rank) == (low, high)
    # the draws are not all alike
    assert any(place.best_rank < place.worst_rank for place in board.places)


def pandalm(shared) -> tuple[list[str], bt.Games, dict]:
    rows = json.loads((shared / "data/annot/pandalm_human3.json").read_text())
    names = sorted({name for row in rows for name in row["cmp_key"].split("_")})
    points = {0: 0.5, 1: 1.0, 2: 0.0}
    said = [
        (
            *map(names.index, row["cmp_key"].split("_")),
            points[row[f"annotator{k}"]],
            row["instruction"] + "\0" + row["input"],
        )
        for row in rows
        for k in (1, 2, 3)
    ]
    reference = json.loads((shared / "reference/people-and-judges.json").read_text())["pandalm"]
    return names, bt.games(*zip(*said, strict=True), len(names)), reference


def test_the_models_of_pandalm(shared):
    names, played, reference = pandalm(shared)
    board = bt.leaderboard(played, resamples=500)
    assert [names[p.model] for p in board.places] == list(reference["leaderboard"])
    for place in board.places:
        line = reference["leaderboard"][names[place.model]]
        assert place.theta.value == pytest.approx(line["bt_half"], abs=1e-4)
        assert [place.theta.low, place.theta.high] == pytest.approx(line["bt_half_interval_prompts"], abs=1e-3)
        assert place.win_rate == pytest.approx(line["win_rate"], abs=1e-4)
        assert place.elo == pytest.approx(line["elo"], abs=0.05)
        assert (place.rank, place.comparisons) == (line["rank"], line["votes"])
    for first, second, low, high, _ in reference["leaderboard_differences"]:
        gap = board.difference(names.index(first), names.index(second))
        assert [gap.low, gap.high] == pytest.approx([low, high], abs=1e-3)


def test_ties_on_pandalm(shared):
    names, played, reference = pandalm(shared)
    expected = reference["leaderboard_tie_parameters"]
    for ties in ("davidson", "rao_kupper"):
        fit = bt.strengths(played, ties)
        assert fit.tie == pytest.approx(expected[f"{ties}_nu"], abs=1e-4)
        assert fit.log_likelihood == pytest.approx(expected[f"{ties}_loglik"], abs=2e-3)
        theta = {name: line[ties] for name, line in reference["leaderboard"].items()}
        assert dict(zip(names, fit.theta, strict=True)) == pytest.approx(theta, abs=2e-4)


@pytest.mark.parametrize("seed", [7, 16, 25])
def test_many_comparisons_come_to_rest(seed):
    """Ten models, 4.5 million comparisons: the last steps climb by less than the sum is rounded by."""
    generator, theta, n = np.random.default_rng(seed), np.linspace(1.2, -1.2, 10), 100_000
    i, j = np.triu_indices(10, 1)
    won = generator.binomial(n, 1 / (1 + np.exp(theta[j] - theta[i]))).astype(float)
    ends, prompts = (np.tile(i, 2), np.tile(j, 2)), np.zeros(2 * len(i), np.int64)
    played = bt.Games(*ends, np.repeat([1.0, 0.0], len(i)), np.concatenate([won, n - won]), prompts, 10)
    fitted = bt.strengths(played).theta
    assert fitted == pytest.approx(theta, abs=0.02)
    tenth = bt.strengths(replace(played, weight=played.weight / 10)).theta
    assert fitted == pytest.approx(tenth, abs=1e-8)


def test_equal_models_share_all_ranks_and_have_no_width():
    ties = bt.games([0, 0, 1] * 4, [1, 2, 2] * 4, [0.5] * 12, range(12), 3)
    board = bt.leaderboard(ties, resamples=50)
    assert [(p.rank, p.best_rank, p.worst_rank) for p in board.places] == [(1, 1, 3)] * 3
    assert [(p.theta.low, p.theta.high) for p in board.places] == [(None, None)] * 3
    assert board.difference(0, 1) == Interval(0.0, None, None, 12)


def test_equal_strengths_are_equal_to_the_last_bit_and_never_minus_0():
    """Models 0 and 1 each win two of three games with model 2, and tie with each other; sums of floats differ."""
    first, second, outcome = [0, 0, 0, 1, 1, 1, 0], [2, 2, 2, 2, 2, 2, 1], [1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.5]
    fit = bt.strengths(bt.games(first, second, outcome, range(7), 3))
    assert fit.theta[0] == fit.theta[1]
    # model 0 beats model 2 by 3 to 2; model 1 ties with both
    between = bt.games([0] * 6 + [1], [2] * 5 + [1, 2], [1.0, 1.0, 1.0, 0.0, 0.0, 0.5, 0.5], range(7), 3)
    assert str(float(bt.strengths(between).theta[1])) == "0.0"
