"""Tasks as episodes: a support set to adapt to, and a query set of other prompts to judge by.

Which tasks and items make up which update is a pure function of the seed and the step, as in :mod:`.feed`.
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
class Shape:
    """The size of an update.

    Attributes:
        tasks: per update.
        support, query: items of a task, at most. A query of 0 asks for none.
        steps: inner steps.
        fresh: whether each inner step has a support set of its own, as in Reptile, or all have the same one.
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
class Lesson(Update):
    """An update of several episodes; ``batches`` are those that its loss is taken on."""

    episodes: tuple[Episode, ...] = ()


@dataclass(frozen=True, slots=True)
class Episodes:
    """Updates that are drawn from training trees with known tasks.

    Attributes:
        trees: of all tasks.
        task_of: the task of every tree, in the same order.

    Raises:
        AfzalError: a task has too few prompts for a support and a query set.
    """

    trees: Sequence[Tree]
    task_of: Sequence[str]
    shape: Shape
    seed: int
    layout: Layout

    def __post_init__(self) -> None:
        least = 2 if self.shape.query else 1
        few = [task for task, members in self.by_task().items() if len(_prompts(self.trees, members)) < least]
        if few:
            raise AfzalError(
                f"tasks with one prompt only: {', '.join(few[:5])}",
                why="support and query sets share no prompt",
                remedy="leave these tasks out, or give them more prompts",
            )

    def by_task(self) -> dict[str, list[int]]:
        """Indices of the trees of every task, tasks in alphabetical order."""
        found: dict[str, list[int]] = {}
        for k, task in enumerate(self.task_of):
            found.setdefault(task, []).append(k)
        return dict(sorted(found.items()))

    @property
    def items_per_update(self) -> int:
        """Items that an update asks for; small tasks have fewer."""
        shape = self.shape
        sets = shape.steps if shape.fresh else min(shape.steps, 1)
        return min(shape.tasks, len(set(self.task_of))) * (sets * shape.support + shape.query)

    @property
    def updates_per_epoch(self) -> int:
        """Updates that draw as many items as there are."""
        return math.ceil(len(self.trees) / self.items_per_update)

    def update(self, step: int) -> Lesson:
        """Update number ``step`` (from 0)."""
        rng = np.random.default_rng([self.seed, step])
        tasks = self.by_task()
        names = list(tasks)
        drawn = rng.choice(len(names), size=min(self.shape.tasks, len(names)), replace=False)
        members = {names[k]: self._drawn(tasks[names[k]], rng) for k in drawn}
        episodes = tuple(self._episode(task, *sets) for task, sets in members.items())
        judged = [b for e in episodes for b in (e.query or [b for part in e.support for b in part])]
        n = sum(len(query) + len({i for part in support for i in part}) for support, query in members.values())
        return Lesson(judged, [], n, episodes=episodes)

    def each(self) -> tuple[Episode, ...]:
        """One episode of every task, the same at every call, with all prompts beside the support set as its query."""
        drawn = []
        for k, (task, members) in enumerate(self.by_task().items()):
            order = _shuffled(self.trees, members, np.random.default_rng([self.seed, k]))
            support, query = apart(self.trees, order, self.shape.support, len(order))
            drawn.append(self._episode(task, [support] * self.shape.steps, query))
        return tuple(drawn)

    def _drawn(self, members: Sequence[int], rng: np.random.Generator) -> tuple[list[list[int]], list[int]]:
        """The support set of every inner step, and the query set."""
        shape = self.shape
        if shape.fresh:
            return [_shuffled(self.trees, members, rng)[: shape.support] for _ in range(shape.steps)], []
        order = _shuffled(self.trees, members, rng)
        support, query = apart(self.trees, order, shape.support, shape.query)
        return [support] * shape.steps, query

    def _episode(self, task: str, support: Sequence[Sequence[int]], query: Sequence[int]) -> Episode:
        made: dict[tuple[int, ...], Sequence[Batch]] = {}  # one set of batches where all steps have the same
        for part in (*support, query):
            if part and tuple(part) not in made:
                made[tuple(part)] = self.layout.batches([self.trees[i] for i in part])
        return Episode(task, tuple(made[tuple(part)] for part in support), made.get(tuple(query), ()))


def apart(trees: Sequence[Tree], order: Sequence[int], support: int, query: int) -> tuple[list[int], list[int]]:
    """The first items as support, and the first of other prompts as query.

    Where there are too few items for both, both get less in the same proportion, and at least one prompt.

    Args:
        order: indices of trees, those of one prompt side by side.
    """
    share = max(1, len(order) * support // (support + query))
    prompts = [trees[i].prompt_key for i in order]
    first = [i for i, prompt in zip(order, prompts, strict=True) if prompt != prompts[-1]] or list(order)
    taken = first[: min(support, share)]
    seen = {trees[i].prompt_key for i in taken}
    return taken, [i for i, prompt in zip(order, prompts, strict=True) if prompt not in seen][:query]


def _shuffled(trees: Sequence[Tree], members: Sequence[int], rng: np.random.Generator) -> list[int]:
    """Members in random order, those of one prompt side by side."""
    groups = list(_prompts(trees, members).values())
    return [i for k in rng.permutation(len(groups)) for i in groups[k]]


def _prompts(trees: Sequence[Tree], members: Sequence[int]) -> Mapping[str, list[int]]:
    """Members by prompt."""
    found: dict[str, list[int]] = {}
    for i in members:
        found.setdefault(trees[i].prompt_key, []).append(i)
    return found
