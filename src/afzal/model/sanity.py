"""Check once, right after loading, that a model's weights are finite and that it computes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from afzal.errors import AfzalError
from afzal.folders.guard import guarded

_EARLIER = "take an earlier checkpoint, or get the model again"
_TRIAL = 2  # tokens; the second one has a position other than 0


def refuse_unsound(model: Any, path: str) -> None:
    """Refuse a model whose weights are not all numbers, or whose forward pass fails on two tokens.

    Raises:
        AfzalError: names the first weight with a NaN or an infinity, or describes the failure of the forward pass.
    """
    refuse_fault(not_finite(model.named_parameters()), path)
    refuse_silent(model, path)


def refuse_fault(fault: str, path: str) -> None:
    """Refuse a model if :func:`not_finite` reports a fault in its weights.

    Raises:
        AfzalError: the fault is not empty.
    """
    if fault:
        raise AfzalError(f"the weights in {path} are not all numbers: {fault}", remedy=_EARLIER)


def refuse_silent(model: Any, path: str) -> None:
    """Refuse a model with finite weights whose forward pass fails on two tokens or gives no numbers.

    Raises:
        AfzalError: describes the failure.
    """
    with guarded(path), torch.no_grad():
        ids = torch.zeros((1, _TRIAL), dtype=torch.int64, device=next(model.parameters()).device)
        logits = model(input_ids=ids, use_cache=False).logits
    if bool(logits.isnan().any()) or bool(logits.isposinf().any()):  # a model may bar a token with -inf
        raise AfzalError(
            f"the model in {path} computes no numbers",
            why="its weights are finite, and its logits of two tokens are not: a weight or a scale is far too large",
            remedy=_EARLIER,
        )


def not_finite(weights: Iterable[tuple[str, Tensor]]) -> str:
    """A description of the first weight with a NaN or an infinity; empty if there is none."""
    return next((_fault(name, p.detach()) for name, p in weights if not _is_finite(p)), "")


def _is_finite(p: Tensor) -> bool:
    """Whether all numbers are finite. Checks the extremes only, so nothing of the tensor's size is allocated."""
    if not p.is_floating_point() or p.is_meta or p.numel() == 0:
        return True
    extremes = torch.stack(torch.aminmax(p.detach()))
    return bool(extremes.isfinite().all())


def _fault(name: str, p: Tensor) -> str:
    """A sentence such as ``lm_head.weight has NaN (1 of 512 rows)``."""
    what = "NaN" if bool(p.isnan().any()) else "an infinity"
    if p.ndim < 2:
        return f"{name} has {what} ({int((~p.isfinite()).sum())} of {p.numel()} numbers)"
    rows = int((~p.isfinite()).flatten(1).any(1).sum())
    return f"{name} has {what} ({rows} of {p.shape[0]} rows)"
