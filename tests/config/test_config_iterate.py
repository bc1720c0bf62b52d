"""The settings of rounds: presets that given values override, impossible combinations, and no ignored setting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from afzal import config
from afzal.config import PRESETS, IterateConfig, Setting
from afzal.errors import AfzalError

BASE = {"model": "M", "prompts": "data/prompts.jsonl", "reward": "module:function"}


def made(**settings: Any) -> IterateConfig:
    return config.build(IterateConfig, [Setting(k, v) for k, v in (BASE | settings).items()])


def test_five_answers_best_against_worst_and_a_reference_that_stays():
    settings = made()
    assert (settings.n, settings.pairing, settings.reference, settings.rounds, settings.objective) == (
        5,
        "best_worst",
        "initial",
        3,
        "dpo",
    )
    assert settings.out == "runs/iterate-prompts"


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_sets_its_values_and_given_ones_override_it(name: str):
    settings = made(preset=name)
    assert {key: getattr(settings, key) for key in PRESETS[name]} == PRESETS[name]
    other = made(preset=name, rounds=7, lr=1e-3)
    assert (other.rounds, other.lr, other.pairing) == (7, 1e-3, settings.pairing)


@pytest.mark.parametrize("name", [None, *PRESETS])
def test_the_resolved_settings_read_back_to_an_equal_object(name: str | None, tmp_path: Path):
    settings = made(preset=name, rounds=9, objective_arg={"beta": 0.3}, top_k=None, columns={"prompt": "q"})
    (tmp_path / "run.yaml").write_text(config.dump(settings))
    assert config.build(IterateConfig, config.read_file(tmp_path / "run.yaml")) == settings


def test_adapters_have_their_own_learning_rate():
    assert made(lora_rank=4).lr == pytest.approx(10 * made().lr)
    assert made(lora_rank=4, lr=3e-4).lr == 3e-4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"n": 1}, "n must be 2 or more"),
        ({"reward": None}, "reward is missing"),
        ({"min_new_tokens": 300}, "min_new_tokens is above"),
        ({"max_new_tokens": 1024}, "leaves no room for a prompt"),
        ({"preset": "rso", "n": 4}, "rso_accepted .8. is above n .4."),
        ({"rso_beta": 0.1}, "rso_beta has no effect: pairing is best_worst"),
        ({"reward": "people", "pairing": "all"}, "pairing has no effect: people say"),
        ({"reward": "people", "preset": "spin"}, "pairing has no effect: people say"),
        ({"reward": "people", "min_margin": 0.5}, "min_margin has no effect: people say"),
        ({"reward": "people", "patience": 2}, "patience has no effect: there is no reward"),
        ({"preset": "spin", "reward": None, "patience": 2}, "patience has no effect: there is no reward"),
        ({"preset": "spin", "min_margin": 0.5}, "min_margin has no effect: spin"),
        ({"min_gain": 0.1}, "min_gain has no effect: patience is not set"),
        ({"held_out": 3, "held_out_prompts": "other.jsonl"}, "held_out has no effect with held_out_prompts"),
        ({"lora_alpha": 3.0}, "lora_alpha has no effect"),
        ({"optimizer": "rmsprop", "adam_beta1": 0.5}, "adam_beta1 has no effect"),
        ({"eval_fraction": 0.0, "eval_every_steps": 3}, "eval_every_steps has no effect"),
        ({"pairing": "best_wurst"}, "pairing cannot be 'best_wurst'.*did you mean best_worst"),
        ({"temperatur": 0.5}, "unknown setting 'temperatur'.*did you mean temperature"),
    ],
)
def test_impossible_or_ignored_settings_are_refused(settings: dict[str, Any], said: str):
    with pytest.raises(AfzalError, match=said):
        made(**settings)


def test_self_play_needs_no_reward_and_one_answer_is_enough():
    assert made(preset="spin", reward=None).n == 1


def test_every_setting_has_a_sentence_and_a_heading():
    headings = {"Rounds", "Generation", "Pairs", "Cost", "Stopping", "Model", "Optimisation", "Objective", "Run"}
    for key, field in IterateConfig.model_fields.items():
        assert (field.description or "").endswith("."), key
        assert config.section(IterateConfig, key) in headings, key


def test_what_is_missing_is_not_looked_for_in_another_setting():
    given = [Setting("model", "M", "--model"), Setting("prompts", "p.jsonl", "--prompts")]
    with pytest.raises(AfzalError, match="reward is missing: a reward model's folder") as refused:
        config.build(IterateConfig, given)
    assert refused.value.where == ""
