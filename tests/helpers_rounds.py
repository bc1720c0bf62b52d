"""A small run of ``afzal iterate``: two rounds of two updates each, about two seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from helpers_runs import one_thread

from afzal import config, runs
from afzal.config import IterateConfig, Setting
from afzal.iterate import iterate


def settings(folder: Path, out: Path, **overrides: Any) -> IterateConfig:
    """Settings of rounds of ``folder/model`` on ``folder/pairs.jsonl``, judged by the reward ``letters``."""
    small: dict[str, Any] = {"n": 4, "max_new_tokens": 6, "max_tokens": 64, "require_eos": False, "held_out": 4}
    small |= {"held_out_samples": 2, "rounds": 2, "batch_size": 4, "lr": 1e-3, "max_steps": 2, "eval_fraction": 0.0}
    base = {"model": str(folder / "model"), "prompts": str(folder / "pairs.jsonl"), "out": str(out)}
    given = base | {"reward": f"{folder / 'rewards.py'}:letters", "device": "cpu"} | small | overrides
    return config.build(IterateConfig, [Setting(k, v) for k, v in given.items()])


def run(folder: Path, out: Path, *, resume: bool = False, **overrides: Any) -> Path:
    """Run the rounds; return their folder."""
    with one_thread():
        return iterate(settings(folder, out, **overrides), resume=resume)


def lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of the rounds."""
    return list(runs.read_jsonl(path))
