"""When sharing is trusted: every token must agree if numbers are exact, most of them if a rounded router chooses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers_models import make
from torch import Tensor

from afzal.model import probe
from afzal.model.probe import choose_sharing, largest_gap, typical_gap

TOKENS = 24  # of the probe's five responses


def off_by(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    """Make this many log-probs of the shared layout a nat too low."""
    original = probe.score

    def wrong(model: Any, batch: Any) -> Any:
        scores = original(model, batch)
        if len(batch.ids) == 1:  # one row for all trees
            assert len(scores.token_logps) == TOKENS
            scores.token_logps[:tokens] -= 1.0
        return scores

    monkeypatch.setattr(probe, "score", wrong)


@pytest.mark.parametrize(
    ("family", "dtype", "tokens", "shared"),
    [
        ("mixtral", torch.bfloat16, 0, True),
        ("mixtral", torch.bfloat16, 6, True),  # they went to other experts
        ("mixtral", torch.bfloat16, 14, False),
        ("mixtral", torch.float32, 1, False),
        ("llama", torch.bfloat16, 0, True),
        ("llama", torch.bfloat16, 1, False),
    ],
)
def test_how_many_tokens_must_agree(family: str, dtype: torch.dtype, tokens: int, shared: bool, monkeypatch: Any):
    off_by(monkeypatch, tokens)
    how, why = choose_sharing(make(family), dtype=dtype)
    assert (how == "shared") == shared
    assert shared or "log-probs differ by" in why


def test_gaps_by_hand():
    a, b = (torch.tensor([float("-inf"), 1.0, 2.0, 3.0, last]) for last in (4.0, 9.0))
    assert (largest_gap(a, b), typical_gap(a, b)) == (5.0, 0.0)
    assert typical_gap(a, a + torch.tensor([0.0, 0.5, 0.25, 0.75, 1.0])) == 0.5
    for gap in (largest_gap, typical_gap):
        assert not gap(a, torch.full_like(a, torch.nan)) <= 1.0
        assert not gap(a, _with_nan(a)) <= 1.0, "one is enough"


def _with_nan(t: Tensor) -> Tensor:
    return torch.cat([t[:-1], torch.tensor([torch.nan])])
