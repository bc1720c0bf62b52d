"""The training-step benchmark at a small size: it runs, its sides agree on the losses, and Afzal does no work twice."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from benchmarks.dpo_step import shapes, table
from benchmarks.gpu.install import ROOT

SIZE = ["--width", "128", "--layers", "2", "--heads", "4", "--kv-heads", "2", "--vocabulary", "2000"]


@pytest.mark.slow
def test_the_bench_runs_and_its_sides_agree(tmp_path):
    out = tmp_path / "figures/hh.json"
    command = [sys.executable, "-m", "benchmarks.dpo_step", "--sides", "afzal", "plain", "--shapes", "hh", *SIZE]
    command += ["--repeats", "1", "--force", "--no-memory", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(out.read_text())
    (hh,) = results["shapes"]
    assert done.stdout.rstrip().endswith(table.markdown(results["about"], results["shapes"]))
    losses = hh["losses"]["fp32"]
    assert losses["afzal"] == pytest.approx(losses["plain"], rel=1e-5)
    assert 0.4 < losses["afzal"] < 1.0
    assert hh["losses"]["bf16"]["afzal"] == pytest.approx(hh["losses"]["bf16"]["plain"], rel=2e-2)
    # so narrow a model pays more for an extra attention call than for padding: the next test has the benchmark's width
    # (in bf16 on a CPU, slots also come in multiples of 16: see below for what the same lengths execute in fp32)
    assert 1.0 <= hh["afzal"]["executed_over_minimum"] <= 1.4
    assert len(hh["plain"]["seconds"]) == 1
    assert hh["left_out"] == {}


def test_a_narrow_model_in_fp32_executes_at_most_a_quarter_above_the_least():
    narrow = {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 2, "vocab_size": 2000}
    assert 1.0 <= executed("hh", "fp32", num_attention_heads=4, num_key_value_heads=2, **narrow) <= 1.25


@pytest.mark.parametrize("name", sorted(shapes.SHAPES))
def test_no_shape_executes_more_than_5_per_cent_above_the_least(name):
    wide = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "vocab_size": 32000}
    assert 1.0 <= executed(name, "bf16", num_attention_heads=8, **wide) <= 1.05


def executed(name: str, dtype: str, **model: int) -> float:
    """Executed work over the minimum, for lengths as the benchmark draws them; counting needs no forward pass."""
    import torch
    from transformers import LlamaConfig

    from afzal.records import Preference
    from afzal.tokens import tree
    from afzal.train.feed import Layout
    from benchmarks.dpo_step import sides

    config = LlamaConfig(**model)
    pairs, device = shapes.SHAPES[name].pairs, torch.device("cpu")
    counts, _ = shapes.lengths(name, 4 * pairs, 0, None)
    rows = shapes.rows(counts, config.vocab_size, 0)
    trees = [tree(str(i), p, [c, r], pairs=[Preference(0, 1, 1.0)]) for i, (p, c, r) in enumerate(rows)]
    return sides.executed(sides.Work(config, rows, pairs, dtype, device), Layout("shared", 8192, device), trees)


@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("side", ["afzal", "afzal-cached", "plain"])
def test_a_side_makes_the_updates_it_is_given_in_their_order(side, rank):
    """Losses against a separate float32 model: the weights of reference and policy and the rows are known."""
    import torch

    from benchmarks.dpo_step import models, sides

    config = models.llama(width=64, layers=2, heads=4, kv_heads=2, feed_forward=96, vocabulary=200)
    counts = np.array([[5, 3, 4], [9, 6, 2], [4, 4, 4], [12, 2, 7]])
    rows, device = shapes.rows(counts, 200, 0), torch.device("cpu")
    cached = sides.is_cached(side)
    loop = sides.loop_of(side, sides.Work(config, rows, 2, "fp32", device, cached, rank, peer_pairs=1))
    seen: list[float] = []
    loop(lambda: None, seen.append)

    policy, reference = models.build(config, device), models.build(config, device)
    if rank:
        from peft import get_peft_model

        policy = get_peft_model(policy, sides._lora(rank))
    models.add_noise((name, p) for name, p in policy.named_parameters() if p.requires_grad)

    def logp(model, prompt, answer):
        ids = torch.tensor([prompt + answer])
        table = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        return table.gather(1, ids[0, 1:, None])[len(prompt) - 1 :].sum()

    with torch.no_grad():
        margins = [
            logp(policy, p, c) - logp(reference, p, c) - logp(policy, p, r) + logp(reference, p, r) for p, c, r in rows
        ]
    wanted = [float(-torch.nn.functional.logsigmoid(0.1 * m)) for m in margins]
    assert seen[0] == pytest.approx((wanted[0] + wanted[1]) / 2, rel=1e-5)
    assert abs(seen[0] - np.log(2)) > 1e-3  # otherwise the comparison would show nothing
    # the second update is taken after a step of 1e-6, and is of the other two rows
    assert seen[1] == pytest.approx((wanted[2] + wanted[3]) / 2, rel=1e-3)


def test_the_least_work_of_an_adapter_lacks_the_gradients_of_frozen_weights():
    from afzal.plan.flops import body_flops, head_flops, least_flops, lengths
    from benchmarks.dpo_step import flops, models

    config = models.known("llama-3.1-8b")
    assert flops.parameters(config) == 8_030_261_248
    counts = np.array([[121, 288, 288], [10, 20, 30]])
    shape, counted = flops._shape(config), lengths(counts)
    matrices, attention = flops.skipped(counts, config)
    whole = least_flops(shape, counted, reference_online=True)
    assert flops.minimum(counts, config, reference_online=True) == whole - 4 * (matrices + attention)
    forward = body_flops(shape, counted) + head_flops(shape, counted) - matrices - attention
    assert 2 * forward < flops.minimum(counts, config, reference_online=False, rank=16) < 2.1 * forward


def test_what_the_last_block_leaves_out_by_hand():
    """A prompt of 3 tokens with answers of 2 and 1: position 3 predicts both first tokens, and the first answer's
    first token predicts its second. The others are two tokens of the prompt and one of each answer."""
    from benchmarks.dpo_step import flops, models

    config, counts = models.known("llama-3.1-8b"), np.array([[3, 2, 1]])
    assert flops.predicting(counts) == (2.0, 3 + 4)
    matrices, attention = flops.skipped(counts, config)
    queries_and_output, feed_forward = 2 * 4096 * 4096, 3 * 4096 * 14336
    assert matrices == 2 * (queries_and_output + feed_forward) * 4
    assert attention == 4 * 4096 * (1 + 2 + 5 + 4)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA H200 NVL", None),
        ("", None),
        ("Some CPU", None),
    ],
)
def test_a_card_has_the_peak_that_its_vendor_states(name, peak):
    from benchmarks.dpo_step import flops

    assert flops.stated_peak(name) == peak


def test_lengths_have_the_shape_s_means_and_fit_the_context():
    for name, shape in shapes.SHAPES.items():
        counts, source = shapes.lengths(name, 400, 0, None)
        assert counts.shape == (400, 3)
        assert counts.min() >= 2
        assert (counts[:, 0] + counts[:, 1:].max(1)).max() <= shape.max_tokens
        assert np.median(counts[:, 0]) < counts[:, 0].mean() < 1.05 * shape.prompt
        assert source.startswith("log-normal")
