"""Tasks, labels and exact figures of few-shot learning on the enumerable language.

Legend: X prompts, Y = 1555 responses, T pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from afzal.lab import exact, language, tasks
from afzal.model.attention import stock_attention
from afzal.model.load import load_model
from afzal.model.probe import choose_sharing
from afzal.records import Preference
from afzal.tokens.tree import Tree, tree
from afzal.train.feed import Layout
from benchmarks import lab_world

BETA = 0.5
"""Strength of the KL penalty in the objective E[r] - BETA KL, for a reward of scale 1."""


@dataclass(frozen=True, slots=True)
class Family:
    """Tasks to learn from and a task to learn.

    Attributes:
        spread: how much tasks differ, in the units of `afzal.lab.tasks.SPREAD`.
        scale: factor on every reward and on the strength of the KL penalty. It keeps the optimum of a task and makes
            votes sharper: the larger it is, the more often the better response wins.
    """

    name: str
    words: str
    spread: float
    scale: float

    @property
    def beta(self) -> float:
        """Strength of the KL penalty in the objective and in every loss: a perfect fit has a regret of 0."""
        return BETA * self.scale


FAMILIES = {
    "alike": Family("alike", "tasks alike, noisy votes", 0.75, 1.0),
    "apart": Family("apart", "tasks that differ, sharp votes", 1.5, 4.0),
}
"""Chosen on seeds from 100 up, which no figure uses: in one the sources say much about the target and its labels
little, in the other it is the reverse."""

JUDGED_ON = 16
"""Held-out prompts of every exact figure."""

TRAIN, HELD_OUT = language.prompts()[0], language.prompts()[1][:JUDGED_ON]


@dataclass(frozen=True, slots=True, eq=False)
class World:
    """The reference: its model folder, and its log-probs ``[X, Y]`` on held-out and on training prompts."""

    family: Family
    folder: Path
    log_ref: np.ndarray
    policy: np.ndarray  # probabilities on the training prompts


def make(out: Path, sft_steps: int, family: Family) -> World:
    """The supervised reference in ``out/runs``, trained if missing."""
    made = lab_world.make_world(out, sft_steps)
    return World(family, made.sft, made.log_ref[:JUDGED_ON], np.exp(made.log_ref_train))


def drawn_tasks(n: int, seed: int, family: Family) -> list[tasks.Task]:
    """Random tasks without the parity term, which cannot be learned from a few labels."""
    local = np.array([name != "parity" for name in tasks.FEATURES])
    drawn = tasks.draw(n, seed, spread=family.spread)
    return [tasks.Task(t.name, family.scale * t.weights * local) for t in drawn]


def model(world: World) -> Any:
    """A fresh copy of the reference, ready for trees."""
    reference = load_model(str(world.folder))
    choose_sharing(reference, 16)
    return reference.requires_grad_(False)


def layout() -> Layout:
    """A layout that puts a complete update into one pass."""
    return Layout("shared", 1 << 14)


def draw(task: tasks.Task, world: World, n: int, seed: int) -> list[Tree]:
    """``n`` pairs of the reference's responses to training prompts, with one Bradley-Terry vote each, as trees."""
    rng, rewards = np.random.default_rng(seed), tasks.reward(task, TRAIN)
    x, a, b = language.sample_pairs(world.policy, n, rng)
    wins = language.noisy(rewards[x, a] - rewards[x, b], rng) > 0
    return [
        tree(
            f"{task.name}-{k}",
            prompt_ids(x[k]),
            [response_ids(a[k]), response_ids(b[k])],
            pairs=[Preference(0, 1) if wins[k] else Preference(1, 0)],
        )
        for k in range(n)
    ]


def prompt_ids(x: int) -> list[int]:
    """Ids of training prompt ``x``."""
    return [*TRAIN[x].tolist(), language.SEP]


def response_ids(y: int) -> list[int]:
    """Ids of response ``y``; after four tokens the end is forced, so there is no EOS."""
    content = [int(t) for t in language.RESPONSES[y] if t >= 0]
    return content if len(content) == language.MAX_LENGTH else [*content, language.EOS]


def regret(policy: Any, task: tasks.Task, world: World) -> float:
    """Exact regret of a model on a task, in units of the reward."""
    with stock_attention(policy):
        return regret_of(exact.log_policy(policy, HELD_OUT), task, world)


def regret_of(log_pi: np.ndarray, task: tasks.Task, world: World) -> float:
    """Exact regret of log-probs ``[X, Y]``."""
    return tasks.policy_value(log_pi, world.log_ref, tasks.reward(task, HELD_OUT), world.family.beta).regret


def start_regret(task: tasks.Task, world: World) -> float:
    """Exact regret of the reference."""
    return regret_of(world.log_ref, task, world)


def seeded(*parts: int) -> int:
    """One seed from several numbers."""
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def one_thread() -> None:
    """Use one thread: operations of a model this small are slower on several cores."""
    torch.set_num_threads(1)
