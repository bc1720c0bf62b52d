"""A complete sweep on the enumerable language: the choice against brute force, failures, resuming, one reference."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afzal import config, recipes, runs
from afzal.cli import main
from afzal.errors import AfzalError
from afzal.folders.load import load_causal_model
from afzal.lab import exact, language
from afzal.model import reference
from afzal.sweep import plan, sweep
from afzal.train import checkpoint

SRC = Path(__file__).resolve().parents[2] / "src"
FILES = ("sweep.html", "sweep.json", "sweep.csv", "run.yaml", "arms.json")
RUINOUS = 1e30  # a learning rate with which the second update is not finite


def read(out: Path) -> dict[str, Any]:
    return json.loads((out / "sweep.json").read_text())


def by_name(out: Path) -> dict[str, dict[str, Any]]:
    return {arm["name"]: arm for arm in read(out)["arms"]}


def files(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def made(place, settings_of, tmp_path_factory) -> tuple[config.SweepConfig, list[str], list[int]]:
    """A sweep with an arm that diverges, its output, and the number of log-probs computed for the reference."""
    out = tmp_path_factory.mktemp("made") / "out"
    said: list[str] = []
    written: list[int] = []
    real = reference._written

    def counted(folder: Path, key: str, table: Any) -> Any:
        written.append(len(table))
        return real(folder, key, table)

    space = {"beta": [0.1, 0.5], "lr": [1e-3, 2e-3, RUINOUS]}
    made_of = settings_of(out, space=space, confirm=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "_written", counted)
        outcome = sweep(made_of, say=said.append)
    assert outcome.page == out / "sweep.html"
    assert outcome.finished == 4
    return made_of, said, written


def test_the_choice_is_the_best_within_the_budget_of_all_measured_snapshots(made):
    """By brute force over the files of the answers."""
    out = Path(made[0].out)
    measured = {}
    for path in sorted((out / "measured").glob("a*-0-step-*.json")):
        body = json.loads(path.read_text())
        measured[path.name[:4], int(path.stem.rsplit("-", 1)[1])] = (
            float(np.mean(body["rewards"]["gold"])),
            float(np.mean(body["kl"])),
        )
    assert len(measured) == 8  # two snapshots of four arms
    inside = {key: reward for key, (reward, kl) in measured.items() if kl <= 1.0}
    assert len(inside) > 0
    best = max(inside, key=inside.__getitem__)
    choice, arms = read(out)["choice"], by_name(out)
    chosen = arms[choice["arm"]]["candidates"][choice["place"]]
    assert (choice["arm"], chosen["steps"][0]) == best
    assert chosen["goal"]["value"] == pytest.approx(inside[best])
    assert read(out)["arms"][0]["name"] == choice["arm"]


@pytest.mark.slow
def test_a_budget_below_all_but_one_snapshot_leaves_that_one(made, settings_of, tmp_path):
    """The figures are those of the first sweep, read again with another budget."""
    arms = by_name(Path(made[0].out))
    kls = sorted(c["kl"]["value"] for a in arms.values() for c in a["candidates"])
    changed = made[0].model_copy(
        update={"goal": {"maximize": "reward", "within": {"kl": (kls[0] + kls[1]) / 2}}, "confirm": 0}
    )
    said: list[str] = []
    sweep(changed, say=said.append)
    body = read(Path(made[0].out))
    assert not any("training" in line for line in said)
    assert sum(c["within"] for a in body["arms"] for c in a["candidates"]) == 1
    chosen = by_name(Path(made[0].out))[body["choice"]["arm"]]["candidates"][body["choice"]["place"]]
    assert chosen["kl"]["value"] == kls[0]
    nothing = made[0].model_copy(update={"goal": {"maximize": "reward", "within": {"kl": kls[0] / 2}}})
    assert sweep(nothing, say=said.append).finished == 4
    assert read(Path(made[0].out))["choice"] is None
    assert "No snapshot is within the KL budget" in (Path(made[0].out) / "sweep.html").read_text()
    sweep(made[0], say=said.append)  # as it was, for the other tests


def test_the_same_command_trains_nothing_again_and_writes_the_same_bytes(made):
    out = Path(made[0].out)
    before, said = files(out), []
    sweep(made[0], say=said.append)
    assert files(out) == before
    assert not any("training" in line or "resuming" in line for line in said)


def test_an_arm_that_diverged_is_kept_named_last_and_not_tried_again(made):
    body = read(Path(made[0].out))
    failed = [arm for arm in body["arms"] if arm["status"] == "failed"]
    assert body["arms"][-2:] == failed
    assert {arm["values"]["lr"] for arm in failed} == {RUINOUS}
    assert all("is not finite" in arm["why"] for arm in failed)
    counted = Counter(line for line in made[1] if ": training" in line)
    assert set(counted.values()) == {1}
    assert len(counted) == 6 + 1 + (
        body["choice"]["arm"] != "a000"
    )  # six arms, then fresh seeds of the choice and base


def test_all_arms_compute_the_reference_once(place, made):
    """Every response of the data has its log-probs computed in one pass, whatever the number of arms and seeds."""
    passes = [n for n in made[2] if n]
    rows = [json.loads(line) for line in (place / "pairs.jsonl").read_text().splitlines()]
    assert passes == [len({(r["prompt"], r[k]) for r in rows for k in ("chosen", "rejected")})]
    assert len(made[2]) >= 7  # as many trainings asked for them
    assert len(list((Path(made[0].out) / "reference").iterdir())) == 1


def test_every_arm_sees_the_same_examples(settings, tmp_path):
    sweep_of = settings(tmp_path / "o", space={"batch_size": [32, 64, 128]}, examples=512)
    lines = plan(sweep_of)
    assert [line.split("; ")[1] for line in lines[:3]] == ["8 updates", "16 updates", "4 updates"]
    assert any("every arm sees 512 examples" in line for line in lines)
    assert not (tmp_path / "o").exists()  # a dry run writes nothing


def test_a_dry_run_says_where_the_arms_end(settings, tmp_path):
    """Base has as many updates per epoch as batches of 128."""
    base = {"batch_size": 128, "epochs": 1, "max_steps": 1000}
    lines = plan(settings(tmp_path / "o", base=base, space={"beta": [0.1, 0.2]}, examples=None))
    updates = int(lines[0].split("; ")[1].split()[0])
    said = (
        f"max_steps 1,000 is not reached: epochs=1 ends after {updates} updates; epochs={-(-1000 // updates)} does not"
    )
    assert f"note: base: {said}" in lines
    reached = plan(settings(tmp_path / "o", base=base | {"max_steps": 1}, space={"beta": [0.1, 0.2]}, examples=None))
    assert not any("max_steps" in line for line in reached)
    stated = plan(settings(tmp_path / "o", base=base, space={"beta": [0.1, 0.2]}, examples=256))
    assert "note: no effect: max_steps of base, since examples=256 decides" in stated


def test_the_confirmation_is_of_fresh_seeds_and_stands_beside_the_figure_of_the_choice(made):
    out = Path(made[0].out)
    body = read(out)
    confirmed = body["confirmation"]
    assert confirmed["seeds"] == [1]
    file = next((out / "measured").glob(f"{body['choice']['arm']}-1-step-{confirmed['choice']['steps'][0]:08d}.json"))
    again = float(np.mean(json.loads(file.read_text())["rewards"]["gold"]))
    assert confirmed["choice"]["goal"]["value"] == pytest.approx(again)
    chosen = by_name(out)[body["choice"]["arm"]]["candidates"][body["choice"]["place"]]
    assert confirmed["choice"]["goal"]["value"] != chosen["goal"]["value"]
    page = (out / "sweep.html").read_text()
    assert "winner&#39;s curse" in page
    if body["choice"]["arm"] != "a000":
        assert confirmed["difference"]["value"] == pytest.approx(again - confirmed["base"]["goal"]["value"])
        assert "base with fresh seeds" in page


def test_the_table_has_a_row_per_snapshot(made):
    rows = list(csv.DictReader(io.StringIO((Path(made[0].out) / "sweep.csv").read_text())))
    assert len(rows) == 8 + 2
    assert sum(row["chosen"] == "True" for row in rows) == 1
    assert [row["status"] for row in rows[-2:]] == ["failed", "failed"]
    on_front = [(float(r["kl"]), float(r["goal"])) for r in rows if r["on_front"] == "True"]
    assert sorted(on_front) == sorted(on_front, key=lambda p: p[1])  # more KL on the front is more reward


def test_the_ready_settings_train_the_chosen_arm_again_bit_by_bit(made, tmp_path):
    out = Path(made[0].out)
    again = config.load(out / "run.yaml").model_copy(update={"out": str(tmp_path / "again")})
    recipes.train(again)
    first = out / "runs" / f"{read(out)['choice']['arm']}-0"
    assert runs.sha256(tmp_path / "again" / "model.safetensors") == runs.sha256(first / "model.safetensors")


def test_nothing_but_diverged_arms_exits_with_one(settings, tmp_path, capsys):
    sweep_of = settings(tmp_path / "o", base={"lr": RUINOUS}, space={"beta": [0.1, 0.2]}, snapshots=1)
    (tmp_path / "sweep.yaml").write_text(config.dump(sweep_of))
    assert main(["sweep", str(tmp_path / "sweep.yaml")]) == 1
    body = read(tmp_path / "o")
    assert [arm["status"] for arm in body["arms"]] == ["failed", "failed"]
    assert body["choice"] is None
    assert "No arm finished" in (tmp_path / "o" / "sweep.html").read_text()
    assert not (tmp_path / "o" / "run.yaml").exists()
    assert "a001-0: failed: the loss is not finite" in capsys.readouterr().out.replace("gradient", "loss")


def test_a_run_that_the_sweep_did_not_make_is_refused_not_failed(made, settings_of):
    """A fault of the folder ends the sweep and is named; it is no failure of an arm."""
    other = settings_of(Path(made[0].out), space=made[0].space, confirm=1, examples=512)
    with pytest.raises(AfzalError, match="cannot be reused"):
        sweep(other, say=lambda line: None)


def test_a_dry_run_names_every_arm_with_its_state_and_the_cost(made):
    lines = plan(made[0])
    assert lines[0] == "a000: base; 4 updates; 1 finished"
    assert sum("1 diverged" in line for line in lines) == 2
    assert lines[6] == "6 trainings, 6 of them done; then at most 2 more: the choice and base with 1 fresh seed"


@pytest.mark.slow
def test_more_arms_are_added_once_and_resumed_until_they_are_finished(settings, tmp_path):
    space = {"beta": {"uniform": [0.1, 0.5]}}
    sweep_of = settings(tmp_path / "o", search="sobol", arms=1, space=space, examples=64, snapshots=1)
    said: list[str] = []
    assert sweep(sweep_of, more=1, say=said.append).finished == 2  # a new sweep has its own arms first
    assert sweep(sweep_of, more=1, say=said.append).finished == 3
    first = by_name(tmp_path / "o")
    assert sweep(sweep_of, say=said.append).finished == 3
    assert by_name(tmp_path / "o") == first
    counted = Counter(line.split("] ")[1] for line in said if ": training" in line)
    assert counted == {"a000-0: training": 1, "a001-0: training": 1, "a002-0: training": 1}


@pytest.mark.slow
def test_win_rate_and_accuracy_are_goals_too(place, settings, tmp_path):
    base = {"eval_data": str(place / "held-out.jsonl"), "sample_prompts": 0}
    base_of = {"space": {"beta": [0.1, 0.5]}, "examples": 128}
    out = tmp_path / "wins"
    sweep(settings(out, base, goal={"maximize": "win_rate", "within": {"kl": 5}}, **base_of), say=lambda line: None)
    top = read(out)["arms"][0]["candidates"][0]
    start, ours = (
        json.loads((out / "measured" / f"{n}.json").read_text()) for n in ("start-0", "a000-0-step-00000001")
    )
    wins = np.array(ours["rewards"]["gold"])[:, :, None] - np.array(start["rewards"]["gold"])[:, None, :]
    share = np.mean((wins > 0) + 0.5 * (wins == 0), axis=0)
    own = by_name(out)["a000"]["candidates"][0]["goal"]
    assert own["value"] == pytest.approx(share[~np.eye(8, dtype=bool)].mean())
    assert 0 < own["low"] < own["value"] < own["high"] < 1
    assert top["goal"]["value"] >= own["value"]
    out = tmp_path / "accuracies"
    goal = {"maximize": "accuracy", "within": {"kl": 5}}
    sweep(settings(out, base, goal=goal, rewards={}, prompts=None, **base_of), say=lambda line: None)
    for arm in read(out)["arms"]:
        logged = {r["step"]: r for r in runs.open_run(out / "runs" / f"{arm['name']}-0").metrics("eval")}
        for c in arm["candidates"]:
            record = logged[c["steps"][0]]
            assert c["goal"]["value"] == record["rewards/accuracies"]
            assert (c["goal"]["low"], c["goal"]["high"]) == (
                record["rewards/accuracies_low"],
                record["rewards/accuracies_high"],
            )


@pytest.mark.slow
def test_kl_falls_with_beta_and_the_choice_is_the_exact_best(place, settings, tmp_path):
    """Four values of beta and three of lr, by sums over all responses; the sampled choice is worth what the exact best
    is worth, to within a hundredth of the gain."""
    space = {"beta": [0.05, 0.1, 0.2, 0.5], "lr": [3e-4, 1e-3, 3e-3]}
    out = tmp_path / "o"
    sweep(settings(out, space=space, examples=1280, samples=64, seeds=[0, 1]), say=lambda line: None)
    prompts = language.prompts()[1][:8]
    rewards, log_ref = language.reward(prompts), exact.log_policy(load_causal_model(str(place / "sft")), prompts)
    arms, exactly = by_name(out), {}
    for name, arm in arms.items():
        for k, c in enumerate(arm["candidates"]):
            per_seed = []
            for seed in (0, 1):
                folder = out / "runs" / f"{name}-{seed}"
                model = load_causal_model(str(folder))
                if c["steps"][0] < arm["updates"]:
                    state = checkpoint.load(folder / "checkpoints" / f"step-{c['steps'][0]:08d}")[0]["model"]
                    model.load_state_dict(state)
                log_pi = exact.log_policy(model, prompts)
                per_seed.append((exact.expected(log_pi, rewards), exact.kl(log_pi, log_ref)))
            exactly[name, k] = np.mean(per_seed, axis=0)
    for lr in space["lr"]:
        rows = sorted((a["values"]["beta"], exactly[a["name"], 1][1]) for a in arms.values() if a["values"]["lr"] == lr)
        kls = [kl for _, kl in rows]
        assert len(kls) == 4
        assert kls == sorted(kls, reverse=True), lr
        sampled = sorted(
            (a["values"]["beta"], a["candidates"][1]["kl"]["value"]) for a in arms.values() if a["values"]["lr"] == lr
        )
        assert [kl for _, kl in sampled] == sorted((kl for _, kl in sampled), reverse=True)
    inside = {key: reward for key, (reward, kl) in exactly.items() if kl <= 1.0}
    assert len(inside) < len(exactly)  # the budget leaves something out
    choice = read(out)["choice"]
    start = exact.expected(log_ref, rewards)
    best = max(inside.values())
    assert inside[choice["arm"], choice["place"]] - start >= 0.99 * (best - start)


@pytest.mark.slow
def test_killed_at_several_points_it_ends_with_the_same_bytes_and_trains_nothing_twice(settings, tmp_path):
    """A sweep in a separate process, killed at each of several points, against one that was never stopped."""
    space = {"beta": [0.1, 0.5], "lr": [1e-3, 2e-3, RUINOUS]}
    whole = settings(tmp_path / "o", space=space, seeds=[0, 1], confirm=1, examples=1024)
    (tmp_path / "sweep.yaml").write_text(config.dump(whole))
    sweep(whole, say=lambda line: None)
    expected = files(tmp_path / "o")
    (tmp_path / "o").rename(tmp_path / "never-stopped")
    said = ""
    # as a training starts, within one, after an arm has failed, as the confirmation starts
    for seen in ("a000-0: training", "step 1/17", "a001-1: training", "a002-0: failed", "confirming"):
        said += _run(tmp_path, seen)
    said += _run(tmp_path, None)
    assert files(tmp_path / "o") == expected
    trained = Counter(line.split("] ")[1] for line in said.splitlines() if ": training" in line)
    for name in trained:
        folder = tmp_path / "o" / "runs" / name.partition(":")[0]
        steps = [r["step"] for r in runs.open_run(folder).metrics("train")]
        assert steps == sorted(set(steps))
    # a training starts a second time only if the kill came before its first facts were on the disk
    assert {name for name, n in trained.items() if n > 1} <= {"a000-0: training", "a001-1: training"}
    assert len(trained) >= 12


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [2, 3])
def test_side_by_side_gives_the_same_bytes(settings, tmp_path, jobs):
    whole = settings(tmp_path / "o", space={"beta": [0.1, 0.5], "lr": [1e-3, RUINOUS]}, confirm=1)
    assert sweep(whole, say=lambda line: None).finished == 2
    expected = files(tmp_path / "o")
    (tmp_path / "o").rename(tmp_path / "alone")
    (tmp_path / "sweep.yaml").write_text(config.dump(whole))
    output = _run(tmp_path, None, "--jobs", str(jobs))
    assert "failed: the" in output
    assert files(tmp_path / "o") == expected
    assert (tmp_path / "o" / "stages" / "a000-0.log").read_text()


@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them(settings, tmp_path):
    whole = settings(tmp_path / "o", examples=20_000)
    (tmp_path / "sweep.yaml").write_text(config.dump(whole))
    _run(tmp_path, "a000-0: training", "--jobs", "2")
    for _ in range(300):
        if not _alive(str(tmp_path)):
            return
        time.sleep(0.1)
    pytest.fail("a worker has outlived the process that started it")


@pytest.mark.slow
def test_tpe_and_pruning_resume_the_way_they_went(settings, tmp_path):
    pytest.importorskip("optuna")
    space = {"beta": {"log": [0.05, 2.0]}, "lr": {"log": [1e-5, 2e-3]}}
    whole = settings(
        tmp_path / "o", search="tpe", space=space, arms=7, prune="median", seeds=[0, 1], examples=128, snapshots=1
    )
    assert sweep(whole, say=lambda line: None).finished < 8
    arms = by_name(tmp_path / "o")
    assert {a["status"] for a in arms.values()} == {"finished", "pruned"}
    assert all(a["seeds"] == 1 for a in arms.values() if a["status"] == "pruned")
    expected = files(tmp_path / "o")
    said: list[str] = []
    sweep(whole, say=said.append)
    assert files(tmp_path / "o") == expected
    assert not any(": training" in line for line in said)
    for later in ("a006-0", "a007-0"):  # as if it had been stopped before these
        shutil.rmtree(tmp_path / "o" / "runs" / later)
    body = json.loads((tmp_path / "o" / "arms.json").read_text())
    body["arms"], body["finished"] = body["arms"][:6], False
    (tmp_path / "o" / "arms.json").write_text(json.dumps(body))
    sweep(whole, say=said.append)
    assert files(tmp_path / "o") == expected


def _alive(mark: str) -> list[str]:
    """Processes that have a text in their environment."""
    alive = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in path.read_bytes():
                alive.append(path.parent.name)
    return alive


def _run(folder: Path, until: str | None, *more: str) -> str:
    """Run ``afzal sweep`` in a separate process and kill it once it prints ``until``; returns the output.

    Output is line-buffered, so that the kill comes at the intended point.
    """
    env = {**os.environ, "PYTHONPATH": str(SRC), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "PLACE": str(folder)}
    command = [sys.executable, "-m", "afzal", "sweep", str(folder / "sweep.yaml"), *more]
    said = ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=env, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said += line
            if until is not None and until in line:
                process.send_signal(signal.SIGKILL)
                return said
    assert until is None, f"it never said {until!r}: {said}"
    assert process.returncode == 0, said
    return said
