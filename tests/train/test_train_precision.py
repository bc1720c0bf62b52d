"""float32 masters behind a bf16 working copy."""

from __future__ import annotations

import pytest
import torch
from helpers_models import make, random_trees

from afzal import objectives
from afzal.model.adapters import Adapter, add_adapter, is_factor, start_norms
from afzal.model.load import add_lora
from afzal.model.logprobs import score
from afzal.model.probe import choose_sharing
from afzal.model.reference import live_reference
from afzal.tokens.batch import collate
from afzal.train.feed import Feed, Layout
from afzal.train.loop import Hooks, Settings, State, fit
from afzal.train.method import Method
from afzal.train.optim import make_optimizer
from afzal.train.precision import Weights


def test_fp32_masters_are_the_parameters_themselves():
    model = make("llama")
    weights = Weights(model, "fp32")
    assert all(weights.masters[name] is p for name, p in model.named_parameters())


def test_bf16_computes_in_bf16_and_moves_float32():
    model = make("llama")
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    weights = Weights(model, "bf16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    for name, master in weights.masters.items():
        assert master.dtype == torch.float32
        assert torch.equal(master, before[name])
    with torch.no_grad():
        for master in weights.masters.values():
            master.add_(1e-5)  # below bf16's resolution at 1, but kept by the masters
    weights.publish()
    assert all(torch.equal(p, weights.masters[name].bfloat16()) for name, p in model.named_parameters())
    weights.restore()
    assert all(torch.equal(p, before[name] + 1e-5) for name, p in model.named_parameters())


def test_gradients_of_micro_batches_are_summed_in_float32():
    """256 gradients of 2^-9 and one of 1: bf16 sums would stay at 1."""
    model = torch.nn.Linear(1, 1, bias=False)
    weights = Weights(model, "bf16")
    for value in [1.0] + [2.0**-9] * 256:
        model(torch.tensor([[value]], dtype=torch.bfloat16)).sum().backward()
        assert model.weight.grad is None, "the working gradient is freed at once"
    assert float(weights.masters["weight"].grad) == 1.5


def test_tied_weights_have_one_master():
    model = make("gpt2")
    weights = Weights(model, "bf16")
    assert model.lm_head.weight is model.transformer.wte.weight
    assert len(weights.masters) == len(list(model.parameters()))


@pytest.mark.parametrize("kind", ["ia3", "dora"])
def test_factors_near_1_stay_in_float32(kind):
    """1.0025 is 1 in bf16: with rounded factors the log-probs would not move."""
    model = add_adapter(make("llama"), Adapter(kind, rank=2))
    weights = Weights(model, "bf16")
    start_norms(model)
    factors = {n: p for n, p in model.named_parameters() if p.requires_grad and is_factor(n)}
    assert factors
    assert all(p.dtype == torch.float32 and weights.masters[n] is p for n, p in factors.items())
    batch = collate(random_trees(4), choose_sharing(model)[0])
    before = score(model, batch).token_logps.sum()
    before.backward()
    assert all(p.grad.dtype == torch.float32 for p in factors.values())
    with torch.no_grad():
        for p in factors.values():
            p.mul_(1.0025)
        assert float(score(model, batch).token_logps.sum() - before) != 0
    weights.publish()
    weights.restore()
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all(torch.equal(p, weights.masters[n]) for n, p in factors.items())


@pytest.mark.parametrize("adapter", [False, True])
def test_bf16_training_follows_fp32(adapter):
    ends = {}
    for dtype in ("fp32", "bf16"):
        torch.manual_seed(0)
        model = make("llama")
        choose_sharing(model)
        model = add_lora(model, rank=4, alpha=8) if adapter else model
        weights = Weights(model, dtype)
        method = Method.of(objectives.get("dpo"), {"beta": 0.5}, live_reference(model, fresh_adapter=adapter))
        feed = Feed(random_trees(8), (), 8, 0, Layout("shared", 100))
        losses = []
        settings = Settings(steps=12, lr=1e-2)
        optimizer = make_optimizer(weights.masters.values())
        hooks = Hooks(log=lambda record, into=losses: into.append(record["loss"]))
        fit(model, method, feed, optimizer, settings, hooks=hooks, state=State(), weights=weights)
        ends[dtype] = losses
    assert ends["bf16"][0] == pytest.approx(ends["fp32"][0], abs=1e-6), "ln 2 in both"
    assert ends["fp32"][-1] < 0.5 * ends["fp32"][0]
    assert ends["bf16"][-1] == pytest.approx(ends["fp32"][-1], abs=0.1)
