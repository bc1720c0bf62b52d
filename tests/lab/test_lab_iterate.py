"""Iteration on the enumerable language, where the true reward is known and the KL is a sum over all responses."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from afzal import config, recipes
from afzal.config import IterateConfig, Setting
from afzal.generate import Sampling, as_trees, sample
from afzal.iterate import iterate
from afzal.iterate.answers import sequence_kl
from afzal.iterate.round_figures import estimate
from afzal.lab import exact, language
from afzal.model.logprobs import score
from afzal.objectives.inputs import Scored
from afzal.tokens import Speaker
from afzal.tokens.batch import collate

TRAIN, HELD_OUT = language.prompts()
GOLD = "afzal.lab.language:gold"


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def drawn(policy, prompts, n: int):
    ids = [
        p.tolist()
        for p in Speaker(language.tokenizer()).encode_prompts([language.prompt_text(x) for x in prompts], max_tokens=8)
    ]
    samples = sample(policy, ids, eos=[language.EOS], n=n, sampling=Sampling(max_new_tokens=4), seed=3)
    return ids, samples


def test_the_kl_of_samples_is_the_exact_kl_within_chance():
    """Within four standard errors of the sum over all responses, which is far from 0; 0 against itself."""
    policy, first = language.new_model(1), language.new_model(2)
    with torch.no_grad():
        policy.lm_head.weight.mul_(10)  # random weights alone are too close to uniform
    prompts = TRAIN[:48]
    truth = exact.kl(*(exact.log_policy(m, prompts) for m in (policy, first)))
    ids, answers = drawn(policy, prompts, 16)
    values = sequence_kl(policy, first, answers, ids, 512)
    kl = estimate(list(zip([s.prompt_index for s in answers], values, strict=True)))
    assert truth > 0.3
    assert kl.count == 48 * 16
    assert kl.se < 0.05 * truth
    assert abs(kl.mean - truth) < 4 * kl.se
    assert min(values) > 0
    assert sequence_kl(policy, policy, answers, ids, 512) == [0.0] * len(values)


def test_the_kl_along_answers_varies_less_than_their_log_ratios():
    policy, first = language.new_model(1), language.new_model(2)
    ids, answers = drawn(policy, TRAIN[:48], 16)
    values = np.asarray(sequence_kl(policy, first, answers, ids, 512))
    trees = as_trees(answers, ids)
    with torch.no_grad():
        batch = collate(trees, "shared", torch.device("cpu"))
        policy_scored, first_scored = (score(m, batch) for m in (policy, first))
    assert isinstance(policy_scored, Scored)
    ratios = (policy_scored.logps - first_scored.logps).numpy()
    assert values.std() < 0.7 * ratios.std()
    assert abs(values.mean() - ratios.mean()) < 4 * ratios.std() / np.sqrt(len(ratios))


# --- complete runs -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sft(tmp_path_factory) -> Path:
    """The policy that the rounds start from."""
    root = tmp_path_factory.mktemp("language")
    start = language.save_model(root / "start")
    rows = language.sft_items(TRAIN, 8000, np.random.default_rng(0))
    data = language.write_demonstrations(rows, root / "demonstrations.jsonl")
    given = {"batch_size": 128, "max_steps": 200, "epochs": 4.0, "lr": 3e-3, "warmup": 20, "eval_fraction": 0.0}
    made = config.make(
        "sft", model=str(start), data=str(data), out=str(root / "sft"), device="cpu", **language.SETTINGS, **given
    )
    return recipes.train(made)


def rounds(sft: Path, out: Path, **overrides: Any) -> list[dict[str, Any]]:
    """The rounds of a run by the true reward, on all training prompts in every round."""
    for name, prompts in (("prompts", TRAIN), ("held-out", HELD_OUT)):
        rows = [{"prompt": language.prompt_text(x)} for x in prompts]
        (sft.parent / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given: dict[str, Any] = {"model": str(sft), "prompts": str(sft.parent / "prompts.jsonl"), "out": str(out)}
    given |= {"held_out_prompts": str(sft.parent / "held-out.jsonl"), "held_out_samples": 32, "reward": GOLD}
    given |= {"prompts_per_round": 160, "reuse_prompts": True, "n": 8, "max_new_tokens": 4, "max_tokens": 8}
    given |= {"eos_token": ".", "require_eos": False, "device": "cpu", "eval_fraction": 0.0}
    given |= {"pairing": "all", "batch_size": 32, "lr": 5e-4, "lr_schedule": "constant", "warmup": 5, "epochs": 4.0}
    given |= {"objective_arg": {"beta": 0.2}} | overrides
    iterate(config.build(IterateConfig, [Setting(k, v) for k, v in given.items()]))
    return json.loads((out / "rounds.json").read_text())["rounds"]


def policy(folder: Path) -> np.ndarray:
    from transformers import AutoModelForCausalLM

    return exact.log_policy(AutoModelForCausalLM.from_pretrained(folder), HELD_OUT)


@pytest.mark.slow
def test_reward_rises_in_each_of_three_rounds_and_the_figures_are_the_exact_ones(sft, tmp_path):
    records = rounds(sft, tmp_path / "run")
    log_ref, rewards = policy(sft), language.reward(HELD_OUT)
    truth = [exact.evaluate(log_ref, log_ref, rewards)]
    truth += [exact.evaluate(policy(tmp_path / "run" / r["policy"]), log_ref, rewards) for r in records[1:]]
    assert all(after.reward > before.reward + 0.1 for before, after in pairwise(truth))
    for r, e in zip(records, truth, strict=True):
        assert abs(r["reward"]["mean"] - e.reward) < 4 * r["reward"]["se"]
        assert abs(r["kl"]["mean"] - e.kl) <= 4 * r["kl"]["se"]
        assert abs(r["win_rate"]["mean"] - e.win_rate) < 4 * r["win_rate"]["se"] + 1e-9


VOTES = """
import math, random
from afzal.lab.language import gold

CHANCE = random.Random(0)

def votes(prompt, answer):
    return gold(prompt, answer) - math.log(-math.log(CHANCE.random()))
"""


@pytest.mark.slow
def test_a_reference_that_moves_drifts_further_at_the_same_beta(sft, tmp_path):
    """Bradley-Terry votes (Gumbel noise on the true reward) and beta 1, which R moving references make act as 1 / R."""
    results = []
    for name in ("initial", "previous"):
        own = tmp_path / f"{name}.py"  # a separate file for each run, whose random numbers start afresh
        own.write_text(VOTES)
        given: dict[str, Any] = {"reward": f"{own}:votes", "watch_reward": GOLD, "reference": name}
        given |= {"objective_arg": {"beta": 1.0}, "epochs": 12.0}
        results.append(rounds(sft, tmp_path / name, **given))
    kept, moved = results
    assert moved[1]["kl"] == kept[1]["kl"]
    assert moved[3]["kl"]["mean"] > 1.3 * kept[3]["kl"]["mean"]
