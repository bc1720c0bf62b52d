"""A start model of the enumerable language, noisy pairs of its answers, and held-out prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from afzal import config, recipes
from afzal.lab import language

TRAIN, HELD_OUT = language.prompts()
PROMPTS = HELD_OUT[:8]


@pytest.fixture(scope="session")
def place(tmp_path_factory) -> Path:
    root, rng = tmp_path_factory.mktemp("sweep"), np.random.default_rng(0)
    data = language.write_demonstrations(language.sft_items(TRAIN, 3000, rng), root / "sft.jsonl")
    settings = {**language.SETTINGS, "device": "cpu", "eval_fraction": 0.0, "batch_size": 128, "lr": 3e-3}
    start = str(language.save_model(root / "start"))
    recipes.train(
        config.make("sft", model=start, data=str(data), out=str(root / "sft"), epochs=3, max_steps=40, **settings)
    )
    for name, prompts, n in (("pairs", TRAIN, 600), ("held-out", HELD_OUT, 60)):
        which, first, second = language.sample_pairs(language.sft_policy(prompts), n, rng)
        rewards = language.reward(prompts)
        votes = language.noisy(rewards[which, first] - rewards[which, second], rng)
        language.write_pairs(language.pair_items(prompts, (which, first, second), votes), root / f"{name}.jsonl")
    rows = [i for x in PROMPTS for i in language.sft_items(x[None], 1, rng)]
    language.write_demonstrations(rows, root / "prompts.jsonl")
    return root


@pytest.fixture(scope="session")
def settings_of(place):
    """Settings of a small sweep: two values of beta and two of lr, one seed, short trainings."""

    def make(out: Path, base: dict[str, Any] | None = None, **changes: Any) -> config.SweepConfig:
        shared = {key: language.SETTINGS[key] for key in ("eos_token", "max_tokens", "clean")}
        training = {
            "method": "dpo",
            "model": str(place / "sft"),
            "data": str(place / "pairs.jsonl"),
            "eval_fraction": 0.0,
            "device": "cpu",
            "batch_size": 64,
            "lr": 1e-3,
            "lr_schedule": "constant",
            "warmup": 1,
            **shared,
            **(base or {}),
        }
        values = {
            "base": training,
            "space": {"beta": [0.1, 0.5], "lr": [1e-3, 2e-3]},
            "search": "grid",
            "prompts": str(place / "prompts.jsonl"),
            "rewards": {"gold": "afzal.lab.language:gold"},
            "goal": {"maximize": "reward", "within": {"kl": 1.0}},
            "seeds": [0],
            "examples": 256,
            "samples": 8,
            "sample_tokens": language.MAX_LENGTH,
            "snapshots": 2,
            "confirm": 0,
            "out": str(out),
            **changes,
        }
        return config.build(config.SweepConfig, [config.Setting(k, v) for k, v in values.items()])

    return make


@pytest.fixture
def settings(settings_of):
    """The same, for a single test."""
    return settings_of
