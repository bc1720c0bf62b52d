"""Adapters whose weights belong to features or heads that tensor parallelism cuts: IA3, DoRA and prefix tuning.

Low-rank factors are layers and are cut as such (:mod:`.tensor`). Here a rank gets the IA3 factors and DoRA norms of its
own features, and the prefix keys and values of its own heads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from afzal.model.adapters import norms_of, virtual_kind
from afzal.train.dtensor import local

Cut = Literal["columns", "gathered columns", "rows", "split rows"]
"""How a layer is cut, by columns or rows, and whether its output is gathered or its input split."""

_CUT_AS = "afzal_cut"  # attribute of a layer with DoRA: its cut and mesh
_HEADS_OVER = "afzal_heads_over"  # attribute of a model with prefix tuning: the mesh that its heads are cut over


def cut_factors(layer: nn.Module, cut: Cut, mesh: Any) -> None:
    """Give a rank its part of a layer's IA3 factors or DoRA norms; other layers are unaffected."""
    if hasattr(layer, "ia3_l"):
        _cut_ia3(layer, cut, mesh)
    for norms in dict(getattr(layer, "lora_magnitude_vector", {})).values():
        setattr(layer, _CUT_AS, (cut, mesh))
        if cut in ("columns", "gathered columns"):
            norms.weight = _cut_along(norms.weight, 0, mesh)
        norms.forward = partial(_dora, norms, cut, mesh)


def all_norms_of(layers: Iterable[Any]) -> Iterator[tuple[Any, Tensor]]:
    """Like :func:`afzal.model.adapters.norms_of`, for layers that may be cut; all ranks of a group must iterate.

    Norms of cut layers are those that their forward passes compute, so that a fresh adapter is exactly the identity.
    """
    for layer in layers:
        if (placed := getattr(layer, _CUT_AS, None)) is None:
            yield from norms_of([layer])
            continue
        for name, magnitude in layer.lora_magnitude_vector.items():
            first, second = layer.lora_A[name], layer.lora_B[name]
            norms = _norms(layer.get_base_layer(), first, second, layer.scaling[name], *placed)
            yield magnitude, norms.full_tensor() if hasattr(norms, "full_tensor") else norms


def all_heads(model: Any, t: Tensor) -> Tensor:
    """Keys or values ``[1, kv heads, n, D]`` of all heads, from those of this rank's own, on every rank of a group."""
    from torch.distributed.tensor import DTensor, Shard

    if (mesh := getattr(model, _HEADS_OVER, None)) is None:
        return t
    return DTensor.from_local(t, mesh, [Shard(1)], run_check=False).full_tensor()


def cut_prefix(model: Any, mesh: Any) -> None:
    """Have prefix tuning give a rank the keys and values ``[B, kv heads, n, D]`` of its own heads.

    The prefix encoder is replicated on every rank; its gradient is gathered from all heads.
    """
    if virtual_kind(model) != "prefix":
        return
    from torch.distributed.tensor import DTensor, Replicate, Shard

    original = model.get_prompt
    setattr(model, _HEADS_OVER, mesh)

    def own_heads(t: Tensor) -> Tensor:
        return (
            DTensor.from_local(t, mesh, [Replicate()], run_check=False).redistribute(placements=[Shard(1)]).to_local()
        )

    def get_prompt(*args: Any, **kwargs: Any) -> Any:
        cache = original(*args, **kwargs)
        for layer in cache.layers:
            layer.keys, layer.values = own_heads(layer.keys), own_heads(layer.values)
        return cache

    model.get_prompt = get_prompt


def _cut_along(p: nn.Parameter, axis: int, mesh: Any) -> nn.Parameter:
    from torch.distributed.tensor import Shard, distribute_tensor

    return nn.Parameter(distribute_tensor(p.detach(), mesh, [Shard(axis)], src_data_rank=None), p.requires_grad)


def _cut_ia3(layer: Any, cut: Cut, mesh: Any) -> None:
    """Factors scale the input of a feed-forward layer and the output of any other; they are cut if it is.

    Hooks make PEFT's own product one of two tensors that are cut alike.
    """
    from torch.distributed.tensor import DTensor, Shard

    if cut != ("rows" if layer.is_feedforward else "columns"):
        return
    for name, factors in layer.ia3_l.items():
        layer.ia3_l[name] = _cut_along(factors, 1 if layer.is_feedforward else 0, mesh)

    def as_cut(t: Tensor) -> Tensor:
        return DTensor.from_local(t, mesh, [Shard(-1)], run_check=False)

    if layer.is_feedforward:
        layer.register_forward_pre_hook(lambda _, inputs: (as_cut(inputs[0]), *inputs[1:]))
    else:
        layer.base_layer.register_forward_hook(lambda _m, _inputs, output: as_cut(output))
        layer.register_forward_hook(lambda _m, _inputs, output: local(output))


def _dora(
    norms: Any,
    cut: Cut,
    mesh: Any,
    x: Tensor,
    *,
    scaling: float,
    base_layer: nn.Module,
    base_result: Tensor,
    **factors: Any,
) -> Tensor:
    """DoRA's addition to ``base_result``, which PEFT's ``DoraLinearLayer`` computes from full weights (Liu et al. 2024,
    arXiv 2402.09353, section 4.3: no gradient goes through the norm of the changed weights)."""

    def as_it_leaves(t: Any) -> Tensor:
        return t.full_tensor() if cut == "gathered columns" else local(t)

    first, second = factors["lora_A"], factors["lora_B"]
    scale = as_it_leaves(norms.weight / _norms(base_layer, first, second, scaling, cut, mesh))
    if base_layer.bias is not None:
        base_result = base_result - as_it_leaves(base_layer.bias)
    return (scale - 1) * base_result + scale * second(first(x)) * scaling


def _norms(base: Any, first: Any, second: Any, scaling: float, cut: Cut, mesh: Any) -> Any:
    """Row norms of the changed weights, cut like DoRA's own: a rank has complete rows, or a part of every row."""
    from torch.distributed.tensor import DTensor, Partial, Shard

    changed = local(base.weight.detach()) + scaling * (local(second.weight.detach()) @ local(first.weight.detach()))
    norms = changed.norm(dim=1)
    if cut in ("columns", "gathered columns"):
        return DTensor.from_local(norms, mesh, [Shard(0)], run_check=False)
    return DTensor.from_local(norms.square(), mesh, [Partial()], run_check=False).full_tensor().sqrt()
