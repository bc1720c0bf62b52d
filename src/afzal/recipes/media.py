"""Measure before a run how much images and sounds affect a policy, so that nobody trains a blind model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from afzal.model.logprobs import score
from afzal.tokens import Tree
from afzal.train.feed import Layout


def ablation_note(model: Any, trees: Sequence[Tree], layout: Layout) -> str:
    """A note on how much the log-probs of responses change when images are replaced by grey and sounds by silence.

    Args:
        trees: trees with media and responses.
    """
    blank = [replace(t, media=tuple(m.without_content() for m in t.media)) for t in trees]
    with torch.no_grad():
        logps, blank_logps = (_per_response(model, given, layout) for given in (trees, blank))
    change = float((logps - blank_logps).abs().mean())
    note = f"media: with blank images and sounds, the log-prob of a response changes by {change:.3g} nats on average"
    return note if change > 0 else f"{note}: this model does not use them"


def _per_response(model: Any, trees: Sequence[Tree], layout: Layout) -> torch.Tensor:
    return torch.cat([score(model, batch).logps.double().cpu() for batch in layout.batches(trees)])
