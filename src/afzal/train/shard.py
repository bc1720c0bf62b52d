"""A model whose weights, gradients and optimiser state lie in pieces on all ranks (PyTorch's FSDP2).

Every rank computes its own micro-batches with whole layers, which are gathered just before they are used and let go of
after. Gradients are summed over the ranks in float32, never averaged: losses are divided by global counts already.
With bf16 the pieces are the float32 masters, and a layer is rounded to bf16 as it is gathered.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from afzal.model.load import cast_parameters
from afzal.train import ranks
from afzal.train.optim import trainable
from afzal.train.pieces import full
from afzal.train.precision import Dtype


class Sharded:
    """A model in pieces, as the loop sees it: what the optimiser moves, by name.

    Made of a whole model in float32 that all ranks have alike; that model is in pieces from then on.
    """

    offload = False

    def __init__(self, model: Any, dtype: Dtype) -> None:
        self.model: Any = model
        self.dtype: Dtype = dtype
        self._blank = _blank_copy(model)
        if dtype == "bf16":
            trains = trainable(model)  # what never trains needs no float32 master
            cast_parameters(model, torch.bfloat16, keep=lambda name: name in trains)
        _cut(model, dtype)
        self._all: dict[str, nn.Parameter] = dict(model.named_parameters())
        self.masters: dict[str, nn.Parameter] = trainable(model)

    @property
    def carriers(self) -> dict[str, nn.Parameter]:
        """Parameters whose ``grad`` is the gradient of the update."""
        return self.masters

    def hand_over(self) -> None:
        """Nothing: gradients are where the optimiser is."""

    def forget_gradient(self) -> None:
        """Let go of what there is of an update's gradient."""
        for p in self.masters.values():
            p.grad = None

    def publish(self) -> None:
        """Let go of layers that are still gathered, after the pieces have been written to."""
        reshard(self.model)

    def restore(self) -> None:
        """Nothing: the pieces are in float32 already."""

    def whole(self) -> Any:
        """The model in one piece, in float32 on the CPU of rank 0; None on the others."""
        self.publish()
        values = full(self._all)
        if not ranks.leads():
            return None
        filled = {
            id(p): nn.Parameter(values[name].float(), p.requires_grad) for name, p in self._blank.named_parameters()
        }
        for module in self._blank.modules():
            for leaf, p in module._parameters.items():
                if p is not None:
                    module._parameters[leaf] = filled[id(p)]
        return self._blank


def shard_frozen(model: Any) -> Any:
    """A model that never trains, in pieces too; in the number format that it is in."""
    _cut(model, "fp32")
    return model


def reshard(model: Any) -> None:
    """Let go of everything that is gathered: the next forward pass gathers it anew."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _cut(model: Any, dtype: Dtype) -> None:
    """Each block on its own, and what is left with the root: embeddings and head, which stay gathered from a forward
    pass to its backward pass, since log-probs are taken outside of the model's own forward."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
    from transformers.modeling_layers import GradientCheckpointingLayer

    device = next(model.parameters()).device
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if dtype == "bf16" else MixedPrecisionPolicy()
    mesh = init_device_mesh(device.type, (ranks.world(),), mesh_dim_names=("shard",))
    blocks = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer)]
    for module in [*blocks, model]:
        fully_shard(module, mesh=mesh, mp_policy=policy)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other way to a sum
            module.unshard()  # once, so that what is gathered knows from now on what trains
            module.reshard()


def _blank_copy(model: nn.Module) -> nn.Module:
    """The model without its weights, which take no memory; tied ones stay tied."""
    empty = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, empty)  # pyright: ignore[reportArgumentType]
