"""Outputs of objectives other than losses, by hand: rewards, metrics, unit weights, statistics of logits.

Signs, directions and constants that no loss reveals: the sides of a reward, the units of a metric, a KL's direction.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers_objectives import EVERY, F64, opinions, random_case, run, scored

from afzal import objectives
from afzal.objectives import Pairs, Scored, advantages, join_pairs, pairs, unit_weights
from afzal.objectives.kl import k1, k2, k3
from afzal.objectives.margins import by_group, masked_log_softmax, safe_exp, shares
from afzal.objectives.metrics import add, means, tally
from afzal.objectives.policy_gradient import ratio_of
from afzal.objectives.reference_free import log_complement, log_odds
from afzal.objectives.statistics import kl_policy_ref, kl_ref_policy, log_sum_p2, logp_away, logp_towards
from afzal.objectives.unpaired import mismatched_kl

NONE = opinions(0)

# rewards


def _mean_ratio(policy: Scored, reference: Scored) -> torch.Tensor:
    return policy.logps / policy.lengths - reference.logps / reference.lengths


REWARDS = {
    "ln_dpo": lambda p, r, beta: beta * _mean_ratio(p, r),
    "ipo_mean": lambda p, r, beta: beta * _mean_ratio(p, r),
    "slic": lambda p, r, beta: p.logps,
    "unlikelihood": lambda p, r, beta: p.logps,
    "orpo": lambda p, r, beta: 0.1 * p.logps / p.lengths,
    "simpo": lambda p, r, beta: beta * p.logps / p.lengths,
    "cpo": lambda p, r, beta: beta * p.logps,
    "alphapo": lambda p, r, beta: beta * (1 - (-0.25 * p.logps / p.lengths).exp()) / 0.25,
    # Jensen-Shannon: f'(u) = log(2 u / (1 + u))
    "f_dpo": lambda p, r, beta: beta * (2 / (1 + (r.logps - p.logps).exp())).log(),
    "bradley_terry": lambda p, r, beta: p.logps,
    "bradley_terry_margin": lambda p, r, beta: p.logps,
    "plackett_luce_reward": lambda p, r, beta: p.logps,
    "top1": lambda p, r, beta: p.logps,
    **dict.fromkeys(("maxent_irl", "ranking_nce", "airl", "demonstration_pairs"), lambda p, r, beta: p.logps),
    "sft": lambda p, r, beta: p.logps,
    "ddpo": lambda p, r, beta: beta * _weighted_mean(p, r, 1 + 4 * p.extras["changed"]),
}


def _weighted_mean(p: Scored, r: Scored, weight: torch.Tensor) -> torch.Tensor:
    return p.total(weight * (p.token_logps - r.token_logps)) / p.total(weight)


@pytest.mark.parametrize("name", EVERY)
def test_rewards_are_the_policy_s_own_and_not_the_reference_s(name):
    """beta (log pi - log pi_ref) unless the table says otherwise; larger is better in the policy's eyes."""
    policy, reference, given = random_case(name, 21)
    beta = objectives.get(name).parameters.get("beta")
    expected = REWARDS.get(name, lambda p, r, beta: beta * (p.logps - r.logps))(policy, reference, beta)
    _, rewards = run(name, policy, reference, given)
    torch.testing.assert_close(rewards, expected, rtol=1e-9, atol=1e-12)


def test_the_reward_of_epsilon_dpo_is_at_its_running_beta():
    policy, reference = scored([1.0, -1.0], logp_away=[0.0, 0], logp_towards=[0.0, 0]), scored([0.0, 0.5])
    _, rewards = run("epsilon_dpo", policy, reference, opinions(1), beta=1.0, state={"beta": 0.25})
    assert rewards.tolist() == [0.25, -0.375]


def test_rewards_on_rollouts_are_means_over_an_answer_s_tokens():
    extras = {"old_logp": [0.0] * 3, "ref_logp": [0.0] * 3, "advantage": [1.0, 3.0, 5.0]}
    extras |= {"value": [2.0, 4.0, 7.0], "old_value": [0.0] * 3, "target": [0.0] * 3}
    policy = scored([0.0, 0.0], [2, 1], **extras)
    for name in ("ppo", "rloo", "grpo"):
        assert objectives.get(name).fn(policy, None, NONE)[1].tolist() == [2.0, 5.0], name
    assert objectives.get("value").fn(policy, None, NONE)[1].tolist() == [3.0, 7.0]


# metrics


def test_metrics_of_pairs_by_hand():
    """Four pairs: right, equal, wrong, and a tie that is not counted; weights 1, 2, 4 and 8."""
    policy = scored([-1.0, -2, -3, -4, -5, -6, -7, -8], [1, 2, 3, 4, 5, 6, 7, 8])
    rewards = torch.tensor([3.0, 1, 2, 2, 0, 5, 9, 0], dtype=F64)
    given = replace(opinions(4, p=[1.0, 0.75, 1.0, 0.5]), weight=torch.tensor([1.0, 2, 4, 8], dtype=F64))
    figures = {name: (float(s), float(n)) for name, (s, n) in tally("pair", policy, rewards, given).items()}
    assert figures == {
        "logps/chosen": (-1 - 2 * 3 - 4 * 5, 7),
        "logps/rejected": (-2 - 2 * 4 - 4 * 6, 7),
        "lengths/chosen": (1 + 2 * 3 + 4 * 5, 7),
        "lengths/rejected": (2 + 2 * 4 + 4 * 6, 7),
        "rewards/chosen": (3 + 2 * 2 + 0, 7),
        "rewards/rejected": (1 + 2 * 2 + 4 * 5, 7),
        "rewards/margins": (2 + 0 - 4 * 5, 7),
        "rewards/accuracies": (1 + 2 * 0.5 + 0, 7),
    }


def test_metrics_of_labels_and_of_tokens_by_hand():
    policy, rewards = scored([-1.0, -2.0, -4.0], [1, 2, 3]), torch.tensor([0.5, 0.25, 8.0], dtype=F64)
    labels = opinions(0, desirable=[1.0, 0.0, math.nan])
    figures = {name: (float(s), float(n)) for name, (s, n) in tally("response", policy, rewards, labels).items()}
    assert figures == {
        "logps/chosen": (-1, 1),
        "logps/rejected": (-2, 1),
        "lengths/chosen": (1, 1),
        "lengths/rejected": (2, 1),
        "rewards/chosen": (0.5, 1),
        "rewards/rejected": (0.25, 1),
    }
    tokens = tally("token", policy, rewards, labels)
    assert {name: (float(s), float(n)) for name, (s, n) in tokens.items()} == {
        "logps/chosen": (-7, 3),
        "lengths/chosen": (6, 3),
    }


def test_sums_and_counts_add_up_and_what_has_no_count_has_no_mean():
    one, zero = torch.tensor(1.0), torch.tensor(0.0)
    total = {"a": (6 * one, 2 * one)}
    add(total, {"a": (2 * one, 2 * one), "b": (zero, zero)})
    assert means(total) == {"a": 2.0}


def test_metrics_of_rollouts_by_hand():
    """Ratios 1.5, 0.5 and 1.1 at clips of 0.2 and, upwards, 0.6: outside are the first two, or the second alone."""
    logps = torch.tensor([1.5, 0.5, 1.1], dtype=F64).log()
    policy = Scored(logps, torch.arange(3), 3, {"old_logp": torch.zeros(3, dtype=F64)})
    for name in ("ppo", "rloo", "grpo"):
        metrics, extra = objectives.get(name).metrics, {"beta": 0.0} if name == "grpo" else {}
        assert metrics is not None
        figures = metrics(policy, NONE, clip=0.2, clip_high=0.0, **extra)
        assert [float(x) for x in figures["policy/clipfrac"]] == [2.0, 3.0]
        assert float(metrics(policy, NONE, clip=0.2, clip_high=0.6, **extra)["policy/clipfrac"][0]) == 1.0
        assert float(figures["policy/ratio"][0]) == pytest.approx(3.1)
        assert float(figures["policy/approxkl"][0]) == pytest.approx(0.1 - float(logps.sum()))
    whole = Scored(logps, torch.tensor([0, 0, 1]), 2, policy.extras)
    by_answer = objectives.get("rloo").metrics(whole, NONE, clip=0.2, clip_high=0.0)  # pyright: ignore
    assert [float(x) for x in by_answer["policy/clipfrac"]] == [1.0, 2.0]
    assert float(by_answer["policy/ratio"][0]) == pytest.approx(0.75 + 1.1)


def test_metrics_of_the_value_model_by_hand():
    seen = scored([0.0, 0.0, 0.0], value=[1.0, -1.0, 0.1], old_value=[0.0, 0.0, 0.0])
    figures = objectives.get("value").metrics(seen, NONE, value_clip=0.2)  # pyright: ignore
    assert [float(x) for x in figures["value/clipfrac"]] == [2.0, 3.0]
    assert float(figures["value/mean"][0]) == pytest.approx(0.1)


# weights, groups, ratios


def test_weights_of_units_by_hand():
    """Pairs their own; labelled responses, groups of two known scores, and tokens of examples 1 each, all others 0."""
    index = torch.tensor([0, 1])
    given = pairs(
        index[:1], index[1:], weight=torch.tensor([0.25]), group_of=torch.tensor([0, 0, 1, 1, 2]),
        desirable=torch.tensor([math.nan, math.nan, 1.0, 0.0, math.nan]),
        score=torch.tensor([1.0, math.nan, 2.0, 0.0, 5.0]),
    )  # fmt: skip
    response_of = torch.tensor([0, 1, 2, 2, 3, 4])
    assert unit_weights("pair", given, response_of).tolist() == [0.25]
    assert unit_weights("response", given, response_of).tolist() == [0, 0, 1, 1, 0]
    assert unit_weights("group", given, response_of).tolist() == [0, 1, 0]
    # compared and bad responses are no examples; a response without any opinion is one
    assert unit_weights("token", given, response_of).tolist() == [0, 0, 1, 1, 0, 1]
    bare = pairs(index[:0], index[:0])
    assert unit_weights("token", bare, response_of).tolist() == [1] * 6


def test_shares_of_the_weight():
    assert shares(replace(opinions(2), weight=torch.tensor([1.0, 3.0]))).tolist() == [0.25, 0.75]
    assert shares(replace(opinions(2), weight=torch.tensor([0.0, 0.0]))).tolist() == [0.5, 0.5]


def test_the_weights_of_coupled_pairs_enter_their_means():
    """Dr.DPO: weights 1 and 3 of e^-L = (1/2, 1/4) give -log(1/8 + 3/16); beta-DPO: mean h = (1 + 3 * 3) / 4."""
    point, nothing = scored([0.0, 0.0, -math.log(3), 0.0]), scored([0.0] * 4)
    heavy = replace(opinions(2), weight=torch.tensor([1.0, 3.0], dtype=F64))
    losses = run("dr_dpo", point, nothing, heavy, beta=1.0, beta_prime=1.0)[0]
    assert losses.tolist() == pytest.approx([-math.log(5 / 16)] * 2)
    state = {"mean": 0.5, "std": 1.0, "updates": 0.0}
    steep = run("beta_dpo", scored([1.0, 0, 3.0, 0]), nothing, heavy, beta=0.5, a=1, rho=0, state=state)[0]
    assert steep.tolist() == pytest.approx([math.log1p(math.exp(-1.5)), math.log1p(math.exp(-4.5))])


def test_joined_opinions_count_their_responses_and_groups_on():
    part = opinions(1)
    joined = join_pairs([part, part], [2, 2])
    assert (joined.yw_idxs.tolist(), joined.yl_idxs.tolist()) == ([0, 2], [1, 3])
    assert joined.group_of.tolist() == [0, 0, 1, 1]
    assert (joined.n_groups, NONE.n_groups) == (2, 0)


def test_a_table_of_groups_knows_which_places_hold_a_score():
    given = pairs(
        torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64),
        group_of=torch.tensor([0, 0, 1]), score=torch.tensor([1.0, math.nan, 2.0]),
    )  # fmt: skip
    table, known = by_group(torch.tensor([5.0, 6.0, 7.0]), given)
    assert table.tolist() == [[5, 6], [7, 0]]
    assert known.tolist() == [[True, False], [True, False]]
    softmax = masked_log_softmax(torch.tensor([[0.0, math.log(3), 9.0]]), torch.tensor([[True, True, False]]))
    assert softmax.tolist()[0] == pytest.approx([-math.log(4), math.log(0.75), 0.0])


def test_exponents_are_cut_at_eighty():
    assert safe_exp(torch.tensor([2.0, 1e4], dtype=F64)).tolist() == pytest.approx([math.exp(2), math.exp(80)])
    assert ratio_of(torch.tensor([2.0, 1e4, -1e4], dtype=F64)).tolist() == pytest.approx(
        [math.exp(2), math.exp(80), math.exp(-80)]
    )


def test_log_odds_by_hand():
    """p = 3/4: log(1 - p) = log(1/4), log odds log 3; at p = 1/4 -log 3; p = 1 counts as 1 - 1e-6."""
    at = torch.tensor([0.75, 0.25, 1.0], dtype=F64).log()
    assert log_complement(at).tolist() == pytest.approx([math.log(0.25), math.log(0.75), math.log(1e-6)], rel=1e-6)
    assert log_odds(at).tolist() == pytest.approx([math.log(3), -math.log(3), -math.log(1e-6)], rel=1e-6)


def test_mismatched_rows_give_the_sum_and_the_number_of_their_log_ratios():
    total, count = mismatched_kl(scored([-1.0, -4.0]), scored([-2.0, -1.0]))
    assert (float(total), float(count)) == (-2.0, 2.0)


def test_estimators_of_the_kl_by_hand():
    """At l = ln 2: ln 2, ln^2 2 / 2, and 1/2 - 1 + ln 2; at -ln 2: 2 - 1 - ln 2."""
    at, ln2 = torch.tensor([math.log(2), -math.log(2)], dtype=F64), math.log(2)
    assert k1(at).tolist() == [ln2, -ln2]
    assert k2(at).tolist() == pytest.approx([ln2**2 / 2] * 2)
    assert k3(at).tolist() == pytest.approx([ln2 - 0.5, 1 - ln2])


# statistics of the next-token distribution


def test_statistics_by_hand():
    """pi = (3/4, 1/4), ref = (1/2, 1/2): the two KLs differ, and a step away from the reference raises the first."""
    logits, ref = torch.tensor([[0.75, 0.25]], dtype=F64).log(), torch.tensor([[0.5, 0.5]], dtype=F64).log()
    target = torch.tensor([0])
    away = 0.5 * math.log(2 / 3) + 0.5 * math.log(2)
    assert float(kl_ref_policy(logits, target, ref_logp=ref)) == pytest.approx(away)
    back = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(kl_policy_ref(logits, target, ref_logp=ref)) == pytest.approx(back)
    assert abs(away - back) > 0.01
    assert float(log_sum_p2(logits, target)) == pytest.approx(math.log(9 / 16 + 1 / 16))
    # odds 3 to 1, to the power 1 + 1 and 1 - 1
    assert float(logp_away(logits, target, ref_logp=ref, epsilon=1.0)) == pytest.approx(math.log(0.9))
    assert float(logp_towards(logits, target, ref_logp=ref, epsilon=1.0)) == pytest.approx(math.log(0.5))


def test_a_direction_counts_only_where_both_steps_agree():
    """Away up and towards down is +1, the other way round -1, anything else 0: beta / (1 + e s) = 4/5, 4/3 and 1."""
    away, towards = [1.0, 0, -1.0, 0, 1.0, 0], [-1.0, 0, 1.0, 0, 1.0, 0]
    policy = scored([0.0] * 6, logp_away=away, logp_towards=towards)
    reference = scored([-2.0, 0.0] * 3)
    losses = run("epsilon_dpo", policy, reference, opinions(3), epsilon=0.25, state={"beta": 1.0})[0]
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(-2 * b)) for b in (1 / 1.25, 1 / 0.75, 1.0)])


def test_the_running_beta_of_epsilon_dpo_follows_the_mean_direction_by_weight():
    policy = scored([0.0] * 4, logp_away=[1.0, 0, -1.0, 0], logp_towards=[-1.0, 0, 1.0, 0])
    heavy = replace(opinions(2), weight=torch.tensor([3.0, 1.0], dtype=F64))
    after = objectives.get("epsilon_dpo").next_state({"beta": 1.0}, policy, policy, heavy, beta=1.0, epsilon=0.5)  # pyright: ignore
    assert after == {"beta": pytest.approx(1 / 1.25)}


# advantages


def test_whitening_and_token_rewards_read_their_mask():
    mask = torch.tensor([[True, True], [True, False]])
    whitened = advantages.whiten(torch.tensor([[1.0, 2.0], [6.0, 99.0]], dtype=F64), mask)
    spread = (14 / 3) ** 0.5
    assert whitened.flatten().tolist() == pytest.approx([-2 / spread, -1 / spread, 3 / spread, 0.0], rel=1e-6)
    nothing = advantages.token_rewards(torch.tensor([5.0]), torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.bool))
    assert nothing.tolist() == [[0.0, 0.0]]


def test_opinions_default_to_certain_labels_of_weight_one():
    made: Pairs = pairs(torch.tensor([0]), torch.tensor([1]))
    assert (made.p.tolist(), made.weight.tolist(), made.margin.tolist()) == ([1.0], [1.0], [0.0])


def test_the_pairs_that_beta_dpo_keeps_weigh_as_much_as_all_did():
    """Of four equal pairs at rho 1/2 two stay, each twice as heavy; a steep fall of the mean leaves a beta of 0.001."""
    point, nothing = scored([1.0, 0.0] * 4), scored([0.0] * 8)
    state = {"mean": 1.0, "std": 1.0, "updates": 0.0}
    losses = run("beta_dpo", point, nothing, opinions(4), beta=1.0, a=0.0, rho=0.5, state=state)[0]
    assert sorted(losses.tolist()) == pytest.approx([0.0, 0.0, *[2 * math.log1p(math.exp(-1.0))] * 2])
    low = run("beta_dpo", point, nothing, opinions(4), beta=1.0, a=9.0, rho=0.0, state=state | {"mean": 50.0})[0]
    assert low.tolist() == pytest.approx([math.log1p(math.exp(-1e-3))] * 4, rel=1e-12)


def test_running_numbers_begin_where_the_papers_say():
    stateful = [o for name in EVERY if (o := objectives.get(name)).initial_state is not None]
    start = {o.name: o.initial_state({**o.parameters, "beta": 0.3}) for o in stateful}  # pyright: ignore
    assert start == {
        "bco": {"shift": 0.0},
        "bco_pair": {"shift": 0.0},
        "epsilon_dpo": {"beta": 0.3},
        "beta_dpo": {"mean": 0.0, "std": 1.0, "updates": 0.0},
        "group_dpo": {},
    }


def test_the_running_beta_of_epsilon_dpo_stays_where_nothing_has_any_weight():
    policy = scored([0.0] * 2, logp_away=[1.0, 0], logp_towards=[-1.0, 0])
    nothing = replace(opinions(1), weight=torch.zeros(1, dtype=F64))
    after = objectives.get("epsilon_dpo").next_state({"beta": 0.7}, policy, policy, nothing, beta=1.0, epsilon=0.5)  # pyright: ignore
    assert after == {"beta": 0.7}


def test_wpo_weighs_by_the_mean_over_tokens():
    """Surprises of -ln 2 at each of two tokens and -ln 4 at one: weights 1/2 and 1/4, and not 1/4 and 1/4."""
    policy = scored([-2 * math.log(2), -math.log(4)], [2, 1], log_sum_p2=[0.0, 0.0, 0.0])
    losses = run("wpo", policy, policy, opinions(1))[0]
    assert losses.tolist() == pytest.approx([math.log(2) / 8])
