"""Which numbers the optimiser moves and which ones compute: float32 masters behind a bf16 working copy.

With bf16 the model itself is held in bf16 (half the memory and traffic, no casts inside the forward pass), gradients
are summed in float32 over micro-batches as they appear, and after each optimiser step the masters are rounded into the
model once. With fp32 masters and model are the same tensors. So they are, in float32, for factors near 1 (of IA3 and
DoRA), which bf16 holds to 0.4 % only.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from afzal.model.adapters import is_factor
from afzal.train.optim import trainable

Dtype = Literal["fp32", "bf16"]


class Weights:
    """The weights of ``model`` that train, by name and in float32, whatever the model computes in.

    Making it with ``bf16`` casts the model; :meth:`restore` brings it back to float32 with the trained values.
    """

    def __init__(self, model: nn.Module, dtype: Dtype) -> None:
        self.model: nn.Module = model
        self.dtype: Dtype = dtype
        self._working = trainable(model)
        self.masters: dict[str, nn.Parameter] = self._working
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        if dtype == "bf16":
            self.masters = {name: nn.Parameter(p.detach().float().clone()) for name, p in self._working.items()}
            model.to(torch.bfloat16)
            for name in filter(is_factor, self._working):
                self._working[name].data = self.masters[name].data
                self.masters[name] = self._working[name]
            self._hooks = [
                p.register_post_accumulate_grad_hook(_add_to(self.masters[name]))
                for name, p in self._working.items()
                if self.masters[name] is not p
            ]

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the model, after they have moved."""
        if self.dtype == "bf16":
            for name, p in self._working.items():
                p.copy_(self.masters[name])

    @torch.no_grad()
    def restore(self) -> None:
        """Give the model its float32 weights back and let go of it."""
        for hook in self._hooks:
            hook.remove()
        if self.dtype == "bf16":
            self.model.float()
            self.publish()
        self._hooks, self.masters = [], self._working


def _add_to(master: nn.Parameter):
    """A hook that moves a working gradient into its master's and frees it at once."""

    def add(working: Tensor) -> None:
        gradient = working.grad
        if gradient is None:
            return
        if master.grad is None:
            master.grad = gradient.float()
        else:
            master.grad.add_(gradient)
        working.grad = None

    return add
