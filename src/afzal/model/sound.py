"""Are the weights of a loaded model numbers, and does it compute? Asked once, before anything is made of it."""

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
        AfzalError: names the first weight with a NaN or an infinity; or says what the forward pass does.
    """
    refuse_fault(not_finite(model.named_parameters()), path)
    refuse_silent(model, path)


def refuse_fault(fault: str, path: str) -> None:
    """Refuse a model for what :func:`not_finite` says of its weights, if it says anything.

    Raises:
        AfzalError: with the fault.
    """
    if fault:
        raise AfzalError(f"the weights in {path} are not all numbers: {fault}", remedy=_EARLIER)


def refuse_silent(model: Any, path: str) -> None:
    """Refuse a model of finite weights whose forward pass fails on two tokens, or gives no numbers.

    Raises:
        AfzalError: says what it does.
    """
    with guarded(path), torch.no_grad():
        ids = torch.zeros((1, _TRIAL), dtype=torch.int64, device=next(model.parameters()).device)
        seen = model(input_ids=ids, use_cache=False).logits
    if bool(seen.isnan().any()) or bool(seen.isposinf().any()):  # -inf bars a token, which a model may do
        raise AfzalError(
            f"the model in {path} computes no numbers",
            why="its weights are finite, and its logits of two tokens are not: a weight or a scale is far too large",
            remedy=_EARLIER,
        )


def not_finite(weights: Iterable[tuple[str, Tensor]]) -> str:
    """The first weight, by name, with a NaN or an infinity, in words; empty where there is none."""
    return next((_told(name, p.detach()) for name, p in weights if not _is_finite(p)), "")


def _is_finite(p: Tensor) -> bool:
    """By the extremes, which a NaN or an infinity is one of: nothing of the tensor's size is made."""
    if not p.is_floating_point() or p.is_meta or p.numel() == 0:
        return True
    extremes = torch.stack(torch.aminmax(p.detach()))
    return bool(extremes.isfinite().all())


def _told(name: str, p: Tensor) -> str:
    """``lm_head.weight has NaN (1 of 512 rows)``."""
    what = "NaN" if bool(p.isnan().any()) else "an infinity"
    if p.ndim < 2:
        return f"{name} has {what} ({int((~p.isfinite()).sum())} of {p.numel()} numbers)"
    rows = int((~p.isfinite()).flatten(1).any(1).sum())
    return f"{name} has {what} ({rows} of {p.shape[0]} rows)"
