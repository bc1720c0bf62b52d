"""`afzal iterate` end to end on a tiny model: the files of each stage, messages, and resumption after each."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest
from helpers_rounds import lines, run, settings
from helpers_runs import model_folder, one_thread, pair_file

from afzal import api, config, data, recipes, runs
from afzal.cli import main
from afzal.errors import AfzalError
from afzal.iterate import stages
from afzal.iterate.prompts import round_groups, sort_key
from afzal.records import Item, preferences, prompt_key
from afzal.runs import stage

REWARD = '''
def letters(prompt, answer):
    """More letters are better, and no digits."""
    return sum(c.isalpha() for c in answer) - sum(c.isdigit() for c in answer)

def shortness(prompt, answer):
    return -float(len(answer))
'''
ROUND = ("samples.jsonl", "scores.jsonl", "rejected.jsonl", "pairs.jsonl", "measured.jsonl", "run/model.safetensors")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model, pairs whose prompts are used, and rewards."""
    path = tmp_path_factory.mktemp("iterate")
    model_folder(path / "model")
    pair_file(path / "pairs.jsonl", 24)
    (path / "rewards.py").write_text(REWARD)
    return path


def fingerprint(out: Path) -> dict[str, bytes]:
    """Every byte that must not depend on interruptions."""
    files = {str(p.relative_to(out)): p.read_bytes() for p in sorted((out / "rounds").rglob("*.jsonl"))}
    kept = {name: body for name, body in files.items() if "/run/" not in name}
    weights = {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.glob("rounds/*/run/model.safetensors"))}
    return kept | weights | {name: (out / name).read_bytes() for name in ("rounds.json", "rounds.csv", "samples.jsonl")}


@pytest.fixture(scope="module")
def whole(folder) -> Path:
    """A run that was never interrupted."""
    return run(folder, folder / "whole")


def test_a_round_leaves_its_stages_and_the_run_its_summary(whole):
    for number in ("001", "002"):
        assert all((whole / "rounds" / number / name).exists() for name in ROUND)
    summary = json.loads((whole / "rounds.json").read_text())
    assert summary["stop_reason"] == "finished"
    assert [r["number"] for r in summary["rounds"]] == [0, 1, 2]
    assert all(r["kl"]["count"] == 8 for r in summary["rounds"])
    assert summary["rounds"][0]["kl"]["mean"] == 0.0
    assert summary["rounds"][2]["kl"]["mean"] > 0.0
    assert (summary["rounds"][0]["win_rate"]["mean"], summary["rounds"][0]["win_rate"]["count"]) == (0.5, 8)
    assert [r["steps"] for r in summary["rounds"]] == [0, 2, 2]
    facts = runs.open_run(whole).facts()
    assert (facts["status"], facts["method"], facts["steps"]) == ("finished", "iterate", 4)
    page = (whole / "report.html").read_text()
    assert "KL to the first policy" in page
    assert "iterative preference optimisation" in page


def test_the_policy_to_use_is_compared_with_the_first_one_on_the_same_prompts_and_draws(whole, folder):
    summary = json.loads((whole / "rounds.json").read_text())
    best = summary["best"]
    assert best > 0
    fresh = [lines(whole / "rounds" / f"{k:03d}" / "measured-fresh.jsonl") for k in (0, best)]
    keys = [[(row["prompt_index"], row["sample"], row["prompt"]) for row in rows] for rows in fresh]
    assert keys[0] == keys[1]
    # other draws than those that chose the policy, of the first policy too
    texts = [[row["text"] for row in lines(whole / "rounds" / f"{k:03d}" / "measured.jsonl")] for k in (0, best)]
    assert all([row["text"] for row in rows] != old for rows, old in zip(fresh, texts, strict=True))
    # the reward of both is the same function
    rewards = [
        [sum(c.isalpha() for c in r["text"]) - sum(c.isdigit() for c in r["text"]) for r in rows] for rows in fresh
    ]
    assert [[row["reward"] for row in rows] for rows in fresh] == rewards
    gain = summary["fresh_gain"]
    assert gain["mean"] == pytest.approx((sum(rewards[1]) - sum(rewards[0])) / len(rewards[0]))
    assert gain["mean"] == pytest.approx(
        summary["best_fresh"]["reward"]["mean"] - summary["first_fresh"]["reward"]["mean"]
    )
    # the interval is Student's over the four prompts, not over the eight answers
    by_prompt = [sum(b - a for a, b in zip(*pair, strict=True)) / 2 for pair in zip(*map(halves, rewards), strict=True)]
    se = statistics.stdev(by_prompt) / len(by_prompt) ** 0.5
    assert gain["low"] == pytest.approx(gain["mean"] - 3.182446 * se, abs=1e-5)
    assert f"({gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}] over" in (whole / "report.html").read_text()


def halves(values: list[float]) -> list[tuple[float, float]]:
    """The values of the two answers to each prompt."""
    return list(zip(values[::2], values[1::2], strict=True))


def test_scores_are_the_rewards_and_pairs_are_the_best_and_the_worst(whole):
    samples, scores = (lines(whole / "rounds" / "001" / f"{name}.jsonl") for name in ("samples", "scores"))
    assert len(samples) == len(scores) == 10 * 4
    for sample, score in zip(samples, scores, strict=True):
        assert score["reward"] == sum(c.isalpha() for c in sample["text"]) - sum(c.isdigit() for c in sample["text"])
    worth = {(s["prompt_index"], s["text"]): r["reward"] for s, r in zip(samples, scores, strict=True)}
    items = data.read(str(whole / "rounds" / "001" / "pairs.jsonl")).items
    assert items
    for item in items:
        index = int(item.id.rpartition("-")[2])
        (p,) = preferences(item)
        pair_rewards = [worth[index, item.responses[k].turns] for k in (p.i, p.j)]
        all_of_it = [r for (i, text), r in worth.items() if i == index and text.strip()]
        assert pair_rewards == [max(all_of_it), min(all_of_it)]
        assert p.margin == pair_rewards[0] - pair_rewards[1] > 0


def test_no_prompt_is_in_two_rounds_nor_held_out(whole):
    sets = [{row["prompt"] for row in lines(whole / "rounds" / n / "samples.jsonl")} for n in ("001", "002")]
    sets.append({row["prompt"] for row in lines(whole / "rounds" / "000" / "measured.jsonl")})
    assert [len(s) for s in sets] == [10, 10, 4]
    assert len(set().union(*sets)) == 24


@pytest.mark.parametrize("held_out", [12, 400])
def test_every_round_holds_out_its_share_of_pairs(held_out):
    """The run's own seed already fixes the order of prompts, so a round's training splits with another seed."""
    items = {prompt_key(item): item for k in range(2000) if (item := Item(str(k), f"prompt {k}", ()))}
    order = [items[key] for key in sorted(items, key=lambda key: sort_key(key, 0))][held_out:]
    given = config.IterateConfig(model="m", prompts="p", reward="r:f")
    for number in (1, 2, 3):
        part = round_groups(order, number, len(order) // 3, reuse=False)
        _, held = data.split(part, 0.1, stages.training(given, number, "m", "d", "o").seed)
        assert 0.06 < len(held) / len(part) < 0.14


def test_every_answer_is_paired_or_rejected_with_a_reason(whole):
    for number in ("001", "002"):
        folder = whole / "rounds" / number
        items, lost = data.read(str(folder / "pairs.jsonl")).items, lines(folder / "rejected.jsonl")
        whole_prompts = {row["item_id"] for row in lost if row["unit"] in ("item", "pair")}
        assert len(items) + len(whole_prompts) == 10
        assert {row["reason"] for row in lost} <= {"empty", "duplicate", "margin", "too_few"}


def test_the_pairs_are_read_by_check(whole, capsys):
    assert main(["check", str(whole / "rounds" / "001" / "pairs.jsonl")]) in (0, 1)  # 1: findings, usual for few pairs
    said = capsys.readouterr().out
    assert "format afzal" in said
    assert "pairs:" in said


def test_the_first_round_starts_at_ln_2_and_later_ones_are_held_to_the_first_policy(whole):
    facts = [runs.open_run(whole / "rounds" / n / "run").facts() for n in ("001", "002")]
    assert "frozen copy" in facts[0]["reference"]
    assert facts[1]["reference"] == f"the model {facts[0]['model']['path']}"
    assert facts[1]["model"]["path"].endswith("rounds/001/run")
    loss = runs.open_run(whole / "rounds" / "001" / "run").metrics("train")[0]["loss"]
    assert loss == pytest.approx(0.6931, abs=1e-4)


def test_the_same_command_gives_the_same_bytes(folder, whole):
    assert fingerprint(run(folder, folder / "again")) == fingerprint(whole)


class _Killed(BaseException):
    """Simulates a kill: nothing catches it."""


def _writes(folder, monkeypatch, out: Path, before: int | None) -> int:
    """Run until just before the stage-file write number ``before``; return the number of writes."""
    count = 0
    write = stage.atomic_write

    def counted(path, text):
        nonlocal count
        if count == before:
            raise _Killed
        count += 1
        write(path, text)

    monkeypatch.setattr(stage, "atomic_write", counted)
    try:
        run(folder, out)
    except _Killed:
        pass
    finally:
        monkeypatch.setattr(stage, "atomic_write", write)
    return count


@pytest.mark.slow
def test_a_run_that_ended_before_any_stage_was_written_resumes_to_the_same_bytes(folder, whole, monkeypatch, tmp_path):
    expected, out = fingerprint(whole), tmp_path
    for k in range(11):  # measured, then samples, scores, rejected, pairs, measured of two rounds
        out = tmp_path / f"cut-{k}"
        assert _writes(folder, monkeypatch, out, k) == k
        assert fingerprint(run(folder, out, resume=True)) == expected, k
    assert fingerprint(run(folder, out, resume=True)) == expected  # a finished run stays as it is


def test_an_interrupted_training_resumes_from_its_checkpoint(folder, whole, monkeypatch, tmp_path):
    out = tmp_path / "cut"
    monkeypatch.setattr(stages, "train", _cut_short(stages.train))
    with pytest.raises(_Killed):
        run(folder, out, save_every_steps=1)
    monkeypatch.undo()
    assert runs.open_run(out / "rounds" / "001" / "run").facts()["status"] == "failed"
    assert not (out / "rounds" / "001" / "run" / "model.safetensors").exists()
    resumed = fingerprint(run(folder, out, resume=True, save_every_steps=1))
    assert resumed == fingerprint(whole)


def _cut_short(train):
    """Kill a training after its first update, once."""
    from afzal.train import checkpoint

    def cut(settings, *, resume=False, callbacks=None):
        save = checkpoint.save

        def saved(*args, **kwargs):
            save(*args, **kwargs)
            raise _Killed

        checkpoint.save = saved
        try:
            return train(settings, resume=resume, callbacks=callbacks)
        finally:
            checkpoint.save = save

    return cut


def test_a_folder_killed_before_its_run_json_starts_over(folder, whole, tmp_path, monkeypatch):
    out = tmp_path / "run"
    _writes(folder, monkeypatch, out, 5)  # all but the first round's training
    (out / "rounds" / "001" / "run").mkdir(exist_ok=True)
    for path in (out / "rounds" / "001" / "run").iterdir():
        if path.is_file():
            path.unlink()
    (out / "rounds" / "001" / "run" / "run.yaml").write_text("method: prefer\n")
    (out / "rounds" / "001" / "measured.jsonl").unlink(missing_ok=True)
    assert fingerprint(run(folder, out, resume=True)) == fingerprint(whole)


def test_other_settings_or_prompts_are_refused_on_resume(folder, whole, tmp_path):
    with pytest.raises(AfzalError, match="rounds: 2 -> 3"):
        run(folder, whole, resume=True, rounds=3)
    other = pair_file(tmp_path / "other.jsonl", 25)
    with pytest.raises(AfzalError, match="prompts: the content of the file has changed"):
        run(folder, whole, resume=True, prompts=str(other))
    with pytest.raises(AfzalError, match="already holds a run"):
        run(folder, whole)


# --- variants ----------------------------------------------------------------------------------------------------


def test_a_reference_that_moves_reports_the_correction_of_beta(folder, tmp_path, capsys):
    out = run(folder, tmp_path / "run", reference="previous", objective_arg={"beta": 0.2})
    said = " ".join(capsys.readouterr().err.split())
    assert "over 2 rounds, beta 0.2 holds the policy to the first one only as much as 0.1 would; beta 0.4 (2 x" in said
    facts = runs.open_run(out / "rounds" / "002" / "run").facts()
    assert "frozen copy" in facts["reference"]
    assert runs.open_run(out / "rounds" / "002" / "run").metrics("train")[0]["loss"] == pytest.approx(0.6931, abs=1e-4)


def test_a_fixed_reference_reports_no_correction_of_beta(folder, tmp_path, capsys):
    run(folder, tmp_path / "run", rounds=1)
    assert "beta" not in capsys.readouterr().err


def test_accumulated_rounds_train_on_all_pairs_so_far(folder, whole, tmp_path):
    out = run(folder, tmp_path / "run", accumulate=True)
    first, second = (lines(out / "rounds" / n / "pairs.jsonl") for n in ("001", "002"))
    assert lines(out / "rounds" / "002" / "train.jsonl") == [*first, *second]
    assert runs.open_run(out / "rounds" / "002" / "run").facts()["data"]["rows"] == len(first) + len(second)
    assert first == lines(whole / "rounds" / "001" / "pairs.jsonl")


def test_a_watched_reward_is_only_reported(folder, whole, tmp_path):
    out = run(folder, tmp_path / "run", watch_reward=f"{folder / 'rewards.py'}:shortness")
    rows = lines(out / "rounds" / "002" / "measured.jsonl")
    assert all(row["watch_reward"] == -len(row["text"]) for row in rows)
    last = json.loads((out / "rounds.json").read_text())["rounds"][2]
    assert last["watch_reward"]["sum"] == sum(row["watch_reward"] for row in rows)
    weights = "rounds/002/run/model.safetensors"
    assert (out / weights).read_bytes() == (whole / weights).read_bytes()


@pytest.mark.slow
def test_prompts_that_run_out_end_the_run_or_are_used_again(folder, tmp_path, capsys):
    out = run(folder, tmp_path / "run", rounds=3, prompts_per_round=15)
    assert "20 prompts at 15 per round run out in round 2 of 3: the run will end there" in capsys.readouterr().err
    summary = json.loads((out / "rounds.json").read_text())
    assert [r["prompts"] for r in summary["rounds"]] == [0, 15, 5]
    assert summary["stop_reason"] == "no_prompts"
    out = run(folder, tmp_path / "again", prompts_per_round=15, reuse_prompts=True)
    assert "reused" in capsys.readouterr().err
    asked = [[row["prompt"] for row in lines(out / "rounds" / n / "samples.jsonl")][::4] for n in ("001", "002")]
    assert asked[1] == [*dict.fromkeys([*_others(asked[0], out)]), *asked[0][:10]]


def _others(used: list[str], out: Path) -> list[str]:
    """The prompts of the second round that the first one did not have, in order."""
    return [row["prompt"] for row in lines(out / "rounds" / "002" / "samples.jsonl") if row["prompt"] not in used]


def test_no_pairs_left_ends_the_run_and_keeps_the_first_policy(folder, tmp_path):
    out = run(folder, tmp_path / "run", min_margin=1000.0)
    summary = json.loads((out / "rounds.json").read_text())
    assert (summary["stop_reason"], summary["best"], summary["rounds"][1]["pairs"]) == ("no_pairs", 0, 0)
    assert summary["rounds"][1]["lost"]["margin"] == 10
    assert not (out / "rounds" / "001" / "run").exists()


def test_a_kl_budget_ends_the_run_and_the_best_round_is_within_it(folder, tmp_path):
    out = run(folder, tmp_path / "run", kl_budget=1e-9)
    summary = json.loads((out / "rounds.json").read_text())
    assert (summary["stop_reason"], summary["best"], len(summary["rounds"])) == ("kl_budget", 0, 2)


def test_missing_ends_are_rejected_unless_allowed(folder, tmp_path):
    out = run(folder, tmp_path / "run", require_eos=True)
    samples = lines(out / "rounds" / "001" / "samples.jsonl")
    cut = sum(row["stop"] == "length" and bool(row["text"].strip()) for row in samples)
    assert cut > 30
    assert json.loads((out / "rounds.json").read_text())["rounds"][1]["lost"]["no_eos"] == cut


def test_rejection_sampling_as_a_preset(folder, tmp_path):
    out = run(folder, tmp_path / "run", preset="rso", n=8, rso_accepted=4, rso_beta=2.0, top_k=None)
    summary = json.loads((out / "rounds.json").read_text())
    assert (summary["rounds"][1]["samples"], len(summary["rounds"])) == (10 * 8, 3)
    facts = runs.open_run(out / "rounds" / "001" / "run").facts()
    assert facts["objective"]["name"] == "hinge"
    items = data.read(str(out / "rounds" / "001" / "pairs.jsonl")).items
    assert max(len(preferences(item)) for item in items) == 2


def test_online_dpo_as_a_preset_and_a_callback_that_hears_its_updates_and_ends_the_rounds(folder, tmp_path):
    out, heard = tmp_path / "run", []

    def enough(progress):
        heard.append((progress.path.parent.name, progress.step, "loss" in progress.metrics))
        if len(heard) == 4:
            progress.stop("that will do")

    made = settings(folder, out, preset="online", n=2, rounds=5, prompts_per_round=4, measure_every=3, max_steps=1)
    with one_thread():
        ended = api.iterate(on_step=enough, **{name: getattr(made, name) for name in made.model_fields_set})
    assert heard == [(f"00{number}", 1, True) for number in (1, 2, 3, 4)]
    summary = json.loads((out / "rounds.json").read_text())
    rounds = summary["rounds"]
    assert [r["steps"] for r in rounds] == [0, 1, 1, 1, 1]
    assert [r["number"] for r in rounds if "kl" in r] == [0, 3, 4]
    assert summary["stop_reason"] == "callback"
    assert ended.status() == "finished"
    assert "a callback asked to stop" in (out / "report.html").read_text()
    assert all(row["sample"] in (0, 1) for row in lines(out / "rounds" / "001" / "samples.jsonl"))
    made = settings(folder, out, preset="online")
    assert (made.max_steps, made.lr_schedule, made.warmup) == (2, "constant", 0.0)  # given values override a preset


def test_self_play_as_a_preset(folder, tmp_path):
    out = run(folder, tmp_path / "run", preset="spin", n=2, reward=None)
    own = {row["prompt"]: row["chosen"] for row in map(json.loads, (folder / "pairs.jsonl").read_text().splitlines())}
    for number in ("001", "002"):
        items = data.read(str(out / "rounds" / number / "pairs.jsonl")).items
        assert len(items) == 10
        drawn = {(r["prompt"], r["text"]) for r in lines(out / "rounds" / number / "samples.jsonl")}
        for item in items:
            assert all(p.i == 0 and p.p == 1.0 for p in preferences(item))
            assert item.responses[0].turns == own[item.prompt]
            assert all((item.prompt, r.turns) in drawn for r in item.responses[1:])
        assert "frozen copy" in runs.open_run(out / "rounds" / number / "run").facts()["reference"]
    summary = json.loads((out / "rounds.json").read_text())
    assert "reward" not in summary["rounds"][0]
    assert summary["best"] == 2


def test_an_objective_without_a_reference(folder, tmp_path):
    out = run(folder, tmp_path / "run", objective="simpo")
    assert runs.open_run(out / "rounds" / "002" / "run").facts()["reference"] == "none"
    with pytest.raises(AfzalError, match="simpo has no reference"):
        run(folder, tmp_path / "other", objective="simpo", reference="previous")


OTHERS = [pytest.param({"adapter": kind, "lr": 0.1}, marks=pytest.mark.slow) for kind in ("dora", "ia3")]


@pytest.mark.parametrize("adapter", [{"lora_rank": 2}, {"adapter": "prompt", "lr": 0.1}, *OTHERS])
def test_adapters_are_trained_on_from_round_to_round(folder, tmp_path, adapter):
    out = run(folder, tmp_path / "run", **adapter)
    for number in ("001", "002"):
        assert (out / "rounds" / number / "run" / "adapter_model.safetensors").exists()
        model = runs.open_run(out / "rounds" / number / "run").facts()["model"]
        assert model["trainable"] < 0.2 * model["parameters"]
    kind = runs.open_run(out / "rounds" / "001" / "run").facts()["model"]["adapter"]
    assert kind == adapter.get("adapter", "lora")
    assert "adapter" in runs.open_run(out / "rounds" / "001" / "run").facts()["reference"]
    assert json.loads((out / "rounds.json").read_text())["rounds"][2]["kl"]["mean"] > 0


def test_a_reward_model_scores_the_answers(folder, tmp_path):
    given = {"model": str(folder / "model"), "data": str(folder / "pairs.jsonl"), "max_steps": 2, "device": "cpu"}
    with one_thread():
        made = recipes.train(config.make("reward", out=str(tmp_path / "reward"), eval_fraction=0.0, **given))
    out = run(folder, tmp_path / "run", rounds=1, reward=str(made))
    rewards = [row["reward"] for row in lines(out / "rounds" / "001" / "scores.jsonl")]
    assert len(set(rewards)) > 10


# --- people ------------------------------------------------------------------------------------------------------


def _label(folder: Path) -> list[dict[str, Any]]:
    """Label all prompts for the longer answer, except the first, which is a tie."""
    rows = lines(folder / "to_label.jsonl")
    for k, row in enumerate(rows):
        sizes = [len(r["turns"]) for r in row["responses"]]
        best, worst = sizes.index(max(sizes)), sizes.index(min(sizes))
        outcome = "tie" if k == 0 or best == worst else "first"
        vote = {"first": best, "second": (worst if best != worst else best - 1) % len(sizes), "outcome": outcome}
        row["votes"] = [{"vote": "comparison", **vote, "annotator": "ann"}]
    (folder / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    return rows


def test_people_label_a_file_and_the_run_continues(folder, tmp_path, capsys):
    out = run(folder, tmp_path / "run", reward="people")
    said = capsys.readouterr().err
    assert "rounds/001/to_label.jsonl holds 10 prompts with answers to label" in said
    assert f"afzal iterate {out} --resume" in said
    assert runs.open_run(out).facts()["status"] == "waiting"
    assert not (out / "rounds" / "001" / "pairs.jsonl").exists()
    for number in ("001", "002"):
        _label(out / "rounds" / number)
        run(folder, out, resume=True, reward="people")
        items = data.read(str(out / "rounds" / number / "pairs.jsonl")).items
        assert 0 < len(items) < 9
        assert all(vote.annotator == "ann" for item in items for vote in item.votes)
        reasons = [row["reason"] for row in lines(out / "rounds" / number / "rejected.jsonl")]
        assert reasons.count("undecided") == 9 - len(items)
    summary = json.loads((out / "rounds.json").read_text())
    assert (summary["stop_reason"], summary["best"]) == ("finished", 2)


def test_labels_of_answers_that_nobody_was_asked_about_are_refused(folder, tmp_path):
    out = run(folder, tmp_path / "run", reward="people", rounds=1)
    rows = lines(out / "rounds" / "001" / "to_label.jsonl")
    rows[0]["responses"][0]["turns"] = "something else"
    (out / "rounds" / "001" / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(AfzalError, match="this answer was not asked about: 'something else'"):
        run(folder, out, resume=True, reward="people", rounds=1)
