"""A model whose weights, gradients and optimiser state are sharded over all ranks (PyTorch's FSDP2).

Every rank computes its own micro-batches with full layers, which are gathered just before use and released afterwards.
Gradients are summed over the ranks in float32, never averaged: losses are divided by global counts already. With bf16
the shards are the float32 masters, and a layer is rounded to bf16 when it is gathered.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from afzal.folders.lazy_weights import LazyWeights, Place, fill
from afzal.model.adapters import drawn_tokens, is_adapted, is_fresh, starting_table, starts_from_drawn
from afzal.model.attention import attention_of, set_attention
from afzal.model.load import cast_parameters
from afzal.model.media import towers
from afzal.model.reward import is_reward_model
from afzal.model.virtual import call_in_place
from afzal.train import ranks
from afzal.train.dtensor import filled_like, gather_full, local, memory_mapped_copy
from afzal.train.optim import trainable
from afzal.train.precision import Dtype
from afzal.train.shard_layout import box_of
from afzal.train.tensor import into_slices
from afzal.train.tensor_adapters import all_heads, all_norms_of
from afzal.train.unused_parameters import UnusedParameters


class Sharded:
    """A sharded model as the loop sees it: the weights that the optimiser updates, by name.

    Made from an unsharded float32 model that is the same on all ranks, or from one whose weights are ``unread``: then
    each rank reads its own shards, and none holds all weights. From then on the model is sharded.

    Raises:
        AfzalError: the weights cannot be read.
    """

    offload = False

    def __init__(self, model: Any, dtype: Dtype, device: torch.device, unread: LazyWeights | None = None) -> None:
        self.model: Any = model
        self.dtype: Dtype = dtype
        self._device = device
        self._blank = _blank_copy(model)
        self._read_in_pieces = unread is not None
        self._touched = _into_pieces(model, dtype, dtype, device, unread)
        self._all: dict[str, nn.Parameter] = dict(model.named_parameters())
        self.masters: dict[str, nn.Parameter] = trainable(model)

    @property
    def carriers(self) -> dict[str, nn.Parameter]:
        """Parameters whose ``grad`` is the gradient of the update."""
        return self.masters

    def hand_over(self) -> None:
        """Drop gradients of weights that no row of the update used; gradients are already on the optimiser's device."""
        for name in self._touched.unseen() if self._touched is not None else ():
            if name in self.masters:
                self.masters[name].grad = None

    def forget_gradient(self) -> None:
        """Drop an update's gradients."""
        for p in self.masters.values():
            p.grad = None

    def publish(self) -> None:
        """Release layers that are still gathered, after the shards have changed."""
        reshard(self.model)

    def restore(self) -> None:
        """Do nothing: the shards are in float32 already."""

    def unsharded_model(self, folder: Path, cast: Callable[[Any], None] = lambda model: None) -> Any:
        """The unsharded model on the CPU of rank 0; None on the other ranks.

        It is gathered tensor by tensor into memory-mapped files in the folder, so no rank needs memory for more than
        one full tensor. If it was read in shards and only its adapter will be saved, its base stays on the meta device,
        except the embeddings, which PEFT may save with an adapter.

        Args:
            cast: casts the model, which is in float32 and still without weights, to its final number formats.
        """
        self.publish()
        model = copy.deepcopy(self._blank)
        cast(model)
        adapter_alone = self._read_in_pieces and is_adapted(self.model) and not is_reward_model(self.model)
        formats = {name: p.dtype for name, p in model.named_parameters()}
        wholes = gather_full(self._saved_with_adapter() if adapter_alone else self._all)
        _replace(model, {name: memory_mapped_copy(value.to(formats[name]), folder) for name, value in wholes})
        return model if ranks.leads() else None

    def _saved_with_adapter(self) -> dict[str, nn.Parameter]:
        tables = [self.model.get_input_embeddings(), self.model.get_output_embeddings()]
        saved = {id(p) for table in tables if table is not None for p in table.parameters()}
        return {name: p for name, p in self._all.items() if name in self.masters or id(p) in saved}

    def frozen_copy(self) -> Any:
        """A sharded copy of the current weights in the compute dtype, never trained."""
        copied = copy.deepcopy(self._blank).eval().requires_grad_(False)
        set_attention(copied, attention_of(self.model))
        if self.dtype == "bf16":
            cast_parameters(copied, torch.bfloat16)
        shard(copied, self._device)
        self._copy_into(copied)
        return copied

    def trainable_copy(self, settle: Callable[[Any], None]) -> Sharded:
        """A second, sharded copy of the current model, to train alongside it.

        Args:
            settle: sets what trains in the copy, which has no weights yet.
        """
        model: Any = copy.deepcopy(self._blank)
        set_attention(model, attention_of(self.model))
        settle(model)
        second = Sharded(model, self.dtype, self._device)
        self._copy_into(model)
        return second

    @torch.no_grad()
    def _copy_into(self, target: Any) -> None:
        """Copy this model's values into one that is sharded in the same way."""
        for name, p in target.named_parameters():
            local(p.detach()).copy_(local(self._all[name].detach()))

    def stand_in(self) -> Any:
        """A model of the same shapes that takes no memory, to measure what a forward pass allocates on this rank.

        Each weight is one number, expanded to the shape. The experts of a mixture are one layer's, shared by all
        layers, since products of stacked matrices refuse strides of 0. Under tensor parallelism it is cut like the
        model, so that the ranks of a group run it together.
        """
        empty = copy.deepcopy(self._blank)
        set_attention(empty, attention_of(self.model))
        if ranks.tensor() > 1:
            into_slices(empty, ranks.mesh(self._device.type)["tensor"])
        number = torch.bfloat16 if self.dtype == "bf16" else torch.float32
        scalar = torch.zeros((), dtype=number, device=self._device)
        stacked = {name: p for name, p in empty.named_parameters() if p.ndim > 2}
        layer = torch.zeros(max((p.numel() for p in stacked.values()), default=0), dtype=number, device=self._device)
        values = {name: filled_like(p, scalar.clone()) for name, p in empty.named_parameters() if name not in stacked}
        _replace(empty, values | {name: layer[: p.numel()].view(p.shape) for name, p in stacked.items()})
        return empty


def shard(model: Any, device: torch.device) -> Any:
    """Shard a frozen model or a value model in its current number format."""
    _cut(model, "fp32", device)
    return model


def read_frozen(
    model: Any,
    dtype: Dtype,
    device: torch.device,
    unread: LazyWeights,
    *,
    layers_only: bool = False,
    keep: Callable[[str], bool] = lambda name: False,
) -> Any:
    """Shard a model that never trains and read its unread weights, in the compute dtype.

    Args:
        layers_only: under tensor parallelism, shard the layers over all ranks and do not cut the matrices.
        keep: whether the weight of this name stays in float32.
    """
    model.requires_grad_(False)
    _into_pieces(model, dtype, "fp32", device, unread, layers_only=layers_only, keep=keep)
    return model


@torch.no_grad()
def start_adapter_in_pieces(model: Any) -> None:
    """Set what a fresh adapter starts from in the weights that were read: DoRA's norms, one block at a time, and the
    virtual tokens of prompt and prefix tuning. Other adapters, and those that were loaded, are unaffected."""
    if starts_from_drawn(model):
        values = call_in_place(model, lambda: drawn_tokens(model, partial(all_heads, model)))
        reshard(model)
        _copy_own_part(starting_table(model), values)
    if is_fresh(model) and any("lora_magnitude_vector" in name for name, _ in model.named_parameters()):
        _start_norms(model)


def _start_norms(model: Any) -> None:
    from torch.distributed.fsdp import FSDPModule

    blocks: list[Any] = [m for m in model.modules() if isinstance(m, FSDPModule)]
    norms: dict[Any, Tensor] = {}
    seen: set[nn.Module] = set()
    for block in reversed(blocks):  # inner blocks first
        block.unshard()
        new_modules = [m for m in block.modules() if m not in seen]
        norms |= dict(all_norms_of(new_modules))
        seen.update(new_modules)
        block.reshard()
    for magnitude, value in norms.items():
        _copy_own_part(magnitude.weight.detach(), value)


def _copy_own_part(into: Tensor, value: Tensor) -> None:
    """Copy this rank's part of a full tensor into its shard."""
    local(into).copy_(value[tuple(_slices(into))])


def is_in_pieces(model: Any) -> bool:
    """Whether a model is sharded."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def reshard(model: Any) -> None:
    """Release all gathered weights; the next forward pass gathers them again."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


@contextmanager
def gathered(*models: Any) -> Iterator[None]:
    """Gather these models in full on every rank inside the block, so their forward passes wait for no other rank.

    Ranks may then run unequal numbers of passes, for example to write their own answers. Models that are not sharded
    are unaffected. All ranks must enter the block together.
    """
    if ranks.world() == 1:
        yield
        return
    from torch.distributed.fsdp import FSDPModule

    pieces = [m for model in models for m in model.modules() if isinstance(m, FSDPModule)]
    blocks = [m for m in pieces if not any(m is model for model in models)]  # a root stays gathered anyway
    for module in blocks:
        module.set_reshard_after_forward(False, recurse=False)
    for module in pieces:
        module.unshard()
    try:
        yield
    finally:
        for module in blocks:
            module.set_reshard_after_forward(True, recurse=False)
        for module in pieces:
            module.reshard()


def _into_pieces(
    model: Any,
    dtype: Dtype,
    policy: Dtype,
    device: torch.device,
    unread: LazyWeights | None,
    *,
    layers_only: bool = False,
    keep: Callable[[str], bool] = lambda name: False,
) -> UnusedParameters | None:
    """Shard a model, and read this rank's shards of unread weights."""
    places = {} if unread is None else _places(model, unread)
    _forget(model, places.keys())
    if dtype == "bf16":
        trains = trainable(model)  # what never trains needs no float32 master
        cast_parameters(model, torch.bfloat16, keep=lambda name: name in trains or keep(name))
    touched = _cut(model, policy, device, layers_only=layers_only)
    pieces = {name: p for name, p in model.named_parameters() if name in places}
    fill({name: (places[name], _slices(p), local(p.detach())) for name, p in pieces.items()})
    return touched


def _places(model: nn.Module, unread: LazyWeights) -> dict[str, Place]:
    """Locations of the weights that have not been read."""
    places = {}
    for name, p in model.named_parameters():
        if unread.is_unread(p):
            places[name] = unread.place(p)
            assert places[name] is not None, f"{name} is not a tensor of the files as it is"
    return places


def _cut(model: Any, dtype: Dtype, device: torch.device, *, layers_only: bool = False) -> UnusedParameters | None:
    """Shard each block separately, and the rest with the root: embeddings and head, which stay gathered from a forward
    pass to its backward pass, since log-probs are taken outside the model's own forward; and towers, which rows without
    images or sounds do not run (:mod:`.unused_parameters`).

    Under tensor parallelism the model's matrices are first cut by its plan, unless ``layers_only``. Weights on the meta
    device become empty shards.
    """
    from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
    from transformers.modeling_layers import GradientCheckpointingLayer

    model._apply(lambda t: t if t.is_meta else t.to(device))
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if dtype == "bf16" else MixedPrecisionPolicy()
    mesh = ranks.flat_mesh(device.type) if layers_only else ranks.mesh(device.type)
    if ranks.tensor() > 1 and not layers_only:
        into_slices(model, mesh["tensor"])
    tower_modules = {m for tower in towers(model).values() for m in tower.modules()}
    blocks = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer) and m not in tower_modules]
    touched = UnusedParameters(model) if tower_modules else None
    for module in [*blocks, model]:
        fully_shard(module, mesh=mesh["shard"], mp_policy=policy)
    model._apply(lambda t: torch.empty_like(t, device=device) if t.is_meta else t)
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)  # gloo has no other way to sum
            module.unshard()  # once, so that gathered weights know which of them train
            module.reshard()
    return touched


def _slices(tensor: Any) -> list[slice]:
    box = box_of(tensor)
    return [slice(start, start + n) for start, n in zip(box.start, box.size, strict=True)]


def _blank_copy(model: nn.Module) -> nn.Module:
    """A copy of the model without its weights, which takes no memory; tied weights stay tied."""
    empty = {id(p): nn.Parameter(torch.empty_like(p, device="meta"), p.requires_grad) for p in model.parameters()}
    return copy.deepcopy(model, empty)  # pyright: ignore[reportArgumentType]


def _forget(model: nn.Module, names: Collection[str]) -> None:
    """Drop the values of some weights."""
    empty = {name: torch.empty(p.shape, device="meta") for name, p in model.named_parameters() if name in names}
    _replace(model, empty)


def _replace(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Replace weights by other tensors, by name; tied weights stay tied."""
    new = {id(p): nn.Parameter(values[name], p.requires_grad) for name, p in model.named_parameters() if name in values}
    for module in model.modules():
        for leaf, p in module._parameters.items():
            if p is not None and id(p) in new:
                module._parameters[leaf] = new[id(p)]
