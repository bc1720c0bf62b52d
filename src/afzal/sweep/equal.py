"""Equal examples for every arm, whatever its batch size, and the trainings of a sweep as entries of a comparison."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from afzal.config import (
    CONFIGS,
    CompareConfig,
    DataSettings,
    ObjectiveSettings,
    Setting,
    SweepConfig,
    TrainConfig,
    build,
)
from afzal.prepare import prepare, recipe_of
from afzal.sweep.arms import BASE_NAME, Arm, Plan, resolved, settings_of

CHARACTERS = "characters"


@dataclass(frozen=True, slots=True)
class Length:
    """How long an arm is trained: updates, the examples and tokens that they see, and the items that there are."""

    steps: int
    examples: int
    tokens: int
    items: int


def characters(prompt: str, answer: str) -> float:
    """How long an answer is: what is measured beside KL where a sweep names no reward."""
    return float(len(answer))


def lengths(config: SweepConfig, plan: Plan, arms: Sequence[Arm]) -> dict[str, Length]:
    """How long each arm is trained, by its name: as many examples as ``examples`` says, to less than an update."""
    items, tokens = _size_of(plan, Arm(BASE_NAME, {}), config.seeds[0])
    wanted = config.examples or _examples_of(plan.base, items)
    found = {}
    for arm in arms:
        n, each = (items, tokens) if not _reads_otherwise(arm) else _size_of(plan, arm, config.seeds[0])
        batch = resolved(plan, arm).batch_size
        steps = updates_for(wanted, n, batch)
        seen = examples_in(steps, n, batch)
        found[arm.name] = Length(steps, seen, round(seen * each), n)
    return found


def updates_for(examples: int, items: int, batch_size: int) -> int:
    """The number of updates that see nearest to so many examples, at least 1; of two as near, the fewer."""
    epochs, rest = divmod(examples, items)
    below = epochs * math.ceil(items / batch_size) + rest // batch_size
    return min((max(1, below), below + 1), key=lambda n: abs(examples_in(n, items, batch_size) - examples))


def examples_in(steps: int, items: int, batch_size: int) -> int:
    """The examples that so many updates see."""
    epochs, rest = divmod(steps, math.ceil(items / batch_size))
    return epochs * items + rest * batch_size


def _examples_of(base: TrainConfig, items: int) -> int:
    """What base would see by itself."""
    steps = max(1, round(base.epochs * math.ceil(items / base.batch_size)))
    return examples_in(min(steps, base.max_steps or steps), items, base.batch_size)


def _reads_otherwise(arm: Arm) -> bool:
    """Whether an arm may have another number of training items, or longer ones, than base."""
    keys = {"method", *DataSettings.model_fields, *ObjectiveSettings.model_fields} - {"objective_arg"}
    return bool(keys & arm.values.keys())


def _size_of(plan: Plan, arm: Arm, seed: int) -> tuple[int, float]:
    """Items to train on, and tokens of each."""
    return _counted(resolved(plan, arm, seed=seed).model_dump_json())


@lru_cache(maxsize=64)
def _counted(settings: str) -> tuple[int, float]:
    values = json.loads(settings)
    trees = prepare(CONFIGS[values["method"]].model_validate(values)).train
    return len(trees), sum(t.n_tokens for t in trees) / len(trees)


def comparison(
    config: SweepConfig, plan: Plan, arms: Sequence[Arm], lengths: Mapping[str, Length], seeds: Sequence[int]
) -> CompareConfig:
    """The arms as methods of a comparison, whose machinery trains and measures them."""
    first = plan.base
    values: dict[str, Any] = {
        "model": first.model,
        "prompts": config.prompts or first.eval_data,
        "rewards": config.rewards or {CHARACTERS: "afzal.sweep.equal:characters"},
        "methods": [_entry(config, plan, arm, lengths[arm.name]) for arm in arms],
        "max_tokens": first.max_tokens,
        "eos_token": first.eos_token,
        "device": first.device,
        **{key: getattr(config, key) for key in ("max_prompts", "samples", "sample_tokens", "temperature")},
        **{key: getattr(config, key) for key in ("snapshots", "rows_per_batch", "out")},
        "seeds": list(seeds),
    }
    return build(CompareConfig, [Setting(k, v) for k, v in values.items() if v is not None])


def _entry(config: SweepConfig, plan: Plan, arm: Arm, length: Length) -> dict[str, Any]:
    settings = {k: v for k, v in settings_of(plan, arm).items() if v is not None}
    method = settings.pop("method")
    # one epoch more than it takes: splits by other seeds may have a few items less, and max_steps ends all alike
    settings |= {"max_steps": length.steps, "epochs": float(math.ceil(length.examples / length.items) + 1)}
    if config.maximized == "accuracy":  # an evaluation at each snapshot
        settings["eval_every_steps"] = -(-length.steps // config.snapshots)
    return {
        "name": arm.name,
        "label": arm.label,
        "train": method,
        **settings,
        **_shared_reference(config, resolved(plan, arm)),
    }


def _shared_reference(config: SweepConfig, arm: TrainConfig) -> dict[str, str]:
    """The settings by which all arms read the same log-probs of the reference, computed once.

    Nothing where an arm has no reference, moves it, asks for its whole distributions, or says itself where it is.
    """
    asked = arm.cacheable
    if asked is None or asked.reference != "frozen" or asked.reference_sync_steps or asked.offload or asked.quantize:
        return {}
    recipe = recipe_of(arm)
    if not recipe.needs_reference or any(term.objective.needs_live_reference for term in recipe.terms):
        return {}
    return {"reference": "cached", "reference_cache": f"{config.out}/reference"}
