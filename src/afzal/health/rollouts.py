"""Checks of policies that learn from rewards: did the reward rise, and at what cost?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from afzal.health.behaviour import LENGTH_BAD
from afzal.health.curves import Curves, Diagnosis, noise
from afzal.health.overtraining import KL_WATCH, KL_WATCH_TOKEN
from afzal.text import is_number, number

SEVERAL = 3  # rollouts at each end whose means are compared
EOS_LEFT = 0.5  # share of the endings at the start
ENTROPY_LEFT = 0.1  # share of the entropy per token at the start
SAME_REWARD = 0.8  # share of prompts whose answers all get the same reward, so nothing is learned from them
SURE = 2.5  # standard errors of a change in reward
CLIPPED, MOVED = 0.4, 0.2  # mean clip fraction; mean KL(old || new) per update, nats

_RULE = (
    f"the mean of the last {SEVERAL} rollouts against the first {SEVERAL}: KL above {KL_WATCH:.0f} nats per answer and "
    f"{KL_WATCH_TOKEN} per token, length {LENGTH_BAD:.0f} times as large or small, endings below {EOS_LEFT:.0%} or "
    f"entropy per token below {ENTROPY_LEFT:.0%} of their first value, or {SAME_REWARD:.0%} of prompts with one reward "
    f"for all answers while the reward did not rise by more than {SURE} standard errors of its noise"
)


def signs(rollouts: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Warnings from the rollouts of a run, by name; none as long as there are too few rollouts.

    Args:
        rollouts: lines of ``metrics.jsonl`` of kind ``rollout``, in order.
    """
    if len(rollouts) < 2 * SEVERAL:
        return {}
    first, last = rollouts[:SEVERAL], rollouts[-SEVERAL:]
    warnings: dict[str, str] = {}
    lengths, endings = _end_means(first, last, "rollout/length"), _end_means(first, last, "rollout/eos_rate")
    kl, entropy = _end_means(first, last, "objective/kl_exact"), _end_means(first, last, "objective/entropy")
    if lengths and lengths[0] > 0 and not 1 / LENGTH_BAD < lengths[1] / lengths[0] < LENGTH_BAD:
        change = "exploded" if lengths[1] > lengths[0] else "collapsed"
        warnings["length"] = f"answer length {change}: {number(lengths[0], 3)} to {number(lengths[1], 3)} tokens"
    if kl and lengths and kl[1] > KL_WATCH and kl[1] > KL_WATCH_TOKEN * lengths[1]:
        warnings["kl"] = f"the policy runs away from its reference: KL {number(kl[1], 3)} nats per answer"
    if endings and endings[0] > 0 and endings[1] < EOS_LEFT * endings[0]:
        warnings["endings"] = f"answers no longer end: {endings[0]:.0%} did, now {endings[1]:.0%}"
    if entropy and lengths and entropy[0] > 0 and lengths[0] > 0 and lengths[1] > 0:
        entropy_share = (entropy[1] / lengths[1]) / (entropy[0] / lengths[0])
        if entropy_share < ENTROPY_LEFT:
            warnings["entropy"] = (
                f"the policy always writes the same: {entropy_share:.0%} of its entropy per token is left"
            )
    same_reward = _end_means(first, last, "rollout/same_reward")
    rise = _reward_rise(rollouts)
    if same_reward and same_reward[1] > SAME_REWARD and not rise:  # if it rose, the prompts may be solved
        warnings["signal"] = (
            f"all answers get the same reward at {same_reward[1]:.0%} of the prompts: nothing is learned there"
        )
    # if the reward rises while the answers get worse, the policy exploits the reward instead of pleasing people
    warned = [name for name in ("length", "kl", "endings", "entropy") if name in warnings]
    if warned and rise:
        rise_text = f"the reward rose from {number(rise[0], 3)} to {number(rise[1], 3)}"
        warnings["hacking"] = f"this may be reward hacking: {rise_text} while " + "; ".join(
            warnings[name] for name in warned
        )
    return warnings


def _reward_rise(rollouts: Sequence[Mapping[str, Any]]) -> tuple[float, float] | None:
    """The mean reward at both ends if it rose beyond the noise between rollouts; else None."""
    scores = _end_means(rollouts[:SEVERAL], rollouts[-SEVERAL:], "objective/scores")
    spread = noise([r["objective/scores"] for r in rollouts if is_number(r.get("objective/scores"))])
    is_clear = scores is not None and scores[1] - scores[0] > SURE * spread * (2 / SEVERAL) ** 0.5
    return scores if is_clear else None


def _end_means(
    first: Sequence[Mapping[str, Any]], last: Sequence[Mapping[str, Any]], name: str
) -> tuple[float, float] | None:
    values = [[r[name] for r in part if is_number(r.get(name))] for part in (first, last)]
    return None if not all(values) else (sum(values[0]) / len(values[0]), sum(values[1]) / len(values[1]))


def reward(c: Curves) -> Diagnosis | None:
    """Did the reward on held-out prompts rise?"""
    records = [r for r in c.held_out if is_number(r.get("reward"))]
    if len(records) < 2:
        return None
    before, after = records[0]["reward"], records[-1]["reward"]
    errors = [r["reward_se"] if is_number(r.get("reward_se")) else 0.0 for r in (records[0], records[-1])]
    noise_limit = SURE * (errors[0] ** 2 + errors[1] ** 2) ** 0.5
    rule = f"the mean reward of answers to held-out prompts rose by more than {SURE} standard errors"
    change = f"From {number(before, 3)} to {number(after, 3)} (within chance: ± {number(noise_limit, 2)})"
    text = f"{change} on {number(records[-1].get('n'))} prompts."
    evidence = {"before": before, "after": after}
    step = int(records[-1]["step"])
    if after - before > noise_limit:
        return Diagnosis("reward", "good", "the reward rose", text, rule, "", step, evidence)
    if before - after > noise_limit:
        remedy = c.lower_lr() + ("" if c.in_rounds else f", or lower {c.named('kl_coef')}")
        return Diagnosis("reward_fell", "bad", "the reward fell", text, rule, remedy, step, evidence)
    remedy = f"raise {c.named('lr')}, " + (
        "or make more rounds" if c.in_rounds else f"make more iterations, or lower {c.named('kl_coef')}"
    )
    return Diagnosis("reward_flat", "watch", "the reward did not clearly rise", text, rule, remedy, step, evidence)


def conduct(c: Curves) -> Diagnosis | None:
    """What did the policy give up for its reward?"""
    if len(c.rollouts) < 2 * SEVERAL:
        return None
    warnings = signs(c.rollouts)
    if not warnings:
        text = "Length, endings, entropy and KL of the answers stayed within bounds."
        return Diagnosis("conduct", "good", "no sign of reward hacking", text, _RULE)
    title = warnings.get("hacking") or next(iter(warnings.values()))
    text = "; ".join(warning for name, warning in warnings.items() if name != "hacking")
    remedy = f"read samples.jsonl, raise {c.named('kl_coef')}, or stop earlier (early_stop_patience)"
    severity = "bad" if "hacking" in warnings or "endings" in warnings else "watch"
    return Diagnosis("conduct", severity, title, text[:1].upper() + text[1:] + ".", _RULE, remedy)


def step_sizes(c: Curves) -> Diagnosis | None:
    """Did updates stay near the policy that wrote the answers?"""
    clipped, kls = ([v for _, v in c.points("train", f"policy/{name}")] for name in ("clipfrac", "approxkl"))
    if len(clipped) < 10 or not kls:
        return None
    mean_clipped, mean_kl = sum(clipped) / len(clipped), sum(kls) / len(kls)
    rule = f"mean share clipped at most {CLIPPED} and mean KL(old || new) at most {MOVED} nats per update"
    text = f"On average {mean_clipped:.0%} was clipped, and the policy moved {number(mean_kl, 2)} nats "
    text += "from the one that wrote."
    evidence = {"clipfrac": mean_clipped, "approxkl": mean_kl}
    if mean_clipped <= CLIPPED and mean_kl <= MOVED:
        return Diagnosis("step_sizes", "good", "updates stayed near the writing policy", text, rule, evidence=evidence)
    remedy = f"{c.lower_lr()}, or fewer ppo_epochs"
    return Diagnosis("large_updates", "watch", "updates are large", text, rule, remedy, evidence=evidence)
