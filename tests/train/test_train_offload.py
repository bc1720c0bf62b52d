"""Weights, optimiser state and reference in the machine's memory: the same trajectory, and no copies elsewhere."""

from __future__ import annotations

import copy

import pytest
import torch
from helpers_models import make, random_trees

from afzal import objectives
from afzal.model import offload
from afzal.model.adapters import Adapter, add_adapter, start_norms
from afzal.model.probe import choose_sharing
from afzal.model.reference import Frozen, Offloaded, live_reference, move_towards_policy, offloaded
from afzal.train.feed import Feed, Layout
from afzal.train.loop import Hooks, Settings, State, fit
from afzal.train.method import Method
from afzal.train.optim import make_optimizer, optimizer_slots, optimizer_tensors
from afzal.train.precision import Weights

CPU = torch.device("cpu")


def run(*, weights_away=False, reference_away=False, dtype="fp32", kind=None, name="dpo", budget=100, sync=0):
    """Losses of 6 updates in two halves, with optimiser and weights through their checkpoint form in between."""
    model = make("llama")
    if kind:
        model = add_adapter(model, Adapter(kind))
    assert choose_sharing(model)[0] == "shared"
    weights = Weights(model, dtype, offload=weights_away)
    if kind == "dora":
        start_norms(model)
        weights.adopt()
    reference = offloaded(model, CPU) if reference_away else live_reference(model, fresh_adapter=bool(kind))
    method = Method.of(objectives.get(name), {}, reference)
    feed = Feed(random_trees(12), (), 6, 0, Layout("shared", budget))
    records, kept, state = [], {}, State()

    def stepped(step: int) -> None:
        if sync and step % sync == 0:
            assert isinstance(reference, Frozen)
            move_towards_policy(reference, model, 0.5)

    for steps in (3, 6):
        optimizer = make_optimizer(weights.masters.values())
        shapes = {name: tuple(t.shape) for name, t in kept.items()}
        for key, slot in optimizer_slots(optimizer, weights.masters, shapes).items():
            slot.copy_(kept[key])
        plan = Settings(steps=steps, lr=1e-3)
        hooks = Hooks(log=records.append, stepped=stepped)
        fit(model, method, feed, optimizer, plan, hooks=hooks, state=state, weights=weights)
        kept = optimizer_tensors(optimizer, weights.masters)
    weights.restore()
    values = torch.cat([p.detach().flatten() for p in model.parameters() if p.requires_grad])
    return [line["loss"] for line in records], [line["grad_norm"] for line in records], values


CASES = [
    {"dtype": "fp32"},
    {"dtype": "bf16"},
    {"dtype": "fp32", "kind": "lora"},
    {"dtype": "bf16", "kind": "lora"},
    {"dtype": "bf16", "kind": "ia3"},
    {"dtype": "bf16", "kind": "dora"},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_offloaded_masters_give_the_same_bits(case):
    plain, away = run(**case), run(**case, weights_away=True)
    assert plain[0] == away[0]
    assert plain[1] == away[1]
    assert torch.equal(plain[2], away[2])


@pytest.mark.parametrize("case", [{}, {"budget": 10_000}, {"dtype": "bf16"}, {"sync": 2}, {"name": "tdpo2"}], ids=str)
def test_an_offloaded_reference_gives_the_same_bits(case):
    plain, away = run(**case), run(**case, reference_away=True)
    assert plain[0] == away[0]
    assert torch.equal(plain[2], away[2])


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_neither_masters_nor_optimiser_touch_the_models_memory(dtype):
    model = make("llama")
    weights = Weights(model, dtype, offload=True)
    there = {p.untyped_storage().data_ptr() for p in model.parameters()}
    assert not there & {p.untyped_storage().data_ptr() for p in weights.masters.values()}
    for name, carrier in weights.carriers.items():
        assert carrier.shape == weights.masters[name].shape
        if dtype == "bf16":
            assert carrier.untyped_storage().nbytes() == 4, "one number, which stands for all"


def test_a_gradient_travels_once_and_leaves_nothing_behind():
    model = torch.nn.Linear(2, 1, bias=False)
    weights = Weights(model, "bf16", offload=True)
    for value in [1.0] + [2.0**-9] * 256:
        model(torch.tensor([[value, 0.0]], dtype=torch.bfloat16)).sum().backward()
        assert model.weight.grad is None
    assert weights.masters["weight"].grad is None, "not before the update is whole"
    weights.hand_over()
    assert weights.carriers["weight"].grad is None
    assert weights.masters["weight"].grad.tolist() == [[1.5, 0.0]], "summed in float32 before it travels"
    weights.hand_over()
    assert weights.masters["weight"].grad.tolist() == [[1.5, 0.0]]
    weights.forget_gradient()
    assert weights.masters["weight"].grad is None


def test_the_reference_is_on_the_device_only_while_it_computes(monkeypatch):
    model = make("llama")
    choose_sharing(model)
    reference = offloaded(model, CPU)
    home = [p.data_ptr() for p in reference.model.parameters()]
    visits = []
    visiting = offload.visiting
    monkeypatch.setattr("afzal.model.reference.visiting", lambda *given: (visits.append(1), visiting(*given))[1])
    seen = []

    def note(module, args):
        seen.append([p.data_ptr() for p in reference.model.parameters()] != home)

    reference.model.model.layers[0].register_forward_pre_hook(note)
    plan = Settings(steps=2, lr=1e-3)
    feed = Feed(random_trees(12), (), 6, 0, Layout("shared", 60))
    optimizer = make_optimizer(model.parameters())
    fit(model, Method.of(objectives.get("dpo"), {}, reference), feed, optimizer, plan, hooks=Hooks(), state=State())
    assert len(feed.update(0).batches) > 1
    assert len(visits) == 2, "once per update, whatever the number of forward passes"
    assert seen
    assert all(seen)
    assert [p.data_ptr() for p in reference.model.parameters()] == home


def test_a_visit_that_fails_ends_all_the_same():
    model = make("llama")
    reference = offloaded(model, CPU)
    home = [p.data_ptr() for p in reference.model.parameters()]
    with pytest.raises(RuntimeError), reference.acting(), reference.acting():
        raise RuntimeError
    assert [p.data_ptr() for p in reference.model.parameters()] == home
    assert not reference.visits


def test_tied_weights_stay_tied_in_a_copy_on_the_host():
    model = make("gpt2")
    before = copy.deepcopy(model.state_dict())
    reference = offloaded(model, CPU)
    assert isinstance(reference, Offloaded)
    assert reference.model.lm_head.weight is reference.model.transformer.wte.weight
    with reference.acting() as there:
        assert there.lm_head.weight is there.transformer.wte.weight
    with torch.no_grad():
        model.transformer.wte.weight.add_(1)
    assert torch.equal(reference.model.state_dict()["lm_head.weight"], before["lm_head.weight"])
    assert not any(p.requires_grad for p in reference.model.parameters())
