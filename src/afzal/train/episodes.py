"""Tasks as episodes: a support set to adapt to, and a query set of other prompts to evaluate on.

The tasks and items of each update are a pure function of seed and step, as in :mod:`.feed`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from afzal.errors import AfzalError
from afzal.tokens.batch import Batch
from afzal.tokens.tree import Tree
from afzal.train.feed import Layout, Update


@dataclass(frozen=True, slots=True)
class EpisodeShape:
    """The size of an update.

    Attributes:
        tasks: per update.
        support, query: items per task, at most; a query of 0 means no query set.
        steps: inner steps.
        fresh: whether each inner step has a separate support set, as in Reptile, or all share one.
    """

    tasks: int
    support: int
    query: int
    steps: int
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Episode:
    """One task in one update: the micro-batches of every inner step, and those of the query set."""

    task: str
    support: tuple[Sequence[Batch], ...]
    query: Sequence[Batch]


@dataclass(frozen=True, slots=True)
class EpisodeUpdate(Update):
    """An update of several episodes; its loss is taken on ``batches``."""

    episodes: tuple[Episode, ...] = ()


@dataclass(frozen=True, slots=True)
class Episodes:
    """Updates drawn from training trees with known tasks.

    Attributes:
        trees: of all tasks.
        task_of: the task of every tree, in the same order.

    Raises:
        AfzalError: a task has too few prompts for a support and a query set.
    """

    trees: Sequence[Tree]
    task_of: Sequence[str]
    shape: EpisodeShape
    seed: int
    layout: Layout

    def __post_init__(self) -> None:
        least = 2 if self.shape.query else 1
        too_small = [task for task, members in self.by_task().items() if len(_prompts(self.trees, members)) < least]
        if too_small:
            raise AfzalError(
                f"tasks with one prompt only: {', '.join(too_small[:5])}",
                why="support and query sets share no prompt",
                remedy="leave these tasks out, or give them more prompts",
            )

    def by_task(self) -> dict[str, list[int]]:
        """Indices of the trees of every task, tasks in alphabetical order."""
        members: dict[str, list[int]] = {}
        for k, task in enumerate(self.task_of):
            members.setdefault(task, []).append(k)
        return dict(sorted(members.items()))

    @property
    def items_per_update(self) -> int:
        """Items of a full update; small tasks have fewer."""
        shape = self.shape
        sets = shape.steps if shape.fresh else min(shape.steps, 1)
        return min(shape.tasks, len(set(self.task_of))) * (sets * shape.support + shape.query)

    @property
    def updates_per_epoch(self) -> int:
        """Updates that together draw as many items as there are."""
        return math.ceil(len(self.trees) / self.items_per_update)

    def update(self, step: int) -> EpisodeUpdate:
        """Update number ``step`` (from 0)."""
        rng = np.random.default_rng([self.seed, step])
        tasks = self.by_task()
        names = list(tasks)
        chosen = rng.choice(len(names), size=min(self.shape.tasks, len(names)), replace=False)
        members = {names[k]: self._draw_sets(tasks[names[k]], rng) for k in chosen}
        episodes = tuple(self._episode(task, *sets) for task, sets in members.items())
        loss_batches = [b for e in episodes for b in (e.query or [b for part in e.support for b in part])]
        n = sum(len(query) + len({i for part in support for i in part}) for support, query in members.values())
        return EpisodeUpdate(loss_batches, [], n, episodes=episodes)

    def evaluation_episodes(self) -> tuple[Episode, ...]:
        """One episode per task, the same at every call; all prompts outside the support set are its query set."""
        episodes = []
        for k, (task, members) in enumerate(self.by_task().items()):
            order = _shuffled(self.trees, members, np.random.default_rng([self.seed, k]))
            support, query = split_support_query(self.trees, order, self.shape.support, len(order))
            episodes.append(self._episode(task, [support] * self.shape.steps, query))
        return tuple(episodes)

    def _draw_sets(self, members: Sequence[int], rng: np.random.Generator) -> tuple[list[list[int]], list[int]]:
        """The support set of every inner step, and the query set."""
        shape = self.shape
        if shape.fresh:
            return [_shuffled(self.trees, members, rng)[: shape.support] for _ in range(shape.steps)], []
        order = _shuffled(self.trees, members, rng)
        support, query = split_support_query(self.trees, order, shape.support, shape.query)
        return [support] * shape.steps, query

    def _episode(self, task: str, support: Sequence[Sequence[int]], query: Sequence[int]) -> Episode:
        batches: dict[tuple[int, ...], Sequence[Batch]] = {}  # steps with the same items share their batches
        for part in (*support, query):
            if part and tuple(part) not in batches:
                batches[tuple(part)] = self.layout.batches([self.trees[i] for i in part])
        return Episode(task, tuple(batches[tuple(part)] for part in support), batches.get(tuple(query), ()))


def split_support_query(
    trees: Sequence[Tree], order: Sequence[int], support: int, query: int
) -> tuple[list[int], list[int]]:
    """The first items as support, and the first items with other prompts as query.

    If there are too few items for both, both shrink in the same proportion, to at least one prompt.

    Args:
        order: indices of trees, with those of the same prompt adjacent.
    """
    share = max(1, len(order) * support // (support + query))
    prompts = [trees[i].prompt_key for i in order]
    first = [i for i, prompt in zip(order, prompts, strict=True) if prompt != prompts[-1]] or list(order)
    support_set = first[: min(support, share)]
    support_prompts = {trees[i].prompt_key for i in support_set}
    return support_set, [i for i, prompt in zip(order, prompts, strict=True) if prompt not in support_prompts][:query]


def _shuffled(trees: Sequence[Tree], members: Sequence[int], rng: np.random.Generator) -> list[int]:
    """Members in random order, with those of the same prompt adjacent."""
    groups = list(_prompts(trees, members).values())
    return [i for k in rng.permutation(len(groups)) for i in groups[k]]


def _prompts(trees: Sequence[Tree], members: Sequence[int]) -> Mapping[str, list[int]]:
    """Members by prompt."""
    members_by_prompt: dict[str, list[int]] = {}
    for i in members:
        members_by_prompt.setdefault(trees[i].prompt_key, []).append(i)
    return members_by_prompt
