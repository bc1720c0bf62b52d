"""Updates on the policy's own samples: in each iteration they are generated once and then trained on.

A rollout is data. It is generated from the current weights when its first update is requested, and stays unchanged
until its last. A checkpoint holds it, so a resumed run continues with exactly the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afzal.objectives.kl import next_kl_coef
from afzal.tokens.pack import update_order
from afzal.tokens.tree import Branch, Tree
from afzal.train.feed import Layout, Update


@dataclass(frozen=True, slots=True)
class Rollout:
    """The samples of one iteration (from 0), ready to train on.

    Attributes:
        trees: prompts with their answers; each answer's ``numbers`` are the values known when it was written.
        prompts: for each tree, its index among all prompts.
        kl_coef: the strength of the KL penalty in its rewards.
        kl: mean KL to the reference in nats per answer.
        record: metrics to log; not saved in checkpoints.
    """

    iteration: int
    trees: Sequence[Tree]
    prompts: Sequence[int]
    kl_coef: float
    kl: float
    record: Mapping[str, Any] = field(default_factory=dict)


class SamplingStopped(Exception):  # noqa: N818 - a request, not a fault
    """A signal ended the writing of a rollout, on all ranks. It can be written again, with the same numbers."""

    def __init__(self, signal: str) -> None:
        self.signal = signal
        super().__init__(signal)


@dataclass(frozen=True, slots=True)
class Controller:
    """Adapts the strength of the KL penalty towards a KL of ``target`` nats per answer.

    ``horizon`` is in answers; if ``target`` is None, the strength stays at ``start``.
    """

    start: float
    target: float | None = None
    horizon: float = 10_000

    def kl_coef_after(self, rollout: Rollout | None) -> float:
        """The strength for the iteration after ``rollout``."""
        if rollout is None or self.target is None:
            return self.start if rollout is None else rollout.kl_coef
        n = sum(len(t.branches) for t in rollout.trees)
        return next_kl_coef(rollout.kl_coef, rollout.kl, target=self.target, horizon=self.horizon, n=n)


class Rollouts:
    """Updates on each rollout, ``epochs`` times in ``minibatches`` shares, each time in another order.

    Args:
        write: generates rollout number ``iteration`` from the current weights, given the KL penalty's strength.
        all_prompts: the prompts that ``Rollout.prompts`` indexes, as trees without branches.
    """

    def __init__(
        self,
        write: Callable[[int, float], Rollout],
        all_prompts: Sequence[Tree],
        layout: Layout,
        controller: Controller,
        *,
        epochs: int,
        minibatches: int,
        prompts_per_iteration: int,
        seed: int,
    ) -> None:
        self.write, self.all_prompts, self.layout, self.controller = write, all_prompts, layout, controller
        self.epochs, self.minibatches, self.seed = epochs, minibatches, seed
        self.iterations_per_epoch = len(all_prompts) / prompts_per_iteration
        self.current: Rollout | None = None

    @property
    def updates_per_iteration(self) -> int:
        return self.epochs * self.minibatches

    @property
    def updates_per_epoch(self) -> float:
        """Updates per pass over the prompts."""
        return self.updates_per_iteration * self.iterations_per_epoch

    def update(self, step: int) -> Update:
        iteration, index = divmod(step, self.updates_per_iteration)
        new = self.current is None or self.current.iteration != iteration
        if new:
            self.current = self.write(iteration, self.controller.kl_coef_after(self.current))
        assert self.current is not None
        members = self._members(len(self.current.trees), iteration, index)
        batches, remote = self.layout.local_batches([self.current.trees[i] for i in members])
        return Update(batches, [], len(members), self.current.record if new else {}, remote_trees=remote)

    def _members(self, n: int, iteration: int, index: int) -> list[int]:
        """Indices of the trees in update ``index`` of an iteration; shares differ by at most one tree."""
        epoch, share = divmod(index, self.minibatches)
        (order,) = update_order(n, n, epoch=iteration * self.epochs + epoch, seed=self.seed)
        return np.array_split(order, self.minibatches)[share].tolist()

    def tensors(self) -> dict[str, Tensor]:
        """The current rollout as plain tensors; empty before the first."""
        return {} if self.current is None else as_tensors(self.current)

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from the rollout of :meth:`tensors`."""
        self.current = from_tensors(tensors, self.all_prompts) if tensors else None


def as_tensors(rollout: Rollout) -> dict[str, Tensor]:
    """A rollout as flat tensors: ids and numbers of all answers concatenated, and the sizes to split them."""
    branches = [b for t in rollout.trees for b in t.branches]
    flat = {"ids": np.concatenate([b.ids for b in branches])}
    flat |= {f"numbers.{name}": np.concatenate([b.numbers[name] for b in branches]) for name in branches[0].numbers}
    return {name: torch.from_numpy(values) for name, values in flat.items()} | {
        "prompts": torch.tensor(list(rollout.prompts)),
        "answers": torch.tensor([len(t.branches) for t in rollout.trees]),
        "lengths": torch.tensor([len(b.ids) for b in branches]),
        "iteration": torch.tensor([rollout.iteration]),
        "kl": torch.tensor([rollout.kl_coef, rollout.kl], dtype=torch.float64),
    }


def from_tensors(tensors: Mapping[str, Tensor], all_prompts: Sequence[Tree]) -> Rollout:
    """The rollout from :func:`as_tensors`; its record is empty."""
    ends = np.cumsum(tensors["lengths"].numpy())[:-1]
    names = [name for name in tensors if name.startswith("numbers.")]
    columns = {name.removeprefix("numbers."): np.split(tensors[name].numpy(), ends) for name in names}
    ids = np.split(tensors["ids"].numpy(), ends)
    answers = iter(
        Branch(row, np.ones(len(row), dtype=bool), {name: column[k] for name, column in columns.items()})
        for k, row in enumerate(ids)
    )
    prompts = tensors["prompts"].tolist()
    trees = [
        rollout_tree(all_prompts[p], [next(answers) for _ in range(n)])
        for p, n in zip(prompts, tensors["answers"].tolist(), strict=True)
    ]
    kl_coef, kl = tensors["kl"].tolist()
    return Rollout(int(tensors["iteration"]), trees, prompts, kl_coef, kl)


def rollout_tree(prompt: Tree, answers: Sequence[Branch]) -> Tree:
    """A prompt with its answers, all labelled True."""
    return replace(prompt, branches=tuple(answers), labels=(True,) * len(answers))
