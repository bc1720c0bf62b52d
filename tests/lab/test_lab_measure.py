"""Exact figures of a folder equal the direct sums, for a full model and for an adapter."""

import numpy as np
import pytest

from afzal.lab import exact, language, measure
from afzal.model.load import add_lora, load_model, save_model


def test_a_policy_is_itself_and_an_adapter_counts(tmp_path):
    start = language.save_model(tmp_path / "start", seed=0)
    same = measure.figures(start, start)
    assert (same.kl, same.win_rate) == (0.0, pytest.approx(0.5))
    _, held_out = language.prompts()
    log_ref = exact.log_policy(load_model(str(start)), held_out)
    assert same.reward == exact.expected(log_ref, language.reward(held_out))
    model = add_lora(load_model(str(start)), rank=2, alpha=4)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.fill_(0.05)
    save_model(model, language.tokenizer(), tmp_path / "adapted")
    moved = measure.figures(tmp_path / "adapted", start)
    assert moved.kl == exact.kl(exact.log_policy(model, held_out), log_ref) > 1e-4
    first, *rest = measure.table([start, tmp_path / "adapted"], start).splitlines()
    assert "gain won" in first
    assert [float(line.split()[2]) for line in rest] == pytest.approx([0.0, moved.kl], abs=0.006)
    assert np.isfinite(moved.reward)
