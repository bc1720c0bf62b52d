"""Decoding without padding, for models whose outputs depend on padding or on other rows.

An adapter's virtual tokens would come before the left padding, separated from their prompt, and PEFT's ``generate``
treats them differently across versions of `transformers`. Rotary frequencies that depend on the longest row would be
another row's. So prompts of equal length are decoded together, with a key-value cache that is refilled whenever a new
length has changed the frequencies.

Shapes: R rows of one length, V vocabulary.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from afzal.generate.rows import Row, Sample, TokenBuffer, TokenCallback
from afzal.generate.token_sampling import Sampling
from afzal.model import rotary, virtual
from afzal.model.attention import stock_attention
from afzal.model.decoding import evaluating
from afzal.model.logprobs import output_head


def decode_unpadded(
    model: Any,
    rows: Sequence[Row],
    prompts: Sequence[Sequence[int]],
    *,
    eos: Sequence[int],
    sampling: Sampling,
    seed: int,
    on_token: TokenCallback | None = None,
) -> list[Sample]:
    """Samples for ``rows``, in the same order."""
    samples: dict[Row, Sample] = {}
    with stock_attention(model), evaluating(model):
        for length in sorted({len(prompts[r.prompt]) for r in rows}):
            same_length = [r for r in rows if len(prompts[r.prompt]) == length]
            written = TokenBuffer(same_length, eos, sampling, seed, next(model.parameters()).device, on_token)
            _write(model, written, [prompts[r.prompt] for r in same_length])
            samples |= dict(zip(same_length, written.samples(), strict=True))
    return [samples[r] for r in rows]


def _write(model: Any, written: TokenBuffer, prompts: Sequence[Sequence[int]]) -> None:
    device = written.ids.device
    ids = torch.from_numpy(np.asarray(prompts, dtype=np.int64)).to(device)
    all_rows = np.arange(len(prompts))
    live = torch.arange(len(prompts), device=device)
    going = torch.ones(len(prompts), dtype=torch.bool, device=device)
    reader = _Reader(model)
    for step in range(written.sampling.max_new_tokens):
        tokens = written.draw(reader.logits(ids), np.full(len(all_rows), step), live, all_rows)
        going &= ~torch.isin(tokens, written.eos)
        if not going.any():
            return
        ids = torch.cat([ids, tokens[:, None]], dim=1)


class _Reader:
    """Computes next-token logits of rows that grow by one token at a time."""

    def __init__(self, model: Any) -> None:
        self.model, self.base = model, virtual.base_of(model)
        self._frequencies: Any = None
        self._cache: Any = None
        known = inspect.signature(self.base.forward).parameters
        self._name = "cache" if "cache" in known else "past_key_values"  # transformers renamed it in 5.24
        self._takes_positions = "position_ids" in known

    def logits(self, ids: Tensor) -> Tensor:
        """``[R, V]`` logits after ``ids`` ``[R, L]``, whose first L - 1 columns may have been read before."""
        before, keys = virtual.count(self.model), virtual.has_prefix_keys(self.model)
        frequencies = rotary.frequencies(self.base.config, before + ids.shape[1])
        afresh = self._cache is None or frequencies != self._frequencies
        if afresh:
            rotary.start_afresh(self.base)
            self._cache, self._frequencies = _empty_cache(self.base), frequencies
        first = (before if keys else 0) if afresh else before + ids.shape[1] - 1
        options: dict[str, Any] = {self._name: self._cache, "use_cache": True}
        if self._takes_positions:
            positions = torch.arange(first, before + ids.shape[1], device=ids.device)
            options["position_ids"] = positions.expand(len(ids), -1)

        def inputs() -> dict[str, Any]:
            if not afresh:
                return {"input_ids": ids[:, -1:], **options}
            for layer, (key, value) in enumerate(virtual.prefix(self.model)):
                self._cache.update(_rows(key, len(ids)), _rows(value, len(ids)), layer)
            if keys or not before:
                return {"input_ids": ids, **options}
            return {"inputs_embeds": virtual.embedded(self.model, ids), **options}

        hook = output_head(self.base).register_forward_pre_hook(_last, prepend=True)
        try:
            return virtual.call(self.model, inputs).logits[:, -1]
        finally:
            hook.remove()


def _last(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
    return (args[0][:, -1:],)


def _rows(prefix: Tensor, n: int) -> Tensor:
    return prefix.expand(n, -1, -1, -1)


def _empty_cache(base: Any) -> Any:
    from transformers import DynamicCache

    return DynamicCache(config=base.config.get_text_config())
