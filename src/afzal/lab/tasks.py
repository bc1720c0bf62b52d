"""A family of enumerable languages: the same prompts and responses, with a reward per task.

A task is a random draw of the weights of a reward that is linear in known features, so its optimum, its KL and the
regret of any policy are sums, as in :mod:`afzal.lab.exact`. Tasks share a mean, the language's own reward, and differ
by normal deviations; transfer and meta-learning can use what the tasks have in common.

Legend: X prompts, Y = 1555 responses, F features, T pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from afzal.lab import exact, language
from afzal.lab.language import KAPPA, LENGTHS, N_CONTENT, RESPONSES
from afzal.records import Item

FEATURES: tuple[str, ...] = ("copies", "rises", "repeats", "length", "parity", *(f"token {k}" for k in range(6)))
"""Copied tokens, rises, repetitions, tokens away from length 3, parity of the sum (± ½), and the count of each
token."""

GENERAL: np.ndarray = np.array([0.9, 0.5, -0.7, -0.35, KAPPA, *[0.0] * N_CONTENT])
"""``[F]`` the weights of the language's own reward, the mean of all tasks."""

SPREAD: np.ndarray = np.array([0.4, 0.4, 0.4, 0.2, 0.4, *[0.6] * N_CONTENT])
"""``[F]`` standard deviations of the tasks' weights around their mean."""


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A name and the weights ``[F]`` of a reward; larger rewards are better."""

    name: str
    weights: np.ndarray


def general() -> Task:
    """The mean of all tasks: the language's own reward."""
    return Task("general", GENERAL)


def draw(n: int, seed: int, spread: float = 1.0, name: str = "task") -> tuple[Task, ...]:
    """``n`` tasks; a larger ``n`` adds tasks and keeps the first ones.

    Args:
        spread: factor on :data:`SPREAD`; 0 gives the mean ``n`` times.
    """
    deviations = np.random.default_rng(seed).standard_normal((n, len(FEATURES)))
    return tuple(Task(f"{name}-{k}", GENERAL + spread * SPREAD * z) for k, z in enumerate(deviations))


def features(prompt: np.ndarray) -> np.ndarray:
    """``[X, Y, F]`` float64, the features of every response to each prompt ``[X, 3]``."""
    x, y = np.asarray(prompt, dtype=np.int64), RESPONSES
    both = y[:, 1:] >= 0
    per_response = [
        ((y[:, 1:] > y[:, :-1]) & both).sum(1),
        ((y[:, 1:] == y[:, :-1]) & both).sum(1),
        abs(LENGTHS - 3),
    ]
    sums = np.where(y >= 0, y, 0).sum(1)
    columns = [
        (y[None, :, :3] == x[:, None]).sum(-1),
        *(np.broadcast_to(column, (len(x), len(y))) for column in per_response),
        (sums % 2 == x.sum(1, keepdims=True) % 2) - 0.5,
        *(np.broadcast_to((y == k).sum(1), (len(x), len(y))) for k in range(N_CONTENT)),
    ]
    return np.stack(columns, axis=-1).astype(float)


def reward(task: Task, prompt: np.ndarray) -> np.ndarray:
    """Reward ``[X, Y]`` of every response to each prompt ``[X, 3]``; rounded to 1e-9, so equal ones are equal."""
    return np.round(features(prompt) @ task.weights, 9)


def pairs(task: Task, prompt: np.ndarray, policy: np.ndarray, n: int, rng: np.random.Generator) -> list[Item]:
    """``n`` pairs of a policy's responses with one Bradley-Terry vote each, as rows that name their task.

    Args:
        prompt: ``[X, 3]``, the prompts to draw from.
        policy: probabilities ``[X, Y]``.
    """
    indices = language.sample_pairs(policy, n, rng)
    rewards = reward(task, prompt)
    votes = language.noisy(rewards[indices[0], indices[1]] - rewards[indices[0], indices[2]], rng)
    items = language.pair_items(prompt, indices, votes, prefix=task.name)
    return [replace(item, extra=MappingProxyType({"task": task.name})) for item in items]


def rows(items: Sequence[Item]) -> list[Mapping[str, str]]:
    """Pairs as plain rows of ``prompt``, ``chosen``, ``rejected`` and ``task``."""
    return [{**language.ordered(item), "task": str(item.extra["task"])} for item in items]


@dataclass(frozen=True, slots=True)
class PolicyValue:
    """The exact value of a policy on a task for a KL penalty of strength ``beta``: means over prompts.

    ``value`` is E[r] - beta KL in the reward's unit, ``optimum`` the largest value of any policy, beta log Z, and
    ``regret`` the difference: 0 is optimal.
    """

    reward: float
    kl: float
    value: float
    optimum: float

    @property
    def regret(self) -> float:
        return self.optimum - self.value


def policy_value(log_pi: np.ndarray, log_ref: np.ndarray, rewards: np.ndarray, beta: float) -> PolicyValue:
    """The standing of a policy ``[X, Y]``, given its reference and the rewards of a task.

    The regret is beta KL(pi || pi*), with pi* = pi_ref exp(r / beta) / Z (Rafailov et al. 2023, eq. 4 and 14).
    """
    expected_reward, distance = exact.expected(log_pi, rewards), exact.kl(log_pi, log_ref)
    best = beta * float(exact.log_partition(log_ref, rewards, beta).mean())
    return PolicyValue(expected_reward, distance, expected_reward - beta * distance, best)
