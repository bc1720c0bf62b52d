"""Value models: the reward expected of an answer from each of its tokens on, for PPO.

Shapes: M scored tokens, d features.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afzal.model.logprobs import hidden_states
from afzal.model.reward import (
    is_reward_model,
    reward_head,
    shift_of,
    states_at_head,
)
from afzal.tokens.batch import Batch


class Moved(Protocol):
    """Float32 weights of a model by name, as an optimiser moves them."""

    masters: dict[str, nn.Parameter]

    def publish(self) -> None: ...

    def forget_gradient(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Critic:
    """A scalar head, in float32, on a trunk of its own, or on the policy's, where ``trunk`` is None.

    A trunk computes in its own number format. ``weights`` is what the optimiser moves in the place of its parameters,
    where those are not in float32 or lie in pieces.
    """

    head: nn.Linear
    trunk: Any = None
    weights: Moved | None = None

    def values(self, batch: Batch, policy_hidden: Tensor | None = None) -> Tensor:
        """``[M]`` float32: the reward expected just before each scored token, in the reward's unit.

        Args:
            policy_hidden: ``[M, d]``, the policy's hidden states where a scored token is predicted; read only by a
                critic without a trunk.
        """
        hidden = policy_hidden if self.trunk is None else _states(self.trunk, batch)[batch.predict_at]
        assert hidden is not None
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.float(), self.head.weight, self.head.bias)[:, 0]

    @property
    def whole(self) -> tuple[nn.Parameter, ...]:
        """What every rank has whole where the trunk lies in pieces: the head."""
        return tuple(self.head.parameters())

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Everything of it that trains, by name."""
        found = {f"head.{name}": p for name, p in self.head.named_parameters()}
        if self.weights is not None:
            return found | {f"trunk.{name}": p for name, p in self.weights.masters.items()}
        if self.trunk is not None:
            found |= {f"trunk.{name}": p for name, p in self.trunk.named_parameters() if p.requires_grad}
        return found

    def publish(self) -> None:
        """Let the trunk compute with what the optimiser has moved."""
        if self.weights is not None:
            self.weights.publish()

    def forget_gradient(self) -> None:
        """Let go of what there is of an update's gradient."""
        for p in self.parameters.values():
            p.grad = None
        if self.weights is not None:
            self.weights.forget_gradient()


def own_critic(policy: Any, trunk: Any = None) -> Critic:
    """A copy of the policy as it is now, adapters included, under a head of zeros: it begins by expecting nothing.

    Args:
        trunk: the copy, where another than ``policy`` in memory is to be had, with its unused head frozen.
    """
    if trunk is None:
        trunk = copy.deepcopy(policy)
        freeze_unused_head(trunk)
    return Critic(_zero_head(policy), trunk)


def freeze_unused_head(trunk: Any) -> None:
    """Keep a language model's output head as it is, where it is no embedding too: values are not read from it."""
    unused = trunk.get_output_embeddings()
    if unused.weight is not trunk.get_input_embeddings().weight:
        unused.requires_grad_(False)


def shared_critic(policy: Any) -> Critic:
    """A head of zeros on the policy's own trunk, which then learns from both losses."""
    return Critic(_zero_head(policy))


def reward_critic(trunk: Any, policy: Any, adapt: Callable[[Any], Any]) -> Critic:
    """A reward model: it begins by expecting what it would give for the answer as far as it is written.

    Args:
        trunk: the reward model; only its heads are read here.
        adapt: puts a fresh adapter on it, as on the policy, where there is to be one.
    """
    saved = reward_head(trunk)
    head = nn.Linear(saved.in_features, 1, device=next(policy.parameters()).device)  # pyright: ignore
    with torch.no_grad():
        head.weight.copy_(saved.weight.mean(0, keepdim=True))  # pyright: ignore
        head.bias.fill_(-shift_of(trunk))
    trunk = adapt(trunk)
    reward_head(trunk).requires_grad_(False)
    return Critic(head, trunk)


def _zero_head(policy: Any) -> nn.Linear:
    head = nn.Linear(policy.get_output_embeddings().weight.shape[1], 1, device=next(policy.parameters()).device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def _states(trunk: Any, batch: Batch) -> Tensor:
    """``[N, d]``: what the head would see at every position, flat."""
    if not is_reward_model(trunk):
        return hidden_states(trunk, batch).flatten(0, 1)
    return states_at_head(trunk, batch).flatten(0, 1)
