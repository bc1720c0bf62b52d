"""Complete runs on a GPU: the CPU's first loss, no needless waiting, resuming, and generation: `make test-gpu`."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from helpers_models import make, random_trees

from afzal import objectives
from afzal.generate import Sampling, sample
from afzal.model.probe import choose_sharing
from afzal.model.reference import live_reference
from afzal.train.feed import Feed, Layout
from afzal.train.loop import Hooks, Settings, State, fit
from afzal.train.method import Method
from afzal.train.optim import make_optimizer, optimizer_slots, optimizer_tensors
from afzal.train.precision import Weights
from afzal.train.prefetch import PrefetchingFeed, with_prefetch

pytestmark = pytest.mark.gpu

WIDE = {"hidden_size": 128, "intermediate_size": 192, "head_dim": 32, "vocab_size": 1000}


class Run:
    """DPO on a small model, on a device."""

    def __init__(self, device, dtype="fp32", **overrides):
        self.model = make("llama", **overrides).to(device)
        choose_sharing(self.model)
        self.weights = Weights(self.model, dtype)
        self.method = Method.of(objectives.get("dpo"), {"beta": 0.1}, live_reference(self.model))
        self.feed = Feed(random_trees(24), (), 4, 0, Layout("shared", 80, torch.device(device)))
        self.optimizer = make_optimizer(self.weights.masters.values())
        self.logged, self.state = [], State()

    def go(self, steps, log_every=1, stepped=lambda step: None):
        settings = Settings(steps=steps, lr=1e-3, log_every_steps=log_every)
        parts = (self.model, self.method, self.feed, self.optimizer, settings)
        hooks = Hooks(log=self.logged.append, stepped=stepped)
        fit(*parts, hooks=hooks, state=self.state, weights=self.weights)
        return self

    @property
    def losses(self):
        return [r["loss"] for r in self.logged]


def test_a_run_begins_at_the_cpus_loss_and_follows_it(cuda):
    there, here = Run(cuda).go(6), Run("cpu").go(6)
    assert there.losses[0] == pytest.approx(here.losses[0], abs=1e-6) == pytest.approx(0.693147, abs=1e-5)
    assert there.losses == pytest.approx(here.losses, abs=1e-3)
    assert here.losses[-1] != pytest.approx(here.losses[0], abs=2e-3)


def test_a_gpu_run_reads_its_updates_ahead(cuda):
    assert isinstance(with_prefetch(Run(cuda).feed, 3), PrefetchingFeed)


@pytest.mark.parametrize("log_every", [1, 4])
def test_an_update_waits_for_the_gpu_once(log_every, cuda):
    """Counted by torch itself, after the first updates have finished compilation and trials."""

    def watch(step):
        if step == 3:
            torch.cuda.set_sync_debug_mode("warn")

    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            Run(cuda, "bf16", **WIDE).go(11, log_every=log_every, stepped=watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits = [w for w in seen if "synchroniz" in str(w.message)]
    assert len(waits) == 8, [f"{w.filename}:{w.lineno}" for w in waits]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_resumed_run_continues_where_it_was(dtype, cuda):
    """Within the difference between two equal runs, not bit for bit: a GPU sums gradients in no fixed order."""
    whole, half = Run(cuda, dtype, **WIDE).go(8), Run(cuda, dtype, **WIDE).go(4)
    saved = {k: v.detach().clone().cpu() for k, v in half.weights.masters.items()}
    moments = {k: v.clone().cpu() for k, v in optimizer_tensors(half.optimizer, half.weights.masters).items()}
    again = Run(cuda, dtype, **WIDE)
    with torch.no_grad():
        for name, value in saved.items():
            again.weights.masters[name].copy_(value)
        slots = optimizer_slots(again.optimizer, again.weights.masters, {k: tuple(v.shape) for k, v in moments.items()})
        for name, slot in slots.items():
            slot.copy_(moments[name])
    again.weights.publish()
    again.state = copy.copy(half.state)
    again.go(8)
    assert half.losses + again.losses == pytest.approx(whole.losses, abs=1e-3 if dtype == "fp32" else 5e-2)


def test_the_optimiser_is_one_kernel(cuda):
    run = Run(cuda).go(1)
    assert run.optimizer.defaults["fused"]
    state = next(iter(run.optimizer.state.values()))
    assert state["step"].device.type == "cuda"


def test_shared_greedy_answers_are_those_of_transformers(cuda):
    model = make("llama").to(cuda)
    prompts = [[5, 6, 7, 8, 9, 10, 11], [12], [5, 6, 7], [20, 21, 22, 23, 24]]
    drawn = sample(model, prompts, eos=[2], sampling=Sampling(12, temperature=0))
    for prompt, answer in zip(prompts, drawn, strict=True):
        given = torch.tensor([prompt], device=cuda)
        out = model.generate(given, max_new_tokens=12, do_sample=False, eos_token_id=2)
        assert out[0, len(prompt) :].tolist() == answer.ids.tolist()
