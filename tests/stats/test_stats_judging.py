"""Judges by hand, planted ones, and the reference values on LLMBar and PandaLM."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from afzal.stats import agreement, judging
from afzal.stats.intervals import Interval, clustered, share, t95


def test_a_judge_that_looks_at_the_order_alone():
    first = np.full(50, judging.FIRST)
    seen = judging.both_orders(first, np.full(50, judging.SECOND))
    assert (seen.contradictions, seen.consistent, seen.first_slot, seen.slot_bias) == (50, 0.0, 1.0, 1.0)
    assert seen.slot_p == pytest.approx(2 * 0.5**50)
    other = judging.both_orders(np.full(50, judging.SECOND), first)
    assert (other.first_slot, other.slot_bias, other.slot_p) == (0.0, -1.0, seen.slot_p)


def test_two_games_by_hand():
    one = np.array([1, 1, 2, 0, -1, 2])
    two = np.array([1, 2, 1, 0, 1, -1])
    seen = judging.both_orders(one, two)
    assert (seen.pairs, seen.no_verdict, seen.contradictions) == (6, 2, 2)
    assert seen.consistent == pytest.approx(2 / 6)
    # winners: first game 1 1 2 2, second 1 2 1 1 with the sides turned: 2 + 1 of 8 in the first slot
    assert seen.first_slot == pytest.approx(3 / 8)
    assert seen.slot_bias == 0.0
    assert judging.agreed(one, two).tolist() == [1, 0, 0, 0, -1, -1]


def test_no_verdict_is_never_right():
    assert judging.accuracy(np.array([1, -1, 2]), np.array([1, 1, 1])).tolist() == [1.0, 0.0, 0.0]


def test_columns_are_compared_on_the_same_prompts():
    generator = np.random.default_rng(0)
    easy = generator.random(300)
    table = np.stack([easy < 0.8, easy < 0.75], 1).astype(float)
    means = judging.column_means(table, range(300), resamples=500)
    apart = means.interval(0), means.interval(1)
    assert apart[1].high > apart[0].low  # separate intervals overlap
    assert means.difference(0, 1).low > 0
    assert means.separable() == 1


def test_rows_that_do_not_count_are_left_out():
    means = judging.column_means(np.array([[1.0, np.nan], [0.0, 1.0]]), ["a", "b"], resamples=10)
    assert means.values.tolist() == [0.5, 1.0]


def test_benjamini_and_yekutieli_by_hand():
    # m = 3, harmonic 11/6: bounds .05 k / 5.5 = .00909, .01818, .02727
    assert judging._benjamini_yekutieli([0.018, 0.5, 0.009], 0.05) == [True, False, True]
    assert judging._benjamini_yekutieli([0.010, 0.018, 0.5], 0.05) == [True, True, False]
    assert judging._benjamini_yekutieli([0.010, 0.019, 0.5], 0.05) == [False, False, False]


def test_a_copy_of_the_crowd_passes_the_alt_test_and_its_opposite_fails():
    generator = np.random.default_rng(0)
    truth = generator.integers(1, 3, size=200)
    wrong = generator.random((200, 3)) < 0.2
    labels = np.where(wrong, 3 - truth[:, None], truth[:, None])
    assert judging.alt_test(truth, labels).passes
    assert judging.alt_test(truth, labels).advantage > 0.8
    assert not judging.alt_test(3 - truth, labels).passes


def test_prediction_powered_by_hand():
    """A judge without error on the labelled rows gives its mean over all rows."""
    y = np.array([1.0, 0.0, 1.0, 0.0])
    every = np.tile(y, 25)
    perfect = judging.prediction_powered(y, y, every)
    assert perfect.power == 1.0
    assert perfect.value.value == pytest.approx(0.5)
    assert perfect.value.high - perfect.value.low == pytest.approx(2 * t95(3) * every.std(ddof=1) / 10, abs=1e-9)
    useless = judging.prediction_powered(y, np.array([1.0, 1.0, 0.0, 0.0]), every)
    assert useless.power == 0.0
    assert useless.value == useless.people


def test_a_correction_by_hand():
    """Covariance 1 / 6 and variance 1 / 3 on the labelled rows: weight 1 / 2, residuals 1 / 2, 0, 1, 1 / 2."""
    y, f = np.array([1.0, 0.0, 1.0, 1.0]), np.array([1.0, 0.0, 0.0, 1.0])
    every = np.array([*f, 1.0, 1.0, 1.0, 0.0])
    made = judging.prediction_powered(y, f, every)
    assert made.power == pytest.approx(0.5)
    assert made.value.value == pytest.approx(0.5 * 5 / 8 + 0.5)
    error = math.sqrt(0.25 * (15 / 56) / 8 + (1 / 6) / 4)  # the residuals have no covariance with f: it is a regression
    assert made.value.high - made.value.value == pytest.approx(t95(3) * error)


@pytest.mark.parametrize(("slope", "power"), [(0.5, None), (-0.5, 0.0), (3.0, 1.0)])
def test_with_every_row_labelled_the_judge_adds_nothing(slope, power):
    """Also if the weight of a judge is clamped to 0 or 1."""
    generator = np.random.default_rng(3)
    f = generator.random(40)
    y = slope * f + 0.1 * generator.random(40)
    made = judging.prediction_powered(y, f, f)
    assert made.power == power if power is not None else 0.4 < made.power < 0.6
    assert (made.value.low, made.value.value, made.value.high) == pytest.approx(
        (made.people.low, made.people.value, made.people.high)
    )


def test_a_judge_turned_round_does_no_harm():
    y = np.array([1.0, 0.0, 1.0, 1.0])
    assert judging.prediction_powered(y, 1 - y, np.tile(1 - y, 9)).power == 0.0


def test_a_judge_against_itself_is_at_a_half():
    generator = np.random.default_rng(0)
    gap = generator.normal(size=200)
    score = (generator.random(200) < 1 / (1 + np.exp(-2 * np.tanh(gap)))).astype(float)
    both = judging.length_controlled(
        np.concatenate([score, 1 - score]), np.concatenate([gap, -gap]), [*range(200), *range(200)], resamples=50
    )
    assert both.raw.value == both.controlled.value == pytest.approx(0.5)
    assert both.slope.value > 1
    assert both.overlap == pytest.approx(1.0)
    assert not both.extrapolated


def test_length_control_finds_what_is_left_of_a_win():
    """Wins are half length and half quality: log-odds 0.5 + 1.5 tanh(d / sd)."""
    generator = np.random.default_rng(1)
    gap = generator.normal(1.0, 1.0, 4000)
    odds = 0.5 + 1.5 * np.tanh(gap / gap.std(ddof=1))
    fit = judging.length_controlled(1 / (1 + np.exp(-odds)), gap, range(4000), resamples=20)
    assert fit.slope.value == pytest.approx(1.5, abs=1e-3)
    assert fit.controlled.value == pytest.approx(1 / (1 + math.exp(-0.5)), abs=1e-3)
    assert fit.raw.value > fit.controlled.value


def test_a_ridge_draws_the_slope_where_lengths_do_not_overlap():
    gap = np.linspace(1, 2, 60)
    score = np.concatenate([np.ones(45), [0, 1, 0, 1, 0], np.zeros(10)])
    free = judging.length_controlled(score, gap, range(60), resamples=10)
    held = judging.length_controlled(score, gap, range(60), ridge=100, expected_slope=1.0, resamples=10)
    assert free.extrapolated
    assert free.overlap == 0.0
    assert abs(held.slope.value - 1.0) < abs(free.slope.value - 1.0)


@pytest.mark.filterwarnings("error")
def test_resamples_that_lengths_separate_end_in_silence():
    """The fit of such a resample has no maximum: its log-odds overflow exp."""
    score, gap = np.array([1, 1, 1, 0.5, 0.5, 1, 0, 1]), np.array([0, -2, 20, 17, 12, -9, 9, 24])
    controlled = judging.length_controlled(score, gap, range(8), resamples=200).controlled
    assert 0 <= controlled.low <= controlled.value <= controlled.high <= 1


@pytest.mark.parametrize(
    ("score", "gap", "separated"),
    [
        ([0, 0, 1, 1], [-3, -1, 1, 2], True),
        ([0, 0, 1, 1], [-3, 1, 2, 4], True),  # at any difference
        ([1, 1, 0, 0], [-3, -1, 1, 2], True),  # the shorter one wins
        ([0, 0.5, 0.5, 1], [-3, 0, 0, 2], True),
        ([0, 0.5, 1], [-3, 1, 0], False),
        ([0, 1, 0, 1], [-3, -1, 1, 2], False),
        ([1, 1, 1], [-3, 1, 2], False),  # one side always wins, whatever the lengths
        ([0.5, 0.5], [-1, 1], False),
        ([0, 1, 1], [0, 0, 0], False),  # no lengths that could tell
        ([0, 1], [4, 4], False),
        ([0, 0, 1, 1], [-3, 0, 0, 2], False),  # pairs of equal lengths went both ways
        ([0, 0, 1, 1], [-3, 1, 1, 2], True),  # these do not, though pairs of one other difference do
    ],
)
def test_lengths_alone_decide_who_won(score, gap, separated):
    assert judging.separated_by_length(np.array(score), np.array(gap)) is separated
    if np.ptp(gap) > 0:
        fit = lambda **ridge: judging.length_controlled(np.array(score), np.array(gap), range(len(gap)), **ridge)  # noqa: E731
        assert (fit(resamples=2) is None) is separated
        assert fit(resamples=2, ridge=1.0) is not None


def test_equal_lengths_cannot_be_controlled():
    with pytest.raises(ValueError, match="differ in length"):
        judging.length_controlled(np.ones(3), np.zeros(3), range(3))


def llmbar(shared) -> tuple[list[str], np.ndarray, dict[str, tuple[np.ndarray, np.ndarray]], dict]:
    rows = [json.loads(line) for line in (shared / "data/annot/llmbar_gold_vs_judges.jsonl").open()]
    names = list(rows[0]["judges"])
    games = {
        name: tuple(np.array([int(row["judges"][name][k] or -1) for row in rows]) for k in (0, 1)) for name in names
    }
    reference = json.loads((shared / "reference/people-and-judges.json").read_text())["llmbar"]
    return names, np.array([int(row["label"]) for row in rows]), games, reference


def test_the_judges_of_llmbar(shared):
    names, gold, games, reference = llmbar(shared)
    assert len(names) == 24
    for name in names:
        line, seen = reference["judges"][name], judging.both_orders(*games[name])
        assert seen.no_verdict == line["no_verdict"]
        assert seen.consistent == pytest.approx(line["consistent"], abs=1e-4)
        assert seen.first_slot == pytest.approx(line["p_first_slot"], abs=1e-4)
        assert seen.slot_bias == pytest.approx(line["slot_bias"], abs=1e-4)
        assert seen.slot_p == pytest.approx(line["slot_bias_p"], rel=0.01)
        both = [judging.accuracy(game, gold).mean() for game in games[name]]
        assert both == pytest.approx([line["acc_order1"], line["acc_order2"]], abs=1e-4)


def test_218_of_276_pairs_of_judges_can_be_told_apart(shared):
    names, gold, games, reference = llmbar(shared)
    table = np.stack([(judging.accuracy(a, gold) + judging.accuracy(b, gold)) / 2 for a, b in games.values()], 1)
    means = judging.column_means(table, range(len(gold)))
    order = [names[k] for k in np.argsort(-means.values, kind="stable")]
    assert order == [line["judge"] for line in reference["leaderboard_of_judges"]["order"]]
    assert means.separable() == reference["leaderboard_of_judges"]["separable_paired_95"] == 218
    for k, name in enumerate(names):
        interval = means.interval(k)
        assert [interval.low, interval.high] == pytest.approx(reference["judges"][name]["acc_interval"], abs=0.01)


def pandalm(shared) -> tuple[np.ndarray, list[str], np.ndarray, dict]:
    rows = json.loads((shared / "data/annot/pandalm_human3.json").read_text())
    said = [json.loads(line)["gpt35"] for line in (shared / "data/annot/pandalm_judges.jsonl").open()]
    labels = np.array([[row[f"annotator{k}"] for k in (1, 2, 3)] for row in rows])
    verdicts = np.array([{"1": 1, "2": 2, "Tie": 0, "garbage": -1}[str(v)] for v in said])
    reference = json.loads((shared / "reference/people-and-judges.json").read_text())["pandalm"]
    return labels, [row["instruction"] + "\0" + row["input"] for row in rows], verdicts, reference


def test_a_judge_beside_the_ceiling_of_people(shared):
    labels, prompts, verdicts, reference = pandalm(shared)
    line = reference["judges"]["gpt35"]
    judge, people = agreement.judge_with_rest(verdicts, labels, 3), agreement.agreement_with_rest(labels, 3)
    assert judge.mean() == pytest.approx(line["agreement_with_mode_of_two"], abs=1e-4)
    gap = judging.column_means((judge - people).reshape(-1, 1), np.repeat(prompts, 3).tolist()).interval(0)
    assert gap.value == pytest.approx(line["minus_human_ceiling"], abs=1e-4)
    assert [gap.low, gap.high] == pytest.approx(line["minus_human_ceiling_interval"], abs=0.01)
    for epsilon, expected in line["alt_test"].items():
        result = judging.alt_test(verdicts, labels, epsilon=float(epsilon))
        assert result.winning_rate == expected["winning_rate"]
        assert result.advantage == pytest.approx(expected["advantage"], abs=1e-4)
        assert result.passes == expected["passes"]


@pytest.mark.parametrize(("n", "narrower"), [(50, 0.827), (100, 0.845), (200, 0.869)])
def test_a_few_labels_and_a_judge_on_everything(shared, n, narrower):
    """400 draws of labelled rows: coverage, and a width relative to the labels alone that matches the reference."""
    labels, _, verdicts, _ = pandalm(shared)
    points = np.array([0.5, 1.0, 0.0])
    people, judge = points[labels].mean(1), np.where(verdicts < 0, 0.5, points[np.maximum(verdicts, 0)])
    generator, covered, ratio = np.random.default_rng(0), 0, []
    for _ in range(400):
        drawn = generator.permutation(len(people))[:n]
        estimate = judging.prediction_powered(people[drawn], judge[drawn], judge)
        covered += estimate.value.low <= people.mean() <= estimate.value.high
        ratio.append((estimate.value.high - estimate.value.low) / (estimate.people.high - estimate.people.low))
    assert 0.93 <= covered / 400 <= 0.99
    assert np.mean(ratio) == pytest.approx(narrower, abs=0.02)


def test_length_control_on_pandalm(shared):
    labels, prompts, _, reference = pandalm(shared)
    rows = json.loads((shared / "data/annot/pandalm_human3.json").read_text())
    texts = lambda v: v if isinstance(v, str) else json.dumps(v)  # noqa: E731
    score, longer, of = [], [], []
    for row, votes, prompt in zip(rows, labels, prompts, strict=True):
        pair = row["cmp_key"].split("_")
        if "llama-7b" not in pair:
            continue
        ours = pair[0] == "llama-7b"
        points = np.array([0.5, 1.0, 0.0])[votes].mean()
        gap = len(texts(row["response1"])) - len(texts(row["response2"]))
        score.append(points if ours else 1 - points)
        longer.append(gap if ours else -gap)
        of.append(prompt)
    fit, line = judging.length_controlled(np.array(score), np.array(longer), of), reference["length_control"]
    assert fit.raw.value == pytest.approx(line["win_rate"], abs=1e-4)
    assert fit.slope.value == pytest.approx(line["length_coefficient"], abs=1e-4)
    assert fit.controlled.value == pytest.approx(line["length_controlled_win_rate"], abs=1e-4)
    interval = [fit.controlled.low, fit.controlled.high]
    assert interval == pytest.approx(line["length_controlled_interval"], abs=0.01)
    assert not fit.extrapolated


def test_a_difference_that_is_the_same_on_every_prompt_is_not_certain():
    """Resamples of prompts that all differ alike have no width; Wilson's interval of all hits bounds them."""
    for n, apart in ((2, False), (3, False), (4, True), (30, True)):
        table = np.stack([np.ones(n), np.zeros(n)], 1)
        gap = judging.column_means(table, range(n), resamples=20).difference(0, 1)
        assert (gap.value, gap.high) == (1.0, 1.0)
        assert gap.low == pytest.approx(2 * n / (n + 1.959964**2) - 1)  # Wilson's lower end of n hits, as a difference
        assert (gap.low > 0) == apart
    halves = judging.mean_difference(np.array([-0.5, np.nan, -0.5]), ["a", "b", "c"], resamples=20, seed=0)
    assert (halves.value, halves.low, halves.n) == (-0.5, -0.5, 2)
    assert halves.high == pytest.approx(0.158, abs=1e-3)
    level = judging.mean_difference(np.zeros(5), range(5), resamples=20, seed=0)
    assert (level.low, level.high) == (0, 0)


def test_shares_of_columns_are_score_intervals_over_prompts():
    table = np.array([[1.0, 1.0], [1.0, 0.0], [np.nan, 0.5]])
    full, half = judging.column_shares(table, ["a", "b", "b"])
    assert (full.value, full.high, full.n) == (1.0, 1.0, 2)
    assert full.low == pytest.approx(2 / (2 + 1.959964**2))
    assert half.value == 0.5


@pytest.mark.parametrize(("won", "low", "high"), [(1.0, 0.839, 1.0), (0.5, 0.299, 0.701)])
def test_pairs_that_all_end_alike_have_a_width_at_equal_lengths_too(won, low, high):
    """20 prompts won, or tied, whichever answer is longer: resamples are all the same."""
    prompts = [str(k) for k in range(20)]
    control = judging.length_controlled(np.full(20, won), np.tile([3.0, -2.0], 10), prompts, resamples=9)
    assert control is not None
    for rate in (control.raw, control.controlled):
        assert (rate.value, rate.low, rate.high) == (won, pytest.approx(low, abs=1e-3), pytest.approx(high, abs=1e-3))
    assert control.slope == Interval(0.0, None, None, 20)


def test_a_ridge_gives_ties_its_slope():
    """Ties at every length say that the slope is 0, and the ridge that it is 1."""
    control = judging.length_controlled(np.full(20, 0.5), np.tile([2.0, -2.0], 10), range(20), ridge=20, resamples=9)
    assert control is not None
    assert 0.1 < control.slope.value < 0.9
    assert control.controlled.value == pytest.approx(0.5)


def test_equal_lengths_are_longer_on_neither_side():
    control = judging.length_controlled(np.array([1, 0, 1, 0.5]), np.array([4, 2, -3, 0]), range(4), resamples=9)
    assert control is not None
    assert control.overlap == 0.5


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("longer", "extrapolated"), [(18, False), (19, True)])
def test_lengths_on_one_side_in_more_than_nine_pairs_of_ten_are_extrapolated(
    sign: int, longer: int, extrapolated: bool
):
    gap = sign * np.array([*range(1, longer + 1), *range(longer - 20, 0)])
    control = judging.length_controlled(np.tile([1.0, 0.0], 10), gap, range(20), resamples=9)
    assert control is not None
    assert control.extrapolated is extrapolated


def test_the_raw_rate_of_length_control_is_over_prompts():
    score, gap, prompts = np.repeat([1.0, 0.0, 1.0], 4), np.tile([1.0, -1.0], 6), np.repeat(["a", "b", "c"], 4).tolist()
    control = judging.length_controlled(score, gap, prompts, resamples=9)
    assert control is not None
    assert control.raw == share(clustered(prompts, score.tolist()))


def test_the_sign_test_counts_each_prompt_once_by_hand():
    """Four prompts lean to +, one to -, one to neither: 1 or fewer of 5 coins on one side has probability 12 / 32."""
    signs = np.array([1, 1, -1, 1, 1, 1, 1, -1, 1, 0, -1, -1])
    prompts = list("aaabbcdeeeff")
    sums = {"a": 1, "b": 2, "c": 1, "d": 1, "e": 0, "f": -2}
    assert {p: int(signs[[q == p for q in prompts]].sum()) for p in sums} == sums
    assert judging.sign_p(signs, prompts) == pytest.approx(12 / 32)
    assert judging.sign_p(-signs, prompts) == pytest.approx(12 / 32)
    assert judging.sign_p(np.array([1, -1]), ["a", "a"]) == 1.0


def test_fifty_pairs_of_two_prompts_do_not_show_a_slot_bias():
    one, two = np.full(50, judging.FIRST), np.full(50, judging.SECOND)
    assert judging.both_orders(one, two, ["a", "b"] * 25).slot_p == pytest.approx(0.5)
    assert judging.both_orders(one, two, list(range(50))).slot_p == judging.both_orders(one, two).slot_p


def test_the_sign_test_keeps_its_level_if_the_pairs_of_a_prompt_agree():
    """A judge without a bias that answers the eight pairs of a prompt alike: at most 5% of the p-values are below 5%
    (2,000 draws: at most 6.2% by chance). Over pairs the test would reject in most."""
    rng = np.random.default_rng(0)
    prompts = np.repeat(np.arange(30), 8).tolist()
    p_values = [judging.sign_p(np.repeat(rng.choice([-1, 1], 30), 8), prompts) for _ in range(2000)]
    assert np.mean(np.array(p_values) < 0.05) <= 0.062
    by_pair = [judging.sign_p(np.repeat(rng.choice([-1, 1], 30), 8), range(240)) for _ in range(200)]
    assert np.mean(np.array(by_pair) < 0.05) > 0.3


def _alternative(n_prompts: int, pairs: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A judge that errs on 3 prompts of 10 and an annotator on 1 of 10, with all pairs of the prompt; two more
    annotators never do. So the first annotator is better by exactly 0.2."""
    judge_errs, person_errs = (np.repeat(generator.random(n_prompts) < rate, pairs) for rate in (0.3, 0.1))
    right = np.full(n_prompts * pairs, judging.FIRST)
    wrong = np.full(n_prompts * pairs, judging.SECOND)
    return np.where(judge_errs, wrong, right), np.stack([np.where(person_errs, wrong, right), right, right], 1)


def test_the_alt_test_keeps_its_level_if_the_pairs_of_a_prompt_agree():
    """At the margin itself at most about 5% may pass (400 draws of 60 prompts: at most 9% by chance, and the t-test of
    three values is a little off); over pairs 30% would."""
    generator = np.random.default_rng(0)
    prompts = np.repeat(np.arange(60), 8).tolist()
    by_prompt, by_pair = [], []
    for _ in range(400):
        verdicts, labels = _alternative(60, 8, generator)
        by_prompt.append(judging.alt_test(verdicts, labels, prompts).p_values[0])
        by_pair.append(judging.alt_test(verdicts, labels).p_values[0])
    assert np.mean(np.array(by_prompt) < 0.05) < 0.09
    assert np.mean(np.array(by_pair) < 0.05) > 0.2


def test_the_alt_test_is_the_t_test_if_every_prompt_has_one_pair():
    from scipy.stats import ttest_1samp

    verdicts, labels = _alternative(50, 1, np.random.default_rng(3))
    tested = judging.alt_test(verdicts, labels, list(range(50)))
    gap = (labels[:, 0] == judging.FIRST).astype(float) - (verdicts == judging.FIRST)
    assert tested.p_values[0] == pytest.approx(ttest_1samp(gap, 0.2, alternative="less")[1])
    assert tested == judging.alt_test(verdicts, labels)


def test_the_alt_test_of_one_prompt_says_that_nothing_is_known():
    verdicts, labels = _alternative(1, 30, np.random.default_rng(0))
    with pytest.raises(ValueError, match="all on one prompt"):
        judging.alt_test(verdicts, labels, ["p"] * 30)


def test_the_alt_test_of_prompts_that_are_all_alike_has_no_error():
    """Every prompt has one pair on which the annotator is better and three on which both are right: 0.25 above."""
    verdicts, labels = np.tile([2, 1, 1, 1], 5), np.ones((20, 3), int)
    prompts = np.repeat(np.arange(5), 4).tolist()
    assert judging.alt_test(verdicts, labels, prompts, epsilon=0.3).p_values == (0.0, 0.0, 0.0)
    assert judging.alt_test(verdicts, labels, prompts, epsilon=0.2).p_values == (1.0, 1.0, 1.0)
