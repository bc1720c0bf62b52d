"""A complete comparison on the enumerable language: sampled figures against exact ones, reuse, refusal, resuming."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afzal import config, recipes, runs
from afzal.compare import compare, plan, trainings
from afzal.errors import AfzalError
from afzal.lab import exact, language
from afzal.text import number
from afzal.train import checkpoint

TRAIN, HELD_OUT = language.prompts()
PROMPTS = HELD_OUT[:12]
GOLD = "afzal.lab.language:gold"
LENGTH = str(Path(__file__).parents[1] / "helpers_length.py") + ":length"


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A start model, noisy pairs of its answers, and held-out prompts."""
    root, rng = tmp_path_factory.mktemp("compare"), np.random.default_rng(0)
    data = language.write_demonstrations(language.sft_items(TRAIN, 4000, rng), root / "sft.jsonl")
    start = language.save_model(root / "start")
    common = {
        **language.SETTINGS,
        "device": "cpu",
        "eval_fraction": 0.0,
        "batch_size": 128,
        "lr": 3e-3,
        "max_steps": 40,
    }
    recipes.train(config.make("sft", model=str(start), data=str(data), out=str(root / "sft"), epochs=3, **common))
    pairs = language.sample_pairs(language.sft_policy(TRAIN), 1500, rng)
    which, first, second = pairs
    rewards = language.reward(TRAIN)
    votes = language.noisy(rewards[which, first] - rewards[which, second], rng)
    language.write_pairs(language.pair_items(TRAIN, pairs, votes), root / "pairs.jsonl")
    language.write_demonstrations(
        [i for x in PROMPTS for i in language.sft_items(x[None], 1, rng)], root / "prompts.jsonl"
    )
    return root


def log_policy(folder: Path, prompts: np.ndarray, step: int | None = None) -> np.ndarray:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder)
    if step is not None:
        model.load_state_dict(checkpoint.load(folder / "checkpoints" / f"step-{step:08d}")[0]["model"])
    return exact.log_policy(model, prompts)


def settings(place: Path, out: Path, **changes: Any) -> config.CompareConfig:
    base = {
        "model": str(place / "sft"),
        "data": str(place / "pairs.jsonl"),
        "prompts": str(place / "prompts.jsonl"),
        "rewards": {"gold": GOLD, "length": LENGTH, "learned": "${rm}"},
        "methods": [
            {"name": "rm", "train": "reward", "max_steps": 10},
            {"name": "dpo", "label": "DPO <b>", "train": "dpo", "beta": 0.1},
            {"name": "bon", "best_of": [2, 4]},
            {"name": "guess", "best_of": 4, "reward": "${rm}"},
        ],
        "common": {
            **language.SETTINGS,
            "eval_fraction": 0.0,
            "batch_size": 64,
            "lr": 1e-3,
            "max_steps": 20,
            "epochs": 2,
            "lr_schedule": "constant",
            "warmup": 2,
        },
        "seeds": [0, 1],
        "samples": 32,
        "sample_tokens": language.MAX_LENGTH,
        "eos_token": ".",
        "snapshots": 2,
        "resamples": 200,
        "show_prompts": 2,
        "device": "cpu",
        "out": str(out),
        **changes,
    }
    return config.build(config.CompareConfig, [config.Setting(k, v) for k, v in base.items()])


@pytest.fixture(scope="module")
def made(place) -> tuple[Path, list[str]]:
    said: list[str] = []
    page = compare(settings(place, place / "out"), say=said.append)
    return page.parent, said


def read(out: Path) -> dict[str, Any]:
    return json.loads((out / "compare.json").read_text())


def method(body: dict[str, Any], name: str) -> dict[str, Any]:
    return next(m for m in body["methods"] if m["name"] == name)


def test_reward_and_kl_of_every_snapshot_agree_with_the_exact_ones(place, made):
    """Within four standard errors over the prompts, whose exact means are over the same prompts."""
    rewards, log_ref = language.reward(PROMPTS), log_policy(place / "sft", PROMPTS)
    points = method(read(made[0]), "dpo")["points"]
    assert [(p["seed"], p["step"]) for p in points] == [(0, 10), (0, 20), (1, 10), (1, 20)]
    for p in points:
        folder = made[0] / "runs" / f"dpo-{p['seed']}"
        log_pi = log_policy(folder, PROMPTS, p["step"] if p["step"] < 20 else None)
        assert p["kl"]["mean"] == pytest.approx(exact.kl(log_pi, log_ref), abs=4 * p["kl_se"])
        assert p["kl"]["mean"] > 0.05
        gold = p["rewards"]["gold"]
        assert gold["mean"] == pytest.approx(exact.expected(log_pi, rewards), abs=4 * p["reward_se"])
        assert gold["count"] == 12 * 32
        assert gold["sum"] / gold["count"] == gold["mean"]
        assert p["win"]["value"] == pytest.approx(exact.win_rate(log_pi, log_ref, rewards), abs=0.08)


def test_the_start_and_best_of_n_agree_with_the_exact_ones(place, made):
    rewards, log_ref = language.reward(PROMPTS), log_policy(place / "sft", PROMPTS)
    body = read(made[0])
    start = body["start_points"][0]
    assert start["kl"] == {"sum": 0.0, "count": 384, "mean": 0.0}
    assert start["rewards"]["gold"]["mean"] == pytest.approx(exact.expected(log_ref, rewards), abs=0.2)
    for p in method(body, "bon")["points"]:
        policy = exact.best_of(log_ref, rewards, p["step"])
        assert p["rewards"]["gold"]["mean"] == pytest.approx(exact.expected(policy, rewards), abs=0.2)
        assert p["kl"]["mean"] >= exact.kl(policy, log_ref)
        assert p["drawn_per_answer"] == pytest.approx(p["step"] * start["drawn_per_answer"], rel=0.1)


def test_best_of_n_by_a_reward_ranks_by_that_reward(made):
    body = read(made[0])
    learned = {m["name"]: m["judged"]["rewards"]["learned"]["value"] for m in body["methods"]}
    assert learned["guess"] > max(learned["bon"], body["start"]["rewards"]["learned"]["value"])
    assert method(body, "guess")["needs"] == ["rm"]
    assert method(body, "guess")["judged"]["seconds"]["value"] > 0
    assert method(body, "bon")["judged"]["seconds"]["value"] == 0


def test_page_csv_and_json_say_the_same(made):
    body, page = read(made[0]), (made[0] / "compare.html").read_text()
    rows = list(csv.DictReader(io.StringIO((made[0] / "compare.csv").read_text())))
    points = [(m["name"], p) for m in body["methods"] for p in m["points"]]
    assert len(rows) == len(points) + 2
    by_place = {(r["method"], int(r["seed"]), int(r["step"])): r for r in rows}
    for name, p in points:
        row = by_place[name, p["seed"], p["step"]]
        assert float(row["gold_mean"]) == p["rewards"]["gold"]["mean"]
        assert float(row["kl"]) == p["kl"]["mean"]
        assert float(row["win_low"]) == p["win"]["low"]
    for m in body["methods"]:
        for figure in (m["judged"]["rewards"]["gold"], m["judged"]["kl"], m["judged"]["rewards"]["learned"]):
            assert number(figure["value"]) in page
        gains = [p["rewards"]["gold"]["mean"] for p in m["points"] if p["step"] == m["judged"]["steps"][0]]
        assert m["judged"]["rewards"]["gold"]["value"] == pytest.approx(np.mean(gains))


def test_the_page_is_self_contained_and_escapes_what_it_shows(made):
    page = (made[0] / "compare.html").read_text()
    assert "DPO &lt;b&gt;" in page
    assert "<b>" not in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    shown = read(made[0])["samples"]
    assert [len(s["answers"]) for s in shown] == [4, 4]
    assert all(s["prompt"] in page for s in shown)


@pytest.mark.slow
def test_finished_runs_are_reused_and_reported_as_such(place, made):
    before = {p: p.stat().st_mtime_ns for p in (made[0] / "measured").iterdir()}
    body = read(made[0])
    said: list[str] = []
    compare(settings(place, made[0]), say=said.append)
    assert any("4 of 4 runs reused" in line for line in said)
    assert {p: p.stat().st_mtime_ns for p in (made[0] / "measured").iterdir()} == before
    again = read(made[0])
    assert again["methods"] == body["methods"]
    assert {r["state"] for r in again["runs"].values()} == {"reused"}
    assert not any("reused" in line for line in made[1])


def test_other_settings_or_inputs_are_refused_by_name(place, made, tmp_path):
    out = shutil.copytree(made[0], tmp_path / "out")
    asked = settings(place, out)
    changed = [{**m, "beta": 0.5} if m["name"] == "dpo" else m for m in asked.methods]
    with pytest.raises(AfzalError, match=r"beta: 0.1 -> 0.5"):
        compare(settings(place, out, methods=changed), say=lambda _: None)
    fewer = tmp_path / "pairs.jsonl"
    fewer.write_text("".join((place / "pairs.jsonl").read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(AfzalError, match="the content of data has changed"):
        compare(settings(place, out, data=str(fewer)), say=lambda _: None)
    shutil.rmtree(out / "stages")
    with pytest.raises(AfzalError, match="did not make"):
        compare(asked, say=lambda _: None)


@pytest.mark.slow
def test_a_stopped_comparison_resumes_to_the_same_figures(place, made, tmp_path, monkeypatch):
    """Stopped during the second training: the first is reused, the second resumes from its checkpoint."""
    dpo = {"name": "dpo", "label": "DPO <b>", "train": "dpo", "beta": 0.1}
    asked = settings(place, tmp_path / "out", methods=[dpo], rewards={"gold": GOLD})
    real, calls = trainings.train, []

    def stopping(given, **kind):
        calls.append(given.out)
        if len(calls) == 2:
            real(given.model_copy(update={"max_steps": 10}), **kind)
            _forget_the_end(Path(given.out))
            raise KeyboardInterrupt
        return real(given, **kind)

    monkeypatch.setattr(trainings, "train", stopping)
    with pytest.raises(KeyboardInterrupt):
        compare(asked, say=lambda _: None)
    monkeypatch.setattr(trainings, "train", real)
    said: list[str] = []
    compare(asked, say=said.append)
    body = read(tmp_path / "out")
    assert [r["state"] for r in body["runs"].values()] == ["reused", "resumed"]
    ours, theirs = (method(b, "dpo")["points"] for b in (body, read(made[0])))
    assert [(p["step"], p["kl"], p["rewards"]["gold"]) for p in ours] == [
        (p["step"], p["kl"], p["rewards"]["gold"]) for p in theirs
    ]


def _forget_the_end(folder: Path) -> None:
    """Make a run look as if a signal had stopped it after its last checkpoint, with more steps to go."""
    (folder / "model.safetensors").unlink()
    run = runs.Run(folder)
    facts = run.facts()
    run.update(status="stopped", config={**facts["config"], "max_steps": 20})


def test_a_budget_judges_by_the_last_snapshot_within_it(place, made, tmp_path):
    out = shutil.copytree(made[0], tmp_path / "out")
    first = [p["kl"]["mean"] for p in method(read(out), "dpo")["points"] if p["step"] == 10]
    compare(settings(place, out, kl_budget=max(first) * 1.001), say=lambda _: None)
    assert method(read(out), "dpo")["judged"]["steps"] == [10, 10]
    compare(settings(place, out, kl_budget=1e-6), say=lambda _: None)
    assert method(read(out), "dpo")["judged"] == {"seeds": 0}
    assert "no snapshot within the KL budget" in (out / "compare.html").read_text()


def test_a_finished_run_can_be_compared_with_the_others(place, made, tmp_path):
    entry = {"name": "old", "run": str(made[0] / "runs" / "dpo-{seed}")}
    asked = settings(
        place, tmp_path / "out", methods=[entry], rewards={"gold": GOLD}, common={}, data=None, matched_kl=[0.01, 50]
    )
    compare(asked, say=lambda _: None)
    (old,), (new,) = read(tmp_path / "out")["methods"], [method(read(made[0]), "dpo")]
    assert [p["kl"] for p in old["points"]] == [p["kl"] for p in new["points"]]
    assert [(m["kl"], m["reached"], m["of"]) for m in old["matched"]] == [(0.01, 2, 2), (50.0, 0, 2)]
    assert "not reached" in (tmp_path / "out" / "compare.html").read_text()


def test_a_reward_that_rises_while_the_true_one_falls_is_named(place, made, tmp_path):
    """The rewards are negated: judged by minus the gold reward, DPO gets worse, and gold rises."""
    minus = tmp_path / "minus.py"
    minus.write_text(
        "from afzal.lab.language import gold\n\ndef loss(prompt, answer):\n    return -gold(prompt, answer)\n"
    )
    entry = {"name": "old", "run": str(made[0] / "runs" / "dpo-{seed}")}
    rewards = {"minus gold": f"{minus}:loss", "gold": GOLD}
    asked = settings(place, tmp_path / "out", methods=[entry], rewards=rewards, common={}, data=None)
    compare(asked, say=lambda _: None)
    (old,) = read(tmp_path / "out")["methods"]
    assert [t["reward"] for t in old["turned"]] == ["gold"]
    assert "over-optimised" in (tmp_path / "out" / "compare.html").read_text()


def test_a_plan_trains_nothing(place, tmp_path):
    lines = plan(settings(place, tmp_path / "out"))
    assert lines == [
        "rm-0: to be trained",
        "rm-1: to be trained",
        "dpo-0: to be trained",
        "dpo-1: to be trained",
        "bon: best of 2, 4",
        "guess: best of 4",
    ]
    assert not (tmp_path / "out").exists()


def test_a_common_setting_that_no_entry_has_is_refused(place, tmp_path):
    with pytest.raises(AfzalError, match="'betta' has no effect"):
        plan(settings(place, tmp_path / "out", common={"betta": 1}))


def test_one_prompt_is_too_few(place, tmp_path):
    (tmp_path / "one.jsonl").write_text((place / "prompts.jsonl").read_text().splitlines()[0] + "\n")
    entry = {"name": "bon", "best_of": 2}
    asked = {"methods": [entry], "rewards": {"gold": GOLD}, "common": {}, "snapshots": 5}
    with pytest.raises(AfzalError, match="1 prompts are too few"):
        compare(settings(place, tmp_path / "out", prompts=str(tmp_path / "one.jsonl"), **asked))


@pytest.mark.slow
def test_rollouts_and_rounds_are_measured_alike_and_their_answers_are_counted(place, tmp_path):
    rloo = {"name": "rloo", "train": "rloo", "reward": GOLD, "iterations": 2, "batch_size": 8, "kl_coef": 0.1}
    rounds = {"name": "rounds", "iterate": "dpo", "reward": GOLD, "rounds": 2, "max_steps": 4, "require_eos": False}
    rounds |= {"prompts_per_round": 40, "held_out": 8, "held_out_samples": 1, "epochs": 8}
    common = {k: v for k, v in settings(place, tmp_path).common.items() if k not in ("max_steps", "epochs")}
    asked = {"methods": [rloo, rounds], "rewards": {"gold": GOLD}, "common": common, "seeds": [0]}
    compare(settings(place, tmp_path / "out", **asked), say=lambda _: None)
    body, log_ref = read(tmp_path / "out"), log_policy(place / "sft", PROMPTS)
    folders = {"rloo": ("runs/rloo-0", None), "rounds": ("runs/rounds-0/rounds", "run")}
    for name, steps in (("rloo", [1, 2]), ("rounds", [1, 2])):
        points = method(body, name)["points"]
        assert [p["step"] for p in points] == steps
        first, last = folders[name]
        final = tmp_path / "out" / first if last is None else tmp_path / "out" / first / "002" / last
        log_pi = log_policy(final, PROMPTS)
        assert points[-1]["kl"]["mean"] == pytest.approx(exact.kl(log_pi, log_ref), abs=4 * points[-1]["kl_se"] + 1e-6)
        assert 0 < points[0]["cost"]["generated"] < points[1]["cost"]["generated"]
        assert 0 < points[0]["cost"]["seconds"] < points[1]["cost"]["seconds"]
    # 2 iterations of 8 prompts, 4 answers each, of 1 to 4 tokens (5 with the end mark)
    assert 2 * 8 * 4 <= method(body, "rloo")["points"][-1]["cost"]["generated"] <= 2 * 8 * 4 * 5


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"prompts": "gone.jsonl"}, "gone.jsonl"),
        ({"model": "gone"}, "gone"),
        ({"data": "gone.jsonl"}, "gone.jsonl"),
        ({"rewards": {"gold": "gone.py:reward", "learned": "${rm}"}}, "gone.py"),
        ({"rewards": {"gold": GOLD, "model": "gone"}}, "gone"),
        (
            {"methods": [{"name": "dpo", "train": "dpo", "eval_data": "gone.jsonl"}]},
            "gone.jsonl",
        ),
        ({"methods": [{"name": "dpo", "train": "dpo", "reference": "gone"}]}, "gone"),
        ({"methods": [{"name": "rloo", "train": "rloo", "reward": "gone.py:reward"}]}, "gone.py"),
        ({"methods": [{"name": "rounds", "iterate": "dpo", "reward": "gone"}]}, "gone"),
        ({"methods": [{"name": "bon", "best_of": 2, "reward": "gone"}]}, "gone"),
        ({"methods": [{"name": "dpo", "train": "dpo"}, {"name": "old", "run": "gone"}]}, "gone"),
    ],
)
def test_everything_named_is_opened_before_anything_is_trained(place, tmp_path, monkeypatch, change, named):
    def never(*args, **kind):
        raise AssertionError("a training began")

    for name in ("train", "iterate"):
        monkeypatch.setattr(trainings, name, never)
    monkeypatch.chdir(tmp_path)
    few = {"common": {"max_steps": 2}} if "methods" in change and "best_of" not in str(change) else {}
    few |= {"rewards": {"gold": GOLD}, "common": few.get("common", {}), "snapshots": 5} if "methods" in change else {}
    with pytest.raises(AfzalError) as error:
        compare(settings(place, tmp_path / "out", **(few | change)), say=lambda _: None)
    assert named in str(error.value)
    assert not (tmp_path / "out").exists()
