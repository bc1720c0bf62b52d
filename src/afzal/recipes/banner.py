"""The lines that a run prints before training: starting point, model, data and drops, amount of work."""

from __future__ import annotations

import math
from collections.abc import Sequence

from afzal import drops, runs
from afzal.config import TrainConfig, advice
from afzal.health.pace import pace_note
from afzal.prepare import Prepared, prepare
from afzal.recipes import meta_learning, online
from afzal.recipes.setup import Setup, steps_of
from afzal.text import plural
from afzal.train import ranks
from afzal.train.feed import Layout, Updates
from afzal.train.loop import State


def plan(config: TrainConfig) -> list[str]:
    """Describe a run from the data alone: rows kept and dropped, updates, tokens. Loads no model."""
    prepared = prepare(config)
    if config.rollouts is not None:
        feed = online.planned(config.rollouts, prepared)
    else:
        feed = meta_learning.planned(config, prepared, Layout("shared", config.pass_tokens))
    notes = [f"note: {note}" for note in (*advice(config), _ends_before(config, feed)) if note]
    return [*_data_lines(config, prepared, steps_of(config, feed)), *notes]


def banner(
    config: TrainConfig, run: runs.Run, setup: Setup, prepared: Prepared, start_lines: Sequence[str]
) -> list[str]:
    """Lines printed before the first update; ``start_lines`` is last."""
    model, reference = run.facts()["model"], setup.reference
    several = f", sharded over {ranks.world()} ranks" if ranks.world() > 1 else ""
    several += f", of which {ranks.tensor()} share every matrix" if ranks.tensor() > 1 else ""
    counts = f"{model['trainable']:,} of {model['parameters']:,} weights train"
    notes = [*advice(config, model["parameters"]), _ends_before(config, setup.feed), _pace(setup, model["trainable"])]
    lines = [
        f"{config.method} on {model['architecture']}: {counts}{several}",
        *_data_lines(config, prepared, setup.settings.steps),
        *(f"note: {note}" for note in notes if note),
        f"prompts {setup.feed.layout.sharing}" + (f"; reference: {reference.name}" if reference else ""),
    ]
    lines += setup.notes
    return [*lines, *start_lines]


def resume_line(run: runs.Run, state: State) -> str:
    """A line that says where a resumed run starts."""
    if state.step:
        return f"resuming after step {state.step}"
    before = run.facts().get("step", 0)
    discrepancy = f", although run.json is at step {before}" if before else ""
    return f"no sound checkpoint in {run.checkpoints}{discrepancy}: starting again at step 0"


def _pace(setup: Setup, weights: int) -> str:
    return pace_note(setup.settings.steps, setup.settings.lr_at, weights)


def _data_lines(config: TrainConfig, prepared: Prepared, steps: int) -> list[str]:
    facts = prepared.facts
    dropped = ", ".join(f"{n} {reason}" for part in ("dropped", "parts", "cut") for reason, n in facts[part].items())
    tokens = sum(t.n_tokens for t in prepared.train)
    work = f"{plural(steps, 'update')} of {plural(config.batch_size, 'item')}, {tokens:,} tokens per epoch"
    if config.rollouts is not None:
        work = online.plan_line(config.rollouts, steps)
    if config.adaptation is not None:
        work = meta_learning.plan_line(config, config.adaptation, prepared, steps)
    return [
        f"data: {plural(facts['rows'], 'row')} as {facts['format']}, {plural(facts['train'], 'item')} to train on, "
        f"{facts['eval']:,} held out" + (f" ({dropped}; see {drops.FILE})" if dropped else ""),
        work,
        *(f"note: {note}" for note in prepared.notes),
    ]


def _ends_before(config: TrainConfig, feed: Updates) -> str:
    return max_steps_note(config, steps_of(config, feed), feed.updates_per_epoch)


def max_steps_note(config: TrainConfig, steps: int, updates_per_epoch: float) -> str:
    """A note if the epochs or iterations end before ``max_steps``, which only limits updates and never adds any.

    Args:
        steps: number of updates of the run.
    """
    if config.max_steps is None or steps >= config.max_steps:
        return ""
    online_settings = config.rollouts
    if online_settings is not None and online_settings.iterations is not None:
        passes, updates = (
            f"iterations={online_settings.iterations}",
            online_settings.ppo_epochs * online_settings.minibatches,
        )
        remedy = f"iterations={math.ceil(config.max_steps / updates)}"
    else:
        passes = f"epochs={config.epochs:g}"
        remedy = f"epochs={math.ceil(config.max_steps / updates_per_epoch)}"
    reason = f"{passes} ends after {plural(steps, 'update')}; {remedy} does not"
    return f"max_steps {config.max_steps:,} is not reached: {reason}"
