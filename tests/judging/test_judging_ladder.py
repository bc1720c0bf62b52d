"""The ladder of docs/debate.md, as its page has it: the commands are read off the page and run, level by level."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers_runs import one_thread

from afzal import data
from afzal.cli import main
from afzal.lab import language

PAGE = Path(__file__).resolve().parents[2] / "docs" / "debate.md"

JUDGE = '''
import hashlib, math, re
from functools import cache

import numpy as np

from afzal.lab import evidence, language
from afzal.rewards.source import reward_source


def decide(prompt, first, second, transcript):
    """Two of four positions, the same in both orders, and what the assistant says, if it says anything."""
    digits = np.array([[int(c) for c in prompt[:3]]])
    a, b = (np.array([language.response_index(text)]) for text in (first, second))
    worth = evidence.positions(digits, (np.array([0]), a, b))[0]
    drawn = hashlib.sha256((prompt + min(first, second) + max(first, second)).encode()).digest()
    coin = 1e-3 * (1 if drawn[0] % 2 else -1) * (1 if first < second else -1)
    seen = worth[np.random.default_rng(list(drawn)).permutation(4)[:2]].sum() + coin
    said = re.search(r"better by (-?[0-9.]+)", transcript)
    return 1 / (1 + math.exp(-4 * (seen + (float(said.group(1)) if said else 0.0))))


@cache
def scorer(level):
    return reward_source(f"runs/reward{level}", max_tokens=8, eos_token=".")


def answered(level, sign, prompt, own, other):
    one, two = scorer(level)([prompt, prompt], [own, other])
    return f"The first is better by {sign * (one - two):.3f}"


def silent(prompt, own, other, side, transcript):
    return "I have nothing to say."


def honest0(prompt, own, other, side, transcript):
    return answered(0, 1, prompt, own, other)


def honest1(prompt, own, other, side, transcript):
    return answered(1, 1, prompt, own, other)


def lying0(prompt, own, other, side, transcript):
    return answered(0, -1, prompt, own, other)
'''
ASSISTANTS = {"level0": "silent", "level1": "honest0", "level2": "honest1", "lying1": "lying0"}


def commands() -> list[list[str]]:
    """The lines of the page's block on the ladder."""
    ladder = PAGE.read_text("utf-8").partition("## The ladder")[2].partition("\n## ")[0]
    (block,) = re.findall(r"```bash\n(.*?)```", ladder, re.DOTALL)
    return [shlex.split(line)[1:] for line in block.splitlines()]


def pairs(prompts: np.ndarray, n: int, seed: int, path: Path, *, voted: bool) -> None:
    """Pairs of the language whose rewards differ; with the right vote, or without one."""
    drawn = language.sample_pairs(language.sft_policy(prompts), n, np.random.default_rng(seed))
    rewards = language.reward(prompts)
    gaps = rewards[drawn[0], drawn[1]] - rewards[drawn[0], drawn[2]]
    kept = gaps != 0
    parts = (drawn[0][kept], drawn[1][kept], drawn[2][kept])
    rows = language.pair_items(prompts, parts, (gaps[kept] > 0).astype(float))
    data.write(rows if voted else [replace(item, votes=()) for item in rows], path, "afzal")


@pytest.mark.slow
def test_the_commands_of_the_page_climb_two_levels_and_catch_an_assistant_that_lies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("ladder.py").write_text(JUDGE)
    for name, assistant in ASSISTANTS.items():
        judge = {"kind": "function", "function": "ladder.py:decide"}
        about = {
            "kind": "assisted",
            "judge": judge,
            "assistant": {"kind": "function", "function": f"ladder.py:{assistant}"},
        }
        Path(f"{name}.yaml").write_text(json.dumps(about))
    train, held_out = language.prompts()
    pairs(train, 1000, 1, Path("pairs.jsonl"), voted=False)
    pairs(held_out, 400, 2, Path("held-out.jsonl"), voted=True)
    language.save_model(Path("base"))
    more = ["--eos-token", ".", "--max-tokens", "8", "--max-steps", "80", "--batch-size", "64", "--epochs", "9"]
    more += ["--lr", "1e-3", "--eval-fraction", "0", "--device", "cpu", "clean=false"]
    for line in commands():
        with one_thread():
            assert main(line + (more if line[0] == "train" else ["--resamples", "200"])) == 0
    found = {name: json.loads(Path(name, "summary.json").read_text()) for name in ("right1", "lying1", "right2")}
    beside = {name: summary["controls"]["alone"]["difference"] for name, (summary,) in found.items()}
    assert beside["right1"]["value"] > 0  # the reward model of the level below knows what two positions do not show
    assert beside["right2"]["low"] > 0
    assert beside["lying1"]["high"] < 0  # and the control shows who lies
    for level in (0, 1):
        assert (tmp_path / "runs" / f"policy{level}" / "model.safetensors").exists()
