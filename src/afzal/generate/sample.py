"""Sampling continuations, several per prompt, without disturbing the training run's random numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from afzal.model.attention import stock_attention
from afzal.tokens.tree import Branch, Tree

Stop = Literal["eos", "length"]


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One continuation: ``ids`` int32 with the EOS that ended it, if one did."""

    prompt_index: int
    ids: np.ndarray
    stop: Stop


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to draw: temperature 0 is greedy; ``top_p`` 1 and ``top_k`` 0 leave the distribution whole."""

    max_new_tokens: int = 64
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    eos: Iterable[int],
    n: int = 1,
    sampling: Sampling = Sampling(),
    seed: int = 0,
    rows_per_batch: int = 64,
) -> list[Sample]:
    """``n`` continuations of every prompt, in prompt order.

    The same model, prompts, settings and seed give the same samples on the same machine.

    Args:
        eos: token ids that end a continuation.
        rows_per_batch: sequences decoded together.
    """
    rows = sorted((i for i in range(len(prompts)) for _ in range(n)), key=lambda i: (len(prompts[i]), i))
    device = next(model.parameters()).device
    drawn: list[Sample] = []
    devices = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices=devices), stock_attention(model):
        torch.manual_seed(seed)
        for start in range(0, len(rows), rows_per_batch):
            members = rows[start : start + rows_per_batch]
            drawn += _decode(model, members, prompts, sorted(set(eos)), sampling, device)
    return sorted(drawn, key=lambda s: s.prompt_index)


def as_trees(samples: Sequence[Sample], prompts: Sequence[Sequence[int]]) -> list[Tree]:
    """One tree per prompt with its samples as branches, every sampled token scored; empty samples are left out."""
    by_prompt: dict[int, list[Branch]] = {}
    for s in samples:
        if len(s.ids):
            by_prompt.setdefault(s.prompt_index, []).append(Branch(s.ids, np.ones(len(s.ids), dtype=bool)))
    return [Tree(f"sample-{i}", np.asarray(prompts[i], np.int32), tuple(b)) for i, b in sorted(by_prompt.items())]


def _decode(
    model: Any,
    members: Sequence[int],
    prompts: Sequence[Sequence[int]],
    eos: list[int],
    sampling: Sampling,
    device: torch.device,
) -> list[Sample]:
    pad = eos[0] if eos else 0
    ids, mask = _left_padded([prompts[i] for i in members], pad, device)
    limited = {"top_p": sampling.top_p, "top_k": sampling.top_k} if sampling.temperature > 0 else {}
    greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    drawing = {"do_sample": True, "temperature": sampling.temperature, **limited}
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        max_new_tokens=sampling.max_new_tokens,
        eos_token_id=eos or None,
        pad_token_id=pad,
        num_return_sequences=1,
        **(drawing if sampling.temperature > 0 else greedy),
    )
    new = out[:, ids.shape[1] :].cpu().numpy().astype(np.int32)
    return [_cut(i, row, set(eos)) for i, row in zip(members, new, strict=True)]


def _left_padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for r, row in enumerate(rows):
        ids[r, width - len(row) :] = torch.as_tensor(np.asarray(row, dtype=np.int64))
        mask[r, width - len(row) :] = 1
    return ids.to(device), mask.to(device)


def _cut(prompt_index: int, row: np.ndarray, eos: set[int]) -> Sample:
    """The row up to and including its first EOS."""
    ends = [t for t, token in enumerate(row.tolist()) if token in eos]
    if ends:
        return Sample(prompt_index, row[: ends[0] + 1], "eos")
    return Sample(prompt_index, row, "length")
