"""Models with image and audio towers, sharded over ranks of which some may read text only.

Ranks exchange the gradients of the weights they used, and must use the same ones. So the towers and the projection of
their features, which a row without media skips, are with the root, which every pass gathers, and take part in each pass
with a gradient of exactly 0. A model also returns the features that it has read; a gradient to them would make a rank
gather one more layer. If no rank saw media in an update there is no gradient, as in one process.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from afzal.model.media import towers
from afzal.model.reward import is_reward_model, reward_head
from afzal.train import ranks


class UnusedParameters:
    """Makes trainable weights outside a model's text part, embeddings and head take part in every pass."""

    def __init__(self, model: Any) -> None:
        embeddings = model.get_input_embeddings()
        head = reward_head(model) if is_reward_model(model) else model.get_output_embeddings()
        always = {id(p) for module in (_text_module(model), embeddings, head) for p in module.parameters()}
        self._owners = {
            f"{name}.{leaf}" if name else leaf: (module, leaf)
            for name, module in model.named_modules()
            for leaf, p in module._parameters.items()
            if p is not None and p.requires_grad and id(p) not in always
        }
        self._read_media = False
        embeddings.register_forward_hook(self._add_zero_terms)
        model.register_forward_hook(_detach_other_outputs)
        for tower in towers(model).values():
            tower.register_forward_pre_hook(self._record_media)

    def unseen(self) -> Collection[str]:
        """At the end of an update: the weights without a gradient because no rank saw media."""
        media_seen, self._read_media = any(ranks.gather(self._read_media)), False
        return () if media_seen else self._owners.keys()

    def _add_zero_terms(self, module: nn.Module, args: Any, embedded: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or not self._owners:
            return embedded
        return embedded + sum(getattr(owner, leaf).flatten()[0] * 0.0 for owner, leaf in self._owners.values())

    def _record_media(self, module: nn.Module, args: Any) -> None:
        self._read_media = self._read_media or torch.is_grad_enabled()


def _text_module(model: Any) -> nn.Module:
    """The module that holds the text blocks; every pass runs everything else in it."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    tower_modules = {m for tower in towers(model).values() for m in tower.modules()}
    blocks = (
        n for n, m in model.named_modules() if isinstance(m, GradientCheckpointingLayer) and m not in tower_modules
    )
    return model.get_submodule(next(blocks).rsplit(".", 2)[0])


def _detach_other_outputs(module: nn.Module, args: Any, outputs: Any) -> None:
    """Detach a model's outputs other than its logits: their gradients are not used."""
    for name, value in outputs.items():
        if name != "logits" and isinstance(value, Tensor):
            outputs[name] = value.detach()
