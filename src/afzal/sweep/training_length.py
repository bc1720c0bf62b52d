"""Equal numbers of examples for every arm, whatever its batch size, and a sweep's trainings as a comparison."""

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
from afzal.recipes import max_steps_note
from afzal.sweep.arms import BASE_NAME, Arm, Plan, resolved, settings_of

CHARACTERS = "characters"


@dataclass(frozen=True, slots=True)
class Length:
    """An arm's training length: updates, examples and tokens seen, and number of items."""

    steps: int
    examples: int
    tokens: int
    items: int


def characters(prompt: str, answer: str) -> float:
    """Answer length in characters, which is measured if a sweep names no reward."""
    return float(len(answer))


def training_lengths(config: SweepConfig, plan: Plan, arms: Sequence[Arm]) -> dict[str, Length]:
    """Each arm's training length by name: as many examples as ``examples`` says, to within one update."""
    items, tokens = _size_of(plan, Arm(BASE_NAME, {}), config.seeds[0])
    target = config.examples or _examples_of(plan.base, items)
    length_of = {}
    for arm in arms:
        n, tokens_per_item = (items, tokens) if not _reads_differently(arm) else _size_of(plan, arm, config.seeds[0])
        batch = resolved(plan, arm).batch_size
        steps = updates_for(target, n, batch)
        examples = examples_in(steps, n, batch)
        length_of[arm.name] = Length(steps, examples, round(examples * tokens_per_item), n)
    return length_of


def updates_for(examples: int, items: int, batch_size: int) -> int:
    """The number of updates (at least 1) whose examples are closest to ``examples``; the smaller of two as close."""
    epochs, remainder = divmod(examples, items)
    below = epochs * math.ceil(items / batch_size) + remainder // batch_size
    return min((max(1, below), below + 1), key=lambda n: abs(examples_in(n, items, batch_size) - examples))


def examples_in(steps: int, items: int, batch_size: int) -> int:
    """The number of examples that ``steps`` updates see."""
    epochs, remainder = divmod(steps, math.ceil(items / batch_size))
    return epochs * items + remainder * batch_size


def _examples_of(base: TrainConfig, items: int) -> int:
    """The number of examples that base alone would see."""
    return examples_in(_steps_of(base, items), items, base.batch_size)


def _steps_of(base: TrainConfig, items: int) -> int:
    """The number of updates of base alone."""
    steps = max(1, round(base.epochs * math.ceil(items / base.batch_size)))
    return min(steps, base.max_steps or steps)


def end_notes(config: SweepConfig, plan: Plan) -> list[str]:
    """What does not decide where the arms end, although base states it: ``max_steps`` beyond its epochs, or next to
    ``examples``."""
    base = plan.base
    if config.examples is not None:
        return [f"no effect: max_steps of base, since examples={config.examples} decides"] if base.max_steps else []
    items, _ = _size_of(plan, Arm(BASE_NAME, {}), config.seeds[0])
    note = max_steps_note(base, _steps_of(base, items), math.ceil(items / base.batch_size))
    return [f"base: {note}"] if note else []


def _reads_differently(arm: Arm) -> bool:
    """Whether an arm can have a different number or length of training items than base."""
    keys = {"method", *DataSettings.model_fields, *ObjectiveSettings.model_fields} - {"objective_arg"}
    return bool(keys & arm.values.keys())


def _size_of(plan: Plan, arm: Arm, seed: int) -> tuple[int, float]:
    """The number of training items, and tokens per item."""
    return _count_items(resolved(plan, arm, seed=seed).model_dump_json())


@lru_cache(maxsize=64)
def _count_items(settings: str) -> tuple[int, float]:
    values = json.loads(settings)
    trees = prepare(CONFIGS[values["method"]].model_validate(values)).train
    return len(trees), sum(t.n_tokens for t in trees) / len(trees)


def comparison_config(
    config: SweepConfig, plan: Plan, arms: Sequence[Arm], lengths: Mapping[str, Length], seeds: Sequence[int]
) -> CompareConfig:
    """The arms as methods of a comparison, which trains and measures them."""
    first = plan.base
    values: dict[str, Any] = {
        "model": first.model,
        "prompts": config.prompts or first.eval_data,
        "rewards": config.rewards or {CHARACTERS: "afzal.sweep.training_length:characters"},
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
    # one epoch more than needed: splits with other seeds may have a few items fewer, and max_steps ends all alike
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
    """The settings that make all arms share the reference's log-probs, computed once.

    Empty if an arm has no reference, moves it, needs its full distributions, or configures it itself.
    """
    caching = arm.cacheable
    if (
        caching is None
        or caching.reference != "frozen"
        or caching.reference_sync_steps
        or caching.offload
        or caching.quantize
    ):
        return {}
    recipe = recipe_of(arm)
    if not recipe.needs_reference or any(term.objective.needs_live_reference for term in recipe.terms):
        return {}
    return {"reference": "cached", "reference_cache": f"{config.out}/reference"}
