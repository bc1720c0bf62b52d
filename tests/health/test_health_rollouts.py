"""Policies that learn from rewards: each planted fault is named, and healthy runs stay silent."""

from __future__ import annotations

import random
import re

import pytest

from afzal.health import alarms, diagnose, verdict
from afzal.health.rollouts import signs
from afzal.recipes.online import Alarms
from afzal.report.charts import figures

FACTS = {"status": "finished", "step": 40, "steps": 40, "method": "ppo", "config": {"kl_coef": 0.05, "lr": 1e-5}}


def rollouts(seed: int = 0, **ends: float) -> list[dict]:
    """Lines of a healthy run, except that the given figures move from their healthy start to the given values."""
    rng = random.Random(seed)
    start = {"objective/scores": 0.0, "objective/kl_exact": 0.0, "objective/entropy": 40.0, "rollout/length": 30.0}
    start |= {"rollout/eos_rate": 0.9, "rollout/same_reward": 0.1}
    healthy = {**start, "objective/scores": 2.0, "objective/kl_exact": 4.0, "objective/entropy": 25.0}
    goal = healthy | {
        f"{'rollout' if k in ('length', 'eos_rate', 'same_reward') else 'objective'}/{k}": v for k, v in ends.items()
    }
    lines, n = [], 20
    for k in range(n):
        at = k / (n - 1)
        noisy = {x: (start[x] + (goal[x] - start[x]) * at) * rng.uniform(0.95, 1.05) for x in start}
        lines.append({"kind": "rollout", "step": 2 * k, "iteration": k, **noisy})
    return lines


def held_out(before: float, after: float) -> list[dict]:
    line = lambda step, reward: {"kind": "eval", "step": step, "reward": reward, "reward_se": 0.1, "n": 64.0}  # noqa: E731
    return [line(0, before), line(40, after)]


def updates(clipfrac: float = 0.1, approxkl: float = 0.01) -> list[dict]:
    return [
        {
            "kind": "train",
            "step": k + 1,
            "loss": 0.1,
            "grad_norm": 1.0,
            "policy/clipfrac": clipfrac,
            "policy/approxkl": approxkl,
        }
        for k in range(40)
    ]


PLANTED = {
    "length": {"length": 90.0, "entropy": 75.0},
    "kl": {"kl_exact": 80.0},
    "endings": {"eos_rate": 0.2},
    "entropy": {"entropy": 1.0},
    "signal": {"same_reward": 0.95, "scores": 0.0},
}


@pytest.mark.parametrize("seed", range(5))
def test_healthy_rollouts_raise_no_alarm(seed):
    metrics = [*rollouts(seed), *updates(), *held_out(0.0, 2.0)]
    assert signs(rollouts(seed)) == {}
    diagnoses = diagnose(metrics, FACTS)
    assert [d.code for d in alarms(diagnoses)] == []
    assert verdict(diagnoses).word == "healthy"
    assert {"reward", "conduct of the policy", "size of the updates"} <= {d.check for d in diagnoses}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", PLANTED)
def test_planted_faults_are_named(name, seed):
    lines = rollouts(seed, **PLANTED[name])
    expected = {name} | ({"hacking"} if name != "signal" else set())
    assert set(signs(lines)) == expected
    (conduct,) = [d for d in alarms(diagnose([*lines, *updates(), *held_out(0.0, 2.0)], FACTS)) if d.code == "conduct"]
    assert ("reward hacking" in conduct.title) == (name != "signal")


def test_a_fault_without_a_rising_reward_is_no_hacking():
    assert set(signs(rollouts(length=90.0, scores=-1.0))) == {"length"}
    assert "collapsed" in signs(rollouts(length=9.0, entropy=8.0))["length"]


def test_prompts_that_are_solved_lack_no_signal():
    """All answers to a prompt earn the same reward also at the end of a run whose reward rose."""
    assert signs(rollouts(same_reward=0.95)) == {}
    assert set(signs(rollouts(same_reward=0.95, scores=0.0))) == {"signal"}


def test_a_reward_that_moves_by_chance_is_no_hacking():
    """Noise of .3 around 1, and a mean .1 higher at the end than at the beginning: less than 2.5 standard errors."""
    lines = rollouts(length=90.0)
    for k, line in enumerate(lines):
        line["objective/scores"] = 1.0 + (0.3, -0.3)[k % 2]
    lines[-2]["objective/scores"] = 2.2
    assert set(signs(lines)) == {"length"}
    for line in lines[-3:]:
        line["objective/scores"] += 2
    assert set(signs(lines)) == {"length", "hacking"}


def test_alarms_are_reported_once_and_as_soon_as_they_show():
    said: list[str] = []
    lines = rollouts(kl_exact=80.0)
    hears = Alarms(said.append)
    for k, line in enumerate(lines):
        hears.receive({"kind": "train"})
        hears.receive(line)
        if said and k < len(lines) - 1:
            assert len(said) == 2
    assert len(said) == 2
    assert said[0].startswith("warning: the policy runs away from its reference")
    assert said[1].startswith("warning: this may be reward hacking")
    # a resumed run has already reported it
    later: list[str] = []
    Alarms(later.append, lines[:-1]).receive(lines[-1])
    assert later == []


@pytest.mark.parametrize(("before", "after", "code"), [(1.0, 0.0, "reward_fell"), (1.0, 1.1, "reward_flat")])
def test_a_reward_that_does_not_rise_is_reported(before, after, code):
    metrics = [*rollouts(), *updates(), *held_out(before, after)]
    assert code in [d.code for d in alarms(diagnose(metrics, FACTS))]


def test_remedies_for_rounds_name_settings_that_rounds_have():
    lines = held_out(1.0, 1.1)
    last = {"kl": 30.0, "kl_se": 0.1, "kl_tokens": 40.0, "samples/eos_rate": 1.0}
    cut = {**last, "kl": 2.0, "kl_cut": 0.5}
    told = FACTS | {"method": "iterate", "config": {"lr": 1e-5, "rounds": 3}}
    for metrics in (lines, held_out(1.0, 0.0), [lines[0], lines[-1] | last], [lines[0], lines[-1] | cut]):
        for diagnosis in diagnose(metrics, told):
            words = set(re.findall(r"\w+", diagnosis.remedy))
            assert not words & {"kl_coef", "sample_tokens", "early_stop_patience", "iterations"}, diagnosis
    assert {"kl_large", "kl_of_cut_answers"} <= {
        diagnosis.code for more in (last, cut) for diagnosis in diagnose([lines[0], lines[-1] | more], told)
    }


def test_large_updates_are_reported():
    metrics = [*rollouts(), *updates(clipfrac=0.6), *held_out(0.0, 2.0)]
    assert [d.code for d in alarms(diagnose(metrics, FACTS))] == ["large_updates"]


def test_the_page_draws_rollouts_with_held_out_figures():
    drawn = {f.key: f for f in figures([*rollouts(), *updates(), *held_out(0.0, 2.0)], FACTS)}
    assert {"reward", "kl", "entropy", "policy/clipfrac", "samples/eos_rate"} <= set(drawn)
    assert {s.name for s in drawn["reward"].legend} >= {"held out"}
