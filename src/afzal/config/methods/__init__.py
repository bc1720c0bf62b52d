"""The table of training methods, one file each. A new method adds its file and its line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..method import Method
from ..training import TrainConfig
from . import dpo, grpo, ipo, irl, kto, meta, ppo, prefer, reinforce, reward, rloo, sft

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        sft.METHOD,
        dpo.METHOD,
        ipo.METHOD,
        kto.METHOD,
        prefer.METHOD,
        meta.METHOD,
        reward.METHOD,
        irl.METHOD,
        ppo.METHOD,
        rloo.METHOD,
        grpo.METHOD,
        reinforce.METHOD,
    )
}
CONFIGS: dict[str, type[TrainConfig]] = {name: method.settings for name, method in METHODS.items()}


def method_in(facts: Mapping[str, Any]) -> Method | None:
    """The method of a run's facts (``run.json``); None if they name no known method."""
    return METHODS.get(str(facts.get("method") or ""))
