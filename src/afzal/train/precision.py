"""Mixed precision: the optimiser updates float32 masters, and a bf16 working copy computes.

With bf16 the model itself is held in bf16 (half the memory and traffic, no casts inside the forward pass), gradients
are summed in float32 over micro-batches as they appear, and after each optimiser step the masters are rounded into the
model once. With fp32, masters and model are the same tensors. They are also the same, in float32, for factors near 1
(IA3 and DoRA), which bf16 holds to 0.4% only, and for weights that the family keeps in float32. Buffers, such as
rotary frequencies, are never rounded.

Offloaded masters and the optimiser's state are in host memory. An update's gradient is summed on the device, also in
float32, and copied once; so are the updated weights.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from afzal.model.adapters import is_factor
from afzal.model.load import cast_parameters
from afzal.model.offload import on_host
from afzal.train.optim import trainable

Dtype = Literal["fp32", "bf16"]


class Weights:
    """The trainable weights of ``model`` by name, in float32 whatever the compute dtype.

    With ``bf16`` the model is cast on creation; :meth:`restore` returns it to float32 with the trained values.

    Args:
        offload: keep the masters in host memory.

    Attributes:
        masters: the weights that the optimiser updates.
        carriers: parameters on the model's device whose ``grad`` is the gradient of the update; the masters themselves
            unless those are offloaded.
    """

    def __init__(self, model: nn.Module, dtype: Dtype, offload: bool = False) -> None:
        self.model: nn.Module = model
        self.dtype: Dtype = dtype
        self.offload = offload
        self._working = trainable(model)
        self.masters: dict[str, nn.Parameter] = self._working
        if offload or dtype == "bf16":
            self.masters = {name: nn.Parameter(self._float32_copy(p)) for name, p in self._working.items()}
        if dtype == "bf16":
            self._cast()
        self._landing: dict[str, Tensor] = {}
        self.carriers = {name: self._carrier(name, p) for name, p in self._working.items()}
        self._hooks = [
            p.register_post_accumulate_grad_hook(_add_to(self.carriers[name]))
            for name, p in self._working.items()
            if self.carriers[name] is not p
        ]

    def _float32_copy(self, p: nn.Parameter) -> Tensor:
        return on_host(p.float(), p.device) if self.offload else p.detach().float().clone()

    def _cast(self) -> None:
        cast_parameters(self.model, torch.bfloat16, keep=lambda name: name in self._working and is_factor(name))
        for name, p in self._working.items():
            if p.dtype == torch.float32 and not self.offload:
                self.masters[name] = p

    def _carrier(self, name: str, p: nn.Parameter) -> nn.Parameter:
        if p.dtype == torch.float32 and (self.offload or self.masters[name] is p):
            return p
        # only the shape of an offloaded master is on the device: one expanded number
        return (
            nn.Parameter(p.new_zeros((), dtype=torch.float32).expand(p.shape)) if self.offload else self.masters[name]
        )

    @torch.no_grad()
    def adopt(self) -> None:
        """Copy later changes of the model's own float32 weights into the masters, before training."""
        for name, p in self._working.items():
            if p.dtype == torch.float32 and self.masters[name] is not p:
                self.masters[name].copy_(p)

    @torch.no_grad()
    def hand_over(self) -> None:
        """Move the update's gradient to the optimiser's device."""
        if not self.offload:
            return
        for name, carrier in self.carriers.items():
            if carrier.grad is not None:
                landing = self._landing.setdefault(name, on_host(carrier.grad, carrier.device))
                self.masters[name].grad = landing.copy_(carrier.grad, non_blocking=True)
                carrier.grad = None
        if any(carrier.is_cuda for carrier in self.carriers.values()):
            torch.cuda.synchronize()

    @torch.no_grad()
    def publish(self) -> None:
        """Round the updated masters into the model."""
        for name, p in self._working.items():
            if self.masters[name] is not p:
                p.copy_(self.masters[name], non_blocking=True)

    def forget_gradient(self) -> None:
        """Drop an update's gradients."""
        for parameters in (self._working, self.carriers, self.masters):
            for p in parameters.values():
                p.grad = None

    @torch.no_grad()
    def restore(self) -> None:
        """Return the model to float32 with the trained weights, and remove the hooks."""
        for hook in self._hooks:
            hook.remove()
        if self.dtype == "bf16":
            cast_parameters(self.model, torch.float32)
        self.publish()
        self._hooks, self.masters, self.carriers = [], self._working, self._working


def _add_to(carrier: nn.Parameter):
    """A hook that adds a working gradient to its carrier's and frees it immediately."""

    def add(working: Tensor) -> None:
        gradient = working.grad
        if gradient is None:
            return
        if carrier.grad is None:
            carrier.grad = gradient.float()
        else:
            carrier.grad.add_(gradient)
        working.grad = None

    return add
