"""Meta-learning of an adapter over tasks: episodes, their gradient, held-out tasks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from afzal.config import TrainConfig
from afzal.config.adaptation import AdaptationSettings
from afzal.errors import AfzalError
from afzal.prepare import Prepared
from afzal.text import plural
from afzal.train.episodes import Episode, Episodes, EpisodeShape
from afzal.train.feed import Feed, Layout
from afzal.train.meta_learning import MetaLearner, evaluate_adaptation, with_memoized_reference
from afzal.train.method import Method
from afzal.train.precision import Weights
from afzal.train.shard import Sharded
from afzal.train.update import Accumulate

EvaluateHeldOut = Callable[[], dict[str, float]]


def tasks(
    config: TrainConfig,
    settings: AdaptationSettings,
    prepared: Prepared,
    model: Any,
    method: Method,
    weights: Weights | Sharded,
    layout: Layout,
) -> tuple[Episodes, Accumulate, EvaluateHeldOut | None]:
    """The loop's feed, the function that computes an update's gradient, and one that evaluates on held-out episodes.

    Raises:
        AfzalError: there is only one task, a task has too few prompts, or the objective keeps running numbers.
    """
    refuse_running(method)
    adapting = MetaLearner(settings.order, settings.inner_lr)
    feed = episodes(config, settings, prepared, layout)
    gradient = partial(adapting.accumulate, carriers=weights.carriers)
    evaluate_held_out = None
    if prepared.evaluation:
        held_out = _held_out(config, settings, prepared, layout)
        evaluate_held_out = partial(
            evaluate_adaptation, model, with_memoized_reference(method), adapting, held_out, list(weights.carriers)
        )
    return feed, gradient, evaluate_held_out


def _held_out(
    config: TrainConfig, settings: AdaptationSettings, prepared: Prepared, layout: Layout
) -> tuple[Episode, ...]:
    """One episode for every held-out task with at least two prompts.

    Raises:
        AfzalError: there is none.
    """
    prompts: dict[int, set[str]] = {}
    for t in prepared.evaluation:
        prompts.setdefault(t.task, set()).add(t.prompt_key)
    trees = [t for t in prepared.evaluation if len(prompts[t.task]) > 1]
    if not trees:
        raise AfzalError(
            "no held-out task has two prompts",
            why="one is used to adapt and the other to evaluate",
            remedy="a larger eval_fraction, eval_data, or eval_fraction=0",
        )
    task_names = [prepared.tasks[t.task] for t in trees]
    shape = EpisodeShape(len(set(task_names)), settings.support_size, settings.query_size, settings.inner_steps)
    return Episodes(trees, task_names, shape, config.seed, layout).evaluation_episodes()


def episodes(config: TrainConfig, settings: AdaptationSettings, prepared: Prepared, layout: Layout) -> Episodes:
    """The feed alone, also used to count updates.

    Raises:
        AfzalError: there is only one task, or a task has too few prompts.
    """
    task_names = [prepared.tasks[t.task] for t in prepared.train]
    if len(set(task_names)) < 2:
        raise AfzalError(
            f"{config.method} needs several tasks, and all rows are of {task_names[0]!r}",
            where=config.data,
            remedy=f"name the task of every row in the field {config.task!r}, or use another method",
        )
    fresh = settings.order == "reptile"
    query = 0 if fresh else settings.query_size
    shape = EpisodeShape(config.batch_size, settings.support_size, query, settings.inner_steps, fresh)
    return Episodes(prepared.train, task_names, shape, config.seed, layout)


def planned(config: TrainConfig, prepared: Prepared, layout: Layout) -> Feed | Episodes:
    """The feed of any method that trains on given data, to count its updates."""
    if config.adaptation is not None:
        return episodes(config, config.adaptation, prepared, layout)
    return Feed(prepared.train, (), config.batch_size, config.seed, layout)


def refuse_running(method: Method) -> None:
    """Make sure that the objective depends on the items alone.

    Raises:
        AfzalError: it carries running numbers between updates, or needs answers to other prompts.
    """
    for term in method.terms:
        if term.objective.initial_state is not None or term.objective.statistic is not None:
            raise AfzalError(
                f"objective {term.name!r} cannot be learned over tasks",
                why="it estimates numbers over many updates or other prompts, and a task has a few items",
                remedy="objective=dpo, or another objective on pairs",
            )


def plan_line(config: TrainConfig, settings: AdaptationSettings, prepared: Prepared, steps: int) -> str:
    """A one-line summary of the run."""
    names, sets = {t.task for t in prepared.train}, f"a support set of {settings.support_size}"
    sets += "" if settings.order == "reptile" else f" and a query set of {settings.query_size}"
    return (
        f"{plural(steps, 'update')} of {min(config.batch_size, len(names))} of {len(names)} tasks by {settings.order}: "
        f"{plural(settings.inner_steps, 'inner step')} at {settings.inner_lr:g}, {sets}"
    )
