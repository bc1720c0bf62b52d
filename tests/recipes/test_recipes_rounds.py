"""The figures of a round by hand: sums and counts, errors over prompts, wins, when to stop, what looks like hacking."""

from __future__ import annotations

import json
import math

import pytest

from afzal.recipes import rounds
from afzal.recipes.rounds import Estimate, Round
from afzal.report import FrontierChart, LineChart


def row(prompt: int, reward: float, *, tokens: int = 3, kl: float = 0.0, stop: str = "eos", watch: float | None = None):
    about = {"prompt_index": prompt, "reward": reward, "watch_reward": watch}
    return {**about, "tokens": tokens, "kl": kl, "stop": stop}


def policy(number: int, reward: float | None, kl: float = 0.0, *, length: float = 10.0, ended: float = 1.0, watch=None):
    """A round with these means, each over 100 answers with a small error."""
    means = {"reward": reward, "kl": kl, "length": length, "ended": ended, "watch_reward": watch}
    measured = {name: Estimate(100 * m, 100, 0.01) for name, m in means.items() if m is not None}
    return Round(number, f"rounds/{number:03d}/run", pairs=5, steps=2, measured=measured)


def reason(*known: Round, kl_budget=None, patience=None, min_gain=0.0) -> str:
    return rounds.stop_reason(known, kl_budget=kl_budget, patience=patience, min_gain=min_gain)


def test_a_mean_is_one_sum_over_one_count_however_unequal_the_prompts():
    """Three answers to one prompt, one to another: (1 + 2 + 3 + 10) / 4, not the mean of 2 and 10."""
    found = rounds.estimate([("a", 1.0), ("a", 2.0), ("a", 3.0), ("b", 10.0)])
    assert (found.total, found.count, found.mean) == (16.0, 4, 4.0)
    # residual sums (1 - 4) + (2 - 4) + (3 - 4) = -6 and 10 - 4 = 6; sqrt((36 + 36) * 2 / 1) / 4
    assert found.se == pytest.approx(3.0)


def test_with_one_answer_per_prompt_the_error_is_that_of_a_mean():
    values = [1.0, 4.0, 2.0, 7.0]
    found = rounds.estimate(list(enumerate(values)))
    mean = sum(values) / 4
    assert found.se == pytest.approx(math.sqrt(sum((v - mean) ** 2 for v in values) / 3 / 4))
    assert math.isnan(rounds.estimate([("a", 1.0), ("a", 2.0)]).se)


def test_answers_that_repeat_inside_a_prompt_do_not_shrink_the_error():
    once = rounds.estimate([(k, float(k)) for k in range(6)])
    thrice = rounds.estimate([(k, float(k)) for k in range(6) for _ in range(3)])
    assert thrice.se == pytest.approx(once.se)


def test_wins_compare_every_answer_with_the_first_policys_to_the_same_prompt():
    first = [row(0, 1.0), row(0, 2.0), row(1, 5.0)]
    now = [row(0, 2.0), row(0, 0.0), row(1, 6.0)]
    found = rounds.win_rate(now, first)
    # prompt 0: 2 > 1, 2 = 2, 0 < 1, 0 < 2; prompt 1: 6 > 5
    assert (found.total, found.count) == (2.5, 5)


def test_a_policy_wins_half_of_the_time_against_itself():
    first = [row(k % 3, float(k)) for k in range(12)]
    assert rounds.win_rate(first, first).mean == 0.5


def test_the_figures_of_a_policy():
    first = [row(0, 1.0), row(1, 2.0)]
    now = [row(0, 2.0, tokens=4, kl=0.5), row(1, 1.0, tokens=6, kl=1.5, stop="length")]
    found = rounds.figures(now, first)
    assert {name: e.mean for name, e in found.items()} == {
        "reward": 1.5,
        "kl": 1.0,
        "length": 5.0,
        "ended": 0.5,
        "win_rate": 0.5,
    }


def test_without_a_reward_there_is_no_reward_and_no_win():
    unscored = [{**row(0, 0.0), "reward": None}]
    assert rounds.figures(unscored, unscored).keys() == {"kl", "length", "ended"}


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
    assert rounds.best_round(known, None).number == 2
    assert rounds.best_round(known, 1.6).number == 3
    assert rounds.best_round(known, 0.5).number == 0
    assert rounds.best_round([policy(0, 1.0), policy(1, 0.5)], None).number == 0
    assert rounds.best_round([policy(0, None), policy(1, None, kl=1.0)], None).number == 1


def test_a_reward_that_rises_while_the_watched_one_falls_is_called_hacked():
    (said,) = rounds.alarms([policy(0, 1.0, watch=2.0), policy(1, 3.0, watch=1.0)])
    assert "from 1 to 3" in said
    assert "from 2 to 1" in said
    assert rounds.alarms([policy(0, 1.0, watch=2.0), policy(1, 3.0, watch=2.5)]) == []
    assert rounds.alarms([policy(0, 1.0, watch=2.0), policy(1, 3.0, watch=1.99)]) == []


def test_a_watched_reward_past_its_peak_names_the_round_to_stop_at():
    known = [policy(0, 1.0, watch=2.0), policy(1, 2.0, watch=4.0), policy(2, 3.0, watch=3.0)]
    (said,) = rounds.alarms(known)
    assert "highest, 4, in round 1" in said


@pytest.mark.parametrize(("length", "n"), [(16.0, 1), (14.0, 0), (6.0, 1), (7.0, 0)])
def test_answers_that_change_their_length_are_called_so(length, n):
    assert len(rounds.alarms([policy(0, 1.0), policy(1, 2.0, length=length)])) == n


def test_answers_that_no_longer_end_are_called_so():
    (said,) = rounds.alarms([policy(0, 1.0, ended=0.9), policy(1, 2.0, ended=0.5)])
    assert "50% of the answers end" in said


@pytest.mark.parametrize(("reason", "words"), [("empty", "are empty"), ("no_eos", "do not end")])
def test_rejected_answers_that_become_more_are_called_so(reason, words):
    """What is left out of the pairs is never trained against, and may grow unseen."""
    first = Round(1, samples=100, lost={reason: 4}, measured=policy(1, 2.0).measured)
    later = Round(2, samples=200, lost={reason: 30, "margin": 99}, measured=policy(2, 2.0).measured)
    (said,) = rounds.alarms([policy(0, 1.0), first, later])
    assert said.startswith(f"15% of the answers {words}, from 4%")
    steady = Round(2, samples=200, lost={reason: 16}, measured=policy(2, 2.0).measured)
    assert rounds.alarms([policy(0, 1.0), first, steady]) == []


def test_a_round_in_one_line_always_says_its_kl():
    made = policy(2, 1.5, kl=0.75)
    said = rounds.line(Round(2, prompts=10, samples=50, pairs=8, lost={"margin": 2}, measured=made.measured))
    assert said.startswith("round 2: 10 prompts, 50 answers, 8 pairs (lost: 2 margin); reward 1.500 ± 0.020")
    assert "KL to the first policy 0.750 ± 0.020 nats" in said


def test_the_summary_has_sums_and_counts_and_strict_json():
    r = Round(1, measured={"kl": Estimate(3.0, 2, math.nan)}, margin=Estimate(1.0, 4, 0.1))
    body = rounds.to_json(r)
    assert body["kl"] == {"mean": 1.5, "sum": 3.0, "count": 2, "se": None}
    assert body["margin"]["sum"] == 1.0
    assert json.loads(json.dumps(body, allow_nan=False)) == body


def test_the_table_has_a_line_per_round():
    lines = rounds.csv([policy(0, 1.0), Round(1, prompts=3)]).splitlines()
    assert lines[0].startswith("round,prompts,samples,pairs,steps,reward,reward_se,watch_reward")
    assert lines[1].split(",")[:7] == ["0", "0", "0", "5", "2", "1.0", "0.01"]
    assert len({line.count(",") for line in lines}) == 1


def test_the_page_draws_reward_against_kl_and_without_a_reward_the_kl():
    known = [policy(0, 1.0), policy(1, 2.0, kl=1.0)]
    made = rounds.sections(known, "words")
    assert isinstance(made[0].chart, FrontierChart)
    assert [(s.label, s.x, s.y) for s in made[0].chart.points] == [("start", 0.0, 1.0), ("round 1", 1.0, 2.0)]
    assert [s.title for s in made] == ["Rounds", "Reward by round", "Length by round", "Ends and wins by round"]
    assert all("<svg" in s.svg() for s in made)
    blind = rounds.sections([policy(0, None), policy(1, None, kl=1.0)], "words")
    assert isinstance(blind[0].chart, LineChart)
    assert [s.title for s in blind] == ["Rounds", "Length by round", "Ends and wins by round"]
