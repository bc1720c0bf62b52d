"""The ladder of docs/debate.md, with the page's settings and commands, on the language with known truth."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers_runs import one_thread

from afzal import data
from afzal.cli import main
from afzal.lab import language

PAGE = Path(__file__).resolve().parents[2] / "docs" / "debate.md"

JUDGE = '''
import hashlib, math, re

import numpy as np

from afzal.lab import language, toy_debate


def decide(prompt, first, second, transcript):
    """Two of four positions, the same in both orders, and what the assistant says, if it says anything."""
    digits = np.array([[int(c) for c in prompt[:3]]])
    a, b = (np.array([language.response_index(text)]) for text in (first, second))
    worth = toy_debate.positions(digits, (np.array([0]), a, b))[0]
    drawn = hashlib.sha256((prompt + min(first, second) + max(first, second)).encode()).digest()
    coin = 1e-3 * (1 if drawn[0] % 2 else -1) * (1 if first < second else -1)
    seen = worth[np.random.default_rng(list(drawn)).permutation(4)[:2]].sum() + coin
    said = re.search(r"A less B: (-?[0-9.]+)", transcript)
    return 1 / (1 + math.exp(-4 * (seen + (float(said.group(1)) if said else 0.0))))
'''
TRAINING = {"max_steps": 250, "batch_size": 64, "epochs": 9, "lr": 1e-3, "eval_fraction": 0, "device": "cpu"}


def block(kind: str) -> str:
    """The only block of a kind in the page's section on the ladder."""
    ladder = PAGE.read_text("utf-8").partition("## The ladder")[2].partition("\n## ")[0]
    (text,) = re.findall(rf"```{kind}\n(.*?)```", ladder, re.DOTALL)
    return text


def pairs(prompts: np.ndarray, n: int, seed: int, path: str) -> None:
    """Pairs from the language whose rewards differ, with the correct vote."""
    drawn = language.sample_pairs(language.sft_policy(prompts), n, np.random.default_rng(seed))
    rewards = language.reward(prompts)
    gaps = rewards[drawn[0], drawn[1]] - rewards[drawn[0], drawn[2]]
    parts = (drawn[0][gaps != 0], drawn[1][gaps != 0], drawn[2][gaps != 0])
    data.write(language.pair_items(prompts, parts, (gaps[gaps != 0] > 0).astype(float)), path, "afzal")


@pytest.mark.slow
def test_the_command_of_the_page_climbs_two_levels_and_catches_assistants_that_lie(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("ladder.py").write_text(JUDGE)
    settings: dict[str, Any] = yaml.safe_load(block("yaml"))
    settings["judge"]["judge"] = {"kind": "function", "function": "ladder.py:decide"}
    settings["common"] = TRAINING | {"eos_token": ".", "max_tokens": 8, "clean": False}
    train, held_out = language.prompts()
    pairs(train, 3000, 1, settings["data"])
    pairs(held_out, 1000, 2, settings["eval_data"])
    Path(settings["model"]).parent.mkdir(exist_ok=True)
    language.save_model(Path(settings["model"]))
    Path("ladder.yaml").write_text(yaml.safe_dump(settings))
    first, more = [shlex.split(line)[1:] for line in block("bash").splitlines()]
    with one_thread():
        assert main(first) == 0
    out = Path(settings["out"])
    body = json.loads((out / "ladder.json").read_text())
    gap = {(d["first"], d["second"]): d for d in body["differences"]}
    assert gap["level 1", "the judge alone"]["low"] > 0  # a reward model knows more than two positions show
    assert gap["level 2", "the judge alone"]["low"] > 0
    assert gap["level 2", "level 1"]["high"] > 0  # no level is clearly worse than the one below
    for level in (1, 2):
        assert gap[f"level {level}, lying", "the judge alone"]["high"] < 0  # and the control reveals who lies
    assert body["findings"][0] in capsys.readouterr().out
    before = {p: p.read_bytes() for p in out.glob("level-[012]/*/*") if p.is_file()}
    dry = [*more, "--dry-run"]
    assert main(dry) == 0
    assert (
        capsys.readouterr()
        .out.strip()
        .endswith(
            "level 2: labels there, reward there, policy there, measured there\n"
            "level 3: labels to be made, reward to be made, policy to be made, measured to be made"
        )
    )
    assert before == {p: p.read_bytes() for p in before}
