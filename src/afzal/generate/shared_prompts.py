"""The fast decoder: a prompt is read once for all its samples, and finished rows leave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from afzal.generate.rows import Row, Sample, TokenBuffer, TokenCallback
from afzal.generate.token_sampling import Sampling
from afzal.model.decoding import next_logits, read_prompts

_LEAVE_AT = 1 / 16  # finished rows stay until they are this share of all, since removing them copies the others' cache


def decode_shared(
    model: Any,
    rows: Sequence[Row],
    prompts: Sequence[Sequence[int]],
    *,
    eos: Sequence[int],
    sampling: Sampling,
    seed: int,
    on_token: TokenCallback | None = None,
) -> list[Sample]:
    """Samples for ``rows``, in the same order; must run inside :func:`afzal.model.decoding.shared_decoding`."""
    prompt_indices = list(dict.fromkeys(r.prompt for r in rows))
    place = {p: i for i, p in enumerate(prompt_indices)}
    logits, cache = read_prompts(model, [prompts[p] for p in prompt_indices], [place[r.prompt] for r in rows])
    device = logits.device
    written = TokenBuffer(rows, eos, sampling, seed, device, on_token)
    live_host = np.arange(len(rows))
    live = torch.arange(len(rows), device=device)
    going = np.ones(len(rows), dtype=bool)  # of the live rows, those without an EOS
    for step in range(sampling.max_new_tokens):
        tokens = written.draw(logits, step, live, live_host)
        if len(eos):
            going &= ~torch.isin(tokens, written.eos).cpu().numpy()
        if step + 1 == sampling.max_new_tokens or not going.any():
            break
        if (~going).sum() >= max(1, _LEAVE_AT * len(going)):
            stay = torch.from_numpy(np.flatnonzero(going)).to(device)
            cache.keep(stay)
            tokens, live, live_host = tokens[stay], live[stay], live_host[going]
            going = np.ones(len(live_host), dtype=bool)
        logits = next_logits(model, tokens, cache)
    return written.samples()
