"""Whether a model can share prompts between samples, by allow-list and by trial, decided once per model."""

from __future__ import annotations

from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from afzal.model import rotary, virtual
from afzal.model.attention import may_share, stock_attention
from afzal.model.decoding import evaluating, next_logits, read_prompts, shared_decoding
from afzal.model.load import vocabulary_of
from afzal.model.media import random_ids
from afzal.model.probe import largest_gap, tolerance

_known: WeakKeyDictionary[Any, tuple[Any, str]] = WeakKeyDictionary()


def choose_decoding(model: Any, longest: int | None = None) -> tuple[Literal["shared", "stock"], str]:
    """``shared``, or ``stock`` with the reason: the family is not known to allow sharing, or a trial gave other
    log-probs.

    The result depends on the architecture, the adapter and the dtype, and is cached for the lifetime of the model.

    Args:
        longest: maximum tokens of prompt + answer; None if unknown.
    """
    if reason := rotary.why_not_share(model, longest):
        return "stock", reason
    key = (model.dtype, next(model.parameters()).device, virtual.is_active(model))
    if model not in _known or _known[model][0] != key:
        _known[model] = (key, may_share(model.config) or _trial(model))
    reason = _known[model][1]
    return ("stock", reason) if reason else ("shared", "")


def _trial(model: Any) -> str:
    """Empty if prefill, several steps and leaving rows give the log-probs of plain forward passes; else the reason."""
    rng = np.random.default_rng(0)
    vocabulary = vocabulary_of(model)
    prompts = [random_ids(model.config, vocabulary, rng, n) for n in (9, 3, 1)]
    texts = [(prompts[p], np.array(random_ids(model.config, vocabulary, rng, 7))) for p in (0, 0, 1, 2, 2, 2)]
    with torch.no_grad():
        try:
            with shared_decoding(model):
                logps = _by_steps(model, texts, prompts)
        except (TypeError, ValueError, RuntimeError) as error:
            return f"the decoding cache does not reach its attention ({type(error).__name__}: {error})"
        with stock_attention(model), evaluating(model):
            plain = [_plain(model, *text) for text in texts]
    gap = largest_gap(torch.cat(logps), torch.cat([p[: len(f)] for f, p in zip(logps, plain, strict=True)]))
    return "" if gap <= tolerance(model) else f"shared and plain decoding differ by {gap:.3g} nats"


def _by_steps(model: Any, texts: list[tuple[list[int], np.ndarray]], prompts: list[list[int]]) -> list[Tensor]:
    """Token-by-token log-probs of every text's continuation; every second row leaves in the middle."""
    device = next(model.parameters()).device
    forced = torch.tensor(np.stack([t for _, t in texts]), device=device)
    logits, cache = read_prompts(model, prompts, [0, 0, 1, 2, 2, 2])
    live, logps = torch.arange(len(texts), device=device), [[] for _ in texts]
    for step in range(forced.shape[1]):
        token = forced[live, step]
        for row, value in zip(live.tolist(), _gather(logits, token), strict=True):
            logps[row].append(value)
        if step == forced.shape[1] // 2:
            stay = torch.arange(1, len(texts), 2, device=device)
            cache.keep(stay)
            live, token = live[stay], token[stay]
        if step + 1 < forced.shape[1]:
            logits = next_logits(model, token, cache)
    return [torch.stack(values) for values in logps]


def _plain(model: Any, prompt: list[int], text: np.ndarray) -> Tensor:
    ids = torch.tensor(np.concatenate([prompt, text])[None], device=next(model.parameters()).device)
    logits = model(input_ids=ids, use_cache=False).logits[0, -ids.shape[1] :]  # virtual tokens have logits too
    logits = logits[len(prompt) - 1 : -1]
    return _gather(logits, ids[0, len(prompt) :])


def _gather(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.float().log_softmax(-1).gather(1, tokens[:, None])[:, 0]
