"""Complete runs of PPO, RLOO, GRPO and REINFORCE++: output, training data, refusals and resumption."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_runs import fingerprint, finished, one_thread, settings, start

from afzal import config, recipes, runs
from afzal.cli import main
from afzal.errors import AfzalError
from afzal.generate import Sample
from afzal.model.load import load_model, load_tokenizer
from afzal.model.reward import load_reward_model, save_reward_model
from afzal.recipes import online as recipes_online
from afzal.recipes.rollout import Answers, Writer, explained_variance, figures, held_out, numbers_of, prompts_of
from afzal.train import checkpoint

METHODS = ("ppo", "rloo", "grpo", "reinforce")
REWARD = '''
def letters(prompt, answer):
    """More of the first half of the alphabet is better."""
    return sum(c < "n" for c in answer) - 0.25 * len(answer)

def one(prompt, answer):
    return 1.0

def nan_later(prompt, answer):
    return float("nan") if "Q7" in prompt else 0.0
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("online")
    (path / "rewards.py").write_text(REWARD)
    return path


def online(folder: Path, out: Path, **overrides):
    """Settings of two iterations of eight prompts and four updates each, a checkpoint after every update."""
    base = {"reward": f"{folder}/rewards.py:letters", "iterations": 2, "ppo_epochs": 2, "minibatches": 2}
    return settings(folder, out, **(base | {"epochs": 1.0, "keep_checkpoints": 20} | overrides))


def train(folder: Path, name: str, method: str, *, resume: bool = False, **overrides) -> runs.Run:
    made = config.make(method, **online(folder, folder / name, **overrides))
    with one_thread():
        return runs.open_run(recipes.train(made, resume=resume))


@pytest.fixture(scope="module")
def whole(folder):
    """One run of every method."""
    return {method: train(folder, f"whole-{method}", method) for method in METHODS}


def test_the_reward_hears_which_answers_ended(folder, monkeypatch, capsys):
    """The run also warns, once, that most of them are cut and that no penalty is set."""
    heard = []

    def source(spec, **_):
        def give(prompts, answers, ended=None, columns=None):
            heard.append(ended)
            return [float(len(a)) for a in answers]

        return give

    monkeypatch.setattr(recipes_online, "reward_or_judge", source)
    quiet = {"ppo_epochs": 1, "minibatches": 1, "eval_fraction": 0.0, "eval_every_steps": None}
    run = train(folder, "heard", "rloo", **quiet)
    written = run.metrics("rollout")
    assert [sum(ended) / len(ended) for ended in heard] == [r["rollout/eos_rate"] for r in written]
    assert written[0]["rollout/eos_rate"] < 0.9
    said = capsys.readouterr().err
    assert said.count("of the answers are cut at sample_tokens") == 1
    train(folder, "unheard", "rloo", missing_eos_penalty=1.0, **quiet)
    assert "of the answers are cut" not in capsys.readouterr().err


@pytest.mark.parametrize("method", METHODS)
def test_a_run_says_what_was_written_and_what_was_learned(whole, method):
    run = whole[method]
    written, learned, held_out = (run.metrics(kind) for kind in ("rollout", "train", "eval"))
    assert [r["step"] for r in written] == [0, 4]
    assert len(learned) == run.facts()["steps"] == 8
    n = 1 if method in ("ppo", "reinforce") else 4
    assert learned[-1]["examples"] == 32
    assert written[0]["objective/kl"] == pytest.approx(0.0, abs=1e-4)
    assert written[0]["objective/kl_exact"] == pytest.approx(0.0, abs=1e-5)
    assert written[1]["objective/kl_exact"] > 0
    assert 1 <= written[0]["rollout/length"] <= 4
    assert ("rollout/same_reward" in written[0]) == (n > 1)
    assert ("value/explained_variance" in written[0]) == (method == "ppo")
    # in the first update of an iteration the policy is still the one that wrote the answers
    for at in (0, 4):
        assert learned[at]["policy/ratio"] == pytest.approx(1.0, abs=1e-5)
        assert learned[at]["policy/clipfrac"] == 0
        assert learned[at]["policy/approxkl"] == pytest.approx(0.0, abs=1e-7)
    assert all(math.isfinite(r["loss"]) for r in learned)
    assert any(r["policy/approxkl"] > 1e-6 for r in learned)
    assert {"reward", "kl", "objective", "samples/length", "samples/eos_rate"} <= set(held_out[-1])
    assert "loss" not in held_out[-1]
    load_model(str(run.path))
    page, card = (run.path / "report.html").read_text(), (run.path / "README.md").read_text()
    assert "Mean over the policy" in page
    spent = [sum(r[f"seconds/{stage}"] for stage in ("sampling", "scoring", "rewards")) for r in written]
    assert 0 < spent[0] < written[0]["seconds"]
    assert spent[1] < written[1]["seconds"] - written[0]["seconds"]
    assert re.search(r"sampling \d+%, scoring \d+%, rewards \d+% of the time", page)
    assert method in card


def test_the_held_out_reward_is_that_of_the_saved_model(folder, whole):
    """Answers are drawn again from the saved folder, with the same seed."""
    run = whole["rloo"]
    again = config.make("rloo", **online(folder, folder / "again", model=str(run.path), lr=1e-9, iterations=1))
    with one_thread():
        evaluated = runs.open_run(recipes.train(again))
    assert evaluated.metrics("eval")[0]["reward"] == pytest.approx(run.metrics("eval")[-1]["reward"], abs=1e-6)


@pytest.mark.parametrize("method", ["ppo", *(pytest.param(m, marks=pytest.mark.slow) for m in METHODS[1:])])
def test_resuming_from_every_update_ends_with_the_same_bytes(folder, whole, method):
    expected = fingerprint(whole[method].path)
    for step in range(1, 8):
        name = f"from-{method}-{step}"
        shutil.copytree(whole[method].path, folder / name)
        for path in (folder / name / "checkpoints").iterdir():
            if checkpoint.step_of(path) > step:
                shutil.rmtree(path)
        assert fingerprint(train(folder, name, method, resume=True).path) == expected


def test_adapters_moving_penalties_and_value_heads_go_on_too(folder):
    """LoRA, an adaptive coefficient, a head on the policy's trunk: resumed within and between iterations."""
    more = {"lora_rank": 2, "kl_target": 0.01, "kl_horizon": 20, "value": "shared", "temperature": 0.8}
    run = train(folder, "more", "ppo", **more)
    weights = (run.path / "adapter_model.safetensors").read_bytes()
    coefs = [r["objective/kl_coef"] for r in run.metrics("rollout")]
    assert coefs[0] == 0.05
    assert coefs[1] == pytest.approx(0.05 * (1 - 0.2 * 8 / 20))  # nothing has moved yet: far below the target
    for step in (3, 4):
        shutil.copytree(run.path, folder / f"more-{step}")
        for path in (folder / f"more-{step}" / "checkpoints").iterdir():
            if checkpoint.step_of(path) > step:
                shutil.rmtree(path)
        again = train(folder, f"more-{step}", "ppo", resume=True, **more)
        assert (again.path / "adapter_model.safetensors").read_bytes() == weights


@pytest.mark.parametrize("value_model", [None, pytest.param("judge", marks=pytest.mark.slow)])
def test_value_models_in_bf16_resume_to_the_same_bytes(folder, value_model):
    """A checkpoint holds their float32 masters; the working copy is rounded from them again."""
    more: dict[str, Any] = {"dtype": "bf16"}
    if value_model:
        model = online(folder, folder / "unused")["model"]
        save_reward_model(load_reward_model(model, seed=3), load_tokenizer(model), folder / "start", shift=0.5)
        more["value_model"] = str(folder / "start")
    run = train(folder, f"low-{value_model}", "ppo", **more)
    assert run.metrics("train")[-1]["loss/value"] < 10
    (newest,) = [p for p in run.checkpoints.iterdir() if checkpoint.step_of(p) == 6]
    tensors, _ = checkpoint.load(newest)
    assert {t.dtype for name, t in tensors["model"].items() if name.startswith("value/")} == {torch.float32}
    for step in (3, 4):
        out = folder / f"low-{value_model}-{step}"
        shutil.copytree(run.path, out)
        for path in (out / "checkpoints").iterdir():
            if checkpoint.step_of(path) > step:
                shutil.rmtree(path)
        assert fingerprint(train(folder, out.name, "ppo", resume=True, **more).path) == fingerprint(run.path)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_killed_run_goes_on_to_the_same_bytes(folder, whole, method):
    expected = fingerprint(whole[method].path)
    for wanted in (2, 5):
        out = folder / f"killed-{method}-{wanted}"
        given = online(folder, out)
        process = start(method, given)
        while not (out / "checkpoints" / f"step-{wanted:08d}").exists() and process.is_alive():
            pass
        os.kill(process.pid, signal.SIGKILL)
        assert finished(process) == -signal.SIGKILL
        assert finished(start(method, given, resume=True)) == 0
        assert fingerprint(out) == expected


def test_a_value_model_may_start_from_a_reward_model_which_may_be_the_reward(folder):
    given = online(folder, folder / "unused")
    judge = load_reward_model(given["model"], seed=3)
    save_reward_model(judge, load_tokenizer(given["model"]), folder / "judge", shift=0.5)
    run = train(folder, "judged", "ppo", reward=str(folder / "judge"), value_model=str(folder / "judge"), max_steps=2)
    first = run.metrics("rollout")[0]
    # at its last token the value model reads all but that token: near the score, not far below as zeros would be
    assert first["value/explained_variance"] != 0
    assert run.metrics("train")[0]["value/mean"] != 0
    frozen = {k: v for k, v in judge.state_dict().items() if k != "score.weight"}
    saved = load_reward_model(str(folder / "judge")).state_dict()
    assert all(torch.equal(saved[k], v) for k, v in frozen.items()), "the reward model itself must not learn"


def test_with_adapters_the_value_model_trains_adapters_too(folder):
    run = train(folder, "lora", "ppo", lora_rank=2, max_steps=2)
    newest = checkpoint.newest(run.checkpoints, pytest.fail)
    assert newest is not None
    tensors, _ = checkpoint.load(newest)
    values = [k for k in tensors["model"] if k.startswith("value/trunk.")]
    assert values
    assert all("lora_" in k for k in values)


def test_answers_that_do_not_end_are_worth_minus_the_penalty(folder):
    given = {"reward": f"{folder}/rewards.py:one", "sample_tokens": 64, "max_steps": 1}
    first = train(folder, "unended", "rloo", missing_eos_penalty=7.0, **given).metrics("rollout")[0]
    ends = first["rollout/eos_rate"]
    assert 0 < ends < 1
    assert first["objective/scores"] == pytest.approx(ends - 7 * (1 - ends))
    plain = train(folder, "ended", "rloo", **given).metrics("rollout")[0]
    assert (plain["objective/scores"], plain["rollout/eos_rate"]) == (1.0, ends)


def test_prompts_alone_are_data_enough_and_those_without_room_are_listed(folder, tmp_path):
    rows = [{"prompt": f"Q{i}?"} for i in range(20)] + [{"prompt": "long " * 100}]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "run"
    made = config.make("rloo", **online(folder, out, data=str(tmp_path / "prompts.jsonl"), max_tokens=64, max_steps=1))
    run = runs.open_run(recipes.train(made))
    lost = [json.loads(line) for line in (run.path / "dropped.jsonl").read_text().splitlines()]
    assert [(x["reason"], x["action"]) for x in lost] == [("prompt_too_long", "dropped")]
    assert run.facts()["data"]["train"] + run.facts()["data"]["eval"] == 20


def test_a_reward_that_is_not_finite_stops_the_run_before_anything_moves(folder):
    with pytest.raises(AfzalError, match=r"(?s)prompt 'Q7.*the reward is nan"):
        train(
            folder,
            "nan",
            "rloo",
            reward=f"{folder}/rewards.py:nan_later",
            eval_fraction=0.0,
            eval_every_steps=None,
            iterations=20,
        )
    assert runs.open_run(folder / "nan").facts()["status"] == "failed"


@pytest.mark.parametrize(
    ("method", "given", "said"),
    [
        ("rloo", {"n": 1}, "n"),
        ("ppo", {"reference": "cached"}, "cannot be cached"),
        ("ppo", {"minibatches": 9}, "9 minibatches need at least as many prompts"),
        ("ppo", {"epochs": 2.0}, "epochs has no effect"),
        ("ppo", {"kl_horizon": 5}, "kl_horizon has no effect"),
        ("ppo", {"kl_coef": 0, "kl_target": 3}, "kl_target needs a kl_coef"),
        ("ppo", {"value": "shared", "value_model": "r"}, "value_model has no effect"),
        ("rloo", {"ppo_epochs": 1, "minibatches": 1, "clip": 0.1}, "clip has no effect: an iteration makes one"),
        ("grpo", {"ppo_epochs": 1, "minibatches": 1, "clip_high": 0.3}, "clip_high has no effect"),
        ("ppo", {"ppo_epochs": 1, "minibatches": 1, "value_clip": 0.3}, "value_clip has no effect"),
        ("ppo", {"lr": 0, "value_lr": 0.1}, "value_lr has no effect: lr is 0"),
        ("prefer", {"objective": "ppo"}, "learns from the policy's own answers"),
        ("grpo", {"beta": 0.1}, "beta"),
    ],
)
def test_what_cannot_be_is_refused_by_name(folder, method, given, said):
    base = online(folder, folder / "refused", **given)
    if method == "prefer":
        base = {k: v for k, v in base.items() if k not in ("reward", "iterations", "ppo_epochs", "minibatches")}
    with pytest.raises(AfzalError, match=said):
        recipes.train(config.make(method, **base))


def test_the_plan_says_iterations_answers_and_reward(folder, capsys):
    given = online(folder, folder / "planned", sample_tokens=4)
    flags = [
        part
        for k in ("model", "data", "reward", "iterations", "batch_size")
        for part in (f"--{k.replace('_', '-')}", str(given[k]))
    ]
    assert main(["train", "rloo", *flags, "--dry-run"]) == 0
    assert "2 iterations of 32 answers to 8 prompts, 1 update each" in capsys.readouterr().out


# the parts


def test_every_prompt_comes_once_a_round_in_a_new_order():
    seen = [i for k in range(15) for i in prompts_of(k, 8, 40, seed=3)]
    rounds = [seen[r * 40 : (r + 1) * 40] for r in range(3)]
    assert all(sorted(r) == list(range(40)) for r in rounds)
    assert rounds[0] != rounds[1] != rounds[2]
    # if the batch size does not divide the prompts, a batch continues where the last one ended
    odd = [i for k in range(8) for i in prompts_of(k, 15, 40, seed=3)]
    assert odd == seen[:120]
    assert sorted(prompts_of(0, 8, 3, seed=0))[:2] == [0, 0]  # fewer prompts than asked for: some twice


def answers(scores: list[float], lengths: list[int], seed: int = 0) -> Answers:
    rng = torch.Generator().manual_seed(seed)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    logps = lambda: torch.where(mask, -torch.rand(mask.shape, generator=rng, dtype=torch.float64), 0.0)  # noqa: E731
    drawn = [Sample(k, np.zeros(n, np.int32), "eos", np.zeros(n, np.float32)) for k, n in enumerate(lengths)]
    old, ref, values = logps(), logps(), logps()
    kl = torch.where(mask, 0.1, 0.0)
    return Answers(drawn, torch.tensor(scores, dtype=torch.float64), mask, old, ref, kl, values, {})


def some(method: str, **given: Any) -> config.OnlineConfig:
    made = config.make(method, model="M", data="D", reward="r.py:f", **given)
    assert isinstance(made, config.OnlineConfig)
    return made


def test_advantages_are_whitened_over_the_whole_rollout():
    batch = answers([1.0, 5.0, -2.0, 0.5], [3, 1, 4, 2])
    numbers = numbers_of(batch, some("reinforce"), 0.1)
    real = numbers["advantage"][batch.mask]
    assert float(real.mean()) == pytest.approx(0.0, abs=1e-12)
    assert float(real.var(correction=0)) == pytest.approx(1.0, abs=1e-6)
    plain = numbers_of(batch, some("reinforce", whiten=False), 0.1)["advantage"]
    assert plain[0, 2] == pytest.approx(float(1.0 - 0.1 * (batch.old_logp - batch.ref_logp)[0, 2]))
    assert plain[2, 0] == pytest.approx(float(-2.0 - 0.1 * batch.log_ratio[2]))
    assert all(bool((table[~batch.mask] == 0).all()) for table in numbers.values())


def test_figures_of_a_rollout_by_hand():
    """Two answers of two tokens and of one, worth 3 and 1."""
    batch = answers([3.0, 1.0], [2, 1])
    logp = torch.tensor([[-1.0, -2.0], [-4.0, 0.0]], dtype=torch.float64)
    ref = torch.tensor([[-1.5, -2.5], [-6.0, 0.0]], dtype=torch.float64)
    batch = replace(batch, old_logp=logp, ref_logp=ref, kl=torch.tensor([[0.25, 0.5], [1.0, 0.0]]))
    said = figures(batch, {}, 0.1, 1)
    assert said["objective/entropy"] == pytest.approx((3 + 4) / 2)
    assert said["objective/kl"] == pytest.approx((1 + 2) / 2)
    assert said["objective/kl_exact"] == pytest.approx((0.75 + 1) / 2)
    assert said["objective/scores"] == 2.0
    assert said["objective/rlhf_reward"] == pytest.approx(2 - 0.1 * 1.5)
    assert said["rollout/length"] == 1.5


def test_the_objective_of_held_out_prompts_is_reward_less_kl(monkeypatch):
    """Worth 2 on average, at an exact KL of .2 (.1 for each of two tokens): 2 - 3 x .2."""
    monkeypatch.setattr(Writer, "answer", lambda *_, **__: answers([3.0, 1.0], [2, 2]))
    writer = Writer(some("rloo"), *[None] * 6, [], [], [], starts_at_reference=True)
    said = held_out(writer, [], [])(3.0)
    assert (said["reward"], said["kl"]) == (2.0, pytest.approx(0.2))
    assert said["objective"] == pytest.approx(1.4)


def test_targets_are_advantages_and_values_before_whitening():
    batch = answers([1.0, 5.0], [3, 2])
    numbers = numbers_of(batch, some("ppo", lam=1.0), 0.1)
    to_go = 1.0 - 0.1 * (batch.old_logp - batch.ref_logp)[0].sum()
    assert numbers["target"][0, 0] == pytest.approx(float(to_go))
    assert set(numbers) == {"old_logp", "advantage", "old_value", "target"}


def test_leave_one_out_counts_the_penalty_of_whole_answers():
    batch = answers([1.0, 5.0, 3.0, 3.0], [3, 1, 4, 2])
    advantage = numbers_of(batch, some("rloo", n=2), 0.1)["advantage"]
    worth = batch.scores - 0.1 * batch.log_ratio
    assert advantage[0, 2] == pytest.approx(float(worth[0] - worth[1]))
    assert advantage[1, 0] == pytest.approx(float(worth[1] - worth[0]))


def test_equal_rewards_of_a_prompt_teach_grpo_nothing():
    batch = answers([2.0, 2.0, 1.0, 3.0], [3, 1, 4, 2])
    made = some("grpo", n=2)
    advantage = numbers_of(batch, made, 0.1)["advantage"]
    assert advantage[:2].abs().max() == 0
    assert advantage[2, 0] == pytest.approx(-1 / (2**0.5 + 1e-4), abs=1e-9)
    plain = numbers_of(batch, made.model_copy(update={"group_std": False}), 0.1)["advantage"]
    assert plain[2, 3] == -1.0


def test_explained_variance_by_hand():
    mask = torch.tensor([[True, True], [True, False]])
    target, value = torch.tensor([[1.0, 3.0], [5.0, 99.0]]), torch.tensor([[0.0, 2.0], [4.0, -99.0]])
    assert explained_variance(target, value, mask) == 1.0  # a constant shift adds no variance
    assert explained_variance(target, value * 0, mask) == 0.0
    assert explained_variance(target * 0, value, mask) == 0.0
