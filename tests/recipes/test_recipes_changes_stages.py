"""Changes under resumed rounds and under a repeated comparison: refused by name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers_runs import one_thread, pair_file
from test_recipes_changes import CODE, SPACE, edited, kept, lines, model_folder, one_number, setting

from afzal import config, runs
from afzal.compare import compare as run_comparison
from afzal.config import IterateConfig, Setting
from afzal.errors import AfzalError
from afzal.iterate import iterate as run_rounds


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A model, prompts, code of a reward; a run of one round, and a comparison of one training."""
    path = tmp_path_factory.mktemp("stages") / "world"
    path.mkdir()
    for name in ("model", "judge"):
        model_folder(path / name)
    pair_file(path / "pairs.jsonl", 16)
    pair_file(path / "held.jsonl", 6)
    for name, text in CODE.items():
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text(text)
    iterate(path)
    compare(path)
    return path


def iterate(world: Path, *, resume: bool = False) -> Path:
    given: dict[str, Any] = {"n": 3, "max_new_tokens": 4, "max_tokens": 64, "require_eos": False, "held_out_samples": 1}
    given |= {"rounds": 1, "batch_size": 4, "lr": 1e-3, "max_steps": 1, "eval_fraction": 0.0, "device": "cpu"}
    given |= {"model": f"{world}/model", "prompts": f"{world}/pairs.jsonl", "held_out_prompts": f"{world}/held.jsonl"}
    given |= {"reward": f"{world}/rewards.py:letters", "out": f"{world}/rounds"}
    with one_thread():
        made = config.build(IterateConfig, [Setting(k, v) for k, v in given.items()])
        return run_rounds(made, resume=resume)


def compare(world: Path) -> list[str]:
    """Run the comparison; returns its messages."""
    given = {
        "model": f"{world}/model",
        "data": f"{world}/pairs.jsonl",
        "prompts": f"{world}/held.jsonl",
        "rewards": {"gold": f"{world}/rewards.py:letters"},
        "methods": [{"name": "rloo", "train": "rloo", "reward": f"{world}/rewards.py:letters", "iterations": 1}],
        "common": {"n": 2, "batch_size": 4, "sample_tokens": 3, "eval_fraction": 0.0, "sample_prompts": 0},
        "seeds": [0],
        "samples": 2,
        "sample_tokens": 3,
        "snapshots": 1,
        "resamples": 100,
        "device": "cpu",
        "out": f"{world}/compared",
    }
    said: list[str] = []
    with one_thread():
        run_comparison(config.build(config.CompareConfig, [Setting(k, v) for k, v in given.items()]), say=said.append)
    return said


CHANGES = [
    ("the model", one_number("model/model.safetensors"), "model: model.safetensors has changed", "model"),
    ("rope_theta", edited("model/config.json", '"rope_theta": 10000.0', '"rope_theta": 2.0'), "model: config", "model"),
    ("the tokenizer", edited("model/tokenizer.json", *SPACE), "model: tokenizer.json has", "model"),
    ("a generation config", setting("model/generation_config.json", "eos_token_id", 3), "model: generation", "model"),
    ("the reward's file", edited("rewards.py", "weigh(answer)", "-weigh(answer)"), "reward: its file has", "reward"),
    ("what it imports", edited("helper.py", "1.0", "2.0"), "reward: helper.py has changed", "reward"),
    ("what that imports", edited("deeper/late.py", "0.5", "5.0"), "reward: deeper/late.py has changed", "reward"),
    ("the prompts", lines(lambda rows: rows[1:]), "prompts: the content of the file has changed", "data"),
]


@pytest.mark.parametrize(("change", "named"), [pytest.param(c[1], c[2], id=c[0]) for c in CHANGES])
def test_rounds_that_are_resumed_refuse_it_by_name(world, change, named):
    with kept(world):
        change(world)
        with pytest.raises(AfzalError, match=f"(?s)cannot be resumed with other settings.*{named}"):
            iterate(world, resume=True)


def test_held_out_prompts_of_rounds_are_compared_too(world):
    with kept(world):
        lines(lambda rows: rows[1:], "held.jsonl")(world)
        with pytest.raises(AfzalError, match="held_out_prompts: the content of its file has changed"):
            iterate(world, resume=True)


@pytest.mark.parametrize(("change", "key"), [pytest.param(c[1], c[3], id=c[0]) for c in CHANGES])
def test_a_comparison_that_is_called_again_refuses_it_by_name(world, change, key):
    with kept(world):
        change(world)
        with pytest.raises(AfzalError, match=f"(?s)cannot be reused.*the content of {key} has changed"):
            compare(world)


def test_without_a_change_both_use_what_is_there(world, capsys):
    with kept(world):
        before = {path: path.stat().st_mtime_ns for path in sorted((world / "compared" / "measured").iterdir())}
        assert any("1 of 1 runs reused" in line for line in compare(world))
        assert {path: path.stat().st_mtime_ns for path in before} == before
        samples = (world / "rounds" / "rounds" / "001" / "samples.jsonl").read_bytes()
        iterate(world, resume=True)
        assert (world / "rounds" / "rounds" / "001" / "samples.jsonl").read_bytes() == samples


def test_a_reward_model_of_a_comparison_is_known_by_its_tokenizer_too(world):
    """Answers measured with another tokenizer on the same weights are measured again."""
    from afzal.hashes import content_hash

    before = content_hash(f"{world}/judge")
    with kept(world):
        setting("judge/tokenizer_config.json", "extra", 1)(world)
        assert content_hash(f"{world}/judge") != before
    with kept(world):
        (world / "judge" / "report.json").write_text(json.dumps({}))
        shutil.copyfile(world / "held.jsonl", world / "judge" / "samples.jsonl")
        assert content_hash(f"{world}/judge") == before
    assert runs.open_run(world / "rounds").facts()["files"].keys() == {"model", "reward", "held_out_prompts"}
