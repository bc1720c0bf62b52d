"""A round's figures by hand: sums and counts, errors over prompts, wins, when to stop, and signs of reward hacking."""

from __future__ import annotations

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats

from afzal.iterate import round_figures, stages, summary
from afzal.iterate.round_figures import Round
from afzal.lab import exact, language
from afzal.report import FrontierChart, LineChart, PolicyPoint
from afzal.report.frontier import frontier_svg
from afzal.stats.intervals import Estimate, wilson


def row(
    prompt: int,
    reward: float,
    *,
    sample: int = 0,
    tokens: int = 3,
    kl: float = 0.0,
    stop: str = "eos",
    watch: float | None = None,
):
    about = {"prompt_index": prompt, "sample": sample, "reward": reward, "watch_reward": watch}
    return {**about, "tokens": tokens, "kl": kl, "stop": stop}


def policy(number: int, reward: float | None, kl: float = 0.0, *, length: float = 10.0, ended: float = 1.0, watch=None):
    """A round with these means, each over 100 answers with a small error."""
    means = {"reward": reward, "kl": kl, "length": length, "ended": ended, "watch_reward": watch}
    measured = {name: Estimate(100 * m, 100, 0.01) for name, m in means.items() if m is not None}
    return Round(number, f"rounds/{number:03d}/run", pairs=5, steps=2, measured=measured)


def reason(*known: Round, kl_budget=None, patience=None, min_gain=0.0) -> str:
    return round_figures.stop_reason(known, kl_budget=kl_budget, patience=patience, min_gain=min_gain)


def test_a_mean_is_one_sum_over_one_count_however_unequal_the_prompts():
    """Three answers to one prompt, one to another: (1 + 2 + 3 + 10) / 4, not the mean of 2 and 10."""
    reward = round_figures.estimate([("a", 1.0), ("a", 2.0), ("a", 3.0), ("b", 10.0)])
    assert (reward.total, reward.count, reward.mean) == (16.0, 4, 4.0)
    # residual sums (1 - 4) + (2 - 4) + (3 - 4) = -6 and 10 - 4 = 6; sqrt((36 + 36) * 2 / 1) / 4
    assert reward.se == pytest.approx(3.0)


def test_with_one_answer_per_prompt_the_error_is_that_of_a_mean():
    values = [1.0, 4.0, 2.0, 7.0]
    reward = round_figures.estimate(list(enumerate(values)))
    mean = sum(values) / 4
    assert reward.se == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in values) / 3 / 4))
    assert math.isnan(round_figures.estimate([("a", 1.0), ("a", 2.0)]).se)


def test_answers_that_repeat_inside_a_prompt_do_not_shrink_the_error():
    once = round_figures.estimate([(k, float(k)) for k in range(6)])
    thrice = round_figures.estimate([(k, float(k)) for k in range(6) for _ in range(3)])
    assert thrice.se == pytest.approx(once.se)


def test_wins_compare_every_answer_with_the_first_policys_to_the_same_prompt():
    first = [row(0, 1.0), row(0, 2.0, sample=1), row(1, 5.0), row(1, 7.0, sample=1)]
    now = [row(0, 2.0), row(0, 0.0, sample=1), row(1, 6.0)]
    # independent draws. Prompt 0: 2 > 1, 2 = 2, 0 < 1, 0 < 2; prompt 1: 6 > 5, 6 < 7
    assert round_figures.won_by(now, first, common=False) == [
        (0, 1.0),
        (0, 0.5),
        (0, 0.0),
        (0, 0.0),
        (1, 1.0),
        (1, 0.0),
    ]
    # common draws: answers with the same number are left out
    assert round_figures.won_by(now, first) == [(0, 0.5), (0, 0.0), (1, 0.0)]
    win_rate = round_figures.figures(now, first)["win_rate"]
    assert (win_rate.total, win_rate.count) == (0.5, 3)


def test_a_policy_wins_half_of_the_time_against_itself():
    first = [row(k % 3, float(k), sample=k // 3) for k in range(12)]
    assert round_figures.figures(first, first)["win_rate"].mean == 0.5


def test_with_one_answer_per_prompt_no_win_rate_is_known():
    first = [row(k, float(k)) for k in range(4)]
    assert "win_rate" not in round_figures.figures(first, first)
    assert round_figures.figures(first, first, common=False)["win_rate"].mean == 0.5


@pytest.mark.parametrize("samples", [2, 4])
def test_the_win_rate_agrees_with_the_exact_one_of_the_enumerable_language(samples):
    """Both policies invert the same uniform numbers, as in a run; pairs from one number would give another rate."""
    prompts, rng = language.prompts()[1][:8], np.random.default_rng(1)
    start, rewards = np.log(language.sft_policy(prompts)), language.reward(prompts)
    better = exact.optimum(start, rewards, 2.0)
    uniform = rng.random((1500, samples))

    def drawn(log_policy):
        edges = np.exp(log_policy).cumsum(1)
        answers = [(k, s, np.searchsorted(edges[k % 8], u)) for k, us in enumerate(uniform) for s, u in enumerate(us)]
        return [row(k, float(rewards[k % 8, min(y, rewards.shape[1] - 1)]), sample=s) for k, s, y in answers]

    now, first = drawn(better), drawn(start)
    win_rate, truth = round_figures.figures(now, first)["win_rate"], exact.win_rate(better, start, rewards)
    assert win_rate.mean == pytest.approx(truth, abs=0.03)
    assert win_rate.ends[0] < truth < win_rate.ends[1]
    same = [(n["reward"] > f["reward"]) + 0.5 * (n["reward"] == f["reward"]) for n, f in zip(now, first, strict=True)]
    assert abs(np.mean(same) - truth) > 0.03


def test_the_figures_of_a_policy():
    first = [row(0, 1.0), row(1, 2.0)]
    now = [row(0, 2.0, tokens=4, kl=0.5), row(1, 1.0, tokens=6, kl=1.5, stop="length")]
    by_name = round_figures.figures(now, first)
    assert {name: e.mean for name, e in by_name.items()} == {
        "reward": 1.5,
        "kl": 1.0,
        "length": 5.0,
        "ended": 0.5,
    }
    assert round_figures.figures(now, first, common=False)["win_rate"].mean == 0.5


def test_without_a_reward_there_is_no_reward_and_no_win():
    unscored = [{**row(0, 0.0), "reward": None}]
    assert round_figures.figures(unscored, unscored).keys() == {"kl", "length", "ended"}


def test_a_run_stops_above_its_kl_budget():
    known = [policy(0, 1.0), policy(1, 2.0, kl=3.0)]
    assert reason(*known) == ""
    assert reason(*known, kl_budget=3.0) == ""
    assert reason(*known, kl_budget=2.9) == "kl_budget"


def test_a_run_stops_when_the_reward_no_longer_rises():
    rising = [policy(k, float(k)) for k in range(4)]
    assert reason(*rising, patience=1) == ""
    flat = [*rising, policy(4, 3.0)]
    assert reason(*flat, patience=1) == "plateau"
    assert reason(*flat, patience=2) == ""
    assert reason(*flat, policy(5, 2.0), patience=2) == "plateau"
    assert reason(*flat, policy(5, 3.5), patience=2) == ""


def test_a_gain_must_be_large_enough():
    slow = [policy(0, 1.0), policy(1, 1.05), policy(2, 1.2)]
    assert reason(*slow, patience=1, min_gain=0.1) == ""
    assert reason(*slow[:2], patience=1, min_gain=0.1) == "plateau"


def test_rounds_that_were_not_measured_do_not_count_as_flat():
    known = [policy(0, 1.0), Round(1, pairs=5, steps=2), Round(2, pairs=5, steps=2), policy(3, 2.0)]
    assert reason(*known, patience=1) == ""


def test_the_best_round_has_the_highest_reward_within_the_budget():
    known = [policy(0, 1.0), policy(1, 2.0, kl=1.0), policy(2, 3.0, kl=2.0), policy(3, 2.5, kl=1.5)]
    assert round_figures.best_round(known, None).number == 2
    assert round_figures.best_round(known, 1.6).number == 3
    assert round_figures.best_round(known, 0.5).number == 0
    assert round_figures.best_round([policy(0, 1.0), policy(1, 0.5)], None).number == 0
    assert round_figures.best_round([policy(0, None), policy(1, None, kl=1.0)], None).number == 1


def test_the_round_to_use_is_the_last_sound_one_not_the_most_hacked():
    """The reward keeps rising; from round 3 on the watched one has clearly fallen."""
    watched = (1.0, 1.5, 1.6, 0.5, 0.4)
    known = [policy(k, float(k), watch=w) for k, w in enumerate(watched)]
    assert round_figures.alarms(known)
    assert round_figures.best_round(known, None).number == 2
    assert [r.number for r in round_figures.sound_rounds(known, None)] == [0, 1, 2]
    longer = [policy(k, float(k), length=n) for k, n in enumerate((10.0, 11.0, 20.0, 11.0))]
    assert round_figures.best_round(longer, None).number == 1  # later rounds build on the one with the alarm
    hacked = [policy(0, 1.0, watch=2.0), policy(1, 3.0, watch=1.0)]
    assert round_figures.best_round(hacked, None).number == 0
    unmeasured = [policy(0, 1.0), Round(1, pairs=5, steps=2), policy(2, 2.0), policy(3, 2.5, ended=0.5)]
    assert round_figures.best_round(unmeasured, None).number == 2


def test_a_reward_that_is_a_little_lower_by_chance_is_no_reason_to_go_back():
    """Standard errors of .01 each: two standard errors of the difference are .028."""
    assert round_figures.best_round([policy(0, 1.0), policy(1, 2.0), policy(2, 1.98)], None).number == 2
    assert round_figures.best_round([policy(0, 1.0), policy(1, 2.0), policy(2, 1.97)], None).number == 1


def test_a_share_has_an_interval_if_all_answers_end():
    ended = round_figures.figures([row(k, 1.0, sample=s) for k in range(20) for s in range(2)], [])["ended"]
    assert (ended.mean, ended.se) == (1.0, 0.0)
    assert ended.ends[0] == pytest.approx(wilson(20, 20)[0], abs=0.02)
    assert ended.ends[1] == pytest.approx(1.0)


def test_a_figure_is_shown_with_students_interval_over_its_prompts():
    reward = round_figures.estimate([(k, float(k)) for k in range(5)])
    half = scipy.stats.t.ppf(0.975, 4) * math.sqrt(2.5 / 5)
    assert reward.ends == pytest.approx((2 - half, 2 + half))
    said = round_figures.line(Round(1, prompts=5, samples=5, pairs=5, measured={"reward": reward}))
    assert f"reward 2.000 ± {half:.3f}" in said


def test_error_bars_lie_inside_the_picture():
    """Two policies with a small and a large error in both directions: the axes make room for them."""
    drawing = frontier_svg([PolicyPoint("start", 0.0, 1.0), PolicyPoint("round 1", 2.0, 1.1, 3.0, 2.0)], ())
    number = r"([\d.-]+)"
    (bars,) = re.findall(rf"M{number} {number}H{number}M{number} {number}V{number}", drawing)
    left, _, right, _, bottom, top = map(float, bars)
    assert 44 <= left < right <= 440 - 14
    assert 24 <= top < bottom <= 330 - 40


def test_a_reward_that_rises_while_the_watched_one_falls_is_called_hacked():
    (said,) = round_figures.alarms([policy(0, 1.0, watch=2.0), policy(1, 3.0, watch=1.0)])
    assert "from 1 to 3" in said
    assert "from 2 to 1" in said
    assert round_figures.alarms([policy(0, 1.0, watch=2.0), policy(1, 3.0, watch=2.5)]) == []
    assert round_figures.alarms([policy(0, 1.0, watch=2.0), policy(1, 3.0, watch=1.99)]) == []


def test_a_watched_reward_past_its_peak_names_the_round_to_stop_at():
    known = [policy(0, 1.0, watch=2.0), policy(1, 2.0, watch=4.0), policy(2, 3.0, watch=3.0)]
    (said,) = round_figures.alarms(known)
    assert "highest, 4, in round 1" in said


@pytest.mark.parametrize(("length", "n"), [(16.0, 1), (14.0, 0), (6.0, 1), (7.0, 0)])
def test_answers_that_change_their_length_are_reported(length, n):
    assert len(round_figures.alarms([policy(0, 1.0), policy(1, 2.0, length=length)])) == n


def test_answers_that_no_longer_end_are_reported():
    (said,) = round_figures.alarms([policy(0, 1.0, ended=0.9), policy(1, 2.0, ended=0.5)])
    assert "50% of the answers end" in said


@pytest.mark.parametrize(("reason", "words"), [("empty", "are empty"), ("no_eos", "do not end")])
def test_growing_numbers_of_rejected_answers_are_reported(reason, words):
    """Answers left out of the pairs are never trained against, and their share could grow unnoticed."""
    first = Round(1, samples=100, rejections={reason: 4}, measured=policy(1, 2.0).measured)
    later = Round(2, samples=200, rejections={reason: 30, "margin": 99}, measured=policy(2, 2.0).measured)
    (said,) = round_figures.alarms([policy(0, 1.0), first, later])
    assert said.startswith(f"15% of the answers {words}, from 4%")
    steady = Round(2, samples=200, rejections={reason: 16}, measured=policy(2, 2.0).measured)
    assert round_figures.alarms([policy(0, 1.0), first, steady]) == []


def test_a_round_in_one_line_always_says_its_kl():
    made = policy(2, 1.5, kl=0.75)
    said = round_figures.line(
        Round(2, prompts=10, samples=50, pairs=8, rejections={"margin": 2}, measured=made.measured)
    )
    assert said.startswith("round 2: 10 prompts, 50 answers, 8 pairs (lost: 2 margin); reward 1.500 ± 0.020")
    assert "KL to the first policy 0.750 ± 0.020 nats" in said


def test_the_summary_has_sums_and_counts_and_strict_json():
    r = Round(1, measured={"kl": Estimate(3.0, 2, math.nan)}, margin=Estimate(1.0, 4, 0.1))
    body = round_figures.to_json(r)
    assert body["kl"] == {"mean": 1.5, "sum": 3.0, "count": 2, "se": None}
    assert body["margin"]["sum"] == 1.0
    assert json.loads(json.dumps(body, allow_nan=False)) == body


def test_the_table_has_a_line_per_round():
    lines = round_figures.csv([policy(0, 1.0), Round(1, prompts=3)]).splitlines()
    assert lines[0].startswith("round,prompts,samples,pairs,steps,reward,reward_se,watch_reward")
    assert lines[1].split(",")[:7] == ["0", "0", "0", "5", "2", "1.0", "0.01"]
    assert len({line.count(",") for line in lines}) == 1


def test_the_page_draws_reward_against_kl_and_without_a_reward_the_kl():
    known = [policy(0, 1.0), policy(1, 2.0, kl=1.0)]
    made = round_figures.sections(known, "words")
    assert isinstance(made[0].chart, FrontierChart)
    assert [(s.label, s.x, s.y) for s in made[0].chart.points] == [("start", 0.0, 1.0), ("round 1", 1.0, 2.0)]
    assert [s.title for s in made] == ["Rounds", "Reward by round", "Length by round", "Ends and wins by round"]
    assert all("<svg" in s.svg() for s in made)
    blind = round_figures.sections([policy(0, None), policy(1, None, kl=1.0)], "words")
    assert isinstance(blind[0].chart, LineChart)
    assert [s.title for s in blind] == ["Rounds", "Length by round", "Ends and wins by round"]


def test_a_change_pairs_answers_of_equal_prompt_and_number():
    """Prompts differ by far more than the policies do; in the difference this cancels."""
    before = [row(p, 100.0 * p + s, sample=s) for p in range(5) for s in range(2)]
    after = [row(p, 100.0 * p + s + 1 + 0.1 * (p % 2), sample=s) for p in range(5) for s in (1, 0)]
    gain = round_figures.change(before, after, "reward")
    assert gain.mean == pytest.approx(1.04)
    assert gain.prompts == 5
    assert gain.se == pytest.approx(np.std([1, 1.1, 1, 1.1, 1], ddof=1) / 5**0.5)


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (Estimate(10, 10, 0.1, 10, (0.8, 1.2)), "(+1.000 [+0.800, +1.200] over the first policy on the same prompts)"),
        (
            Estimate(1, 10, 0.1, 10, (-0.1, 0.3)),
            "(+0.100 [-0.100, +0.300] over the first policy on the same prompts, which may be chance)",
        ),
        (Estimate(1, 1, math.nan, 1), "(+1.000 over the first policy on the same prompts)"),
    ],
)
def test_the_outcome_says_how_far_the_fresh_reward_is_above_the_first_policys(gain, words):
    rounds = [policy(0, 5.0), policy(1, 9.0, 0.3)]
    said = summary._outcome_sentence(rounds, rounds[1], gain, "rounds/001/run", "finished", None)
    assert f"reward 9.000 {words}, KL 0.300" in said
    assert "5.0" not in said  # measured with other draws


def test_a_policy_is_measured_by_its_kl_to_the_first_one_and_once_more_by_other_draws(tmp_path, monkeypatch):
    """The roles of the models and the random numbers, neither of which shows in the figures of a small run."""
    asked: list[tuple] = []

    class Loaded:
        def __init__(self, path, *_):
            self.model = path

        def draw(self, questions, n, sampling, seed, part):
            asked.append(("draw", self.model, n, sampling, seed))
            assert list(part) == list(range(len(questions)))
            return ["drawn"] * n

    def kl(policy, first, drawn, prompts, budget):
        asked.append(("kl", policy, first, len(drawn), prompts, budget))
        return [0.5] * len(drawn)

    monkeypatch.setattr(stages, "Policy", SimpleNamespace(load=Loaded))
    monkeypatch.setattr(stages, "sequence_kl", kl)
    words = {"prompt": "p", "text": "t"}
    monkeypatch.setattr(stages, "rows_of", lambda drawn, *_: [row(0, 0.0, sample=k) | words for k in range(len(drawn))])
    config = SimpleNamespace(model="first", max_new_tokens=5, held_out_samples=2, seed=3, pass_tokens=64)
    questions = SimpleNamespace(held_out=[SimpleNamespace(ids=(1, 2), input=(1, 2), columns={})], chat=False)
    speaker = SimpleNamespace(ends=lambda *, chat: [0])
    job = stages.Job(config, SimpleNamespace(path=tmp_path), questions, speaker, None, None, None)  # pyright: ignore[reportArgumentType]
    rows, fresh = stages.measure(job, 1), stages.measure_fresh(job, 1)
    policy = str(tmp_path / "rounds" / "001" / "run")
    assert [r["kl"] for r in rows] == [0.5, 0.5]
    assert [a[1:] for a in asked if a[0] == "kl"] == [(policy, "first", 2, [(1, 2)], 64)] * 2
    drawn = [a for a in asked if a[0] == "draw"]
    assert [(a[1], a[2], a[3]) for a in drawn] == [(policy, 2, stages.Sampling(5))] * 2
    assert drawn[0][4] != drawn[1][4]
    stages.measure(job, 0)
    assert (asked[-1][1], asked[-1][4]) == ("first", drawn[0][4])  # the same random numbers for every policy
    assert len(fresh) == 2
