"""Before a run: whether its updates can move the weights, and which settings are unusual."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from helpers_runs import settings

from afzal import config, recipes, runs
from afzal.health.pace import LEAST_PACE, pace, pace_note


def test_the_pace_is_the_sum_of_the_rates_times_the_root_of_the_weights():
    assert pace(4, lambda step: (1e-3, 2e-3, 3e-3, 0.0)[step], 10_000) == pytest.approx(0.6)


def test_a_run_that_is_too_slow_gets_a_rate_that_moves_it():
    """4 updates at 1e-6 on 10,000 weights give a pace of 4e-4; a pace of 1 takes a rate of 2.5e-3."""
    note = pace_note(4, lambda step: 1e-6, 10_000)
    assert note.startswith("4 updates at lr 1e-6 will hardly move 10,000 weights")
    assert note.endswith(("to about 0.002", "to about 0.003"))
    assert pace_note(4, lambda step: 1.01 * LEAST_PACE / 400, 10_000) == ""
    assert pace_note(4, lambda step: 0.99 * LEAST_PACE / 400, 10_000) != ""


def test_usual_runs_of_large_models_are_fast_enough():
    """DPO at 1e-6 on 7 billion weights: with 15 updates there is no note."""
    assert pace_note(15, lambda step: 0.5e-6, 7_000_000_000) == ""


def test_a_rate_of_0_is_named_only_by_the_advice():
    assert pace_note(4, lambda step: 0.0, 10_000) == ""
    assert config.advice(config.make("dpo", model="m", data="d", lr=0)) == ["lr is 0: no weight will move"]


@pytest.mark.parametrize(
    ("lr", "parameters", "said"),
    [
        (1e-6, 7_000_000_000, ""),
        (1e-3, 7_000_000_000, "outside the usual 1e-07 to 1e-05 for dpo on all weights; steps of that size usually"),
        (1e-3, 1_000_000, ""),
        (1.0, 1_000_000, "all weights of a model below 100 million; steps of that size usually ruin a model"),
        (1e-3, None, "(models below 100 million weights take up to 3e-3, with LoRA 3e-2)"),
    ],
)
def test_what_is_usual_depends_on_the_size_of_the_model(lr: float, parameters: int | None, said: str):
    notes = config.advice(config.make("dpo", model="m", data="d", lr=lr), parameters)
    assert len(notes) == bool(said)
    assert said in "".join(notes)


def test_plain_gradient_descent_has_no_usual_rate():
    given = {"model": "m", "data": "d", "adapter": "lora", "lr": 0.1}
    assert config.advice(config.make("dpo", **given, optimizer="sgd"), 1_000_000) == []
    assert len(config.advice(config.make("dpo", **given, optimizer="rmsprop"), 1_000_000)) == 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pace")


def said_of(folder: Path, out: Path, capsys: pytest.CaptureFixture[str], **given: Any) -> tuple[str, runs.Run]:
    path = recipes.train(config.make("dpo", **settings(folder, out, sample_prompts=0, **given)))
    return capsys.readouterr().err, runs.open_run(path)


def test_a_run_says_before_its_first_update_that_it_will_not_learn(folder, tmp_path, capsys):
    said, run = said_of(folder, tmp_path / "slow", capsys, max_steps=2, lr=1e-6)
    assert "note: 2 updates at lr 1e-6 will hardly move" in said
    assert said.index("hardly move") < said.index("held-out at step 0")
    first, last = run.metrics("eval")[0], run.metrics("eval")[-1]
    assert abs(last["rewards/margins"] - first["rewards/margins"]) < 0.02


def test_a_run_says_before_its_first_update_that_its_steps_are_ruinous(folder, tmp_path, capsys):
    said, _ = said_of(folder, tmp_path / "wild", capsys, max_steps=1, lr=1.0)
    assert "note: lr 1 is outside the usual" in said
    assert "usually ruin a model" in said


def test_a_plan_gives_the_same_advice(folder, tmp_path):
    given = settings(folder, tmp_path / "none", lr=1.0)
    assert any("lr 1 is outside the usual" in line for line in recipes.plan(config.make("dpo", **given)))
