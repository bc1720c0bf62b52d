"""Every declaration about an objective holds: the battery over the registry."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import product

import pytest
import torch
from helpers_models import make, random_trees
from helpers_objectives import (
    EVERY,
    F64,
    ON_PAIRS,
    WITH_REFERENCE,
    mean_loss,
    one_group,
    opinions,
    random_case,
    run,
    scored,
)

from afzal import objectives
from afzal.model.logprobs import head_logps, hidden_states
from afzal.model.probe import choose_sharing
from afzal.objectives import Pairs, Scored, join_pairs, join_scored
from afzal.tokens.batch import collate
from afzal.train.evaluate import batch_pairs


def shifted(s: Scored, by_response: torch.Tensor) -> Scored:
    """Shift the summed log-probs of each response by an amount (at its last token)."""
    last = s.place == s.lengths[s.response_of] - 1
    return replace(s, token_logps=s.token_logps + torch.where(last, by_response[s.response_of], 0.0))


@pytest.mark.parametrize("name", EVERY)
def test_value_where_policy_equals_reference_is_the_declared_one(name):
    objective = objectives.get(name)
    policy, _, given = random_case(name, 1)
    policy = replace(policy, extras={})
    given = replace(given, p=torch.ones_like(given.p))
    _, rewards = run(name, policy, policy, given)
    loss = mean_loss(name, policy, policy, given)
    assert loss.isfinite()
    declared = objective.at_reference(objective.parameters)
    if declared is not None:
        assert float(loss) == pytest.approx(declared, rel=1e-9)
    if objective.needs_reference:
        assert rewards.abs().max() == 0
    else:
        assert declared is None


@pytest.mark.parametrize("name", WITH_REFERENCE)
def test_an_undeclared_value_at_the_reference_does_hang_on_the_data(name):
    """Ensures that no objective skips its first-loss check because a number is missing."""
    if objectives.get(name).at_reference(objectives.get(name).parameters) is not None:
        return
    values = set()
    for seed in range(6):
        policy, _, given = random_case(name, seed)
        values.add(round(float(mean_loss(name, policy, policy, given)), 6))
    assert len(values) > 1


@pytest.mark.parametrize("name", EVERY)
def test_one_loss_per_unit_and_detached_rewards(name):
    policy, reference, given = random_case(name, 2)
    policy = replace(policy, token_logps=policy.token_logps.requires_grad_())
    losses, rewards = run(name, policy, reference, given)
    units = {
        "pair": len(given.p),
        "response": policy.n_responses,
        "group": given.n_groups,
        "token": len(policy.response_of),
    }
    assert losses.shape == (units[objectives.get(name).unit],)
    assert losses.requires_grad
    assert not rewards.requires_grad
    assert rewards.shape == (policy.n_responses,)


@pytest.mark.parametrize("name", EVERY)
def test_gradient_equals_finite_differences(name):
    policy, reference, given = random_case(name, 3)
    inputs = [policy.token_logps.requires_grad_()]
    if "kl_ref_policy" in policy.extras:
        inputs.append(policy.extras["kl_ref_policy"].requires_grad_())

    def losses(tokens, *kl):
        extras = {**policy.extras, **({"kl_ref_policy": kl[0]} if kl else {})}
        return run(name, replace(policy, token_logps=tokens, extras=extras), reference, given)[0]

    if name in _HELD_CONSTANT:
        pytest.skip("has parts that are constants by definition; see the test below and the oracle")
    assert torch.autograd.gradcheck(losses, inputs)


# Stop-gradients are part of these: finite differences see through them.
_HELD_CONSTANT = {"wpo", "tdpo2", "beta_dpo"}


@pytest.mark.parametrize("name", sorted(_HELD_CONSTANT))
def test_gradient_equals_finite_differences_with_the_constants_held(name):
    """The constants are taken at the point itself, from a second copy of the inputs that does not move."""
    policy, reference, given = random_case(name, 3)
    fixed = policy.detach()
    held = {"wpo": _wpo_held, "tdpo2": _tdpo2_held, "beta_dpo": _beta_held}[name]
    tokens = policy.token_logps.clone().requires_grad_()
    kl = policy.extras.get("kl_ref_policy", torch.zeros_like(tokens)).clone().requires_grad_()
    moving = lambda t, k: replace(policy, token_logps=t, extras={**policy.extras, "kl_ref_policy": k})  # noqa: E731
    whole = run(name, moving(tokens, kl), reference, given)[0].sum()
    ours = torch.autograd.grad(whole, [tokens, kl], allow_unused=True)
    theirs = torch.autograd.grad(
        held(moving(tokens, kl), fixed, reference, given).sum(), [tokens, kl], allow_unused=True
    )
    assert torch.autograd.gradcheck(lambda t, k: held(moving(t, k), fixed, reference, given), [tokens, kl])
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(torch.zeros(()) if a is None else a, torch.zeros(()) if b is None else b)


def _wpo_held(policy, fixed, reference, given):
    weight = run("wpo", fixed, reference, given)[0] / run("dpo", fixed, reference, given, beta=0.01)[0]
    return weight * run("dpo", policy, reference, given, beta=0.01)[0]


def _tdpo2_held(policy, fixed, reference, given):
    rho = policy.logps - reference.logps
    s, kept = policy.total(policy.extras["kl_ref_policy"]), fixed.total(fixed.extras["kl_ref_policy"])
    loss = lambda a, b: (1 + (-0.1 * (rho[a] - rho[b] - 0.5 * (s[b] - kept[a]))).exp()).log()  # noqa: E731
    return given.p * loss(given.yw_idxs, given.yl_idxs) + (1 - given.p) * loss(given.yl_idxs, given.yw_idxs)


def _beta_held(policy, fixed, reference, given):
    rho = fixed.logps - reference.logps
    h = rho[given.yw_idxs] - rho[given.yl_idxs]
    beta = max(1e-3, 0.1 * (1 + 0.6 * float((h * given.weight).sum() / given.weight.sum())))
    kept = (run("beta_dpo", fixed, reference, given)[0] != 0).double()
    share = given.weight.sum() / (given.weight * kept).sum()
    return kept * share * run("dpo", policy, reference, given, beta=beta)[0]


@pytest.mark.parametrize("name", EVERY)
def test_gradient_falls_only_on_positions_that_predict_a_scored_token(name):
    """Through a real model: hidden states at prompt positions that predict no response token get none."""
    objective = objectives.get(name)
    model = make("llama")
    choose_sharing(model)
    batch = collate([_labelled(t) for t in random_trees(3, k=3)], "shared")
    hidden = hidden_states(model, batch)
    hidden.retain_grad()
    logps = head_logps(model, hidden.flatten(0, 1)[batch.predict_at], batch.target)
    extras = {name: logps.detach() for name in objective.all_extras}
    policy = Scored(logps, batch.response_of, batch.n_responses, extras)
    reference = Scored(logps.detach() + 0.1 * torch.sin(torch.arange(len(logps))), batch.response_of, batch.n_responses)
    mean_loss(name, policy, reference, batch_pairs(batch)).backward()
    reached = set(hidden.grad.flatten(0, 1).abs().sum(-1).nonzero().flatten().tolist())
    assert reached
    assert reached <= set(batch.predict_at.tolist())
    assert len(reached) < batch.ids.numel()


def _labelled(t):
    return replace(t, labels=(True, False, None), scores=(2.0, 0.0, 1.0))


@pytest.mark.parametrize("name", EVERY)
def test_a_constant_per_prompt_changes_nothing_exactly_where_that_is_declared(name):
    """The partition function cancels: adding c(x) to all responses of a prompt, under policy or reference."""
    policy, reference, given = random_case(name, 4)
    shift = torch.tensor([5.0, -7.0, 3.0], dtype=F64)[given.group_of]
    base = run(name, policy, reference, given)[0]
    moved = [run(name, shifted(policy, shift), reference, given)[0]]
    if objectives.get(name).needs_reference:
        moved.append(run(name, policy, shifted(reference, shift), given)[0])
    same = all(bool(torch.allclose(other, base, atol=1e-9)) for other in moved)
    assert same == objectives.get(name).shift_invariant


@pytest.mark.parametrize("name", [n for n in EVERY if objectives.get(n).unit == "pair"])
def test_losses_per_token_are_declared_length_normalised(name):
    """Repeating every token leaves such a loss unchanged and changes any other."""
    policy, reference, given = random_case(name, 5)
    double = lambda s: Scored(  # noqa: E731
        s.token_logps.repeat_interleave(2),
        s.response_of.repeat_interleave(2),
        s.n_responses,
        {k: v.repeat_interleave(2) for k, v in s.extras.items()},
    )
    once, twice = run(name, policy, reference, given)[0], run(name, double(policy), double(reference), given)[0]
    assert bool(torch.allclose(once, twice, atol=1e-9)) == objectives.get(name).length_normalised


@pytest.mark.parametrize("name", [n for n in ON_PAIRS if "p" in objectives.get(n).uses])
def test_swapping_a_pair_with_its_probability_changes_nothing(name):
    policy, reference, given = random_case(name, 6)
    other = replace(given, yw_idxs=given.yl_idxs, yl_idxs=given.yw_idxs, p=1 - given.p, margin=-given.margin)
    parameters = {"rho": 0.0} if name == "beta_dpo" else {}  # the draw and the batch's mean follow the stated order
    parameters |= {"a": 0.0} if name == "beta_dpo" else {}
    one, two = (run(name, policy, reference, x, **parameters)[0] for x in (given, other))
    torch.testing.assert_close(one, two)


@pytest.mark.parametrize("name", EVERY)
def test_what_an_objective_uses_is_what_it_declares(name):
    policy, reference, given = random_case(name, 7)
    uses = objectives.get(name).uses
    base = mean_loss(name, policy, reference, given)
    changes = {
        "p": replace(given, p=torch.full_like(given.p, 0.6)),
        "weight": replace(given, weight=torch.linspace(0.1, 3, len(given.p), dtype=F64)),
        "margin": replace(given, margin=given.margin + torch.linspace(1, 2, len(given.p), dtype=F64)),
        "score": replace(given, score=given.score.flip(0).nan_to_num() + torch.arange(len(given.score))),
        "labels": replace(given, desirable=1 - given.desirable.nan_to_num()),
        "task": replace(given, task_of=torch.zeros_like(given.group_of)),
    }
    for what, other in changes.items():
        loss = mean_loss(name, policy, reference, other)
        if what == "weight" and what not in uses and objectives.get(name).unit == "pair":
            loss = run(name, policy, reference, other)[0].mean()  # the loop would weigh; the recipe refuses weights
        assert (float(loss) != pytest.approx(float(base), abs=1e-12)) == (what in uses), what


@pytest.mark.parametrize("name", EVERY)
def test_declared_needs_are_true_needs(name):
    objective = objectives.get(name)
    policy, reference, given = random_case(name, 8)
    bare = objective.fn
    filled = {}
    if objective.statistic is not None:
        filled["statistic"] = torch.zeros((), dtype=F64)
    if objective.initial_state is not None:
        filled["state"] = objective.initial_state(objective.parameters)
    if objective.needs_reference:
        with pytest.raises((AttributeError, TypeError)):
            bare(policy, None, given, **filled)
    else:
        bare(policy, None, given, **filled)
    if objective.all_extras:
        with pytest.raises(KeyError):
            bare(replace(policy, extras={}), reference, given, **filled)


@pytest.mark.parametrize("name", EVERY)
def test_only_objectives_that_say_so_couple_the_batch(name):
    """Two batches joined give the losses of both, one after the other."""
    parts = [random_case(name, seed) for seed in (9, 10)]
    joined = run(
        name,
        join_scored([p for p, _, _ in parts]),
        join_scored([r for _, r, _ in parts]),
        join_pairs([g for _, _, g in parts], [p.n_responses for p, _, _ in parts]),
    )[0]
    apart = torch.cat([run(name, *part)[0] for part in parts])
    assert bool(torch.allclose(joined, apart)) == (not objectives.get(name).couples_batch)


SIZES = torch.tensor([1e4, -1e4, 0.0, 1e2, -1e2, 1.0])


def extreme(name: str, n: int) -> tuple[Scored, Scored, Pairs]:
    """``n`` pairs of log-ratios from ±1e4 to 0, p from 0 to 1; every tenth response has no scored token at all."""
    rng = torch.Generator().manual_seed(0)
    draw = lambda k: SIZES[torch.randint(len(SIZES), (k,), generator=rng)]  # noqa: E731
    logps = draw(2 * n)
    response_of = torch.arange(2 * n)[torch.arange(2 * n) % 10 != 3]
    noisy = torch.tensor([0.0, 1e-30, 0.5, 1 - 1e-7, 1.0])[torch.randint(5, (n,), generator=rng)]
    p = noisy if "p" in objectives.get(name).uses else torch.ones(n)
    given = opinions(n, p=p, margin=draw(n))
    given = Pairs(*(x.float() if x.is_floating_point() else x for x in (getattr(given, f) for f in Pairs.__slots__)))
    tokens = logps[response_of]
    extras = {key: draw(len(tokens)) for key in objectives.get(name).all_extras}
    zero = Scored(torch.zeros_like(tokens), response_of, 2 * n)
    return Scored(tokens.requires_grad_(), response_of, 2 * n, extras), zero, given


@pytest.mark.parametrize("name", EVERY)
def test_ten_thousand_extreme_inputs_give_no_infinity(name):
    policy, reference, given = extreme(name, 10_000)
    losses, _ = run(name, policy, reference, given)
    (gradient,) = torch.autograd.grad(losses.sum(), policy.token_logps)
    assert losses.isfinite().all()
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("name", [n for n in EVERY if objectives.get(n).unit in ("pair", "response")])
def test_losses_are_bounded_as_declared(name):
    """One pair after another, each response a hundred or a million nats above or below the reference."""
    losses = []
    for far, (w, v) in product((1e2, 1e6), ((1, 0), (-1, 0), (0, 1), (0, -1), (1, -1), (-1, 1))):
        policy, zero = scored([(w - 2) * far, (v - 2) * far]), scored([-2 * far] * 2)
        losses += run(name, policy, zero, opinions(1))[0].tolist()
    kind = "none" if min(losses) < -1e-9 else "both" if max(losses) < 10 else "below"
    assert kind == objectives.get(name).bounded


@pytest.mark.parametrize("name", [n for n in EVERY if objectives.get(n).unit == "group"])
def test_groups_of_any_size_and_unrated_responses(name):
    """A response without a score is ignored, and a group of one has loss 0 and weight 0."""
    policy, reference = scored([-1.0, -2.0, -4.0]), scored([-1.5, -2.5, -3.0])
    three = run(name, policy, reference, one_group([1.0, math.nan, 0.0]))[0]
    two = run(name, scored([-1.0, -4.0]), scored([-1.5, -3.0]), one_group([1.0, 0.0]))[0]
    torch.testing.assert_close(three, two)
    alone = one_group([1.0])
    assert float(objectives.unit_weights("group", alone, torch.tensor([0]))) == 0
    assert run(name, scored([-1.0]), scored([-2.0]), alone)[0].isfinite().all()


def test_unknown_objective_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean dpo"):
        objectives.get("dpoo")
    with pytest.raises(ValueError, match=r"^unknown objective 'zzzz'$"):
        objectives.get("zzzz")


def test_every_objective_states_its_formula_and_its_paper():
    for objective in objectives.REGISTRY.values():
        assert objective.formula, objective.name
        assert objective.paper, objective.name
        assert objective.fn.__doc__, objective.name
        assert "\n" not in objective.formula
