"""Every objective at a point worked out by hand (the numbers of its docstring), and in the limits of its parameters."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations
from typing import Any, NamedTuple

import pytest
import torch
from helpers_objectives import EVERY, F64, mean_loss, one_group, opinions, random_case, run, scored

from afzal import objectives
from afzal.objectives import Pairs, Scored, join_scored
from afzal.objectives.ranking import MOST_EQUAL, tied_nll

LN2, LN3 = math.log(2), math.log(3)


class Case(NamedTuple):
    """Summed log-probs of policy and reference, other inputs, and the losses by hand."""

    name: str
    losses: list[float]
    policy: list[float]
    reference: list[float] | None = None
    lengths: list[int] | None = None
    parameters: dict[str, Any] = {}  # noqa: RUF012 - never changed
    extras: dict[str, Any] = {}  # noqa: RUF012
    given: Pairs | None = None


BY_HAND = [
    Case("dpo", [0.644397], [-1, -2], [-1.5, -1.5], None, {"beta": 0.1}),
    Case("cdpo", [0.413262], [1, 0], None, None, {"beta": 1, "label_smoothing": 0.1}),
    Case("robust", [0.188262], [1, 0], None, None, {"beta": 1, "label_smoothing": 0.1}),
    Case("robust", [-6.25], [50, 0], None, None, {"beta": 1, "label_smoothing": 0.1}),
    Case("hinge", [0.8, 0.0], [4, 0, 20, 0], None, None, {"beta": 0.05}),
    Case("odpo", [1.313262, 0.313262], [1, 0, 1, 0], None, None, {"beta": 1}, {}, opinions(2, margin=[math.e**2, 0.0])),
    # a gap against the label has no effect, and one for it below 1 lowers the target
    Case("odpo", [0.313262] * 2, [1, 0, 1, 0], None, None, {"beta": 1}, {}, opinions(2, margin=[-(math.e**2), -1e-3])),
    Case("modpo", [0.313262, 0.693147], [1, 0, 1, 0], None, None, {"beta": 1}, {}, opinions(2, margin=[0.5, 1.0])),
    # (1/4) softplus(-2 (1 - 1.5)) + (3/4) softplus(2 (1 - 1.5))
    Case("modpo", [0.563262], [1, 0], None, None, {"beta": 1}, {}, opinions(1, p=[0.25], margin=[1.5])),
    Case("odpo", [0.126928], [1, 0], None, None, {"beta": 1}, {}, opinions(1, margin=[1 / math.e])),
    # p = 1/4 of being the better one by e: (1/4) 0.693147 + (3/4) 1.313262
    Case("odpo", [1.158233], [1, 0], None, None, {"beta": 1}, {}, opinions(1, p=[0.25], margin=[math.e])),
    Case("r_dpo", [0.126928], [1, 0], None, [30, 10], {"beta": 1, "alpha": 0.05}),
    Case("ln_dpo", [0.313262], [2, -3], None, [4, 6], {"beta": 1}),
    Case("dpop", [0.474077], [-0.1, -1.1], None, None, {"beta": 1, "penalty": 5}),
    Case("rpo", [1.313262], [-8, -9], [0, 0], [4, 1], {"beta": 1, "eta": 0.5}),
    Case("rpo_sum", [4.313262], [-8, -9], [0, 0], [4, 1], {"beta": 1, "eta": 0.5}),
    Case("discopop", [0.846574], [0, 0]),
    Case("f_dpo", [0.091056], [1, -1], None, None, {"beta": 1, "divergence": "forward_kl"}),
    Case("f_dpo", [0.313262], [1, 0], None, None, {"beta": 1, "divergence": "reverse_kl"}),
    # JS: log(2 * 3 / 4) - log(2 * 1 / 2) = log 1.5, so sigma = 0.6
    Case("f_dpo", [-math.log(0.6)], [LN3, 0], None, None, {"beta": 1, "divergence": "jensen_shannon"}),
    # alpha = 1/2: (1 - 4^-1/2) / (1/2) = 1 against 0
    Case("f_dpo", [0.313262], [math.log(4), 0], None, None, {"beta": 1, "divergence": "alpha", "alpha": 0.5}),
    Case("wpo", [0.644397], [-LN2, -1 - LN2], [-LN2, -LN2], None, {"beta": 0.1}, {"log_sum_p2": [-LN2, -1 - LN2]}),
    # w = (1/2) (1/4): surprises -ln 2 and -ln 4
    Case("wpo", [LN2 / 8], [-LN2, -math.log(4)], [-LN2, -math.log(4)], None, {}, {"log_sum_p2": [0, 0]}),
    # likelier than average: the product is cut at 1
    Case("wpo", [LN2], [0, 0], None, None, {}, {"log_sum_p2": [-1, -1]}),
    Case("tdpo1", [0.386871], [1, 0], None, None, {"beta": 1}, {"kl_ref_policy": [0.5, 0.75]}),
    Case("tdpo2", [0.348445], [1, 0], None, None, {"beta": 1, "alpha": 0.5}, {"kl_ref_policy": [0.5, 0.75]}),
    Case(
        "epsilon_dpo",
        [0.371101],
        [1, 0],
        None,
        None,
        {"beta": 1.0, "epsilon": 0.25},
        {"logp_away": [1.5, 0], "logp_towards": [0.5, 0]},
    ),
    Case("mdpo", [0.753452], [1, 0], None, None, {"beta": 1}, {"piece_log_ratio": [-1, 5]}),
    # nothing lost with the rest of the medium: the middle term is ln 2
    Case("mdpo", [0.313262 + LN2 + 0.693147], [1, 0], None, None, {"beta": 1, "delta": 1}, {"piece_log_ratio": [1, 0]}),
    Case("ddpo", [0.386871], [1.5, 0], None, [2, 1], {"beta": 1, "gamma": 3}, {"changed": [1, 0, 0]}),
    Case("ddpo", [0.126928], [1, 0], None, [2, 1], {"beta": 1, "gamma": 3, "reduction": "sum"}, {"changed": [1, 0, 0]}),
    Case("aot", [0.313262, 0.313262], [3, 0, 1, 0], [0, 0, 2, 0], None, {"beta": 1}),
    Case("aot_unpaired", [0.313262, 0.313262], [3, 0, 1, 2], None, None, {"beta": 1}),
    Case("dr_dpo", [0.693147, 0.693147], [1, 0, -1, 0], None, None, {"beta": 1, "beta_prime": 1}),
    Case(
        "beta_dpo",
        [0.313262, 0.048587],
        [1, 0, 3, 0],
        None,
        None,
        {"beta": 0.5, "a": 1, "rho": 0, "state": {"mean": 1.0, "std": 1.0, "updates": 0.0}},
    ),
    Case(
        "group_dpo",
        [0.156631, 1.969893],
        [1, 0, -1, 0],
        None,
        None,
        {"beta": 1, "step": 0.1, "state": {"0": 0.0, "1": math.log(3)}},
        {},
        replace(opinions(2), task_of=torch.tensor([0, 0, 1, 1])),
    ),
    Case("ipo", [16.0], [-1, -2], [-1.5, -1.5], None, {"beta": 0.1}),
    Case("ipo_mean", [0.0], [2, -3], None, [4, 6], {"beta": 0.5}),
    Case("exo_pair", [0.0], [LN3, 0], None, None, {"beta": 1, "label_smoothing": 0.25}),
    # q = 1/2 against 3/4: 1/2 ln(2/3) + 1/2 ln 2
    Case("exo_pair", [0.143841], [0, 0], None, None, {"beta": 1, "label_smoothing": 0.25}),
    Case("nca_pair", [1.301345], [LN2, 0], None, None, {"beta": 1}),
    Case("sppo", [0.25], [1, 0], None, None, {"beta": 0.5}, {}, opinions(1, p=[0.75])),
    Case("sppo_hard", [1.0], [1, 0], None, None, {"beta": 0.5}),
    Case("cal_dpo", [0.813262], [1, 0], None, None, {"beta": 0.5}),
    Case("apo_zero", [0.5], [LN3, -LN3], None, None, {"beta": 1}),
    Case("apo_down", [0.75], [0, -LN3], None, None, {"beta": 1}),
    Case("kto", [0.182426, 0.182426], [2, -1], None, None, {"beta": 1, "statistic": torch.tensor(0.5)}),
    Case("bco", [0.201413, 0.201413], [2, -1], None, None, {"beta": 1, "state": {"shift": 0.5}}),
    Case("bco_pair", [0.402827], [2, -1], None, None, {"beta": 1, "state": {"shift": 0.5}}),
    Case("slic", [0.7], [-2, -2.5], None, None, {"delta": 1, "lam": 0.1}),
    Case("unlikelihood", [1.693147], [-1, -2 * LN2], None, [1, 2], {"alpha": 0.5}),
    Case("orpo", [LN2 + 0.287682], [-2 * LN2, -2 * LN2], None, [2, 1], {"lam": 1}),
    Case("simpo", [0.693147], [-4, -3], None, [4, 2], {"beta": 2, "gamma": 1}),
    Case("cpo", [0.813262], [-1, -2], None, None, {"beta": 1, "alpha": 0.5}),
    Case("alphapo", [0.313262], [0, -LN2], None, None, {"alpha": 1, "beta": 1, "gamma": 0}),
    Case("plackett_luce", [1.244592], [1, 0, 0], None, None, {"beta": 1}, {}, one_group([3, 2, 1])),
    Case("plackett_luce", [math.log(6)], [0, 0, 0], None, None, {"beta": 1}, {}, one_group([1, 3, 2])),
    # two equal ones of three: log(e + 2) - 1 for the best, and ln 2 for the pair
    Case("plackett_luce", [1.244592], [1, 0, 0], None, None, {"beta": 1}, {}, one_group([3, 1, 1])),
    # the mean of both orders: 1/2 (ln 4/3 + ln 4)
    Case("plackett_luce", [0.836988], [LN3, 0], None, None, {"beta": 1}, {}, one_group([1, 1])),
    Case("plackett_luce", [math.log(24)], [2.0] * 4, None, None, {"beta": 1}, {}, one_group([1, 1, 1, 1])),
    Case("exo", [0.130812], [LN3, 0], None, None, {"beta": 1}, {}, one_group([0, 0])),
    Case("infonca", [0.836988], [LN3, 0], None, None, {"beta": 1}, {}, one_group([0, 0])),
    Case("nca", [1.445186], [LN2, 0], None, None, {"beta": 1}, {}, one_group([0, 0])),
    Case("rao_kupper", [math.log(4), LN2], [0, 0, 0, 0], None, None, {"nu": 3.0}, {}, opinions(2, p=[1, 0.5])),
    Case("davidson", [math.log(4), LN2], [0, 0, 0, 0], None, None, {"nu": 1.0}, {}, opinions(2, p=[1, 0.5])),
    Case("sft", [math.log(50)] * 3, [-2 * math.log(50), -math.log(50)], None, [2, 1]),
    Case("bradley_terry", [0.323262], [1, 0], None, None, {"centering": 0.01}),
    Case("bradley_terry_margin", [0.693147], [1, 0], None, None, {}, {}, opinions(1, margin=[1.0])),
    Case("bradley_terry_margin", [0.126928], [1, 0], None, None, {}, {}, opinions(1, margin=[-1.0])),
    # the other label's margin is -1: (1/4) ln 2 + (3/4) ln 2
    Case("bradley_terry_margin", [0.693147], [1, 0], None, None, {}, {}, opinions(1, p=[0.25], margin=[1.0])),
    Case("plackett_luce_reward", [1.244592], [1, 0, 0], None, None, {}, {}, one_group([3, 2, 1])),
    Case("top1", [0.551445], [1, 0, 0], None, None, {}, {}, one_group([3, 2, 1])),
    Case("maxent_irl", [-1.0], [1, 0, 0], None, None, {"beta": 1}, {}, one_group([1, 0, 0])),
    # two demonstrations, beta 1/2: -(2 + 0) / 2 + log(e^4)
    Case("maxent_irl", [3.0], [1, 0, 2], None, None, {"beta": 0.5}, {}, one_group([1, 1, 0])),
    Case("maxent_irl", [0.0], [1, 7], None, None, {"beta": 1}, {}, one_group([1, 1])),
    Case("ranking_nce", [0.551445], [1, 0, 0], None, None, {"beta": 1}, {}, one_group([1, 0, 0])),
    # beta 1/2: the mean of log(1 + 2 / e^2) and log(1 + 2)
    Case(
        "ranking_nce",
        [(math.log(1 + 2 / math.e**2) + LN3) / 2],
        [1, 0, 0, 0],
        None,
        None,
        {"beta": 0.5},
        {},
        one_group([1, 1, 0, 0]),
    ),
    Case("airl", [0.313262] * 2, [1, -1], None, None, {"beta": 1}),
    Case("airl", [0.126928] * 2, [1, -1], None, None, {"beta": 0.5}),
    Case("demonstration_pairs", [0.126928], [1, 0], None, None, {"beta": 0.5}),
]


@pytest.mark.parametrize("case", BY_HAND, ids=lambda case: case.name)
def test_by_hand(case):
    policy = scored(case.policy, case.lengths, **case.extras)
    reference = scored(case.reference or [0.0] * len(case.policy), case.lengths)
    given = case.given or opinions(len(case.policy) // 2)
    losses, _ = run(case.name, policy, reference, given, **case.parameters)
    assert losses.tolist() == pytest.approx(case.losses, abs=1e-6)


def test_ld_dpo_by_hand():
    """Tokens (1, 1, 4) against (0): the shorter has one token, so 1 + 5/2 against 0."""
    policy = Scored(torch.tensor([1.0, 1.0, 4.0, 0.0], dtype=F64), torch.tensor([0, 0, 0, 1]), 2)
    zero = Scored(torch.zeros(4, dtype=F64), policy.response_of, 2)
    losses, _ = run("ld_dpo", policy, zero, opinions(1), beta=1.0, alpha=0.5)
    assert losses.tolist() == pytest.approx([0.029750], abs=1e-6)


def test_every_objective_has_a_case_by_hand():
    assert {case.name for case in BY_HAND} | {"ld_dpo"} == set(EVERY)


# limits


class Limit(NamedTuple):
    """An objective that at these parameters is ``scale`` times another one."""

    name: str
    parameters: dict[str, Any]
    parent: str
    parent_parameters: dict[str, Any] = {}  # noqa: RUF012
    scale: float = 1.0
    kind: str = "any"  # of data: certain labels, one token each, one pair alone, or two rated responses per prompt


B = {"beta": 0.3}
LIMITS = [
    Limit("cdpo", {**B, "label_smoothing": 0.0}, "dpo", B),
    Limit("robust", {**B, "label_smoothing": 0.0}, "dpo", B),
    Limit("odpo", {**B, "alpha": 0.0}, "dpo", B),
    Limit("modpo", {**B, "w": 0.4}, "dpo", {"beta": 0.75}, kind="no margin"),
    Limit("modpo", {**B, "w": 1.0}, "dpo", B, kind="no margin"),
    Limit("r_dpo", {**B, "alpha": 0.0}, "dpo", B),
    Limit("r_dpo", B, "dpo", B, kind="one token"),
    Limit("ln_dpo", B, "dpo", B, kind="one token"),
    Limit("ld_dpo", {**B, "alpha": 1.0}, "dpo", B),
    Limit("ld_dpo", {**B, "alpha": 0.2}, "dpo", B, kind="one token"),
    Limit("dpop", {**B, "penalty": 0.0}, "dpo", B),
    Limit("rpo", {**B, "eta": 0.0}, "dpo", B),
    Limit("rpo_sum", {**B, "eta": 0.0}, "dpo", B),
    Limit("f_dpo", {**B, "divergence": "reverse_kl"}, "dpo", B),
    Limit("f_dpo", {**B, "divergence": "alpha", "alpha": 1e-9}, "dpo", B),
    Limit("f_dpo", {**B, "divergence": "alpha", "alpha": 0.0}, "dpo", B),
    Limit("f_dpo", {**B, "divergence": "alpha", "alpha": 1.0}, "f_dpo", {**B, "divergence": "forward_kl"}),
    Limit("ddpo", {**B, "gamma": 1.0, "reduction": "sum"}, "dpo", B),
    Limit("ddpo", {**B, "gamma": 1.0}, "ln_dpo", B),
    Limit("tdpo2", {**B, "alpha": 0.0}, "dpo", B),
    Limit("epsilon_dpo", {**B, "epsilon": 0.0}, "dpo", B),
    Limit("beta_dpo", {**B, "a": 0.0, "rho": 0.0}, "dpo", B),
    Limit("dr_dpo", {**B, "beta_prime": 1e9}, "dpo", B, kind="mean"),
    Limit("dr_dpo", B, "dpo", B, kind="one pair"),
    Limit("aot", B, "dpo", B, kind="one pair"),
    Limit("aot_unpaired", B, "dpo", B, kind="one pair"),
    Limit("aot", {**B, "label_smoothing": 0.2}, "cdpo", {**B, "label_smoothing": 0.2}, kind="one pair"),
    Limit("ipo_mean", B, "ipo", B, kind="one token"),
    Limit("sppo_hard", B, "sppo", B, scale=2.0, kind="certain"),
    Limit("rao_kupper", {**B, "nu": 1 + 1e-12}, "dpo", B, kind="certain"),
    Limit("davidson", {**B, "nu": 1e-15}, "dpo", B, kind="certain"),
    Limit("simpo", {"beta": 0.3, "gamma": 0.0}, "bradley_terry_scaled", {}, kind="one token"),
    Limit("alphapo", {"beta": 0.3, "gamma": 0.5, "alpha": 0.0}, "simpo", {"beta": 0.3, "gamma": 0.5}),
    Limit("alphapo", {"beta": 0.3, "gamma": 0.5, "alpha": 1e-9}, "simpo", {"beta": 0.3, "gamma": 0.5}),
    Limit("cpo", {"beta": 0.3, "alpha": 0.0}, "bradley_terry_scaled", {}),
    Limit("unlikelihood", {"alpha": 0.0}, "slic", {"delta": -1e9, "lam": 1.0}),
    Limit("bradley_terry_margin", {}, "bradley_terry", {}, kind="no margin"),
    Limit("plackett_luce", B, "dpo", B, kind="two"),
    Limit("infonca", {**B, "temperature": 1e-4}, "dpo", B, kind="two"),
    Limit("exo", {**B, "temperature": 1 / LN3}, "exo_pair", {**B, "label_smoothing": 0.25}, kind="two"),
    Limit("nca", {**B, "temperature": 1e-4}, "nca_pair", B, kind="two"),
    Limit("plackett_luce_reward", {}, "bradley_terry", {}, kind="two"),
    Limit("top1", {}, "bradley_terry", {}, kind="two"),
    Limit("ranking_nce", {"beta": 1.0}, "bradley_terry", {}, kind="two"),
    Limit("demonstration_pairs", {"beta": 1.0}, "bradley_terry", {}),
]


def case_of(limit: Limit) -> tuple[Scored, Scored, Pairs]:
    if limit.kind == "two":
        return scored([-1.0, -2.5, -4.0, -0.5]), scored([-2.0, -2.0, -3.0, -1.5]), opinions(2)
    if limit.kind == "one pair":
        return scored([-1.0, -2.5]), scored([-2.0, -2.2]), opinions(1)
    policy, reference, given = random_case(limit.name, 11)
    if limit.kind == "one token":
        first = policy.place == 0
        only = lambda s: Scored(s.token_logps[first], torch.arange(s.n_responses), s.n_responses)  # noqa: E731
        policy, reference = only(policy), only(reference)
    certain = torch.ones_like(given.p) if limit.kind == "certain" else given.p
    margin = given.margin * 0 if limit.kind == "no margin" else given.margin
    return policy, reference, Pairs(given.yw_idxs, given.yl_idxs, certain, given.weight, margin, *_rest(given))


def _rest(given: Pairs) -> tuple[Any, ...]:
    return given.desirable, given.group_of, given.score


@pytest.mark.parametrize("limit", LIMITS, ids=lambda x: f"{x.name}-{x.parent}-{x.kind}")
def test_limits_of_the_parameters_give_the_parent_objective(limit):
    policy, reference, given = case_of(limit)
    parent, parameters = limit.parent, limit.parent_parameters
    if parent == "bradley_terry_scaled":  # DPO against a reference that is indifferent between responses
        parent, parameters = "dpo", B
        reference = Scored(reference.token_logps * 0, reference.response_of, reference.n_responses)
    measure = mean_loss if limit.kind == "mean" else lambda *a, **k: run(*a, **k)[0]
    losses = measure(limit.name, policy, reference, given, **limit.parameters)
    expected = measure(parent, policy, reference, given, **parameters)
    torch.testing.assert_close(losses, limit.scale * expected, atol=1e-7, rtol=1e-7)


# claims of the papers


def test_robust_dpo_is_unbiased_under_flipped_labels():
    """E over labels flipped with probability e of the robust loss is DPO's clean loss, at every margin."""
    policy, reference, clean = random_case("dpo", 12)
    p = torch.ones_like(clean.p) * 0.9
    one = Pairs(clean.yw_idxs, clean.yl_idxs, p, clean.weight, clean.margin, *_rest(clean))
    sure = Pairs(clean.yw_idxs, clean.yl_idxs, torch.ones_like(p), clean.weight, clean.margin, *_rest(clean))
    expected = run("robust", policy, reference, one, beta=0.4, label_smoothing=0.1)[0]
    torch.testing.assert_close(expected, run("dpo", policy, reference, sure, beta=0.4)[0])


@pytest.mark.parametrize(
    ("name", "parameters", "stationary"),
    [
        ("cdpo", {"beta": 1.0, "label_smoothing": 0.1}, 2.197225),
        ("exo_pair", {"beta": 1.0, "label_smoothing": 0.1}, 2.197225),
        ("ipo", {"beta": 0.1}, 5.0),
        ("sppo_hard", {"beta": 0.25}, 4.0),
    ],
)
def test_finite_targets_lie_where_the_papers_say(name, parameters, stationary):
    """h = logit(1 - e), 1 / (2 tau), and 1 / beta (each response half of it)."""
    point = torch.tensor([stationary / 2, -stationary / 2], dtype=F64, requires_grad=True)
    policy = Scored(point, torch.arange(2), 2)
    (gradient,) = torch.autograd.grad(run(name, policy, scored([0.0, 0.0]), opinions(1), **parameters)[0].sum(), point)
    assert gradient.abs().max() < 1e-6


def test_discopop_is_not_monotone_around_its_start():
    """Increasing on u in (-0.119, 0.072), so that descent from 0 first lowers the margin."""
    u = torch.tensor([-0.13, -0.11, 0.0, 0.07, 0.08], dtype=F64, requires_grad=True)
    policy = Scored(torch.stack([u, u * 0], 1).flatten(), torch.arange(10), 10)
    losses = run("discopop", policy, scored([0.0] * 10), opinions(5), beta=1.0, tau=0.05)[0]
    (slope,) = torch.autograd.grad(losses.sum(), u)
    assert (slope > 0).tolist() == [False, True, True, True, False]


def test_bco_is_never_below_dpo_whatever_the_shift():
    policy, reference, given = random_case("dpo", 13)
    given = Pairs(given.yw_idxs, given.yl_idxs, torch.ones_like(given.p), given.weight, given.margin, *_rest(given))
    dpo = run("dpo", policy, reference, given, beta=0.5)[0]
    for shift in (-5.0, -0.3, 0.0, 0.7, 4.0):
        assert (run("bco_pair", policy, reference, given, beta=0.5, state={"shift": shift})[0] >= dpo).all()


TIES = [("rao_kupper", 3.0), ("davidson", 1.0), ("rao_kupper", 1.5), ("davidson", 0.2)]


@pytest.mark.parametrize(("name", "nu"), TIES)
def test_the_three_outcomes_sum_to_one_and_a_tie_is_best_at_zero(name, nu):
    d = torch.tensor([-3.0, 0.0, 0.4, 50.0], dtype=F64, requires_grad=True)
    policy = Scored(torch.stack([d, d * 0], 1).flatten(), torch.arange(8), 8)
    nothing = scored([0.0] * 8)
    win, loss, tie = (run(name, policy, nothing, opinions(4, p=[p] * 4), beta=1.0, nu=nu)[0] for p in (1.0, 0.0, 0.5))
    torch.testing.assert_close((-win).exp() + (-loss).exp() + (-tie).exp(), torch.ones(4, dtype=F64))
    (slope,) = torch.autograd.grad(tie.sum(), d)
    assert (slope.sign() == d.detach().sign()).all()
    assert float(slope[1]) == pytest.approx(0.0, abs=1e-12)


def test_plackett_luce_likelihoods_of_all_orders_sum_to_one():
    policy, nothing = scored([-1.0, 0.5, 2.0, -0.3]), scored([0.0] * 4)
    total = sum(
        math.exp(-float(run("plackett_luce", policy, nothing, one_group(order), beta=0.7)[0]))
        for order in permutations([0.0, 1.0, 2.0, 3.0])
    )
    assert total == pytest.approx(1.0)


@pytest.mark.parametrize("scores", [[1, 1, 0, 2], [0, 0, 0, 1], [1, 0, 0, 0], [3, 3, 1, 1], [2, 2, 2, 2]])
def test_equal_scores_cost_the_mean_over_their_orders(scores):
    """Every order that the scores allow, as a ranking without equal scores."""
    policy, nothing = scored([-1.0, 0.5, 2.0, -0.3]), scored([0.0] * 4)
    orders = [ranks for ranks in permutations(range(4)) if all(
        (scores[a] > scores[b]) <= (ranks[a] > ranks[b]) for a in range(4) for b in range(4)
    )]  # fmt: skip
    each = [float(run("plackett_luce", policy, nothing, one_group(order), beta=0.7)[0]) for order in orders]
    loss = float(run("plackett_luce", policy, nothing, one_group(scores), beta=0.7)[0])
    assert loss == pytest.approx(sum(each) / len(each), abs=1e-12)


@pytest.mark.parametrize("name", ["plackett_luce", "plackett_luce_reward"])
def test_a_tie_of_two_is_a_pair_at_one_half(name):
    """Value and gradient; when compared with all responses that are not better, the loss was twice that."""
    parent, parameters = ("dpo", {"beta": 0.3}) if name == "plackett_luce" else ("bradley_terry", {})
    point = torch.tensor([-1.0, 1.5], dtype=F64, requires_grad=True)
    policy, nothing = Scored(point, torch.arange(2), 2), scored([0.0] * 2)
    tie = run(name, policy, nothing, one_group([2.0, 2.0]), **parameters)[0]
    pair = run(parent, policy, nothing, opinions(1, p=[0.5]), **parameters)[0]
    torch.testing.assert_close(tie, pair)
    torch.testing.assert_close(*(torch.autograd.grad(x.sum(), point)[0] for x in (tie, pair)))


def test_many_equal_scores_take_efron_s_form():
    """Above the exact mean by less than a tenth, equal to it and to ln K! at equal values, without any infinity."""
    rng = torch.Generator().manual_seed(0)
    values, rest = torch.randn(MOST_EQUAL, generator=rng, dtype=F64), torch.tensor(0.3, dtype=F64)
    exact = float(tied_nll(values, rest))
    steps = torch.arange(1, MOST_EQUAL + 1, dtype=F64) / MOST_EQUAL
    efron = float(torch.logaddexp(rest, values.logsumexp(0) + steps.log()).sum() - values.sum())
    assert exact < efron < 1.1 * exact
    many = one_group([1.0] * 40)
    level = run("plackett_luce", scored([2.0] * 40), scored([0.0] * 40), many)[0]
    assert float(level) == pytest.approx(math.lgamma(41))
    rising = torch.randn(40, generator=rng, dtype=F64)
    one, other = (
        run("plackett_luce", scored(x), scored([0.0] * 40), many, beta=1.0)[0] for x in (rising, rising.flip(0))
    )
    torch.testing.assert_close(one, other)
    assert float(one) > math.lgamma(41)


def test_equal_scores_in_a_ranking_have_no_order():
    policy, nothing = scored([-1.0, 0.5, 2.0]), scored([0.0] * 3)
    one = run("plackett_luce", policy, nothing, one_group([1.0, 1.0, 0.0]), beta=1.0)[0]
    other = run("plackett_luce", scored([0.5, -1.0, 2.0]), nothing, one_group([1.0, 1.0, 0.0]), beta=1.0)[0]
    torch.testing.assert_close(one, other)


# running state


def test_bco_shift_follows_the_middle_of_the_rewards():
    """Good rewards mean 3, bad -1: middle 1; a tenth of the way from 0.5."""
    objective = objectives.get("bco")
    policy, zero = scored([2.0, -1.0, 4.0, -1.0]), scored([0.0] * 4)
    after = objective.next_state({"shift": 0.5}, policy, zero, opinions(2), beta=1.0)
    assert after == {"shift": pytest.approx(0.9 * 0.5 + 0.1 * 1.0)}
    only_good = opinions(2, desirable=[1.0, 1.0, 1.0, 1.0])
    assert objective.next_state({"shift": 0.5}, policy, zero, only_good, beta=1.0) == {"shift": 0.5}
    pairwise = objectives.get("bco_pair").next_state({"shift": 0.5}, policy, zero, opinions(2), beta=1.0)
    assert pairwise == {"shift": pytest.approx(0.55)}


def test_beta_dpo_remembers_mean_and_spread_of_h():
    objective = objectives.get("beta_dpo")
    policy, zero = scored([1.0, 0.0, 3.0, 0.0]), scored([0.0] * 4)
    before = {"mean": 0.0, "std": 1.0, "updates": 4.0}
    after = objective.next_state(before, policy, zero, opinions(2), beta=0.1, a=1, rho=0)
    assert after == {"mean": pytest.approx(0.2), "std": pytest.approx(1.0), "updates": 5.0}


def test_beta_dpo_keeps_the_stated_share_and_the_same_pairs_for_the_same_update():
    policy, reference, given = random_case("beta_dpo", 14, groups=40)
    state = {"mean": 0.0, "std": 2.0, "updates": 3.0}
    first, again = (run("beta_dpo", policy, reference, given, rho=0.25, state=state)[0] for _ in range(2))
    other = run("beta_dpo", policy, reference, given, rho=0.25, state=state | {"updates": 4.0})[0]
    assert int((first != 0).sum()) == math.ceil(0.75 * len(first))
    assert torch.equal(first, again)
    assert not torch.equal(first != 0, other != 0)
    narrow = run("beta_dpo", policy, reference, given, rho=0.5, state=state | {"std": 1e-3})[0] != 0
    rho = policy.logps - reference.logps
    distance = (rho[given.yw_idxs] - rho[given.yl_idxs]).abs()
    assert distance[narrow].max() <= distance[~narrow].min(), "with a narrow spread only the nearest stay"


def test_epsilon_dpo_moves_beta_against_the_mean_direction():
    """Three of four pairs rise away from the reference, one falls: mean 1/2, so beta / (1 + 0.1 / 2)."""
    policy = scored([0.0] * 8, logp_away=[1.0, 0, 1, 0, 1, 0, -1, 0], logp_towards=[-1.0, 0, -1, 0, -1, 0, 1, 0])
    after = objectives.get("epsilon_dpo").next_state({"beta": 2.0}, policy, policy, opinions(4), beta=1.0, epsilon=0.1)
    assert after == {"beta": pytest.approx(2.0 / 1.05)}


def test_joined_batches_number_their_responses_on():
    one, two = scored([-1.0, -2.0], [2, 1]), scored([-3.0], [2])
    joined = join_scored([one, two])
    assert joined.response_of.tolist() == [0, 0, 1, 2, 2]
    assert joined.logps.tolist() == [-1.0, -2.0, -3.0]
    assert joined.place.tolist() == [0, 1, 0, 0, 1]
