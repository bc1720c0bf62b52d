"""Leave out of a model's last block what no result depends on.

Attention in every block needs the keys and values of all positions. Behind the last block nothing else does: hidden
states are read where a scored token is predicted, or at a response's end. There the last block's queries, the rest of
its attention and its feed-forward layer are computed for those positions only. Elsewhere its results are not
meaningful. Results and gradients at the positions that are read stay the same, up to rounding.

A forward pass asks for it by the keyword :data:`KEYWORD` next to ``tree``. Hooks on parts of the last block do the
rest, also when the backward pass recomputes the block.

Shapes: M needed positions of N, d features.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from afzal.model.cpu_attention import spread
from afzal.model.media import towers
from afzal.tokens.attention_blocks import NeededLayout

KEYWORD = "tree_of_last_block"
"""Keyword of a forward pass: the :class:`NeededLayout` for the last block, or None for all positions."""

# names of these parts in the families of `transformers`; what a family does not have under one of them is computed
# for all positions
_ATTENTION = ("self_attn", "attention", "attn")
_QUERIES = ("q_proj",)
_OUTPUTS = ("o_proj", "out_proj", "dense", "c_proj")
_FEED_FORWARD = ("mlp",)


def skip_unneeded(model: Any) -> None:
    """Let the model's last block understand :data:`KEYWORD`; without effect the second time."""
    block = _last_block(model)
    attention = None if block is None else _child(block, _ATTENTION)
    if block is None or attention is None or skips_unneeded(model) or _is_compiled(block):
        return
    positions = _Positions()
    attention.register_forward_pre_hook(positions.read, prepend=True, with_kwargs=True)
    for part in (_child(attention, _QUERIES), _child(attention, _OUTPUTS), _child(block, _FEED_FORWARD)):
        # experts are left alone: what they report on their router is about all tokens
        if part is not None and not hasattr(part, "experts"):
            part.register_forward_pre_hook(positions.pick, prepend=True)
            part.register_forward_hook(positions.put_back)
    model._skips_unneeded = True


def skips_unneeded(model: Any) -> bool:
    """Whether the model's last block understands :data:`KEYWORD`."""
    return getattr(model, "_skips_unneeded", False)


def compute_all(model: Any) -> None:
    """Undo :func:`skip_unneeded`, for the compiler."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [k for k, hook in hooks.items() if isinstance(getattr(hook, "__self__", None), _Positions)]:
                del hooks[key]
    model._skips_unneeded = False


def keywords_for(model: Any, layout: NeededLayout | None) -> dict[str, NeededLayout]:
    """Keyword arguments of a forward pass, in addition to the batch's, to compute only what the layout needs."""
    return {KEYWORD: layout} if layout is not None and skips_unneeded(model) else {}


class _Positions:
    """Hooks that share the positions of the current pass. Attention runs first in a block, so it sets them."""

    def __init__(self) -> None:
        self.needed: Tensor | None = None
        self.n = 0

    def read(self, _: nn.Module, args: Any, keywords: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        layout: NeededLayout | None = keywords.pop(KEYWORD, None)
        if layout is None:
            self.needed = None
            return args, keywords
        self.needed, self.n = layout.positions, layout.n_tokens
        return args, keywords | {"tree": layout}

    def pick(self, part: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """``[1, N, d]`` to ``[1, M, d]``."""
        return (args[0].index_select(1, self.needed), *args[1:]) if self._picks(part) else args  # pyright: ignore

    def put_back(self, part: nn.Module, _: Any, result: Tensor) -> Tensor:
        """``[1, M, d]`` to ``[1, N, d]``."""
        return spread(result[0], self.needed, self.n)[None] if self._picks(part) else result

    def _picks(self, part: nn.Module) -> bool:
        # under tensor parallelism rows may be distributed, and picking some is not worth an exchange
        return self.needed is not None and not any(isinstance(p, DTensor) for p in part.parameters())


def _last_block(model: Any) -> nn.Module | None:
    """The last decoder block of the language model; None if it cannot be told."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    in_towers = {m for tower in towers(model).values() for m in tower.modules()}
    blocks = [m for m in model.modules() if isinstance(m, GradientCheckpointingLayer) and m not in in_towers]
    last = model.config.get_text_config().num_hidden_layers - 1
    return next((b for b in reversed(blocks) if getattr(_child(b, _ATTENTION), "layer_idx", None) == last), None)


def _child(module: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    return next((child for name in names if isinstance(child := getattr(module, name, None), nn.Module)), None)


def _is_compiled(block: nn.Module) -> bool:
    return any(m._compiled_call_impl is not None for m in block.modules())
