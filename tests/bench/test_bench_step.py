"""The bench of the training step, small: it runs, its sides agree on the losses, and Afzal does no work twice."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.dpo_step import shapes, table
from benchmarks.gpu import ROOT

SIZE = ["--width", "128", "--layers", "2", "--heads", "4", "--kv-heads", "2", "--vocabulary", "2000"]


@pytest.mark.slow
def test_the_bench_runs_and_its_sides_agree(tmp_path):
    out = tmp_path / "figures/hh.json"
    command = [sys.executable, "-m", "benchmarks.dpo_step", "--sides", "afzal", "plain", "--shapes", "hh", *SIZE]
    command += ["--repeats", "1", "--force", "--no-memory", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    (hh,) = found["shapes"]
    assert done.stdout.rstrip().endswith(table.markdown(found["about"], found["shapes"]))
    losses = hh["losses"]["fp32"]
    assert losses["afzal"] == pytest.approx(losses["plain"], rel=1e-5)
    assert 0.4 < losses["afzal"] < 1.0
    assert hh["losses"]["bf16"]["afzal"] == pytest.approx(hh["losses"]["bf16"]["plain"], rel=2e-2)
    # so narrow a model pays more for one more attention call than for padding: the next test has the bench's own width
    assert 1.0 <= hh["afzal"]["executed_over_minimum"] <= 1.25
    assert len(hh["plain"]["seconds"]) == 1
    assert hh["left_out"] == {}


@pytest.mark.parametrize("name", sorted(shapes.SHAPES))
def test_no_shape_executes_more_than_5_per_cent_above_the_least(name):
    """Lengths as the bench draws them, at the bench's own model size: to count needs no forward pass."""
    import torch
    from transformers import LlamaConfig

    from afzal.records import Preference
    from afzal.tokens import tree
    from afzal.train.feed import Layout
    from benchmarks.dpo_step import sides

    config = LlamaConfig(
        hidden_size=512, intermediate_size=1376, num_hidden_layers=8, num_attention_heads=8, vocab_size=32000
    )
    pairs, device = shapes.SHAPES[name].pairs, torch.device("cpu")
    counts, _ = shapes.lengths(name, 4 * pairs, 0, None)
    rows = shapes.rows(counts, config.vocab_size, 0)
    trees = [tree(str(i), p, [c, r], pairs=[Preference(0, 1, 1.0)]) for i, (p, c, r) in enumerate(rows)]
    work = sides.Work(config, {}, {}, rows, pairs, "bf16", device, cached=False)
    assert 1.0 <= sides.executed(work, Layout("shared", 8192, device), trees) <= 1.05


def test_lengths_have_the_shape_s_means_and_fit_the_context():
    for name, shape in shapes.SHAPES.items():
        counts, source = shapes.lengths(name, 400, 0, None)
        assert counts.shape == (400, 3)
        assert counts.min() >= 2
        assert (counts[:, 0] + counts[:, 1:].max(1)).max() <= shape.max_tokens
        assert np.median(counts[:, 0]) < counts[:, 0].mean() < 1.05 * shape.prompt
        assert source.startswith("log-normal")
