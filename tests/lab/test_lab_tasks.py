"""A family of tasks on the enumerable language: rewards, optimum and regret of each are exact."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from afzal import data
from afzal.lab import exact, language, tasks

TRAIN, HELD_OUT = language.prompts()


def test_the_mean_of_all_tasks_is_the_language_s_own_reward():
    assert np.array_equal(tasks.reward(tasks.general(), HELD_OUT), language.reward(HELD_OUT))


def test_features_are_counted_by_hand():
    at = language.response_index("4135")
    features = dict(zip(tasks.FEATURES, tasks.features(np.array([[4, 1, 0]]))[0, at], strict=True))
    wanted = {"copies": 2, "rises": 2, "repeats": 0, "length": 1, "parity": 0.5, "token 0": 0, "token 1": 1}
    assert features == wanted | {"token 2": 0, "token 3": 1, "token 4": 1, "token 5": 1}


def test_draws_repeat_and_do_not_depend_on_their_number():
    few, many = tasks.draw(3, seed=5), tasks.draw(9, seed=5)
    assert all(np.array_equal(a.weights, b.weights) for a, b in zip(few, many[:3], strict=True))
    assert not np.array_equal(few[0].weights, tasks.draw(1, seed=6)[0].weights)
    assert all(np.array_equal(t.weights, tasks.GENERAL) for t in tasks.draw(4, seed=0, spread=0.0))


def test_draws_have_the_stated_mean_and_spread():
    weights = np.stack([t.weights for t in tasks.draw(4000, seed=0)])
    assert np.allclose(weights.mean(0), tasks.GENERAL, atol=0.04)
    assert np.allclose(weights.std(0), tasks.SPREAD, atol=0.03)


@pytest.mark.parametrize("beta", [0.1, 0.5])
def test_regret_is_beta_times_the_kl_to_the_optimum(beta: float):
    task = tasks.draw(1, seed=3)[0]
    rewards, log_ref = tasks.reward(task, HELD_OUT[:4]), np.log(language.sft_policy(HELD_OUT[:4]))
    best = exact.optimum(log_ref, rewards, beta)
    assert tasks.policy_value(best, log_ref, rewards, beta).regret == pytest.approx(0, abs=1e-9)
    other = exact.optimum(log_ref, tasks.reward(tasks.general(), HELD_OUT[:4]), 2 * beta)
    result = tasks.policy_value(other, log_ref, rewards, beta)
    assert result.regret == pytest.approx(beta * exact.kl(other, best), rel=1e-9)
    assert result.regret > 0.01
    still = tasks.policy_value(log_ref, log_ref, rewards, beta)
    assert (still.kl, still.value) == (pytest.approx(0, abs=1e-12), pytest.approx(exact.expected(log_ref, rewards)))


def test_rows_name_their_task_and_the_readers_keep_it(tmp_path: Path):
    task = tasks.draw(2, seed=1)[1]
    items = tasks.pairs(task, TRAIN, language.sft_policy(TRAIN), 40, np.random.default_rng(0))
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in tasks.rows(items)))
    read = data.read(str(path)).items
    assert [item.extra["task"] for item in read] == ["task-1"] * 40
    rewards = tasks.reward(task, TRAIN)
    place = {language.prompt_text(x): k for k, x in enumerate(TRAIN)}
    worth = [[rewards[place[i.prompt], language.response_index(r.turns)] for r in i.responses] for i in read]
    assert np.mean([a > b for a, b in worth]) > 0.6, "the first response is the preferred one"
