"""Where an update makes the GPU's host wait. The meta device, which has no numbers, refuses those operations."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from helpers_models import make, random_trees
from helpers_objectives import EVERY, with_numbers

from afzal import objectives
from afzal.model.load import frozen_copy
from afzal.model.probe import choose_sharing
from afzal.model.reference import Frozen
from afzal.objectives import metrics, unit_weights
from afzal.tokens import mismatched, only_branch
from afzal.tokens.batch import collate
from afzal.tokens.tree import Tree
from afzal.train.evaluate import batch_counts, batch_pairs
from afzal.train.feed import Feed, Layout, Update
from afzal.train.loop import Hooks, Settings, State, fit
from afzal.train.method import Method
from afzal.train.update import accumulate

# They carry a number from update to update; join micro-batches into one; make a table as wide as the largest group; or
# cut a response at a length.
WAITING = {
    *("bco", "bco_pair", "beta_dpo", "epsilon_dpo"),
    *("aot", "aot_unpaired", "dr_dpo"),
    *("exo", "infonca", "nca", "plackett_luce", "plackett_luce_reward", "top1", "maxent_irl", "ranking_nce"),
    *("ld_dpo", "group_dpo"),
}


def trees_for(unit: str) -> list[Tree]:
    trees = random_trees(6, seed=3)
    if unit == "group":
        return [replace(t, scores=(float(n % 3), 1.0)) for n, t in enumerate(trees)]
    if unit == "token":
        return [replace(t, preferences=()) for t in trees]
    if unit == "response":
        return [replace(only_branch(t, n % 2), preferences=(), labels=(n % 3 != 0,)) for n, t in enumerate(trees)]
    return trees


@cache
def models_on(device: str) -> tuple[Any, Frozen]:
    """A policy and its reference, on a device."""
    model = make("llama")
    choose_sharing(model)
    reference = Frozen(frozen_copy(model).to(device))
    return model.to(device), reference


def updated_on(device: str, name: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Loss and gradients of one update of two micro-batches on a device."""
    model, reference = models_on(device)
    model.zero_grad()
    objective = objectives.get(name)
    trees = with_numbers(name, trees_for(objective.unit))
    cut = lambda ts: [collate(part, "shared", device) for part in (ts[:4], ts[4:])]  # noqa: E731
    partners = cut(mismatched(trees, 0)) if objective.statistic else []
    method = Method.of(objective, {}, reference if objective.needs_reference else None)
    loss, _, _ = accumulate(model, method, Update(cut(trees), partners, len(trees)))
    return loss, [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("name", sorted(EVERY))
def test_an_update_waits_for_the_device_only_where_it_is_known_to(name):
    if name in WAITING:
        with pytest.raises((RuntimeError, NotImplementedError)):
            updated_on("meta", name)
        return
    loss, gradients = updated_on("meta", name)
    assert loss.device.type == "meta"
    assert gradients


@pytest.mark.parametrize("sharing", ["shared", "unshared"])
@pytest.mark.parametrize("name", ["dpo", "kto", "sft", "plackett_luce"])
def test_the_counts_of_the_host_are_those_of_the_device(name, sharing):
    objective = objectives.get(name)
    trees = trees_for(objective.unit)
    trees = [replace(t, preferences=tuple(replace(q, weight=0.3) for q in t.preferences)) for t in trees]
    batch = collate(trees, sharing)
    expected = float(unit_weights(objective.unit, batch_pairs(batch), batch.response_of).sum())
    assert expected > 0
    assert batch_counts(Method.of(objective, {}), batch) == [expected]


def test_the_tokens_of_a_padded_batch_are_those_of_its_mask():
    batch = collate(random_trees(5), "unshared")
    assert batch.attention_mask is not None
    assert batch.n_tokens == int(batch.attention_mask.sum()) < batch.ids.numel()


@pytest.mark.parametrize("log_every", [1, 3])
def test_a_run_waits_once_per_update_logged_or_not(log_every, monkeypatch):
    """The complete loop on the meta device, which may be read only in the allowed places."""
    reads, logged = [], []

    def stands_in(values):
        reads.append(len(values))
        return [1.0] * len(values)

    monkeypatch.setattr(metrics, "read", stands_in)
    model = make("llama")
    choose_sharing(model)
    reference = Frozen(frozen_copy(model).to("meta"))
    model.to("meta")
    feed = Feed(trees_for("pair"), (), 4, 0, Layout("shared", 80, torch.device("meta")))
    method = Method.of(objectives.get("dpo"), {}, reference)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)  # fused counts no steps on meta
    settings = Settings(steps=5, lr=1e-3, log_every_steps=log_every)
    fit(model, method, feed, optimizer, settings, hooks=Hooks(log=logged.append), state=State())
    assert len(reads) == 5
    assert [record["step"] for record in logged] == ([1, 2, 3, 4, 5] if log_every == 1 else [3, 5])


def test_what_is_read_together_is_what_is_read_alone():
    values = [torch.tensor(0.1), torch.tensor(0.1, dtype=torch.float64), torch.tensor(3), torch.tensor(float("nan"))]
    numbers = metrics.read(values)
    assert numbers[:3] == [float(v) for v in values[:3]]
    assert numbers[3] != numbers[3]
