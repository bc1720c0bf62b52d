"""Activation recomputation: three modes that trade memory for work and give the same numbers."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

Recompute = Literal["none", "selective", "full"]
MODES: tuple[Recompute, ...] = ("none", "selective", "full")
"""From the most memory and the least work to the least memory and the most work."""

# Products with weights, and fused attention: most of a block's work in a third to a half of its memory. Left out are
# the batched products of unfused attention, whose results grow with the square of the length, and the grouped products
# of experts, whose results some models overwrite.
_COSTLY_NAMES = (
    *("mm", "addmm", "_scaled_dot_product_flash_attention", "_scaled_dot_product_flash_attention_for_cpu"),
    *("_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention"),
)
_COSTLY = {getattr(torch.ops.aten, name).default for name in _COSTLY_NAMES if hasattr(torch.ops.aten, name)}


def set_recompute(model: Any, mode: Recompute) -> None:
    """Set what the blocks of a model keep for the backward pass, whatever the mode before.

    Args:
        mode: ``none`` recomputes nothing; ``selective`` keeps the results of matrix products and fused attention and
            recomputes norms, activations and masks; ``full`` keeps only each block's input (Chen et al. 2016,
            arXiv 1604.06174). The operations and their order are the same, and so are the numbers.
    """
    if mode == "none":
        if recompute_of(model) != "none":
            model.activation_checkpointing_disable() if _renamed(model) else model.gradient_checkpointing_disable()
        model.eval()
        return
    options: dict[str, Any] = {"use_reentrant": False}
    if mode == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_what_costs)
    if _renamed(model):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs=options)
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    model.enable_input_require_grads()
    model.train()  # the blocks recompute in training mode only; dropout is off either way


def recompute_of(model: Any) -> Recompute:
    """The mode that :func:`set_recompute` set last; ``none`` before its first call."""
    blocks = [m for m in model.modules() if getattr(m, "gradient_checkpointing", False)]
    if not blocks:
        return "none"
    options = getattr(blocks[-1]._gradient_checkpointing_func, "keywords", {})
    return "selective" if "context_fn" in options else "full"


def _renamed(model: Any) -> bool:
    """Whether this `transformers` has the methods under their new names (since 5.2x)."""
    return hasattr(model, "activation_checkpointing_enable")


def _keep_what_costs(_: Any, op: Any, *args: Any, **keywords: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if op in _COSTLY else CheckpointPolicy.PREFER_RECOMPUTE
