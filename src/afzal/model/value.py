"""Value models for PPO: the expected reward of an answer at each of its tokens.

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


class MasterWeights(Protocol):
    """A model's float32 master weights by name, which an optimiser updates."""

    masters: dict[str, nn.Parameter]

    def hand_over(self) -> None: ...

    def publish(self) -> None: ...

    def forget_gradient(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Critic:
    """A scalar float32 head on a separate trunk, or on the policy's if ``trunk`` is None.

    A trunk computes in its own number format. The optimiser updates ``weights`` in place of the trunk's parameters, if
    those are not in float32 or are sharded.
    """

    head: nn.Linear
    trunk: Any = None
    weights: MasterWeights | None = None

    def values(self, batch: Batch, policy_hidden: Tensor | None = None) -> Tensor:
        """``[M]`` float32: the expected reward just before each scored token, in the reward's unit.

        Args:
            policy_hidden: ``[M, d]``, the policy's hidden states at the positions that predict scored tokens; only a
                critic without a trunk reads them.
        """
        hidden = policy_hidden if self.trunk is None else _states(self.trunk, batch)[batch.predict_at]
        assert hidden is not None
        with torch.autocast(hidden.device.type, enabled=False):
            return F.linear(hidden.float(), self.head.weight, self.head.bias)[:, 0]

    @property
    def unsharded(self) -> tuple[nn.Parameter, ...]:
        """Parameters that are not sharded with the trunk: the head."""
        return tuple(self.head.parameters())

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """All trainable parameters, by name."""
        parameters = {f"head.{name}": p for name, p in self.head.named_parameters()}
        if self.weights is not None:
            return parameters | {f"trunk.{name}": p for name, p in self.weights.masters.items()}
        if self.trunk is not None:
            parameters |= {f"trunk.{name}": p for name, p in self.trunk.named_parameters() if p.requires_grad}
        return parameters

    def hand_over(self) -> None:
        """Give the trunk's gradients to the optimiser, without those of weights that no row of the update used."""
        if self.weights is not None:
            self.weights.hand_over()

    def publish(self) -> None:
        """Copy the optimiser's weights into the trunk."""
        if self.weights is not None:
            self.weights.publish()

    def forget_gradient(self) -> None:
        """Drop the gradients of an update."""
        for p in self.parameters.values():
            p.grad = None
        if self.weights is not None:
            self.weights.forget_gradient()


def own_critic(policy: Any, trunk: Any = None) -> Critic:
    """A copy of the current policy, adapters included, with a zero head: its first values are 0.

    Args:
        trunk: the copy, with its unused head frozen; None copies ``policy`` in memory.
    """
    if trunk is None:
        trunk = copy.deepcopy(policy)
        freeze_unused_head(trunk)
    return Critic(_zero_head(policy), trunk)


def freeze_unused_head(trunk: Any) -> None:
    """Freeze a language model's output head, which gives no values, unless it is tied to the embedding."""
    unused = trunk.get_output_embeddings()
    if unused.weight is not trunk.get_input_embeddings().weight:
        unused.requires_grad_(False)


def shared_critic(policy: Any) -> Critic:
    """A zero head on the policy's own trunk, which then learns from both losses."""
    return Critic(_zero_head(policy))


def reward_critic(trunk: Any, policy: Any, adapt: Callable[[Any], Any]) -> Critic:
    """A critic from a reward model: its first values are the scores of the answer so far.

    Args:
        trunk: the reward model; only its heads are read here.
        adapt: adds a fresh adapter, as for the policy, if there is one.
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
    """``[N, d]``: the head's inputs, flattened; meaningful where scored tokens are predicted."""
    states = states_at_head if is_reward_model(trunk) else hidden_states
    return states(trunk, batch, batch.layout_of_predictions).flatten(0, 1)
