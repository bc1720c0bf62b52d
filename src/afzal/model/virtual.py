"""An adapter's virtual tokens in the shared layout: before the prompt of every tree, once for all its branches.

PEFT puts them before every row. In a row of packed trees they are part of every prompt instead: branches see them like
the prompt, positions count them, and nothing else in the layout changes. Prompt tuning and p-tuning give their
embeddings; prefix tuning gives their keys and values, which attention uses in place of the computed ones.

Shapes: N row positions, T trees, n virtual tokens, d features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from afzal.model.adapters import virtual_kind, virtual_tokens
from afzal.model.attention import PrefixedLayout
from afzal.tokens.attention_blocks import Segment, TreeLayout
from afzal.tokens.batch import Batch


@dataclass(frozen=True, slots=True)
class _ExtendedRow:
    """A row with room for virtual tokens.

    Attributes:
        new_positions: ``[N]`` int64, the new position of each position of the batch.
        places: ``[T n]`` int64, positions of the virtual tokens.
        segments: of all ``N + T n`` positions.
    """

    new_positions: Tensor
    places: Tensor
    segments: tuple[Segment, ...]


def is_active(model: Any) -> bool:
    """Whether the model has virtual tokens that are not switched off."""
    return bool(virtual_kind(model)) and not getattr(model, "_adapters_disabled", False)


def count(model: Any) -> int:
    """Number of active virtual tokens before every row of the model."""
    return virtual_tokens(model) if is_active(model) else 0


def base_of(model: Any) -> Any:
    """The model without its active virtual tokens; a model without any is returned unchanged."""
    return model.get_base_model() if is_active(model) else model


def has_prefix_keys(model: Any) -> bool:
    """Whether the active virtual tokens have keys and values (prefix tuning) instead of embeddings."""
    return is_active(model) and virtual_kind(model) == "prefix"


def call(model: Any, inputs: Callable[[], Mapping[str, Any]]) -> Any:
    """Call the model below its active virtual tokens on ``inputs()``; a model without any is called directly.

    With sharded weights, calling the outer model gathers them, those of virtual tokens too. So the inner model and
    ``inputs`` run inside that call.
    """
    if not is_active(model):
        return model(**inputs())
    base = model.get_base_model()
    return call_in_place(model, lambda: base(**inputs()))


def call_in_place(model: Any, compute: Callable[[], Any]) -> Any:
    """The result of ``compute()``, called in place of the model's own forward pass, with its sharded weights
    gathered."""
    forward = model.forward
    model.forward = compute
    try:
        return model()
    finally:
        model.forward = forward


def prefix(model: Any) -> list[tuple[Tensor, Tensor]]:
    """Keys and values ``[1, kv heads, n, D]`` of every layer under prefix tuning; else empty."""
    if not has_prefix_keys(model):
        return []
    return [(layer.keys, layer.values) for layer in model.get_prompt(1).layers]


def embedded(model: Any, ids: Tensor) -> Tensor:
    """``[R, n + L, d]``: the virtual tokens' embeddings before those of ``ids`` ``[R, L]``; not with prefix tuning."""
    words = base_of(model).get_input_embeddings()(ids)
    tokens = model.get_prompt(1).to(words.dtype)
    return torch.cat([tokens.expand(len(ids), -1, -1), words], dim=1)


def run_shared(model: Any, batch: Batch) -> Tensor:
    """Run the model with its virtual tokens on a batch of the shared layout.

    Returns ``[N]`` int64, the new position of each position of the batch.
    """
    assert batch.layout is not None
    n, base = virtual_tokens(model), model.get_base_model()
    row, device = _extended(batch.layout, n, batch.ids.device), batch.layout.device
    trees, total = len(row.places) // n, batch.ids.numel() + len(row.places)
    ids = batch.ids.new_zeros(1, total).index_copy(1, row.new_positions, batch.ids)
    virtual_positions = torch.arange(n, device=batch.ids.device).repeat(trees)[None]
    positions = batch.positions.new_zeros(1, total).index_copy(1, row.new_positions, batch.positions + n)
    positions = positions.index_copy(1, row.places, virtual_positions)
    common: dict[str, Any] = {"position_ids": positions, "use_cache": False}

    def inputs() -> dict[str, Any]:
        if has_prefix_keys(model):
            layout = PrefixedLayout(row.segments, total, device, row.places, prefix(model))
            return {"input_ids": ids, "tree": layout, **common}
        words = base.get_input_embeddings()(ids)
        tokens = model.get_prompt(1).to(words.dtype).repeat(1, trees, 1)
        words = words.index_copy(1, row.places, tokens)
        return {"inputs_embeds": words, "tree": TreeLayout(row.segments, total, device), **common}

    call(model, inputs)
    return row.new_positions


def _extended(layout: TreeLayout, n: int, device: torch.device) -> _ExtendedRow:
    prompts = sorted(s.start for s in layout.segments if s.prompt_length == 0)
    before = np.searchsorted(prompts, np.arange(layout.n_tokens), side="right") * n  # virtual tokens up to a position
    segments = [
        Segment(
            s.start + int(before[s.start]),
            s.length,
            s.prompt_start + int(before[s.prompt_start]) - n,
            s.prompt_length + n,
        )
        if s.prompt_length
        else Segment(s.start + int(before[s.start]) - n, s.length + n)
        for s in layout.segments
    ]
    places = np.concatenate([start + int(before[start]) - n + np.arange(n) for start in prompts])
    new_positions = np.arange(layout.n_tokens) + before
    return _ExtendedRow(
        torch.from_numpy(new_positions).to(device), torch.from_numpy(places).to(device), tuple(segments)
    )
