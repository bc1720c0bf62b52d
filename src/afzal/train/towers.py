"""Models with towers for images and sounds, in pieces on several ranks of which some may read texts alone.

Ranks exchange the gradients of what they have touched, and must touch the same. So what a row without media leaves out,
the towers and the projection of their features, lies with the root, which every pass gathers, and takes part in each
pass with a gradient of exactly 0. A model also gives back the features that it has read; a gradient to them would have
a rank gather one more layer. Where no rank has seen media in an update there is no gradient, as in one process.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from afzal.model.media import towers
from afzal.model.reward import is_reward_model, reward_head
from afzal.train import ranks


class Touched:
    """What trains of a model beside its text, its embeddings and its head takes part in every pass."""

    def __init__(self, model: Any) -> None:
        embeddings = model.get_input_embeddings()
        head = reward_head(model) if is_reward_model(model) else model.get_output_embeddings()
        always = {id(p) for module in (_text(model), embeddings, head) for p in module.parameters()}
        self._places = {
            f"{name}.{leaf}" if name else leaf: (module, leaf)
            for name, module in model.named_modules()
            for leaf, p in module._parameters.items()
            if p is not None and p.requires_grad and id(p) not in always
        }
        self._seen = False
        embeddings.register_forward_hook(self._touch)
        model.register_forward_hook(_cut_off)
        for tower in towers(model).values():
            tower.register_forward_pre_hook(self._see)

    def unseen(self) -> Collection[str]:
        """At the end of an update: the weights without a gradient, since no rank has seen media."""
        seen, self._seen = any(ranks.gather(self._seen)), False
        return () if seen else self._places.keys()

    def _touch(self, module: nn.Module, args: Any, embedded: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or not self._places:
            return embedded
        return embedded + sum(getattr(owner, leaf).flatten()[0] * 0.0 for owner, leaf in self._places.values())

    def _see(self, module: nn.Module, args: Any) -> None:
        self._seen = self._seen or torch.is_grad_enabled()


def _text(model: Any) -> nn.Module:
    """What holds the blocks that read text: all that lies beside them there is run by every pass."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    inside = {m for tower in towers(model).values() for m in tower.modules()}
    blocks = (n for n, m in model.named_modules() if isinstance(m, GradientCheckpointingLayer) and m not in inside)
    return model.get_submodule(next(blocks).rsplit(".", 2)[0])


def _cut_off(module: nn.Module, args: Any, made: Any) -> None:
    """No gradient to what a model gives beside its logits: nobody asks for it."""
    for name, value in made.items():
        if name != "logits" and isinstance(value, Tensor):
            made[name] = value.detach()
