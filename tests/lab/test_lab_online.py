"""Learning from the true reward on the enumerable language, measured exactly."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from afzal import config, recipes
from afzal.lab import exact, language

TRAIN, HELD_OUT = language.prompts()
REWARDS = language.reward(HELD_OUT)


def test_the_gold_reward_of_texts_is_that_of_the_table():
    for x, prompt in enumerate(HELD_OUT[:3]):
        text = language.prompt_text(prompt)
        for y in (0, 1, 5, 40, 300, 1554):
            spelled = language.response_text(language.RESPONSES[y])
            assert language.gold(text, spelled) == REWARDS[x, y]
            assert language.gold(text, spelled.removesuffix(".")) == REWARDS[x, y]
    for prompt, response in (("413|", "418"), ("413|", "41350"), ("41|", "4"), ("413|", "4.1")):
        with pytest.raises(ValueError, match="not a prompt and a response"):
            language.gold(prompt, response)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An SFT policy of 200 updates, a file of prompts, and the policy's log-probs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("online")
    rows = language.sft_items(TRAIN, 8000, np.random.default_rng(0))
    data = language.write_demonstrations(rows, root / "demonstrations.jsonl")
    length = {"max_steps": 200, "epochs": 4.0, "batch_size": 128, "lr": 3e-3, "warmup": 20, "eval_fraction": 0.0}
    start = language.save_model(root / "start")
    made = config.make("sft", model=str(start), data=str(data), out=str(root / "sft"), **length, **language.SETTINGS)
    sft = recipes.train(made)
    lines = [json.dumps({"prompt": language.prompt_text(p)}) + "\n" for p in TRAIN]
    (root / "prompts.jsonl").write_text("".join(lines))
    yield root, log_policy(sft)
    torch.set_num_threads(threads)


def log_policy(folder: Path) -> np.ndarray:
    from transformers import AutoModelForCausalLM

    return exact.log_policy(AutoModelForCausalLM.from_pretrained(folder), HELD_OUT)


def train(root: Path, method: str, **settings: Any) -> Path:
    """30 iterations of 128 answers, four updates each."""
    usual = {"lr": 5e-4, "lr_schedule": "constant", "warmup": 0, "kl_coef": 0.1, "eval_fraction": 0.0}
    usual |= {"iterations": 30, "ppo_epochs": 2, "minibatches": 2, "reward": "afzal.lab.language:gold"}
    places = {"model": str(root / "sft"), "data": str(root / "prompts.jsonl"), "out": str(root / method)}
    return recipes.train(config.make(method, **places, **usual, **settings, **language.SETTINGS))


CASES = {
    "rloo": {"batch_size": 32, "n": 4},
    "ppo": {"batch_size": 128, "value_lr": 1e-3},
    "grpo": {"batch_size": 32, "n": 4},
    "reinforce": {"batch_size": 128},
}


@pytest.mark.slow
@pytest.mark.parametrize("method", CASES)
def test_the_true_reward_is_won_near_the_frontier(world, method):
    """More than 1.2 above the reference, and within 0.35 of the best reward at that KL."""
    root, log_ref = world
    figures = exact.evaluate(log_policy(train(root, method, **CASES[method])), log_ref, REWARDS)
    before = exact.expected(log_ref, REWARDS)
    assert figures.reward > before + 1.2
    assert 0 < figures.optimal - figures.reward < 0.35
    assert 0.5 < figures.kl < 4
