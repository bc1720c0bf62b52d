"""Keep an item's rotary frequencies independent of the other rows in its forward pass.

Two kinds of rotary embedding in `transformers` choose their frequencies at the start of a pass
(``dynamic_rope_update``), by the largest position in it. Longrope (Phi-3) has two sets, and takes the second beyond
``original_max_position_embeddings``. Dynamic NTK scales its base with every token beyond ``max_position_embeddings``,
and keeps the largest scale for later passes. A long neighbour would change a short item's log-probs. Such models share
no prompts if a row can be that long. Rows with different frequencies go through separate passes, each as if nothing had
been read before.

Shapes: R rows, L row length, d features.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from afzal.model import virtual
from afzal.model.adapters import virtual_tokens
from afzal.model.media import inputs_of
from afzal.tokens.batch import Batch


def constant_up_to(config: Any) -> int | None:
    """The longest row, in tokens, up to which frequencies are the same; None if they never depend on the length."""
    limits = [limit for _, limit in _kinds(config)]
    return min(limits) if limits else None


def frequencies(config: Any, length: int) -> Hashable:
    """A key for the frequencies of a row of ``length`` tokens: rows with equal keys may share a pass."""
    return tuple((length if kind == "dynamic" else True) if length > limit else False for kind, limit in _kinds(config))


def why_not_share(model: Any, longest: int | None) -> str:
    """Empty if rows of up to ``longest`` tokens (None: of any length) have the same frequencies; else the reason."""
    limit = constant_up_to(model.config)
    if limit is None or (longest is not None and longest + virtual_tokens(model) <= limit):
        return ""
    return f"its rotary frequencies depend on the longest row of a pass beyond {limit} tokens"


def start_afresh(model: Any) -> None:
    """Reset dynamic frequencies, so that earlier passes have no effect."""
    for module in model.modules():
        if not hasattr(module, "original_max_seq_len"):
            continue
        kinds = module.rope_type if isinstance(module.rope_type, Mapping) else {"": module.rope_type}
        for layer, kind in kinds.items():
            prefix = f"{layer}_" if layer else ""
            if kind is not None and "dynamic" in kind:
                module.register_buffer(f"{prefix}inv_freq", getattr(module, f"{prefix}original_inv_freq"), False)
                setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)


def run_rows(model: Any, batch: Batch, run: Callable[[Mapping[str, Any]], Tensor]) -> Tensor:
    """``run(inputs)`` ``[r, l, d]`` over a batch's rows, one pass per set of frequencies: ``[R, L, d]``.

    Args:
        run: the forward pass of some rows; ``inputs`` are the model's keyword arguments.

    Raises:
        ValueError: prompts are shared in a batch whose items have different frequencies.
    """
    if constant_up_to(model.config) is None:
        return run(inputs_of(model, batch))
    groups = _groups(model, batch)
    if len(groups) == 1:
        start_afresh(model)
        return run(inputs_of(model, batch))
    if batch.attention_mask is None:
        raise ValueError(f"a batch with shared prompts cannot be read: {why_not_share(model, None)}")
    parts, order = [], []
    for members in groups:
        rows = torch.tensor(members, device=batch.ids.device)
        width = max(_lengths(batch)[r] for r in members)
        start_afresh(model)
        states = run({"input_ids": batch.ids[rows, :width], "attention_mask": batch.attention_mask[rows, :width]})
        parts.append(F.pad(states, (0, 0, 0, batch.ids.shape[1] - width)))
        order += members
    place = torch.empty(len(order), dtype=torch.int64, device=batch.ids.device)
    place[torch.tensor(order, device=place.device)] = torch.arange(len(order), device=place.device)
    return torch.cat(parts).index_select(0, place)


def _groups(model: Any, batch: Batch) -> list[list[int]]:
    """Rows of a batch (or branches, if prompts are shared) grouped by frequencies, shorter ones first."""
    before = virtual.count(model)
    members: dict[Hashable, list[int]] = {}
    lengths = _lengths(batch)
    for row in sorted(range(len(lengths)), key=lambda r: (lengths[r], r)):
        members.setdefault(frequencies(model.config, lengths[row] + before), []).append(row)
    return list(members.values())


def _lengths(batch: Batch) -> list[int]:
    """Tokens of each response with its prompt, without the copies for an ensemble after the rows."""
    rows = batch.sources if batch.attention_mask is None else batch.sources[: len(batch.ids)]
    return [len(t.prompt) + len(t.branches[k].ids) for t, k in rows]


def _kinds(config: Any) -> list[tuple[str, int]]:
    """For every rotary embedding that depends on the length: ``longrope`` or ``dynamic``, and the length up to which
    it is constant."""
    text = config.get_text_config()
    parameters = getattr(text, "rope_parameters", None) or {}
    all_settings = (
        [parameters] if "rope_type" in parameters else [p for p in parameters.values() if isinstance(p, Mapping)]
    )
    kinds: list[tuple[str, int]] = []
    for settings in all_settings:
        kind = str(settings.get("rope_type"))
        if kind == "longrope":
            original = settings.get("original_max_position_embeddings")
            kinds.append((kind, int(original or text.original_max_position_embeddings)))
        elif "dynamic" in kind:
            kinds.append(("dynamic", int(text.max_position_embeddings)))
    return kinds
