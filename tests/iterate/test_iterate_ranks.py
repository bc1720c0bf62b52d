"""Rounds of several ranks equal those of one process, even if they are killed, wait for people, or fail."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from helpers_ranks import assert_read_once, run_in_shards, run_ranks, start_ranks
from helpers_rounds import lines
from helpers_runs import finished, model_folder, pair_file, start_command
from safetensors.numpy import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from afzal import runs

REWARD = """
def letters(prompt, answer):
    return sum(c.isalpha() for c in answer) - sum(c.isdigit() for c in answer)

def faulty(prompt, answer):
    raise ValueError("no reward today")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model, a reward model, pairs whose prompts are used, and rewards."""
    path = tmp_path_factory.mktemp("ranks")
    model_folder(path / "model")
    scorer = AutoModelForSequenceClassification.from_pretrained(path / "model", num_labels=1)
    scorer.save_pretrained(path / "scorer")
    AutoTokenizer.from_pretrained(path / "model").save_pretrained(path / "scorer")
    pair_file(path / "pairs.jsonl", 24)
    (path / "rewards.py").write_text(REWARD)
    shutil.copytree(path / "scorer", path / "judge-scorer")
    for width, name in ((16, "judge-policy"), (48, "judge-reference")):
        model_folder(path / name, hidden_size=width)
    named = {"policy": path / "judge-policy", "reference": path / "judge-reference"}
    (path / "judge.yaml").write_text(f"kind: reward\nmodel: {path / 'judge-scorer'}\n")
    (path / "policy.yaml").write_text(
        "kind: policy\nmodel: {policy}\nreference: {reference}\nbeta: 2.0\n".format(**named)
    )
    return path


def command(folder: Path, out: Path, **changed: Any) -> list[str]:
    """Two rounds of two updates. 10 prompts per round, 5 held out and 4 answers each give ranks unequal shares."""
    given = {"model": folder / "model", "prompts": folder / "pairs.jsonl", "reward": f"{folder / 'rewards.py'}:letters"}
    given |= {"out": out, "n": 4, "max_new_tokens": 6, "max_tokens": 64, "require_eos": False, "held_out": 5}
    given |= {
        "held_out_samples": 2,
        "rounds": 2,
        "batch_size": 4,
        "lr": 1e-3,
        "adam_eps": 1e-4,
        "max_steps": 2,
        "eval_fraction": 0,
    }
    given |= {"device": "cpu", "tokens_per_forward": 130, **changed}
    file = out.parent / f"{out.name}.yaml"
    file.write_text(json.dumps({key: str(v) if isinstance(v, Path) else v for key, v in given.items()}))
    return ["iterate", str(file)]


def alone(arguments: list[str]) -> int:
    return finished(start_command(arguments), 300)


def assert_same(one: Path, several: Path, numbers: int = 2) -> None:
    """Check that answers and pairs are the same, and scores, KLs and weights up to rounding.

    An answer's KL sums differences of log-probs over six tokens; at about 4 nats, float32 keeps 5e-7.
    """
    for number in range(numbers + 1):
        a, b = (path / "rounds" / f"{number:03d}" for path in (one, several))
        for name in ("samples.jsonl", "measured.jsonl", "scores.jsonl") if number else ("measured.jsonl",):
            for mine, theirs in zip(lines(a / name), lines(b / name), strict=True):
                assert mine.keys() == theirs.keys()
                for key, value in mine.items():
                    rounding = 5e-6 if key == "kl" else 1e-6
                    close = pytest.approx(value, rel=1e-5, abs=rounding) if isinstance(value, float) else value
                    assert theirs[key] == close, (number, name, key)
        if number:
            chosen = [[row["id"], row["responses"]] for row in lines(a / "pairs.jsonl")]
            assert chosen == [[row["id"], row["responses"]] for row in lines(b / "pairs.jsonl")]
            assert (a / "rejected.jsonl").read_bytes() == (b / "rejected.jsonl").read_bytes()
            weights, others = (load_file(*(path / "run").glob("*model.safetensors")) for path in (a, b))
            assert max(float(abs(weights[name] - others[name]).max()) for name in weights) <= 1e-6
    best = [json.loads((path / "rounds.json").read_text())["best"] for path in (one, several)]
    assert best[0] == best[1]


def bits(out: Path) -> dict[str, bytes]:
    """Every byte that must not depend on interruptions."""
    names = ("rounds.json", "rounds.csv", "samples.jsonl", "dropped.jsonl")
    paths = [*out.glob("rounds/*/*.jsonl"), *out.glob("rounds/*/run/model.safetensors"), *(out / n for n in names)]
    return {str(p.relative_to(out)): p.read_bytes() for p in paths}


def test_rounds_of_two_ranks_are_those_of_one_process(folder, tmp_path):
    """The reward is a function that rank 0 calls; both ranks run the watching model."""
    watched = {"watch_reward": folder / "scorer"}
    assert alone(command(folder, tmp_path / "one", **watched)) == 0
    assert run_ranks(command(folder, tmp_path / "two", **watched), 2) == [0, 0]
    assert_same(tmp_path / "one", tmp_path / "two")
    facts = [runs.open_run(tmp_path / name / "rounds" / "002" / "run").facts() for name in ("one", "two")]
    assert [told["runtime"]["ranks"] for told in facts] == [1, 2]
    assert runs.open_run(tmp_path / "two").facts()["status"] == "finished"
    assert (tmp_path / "two" / "report.html").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "way",
    [
        {"reward": "scorer", "cost": "letters", "cost_bound": 1.0, "accumulate": True},
        {"reward": "judge.yaml", "watch_reward": "policy.yaml", "rounds": 1},
        {"reference": "previous", "pairing": "rso", "rso_accepted": 3},
        {"lora_rank": 4},
        {"pairing": "spin", "reward": None},
        {"n": 2, "held_out": 2, "preset": "online", "rounds": 3},
    ],
    ids=lambda way: "-".join(map(str, way)),
)
def test_three_ranks_are_one_in_other_ways(folder, tmp_path, way):
    way = dict(way)
    if way.get("reward") == "scorer":
        way |= {"reward": folder / "scorer", "cost": f"{folder / 'rewards.py'}:letters"}
    if way.get("reward") == "judge.yaml":
        way |= {name: folder / way[name] for name in ("reward", "watch_reward")}
    assert alone(command(folder, tmp_path / "one", **way)) == 0
    assert run_ranks(command(folder, tmp_path / "three", **way), 3) == [0, 0, 0]
    assert_same(tmp_path / "one", tmp_path / "three", way.get("rounds", 2))


@pytest.mark.slow
@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_each_rank_reads_its_shards_of_what_judges_the_answers(folder, tmp_path, tensor_parallel):
    """A reward model named directly, and one and a policy with its reference named by judges."""
    judges = {"reward": folder / "scorer", "watch_reward": folder / "policy.yaml", "cost": folder / "judge.yaml"}
    more = {"cost_bound": 1.0, "rounds": 1, "n": 2, "max_steps": 1, "held_out": 2, "tensor_parallel": tensor_parallel}
    models = [folder / name for name in ("scorer", "judge-scorer", "judge-policy", "judge-reference")]
    codes, read = run_in_shards(command(folder, tmp_path / "two", **judges, **more), 2)
    assert codes == [0, 0]
    for model in models:
        assert_read_once(model, read)
    start = [counts[str(folder / "model")] for counts in read]
    assert max(start) <= 0.6 * sum(start)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "way"),
    [
        (2, {"lora_rank": 4}),
        (4, {"rounds": 1}),
        (4, {"rounds": 1, "held_out": 1, "held_out_samples": 1, "prompts_per_round": 1}),
    ],
    ids=str,
)
def test_groups_of_ranks_that_share_every_matrix_are_one_process(folder, tmp_path, n, way):
    """With one held-out prompt, one of two groups has no answer whose KL it would measure."""
    if not (folder / "even").exists():  # the vocabulary is cut too
        model_folder(folder / "even", vocab_size=264)
    way = way | {"model": folder / "even"}
    assert alone(command(folder, tmp_path / "one", **way)) == 0
    assert run_ranks(command(folder, tmp_path / "several", **way, tensor_parallel=2), n) == [0] * n
    assert_same(tmp_path / "one", tmp_path / "several", way.get("rounds", 2))


def test_ranks_wait_for_people_and_continue(folder, tmp_path):
    arguments = command(folder, tmp_path / "run", reward="people", rounds=1)
    assert run_ranks(arguments, 2) == [0, 0]
    assert runs.open_run(tmp_path / "run").facts()["status"] == "waiting"
    first = tmp_path / "run" / "rounds" / "001"
    asked = lines(first / "to_label.jsonl")
    vote = {"vote": "comparison", "first": 0, "second": 1, "outcome": "first", "annotator": "ann"}
    labelled = [row | {"votes": [vote]} for row in asked]
    (first / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in labelled))
    assert run_ranks([*arguments, "--resume"], 2) == [0, 0]
    assert runs.open_run(tmp_path / "run").facts()["status"] == "finished"
    assert (first / "run" / "model.safetensors").exists()


def test_what_fails_on_rank_0_ends_all_and_is_written_down(folder, tmp_path):
    changed = {"reward": f"{folder / 'rewards.py'}:faulty"}
    codes = run_ranks(command(folder, tmp_path / "run", **changed), 2)
    assert codes[0] == 2
    facts = runs.open_run(tmp_path / "run").facts()
    assert facts["status"] == "failed"
    assert "no reward today" in facts["stop_reason"]


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("stage", ["measured.jsonl", "samples.jsonl", "pairs.jsonl", "run/checkpoints"])
def test_ranks_that_are_killed_and_started_again_end_with_the_same_bits(folder, tmp_path, rank, stage):
    """Restarted under the same launch name, they resume without --resume."""
    kept = {"save_every_steps": 1}
    if not (folder / "whole").exists():
        assert run_ranks(command(folder, folder / "whole", **kept), 2) == [0, 0]
    arguments = command(folder, tmp_path / "run", **kept)
    started = start_ranks(arguments, 2, TORCHELASTIC_RUN_ID="rounds-1")
    number = "000" if stage == "measured.jsonl" else "001"
    while not (tmp_path / "run" / "rounds" / number / stage).exists():
        assert all(process.is_alive() for process in started)
        time.sleep(0.001)
    os.kill(started[rank].pid, signal.SIGKILL)
    assert finished(started[rank], 300) == -signal.SIGKILL
    if (other := started[1 - rank]).is_alive():
        os.kill(other.pid, signal.SIGKILL)  # as torchrun would
    finished(other, 300)
    assert run_ranks(arguments, 2, TORCHELASTIC_RUN_ID="rounds-1") == [0, 0]
    assert bits(tmp_path / "run") == bits(folder / "whole")


def test_a_run_of_another_launch_is_not_resumed_unasked(folder, tmp_path):
    arguments = command(folder, tmp_path / "run", rounds=1)
    assert run_ranks(arguments, 2, TORCHELASTIC_RUN_ID="rounds-1") == [0, 0]
    before = bits(tmp_path / "run")
    assert run_ranks(arguments, 2, TORCHELASTIC_RUN_ID="rounds-2") == [2, 2]
    assert bits(tmp_path / "run") == before
