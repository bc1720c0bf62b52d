"""Did the run end, did its numbers stay finite, and did it begin where it had to?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from afzal.report.health.curves import Curves, Diagnosis, tail_mean, whole
from afzal.report.text import duration, is_number, number

FIRST_LOSS_TOLERANCE = 5e-4  # in the loss's own unit; wide enough for bf16
_VIRTUAL = ("prefix", "prompt", "p_tuning")
DIVERGED = 1.2  # last training loss over the first


def run_ended(c: Curves) -> Diagnosis | None:
    """Is the run whole, or do its numbers describe a part?"""
    rule = "status is finished, and at least one training step was made"
    status, step, steps = (c.facts.get(k) for k in ("status", "step", "steps"))
    reason = "" if c.facts.get("stop_reason") == "finished" else str(c.facts.get("stop_reason") or "")
    if not c.train:
        words = f"There is no training line in metrics.jsonl{': ' + reason if reason else ''}."
        remedy = "look at the status and the reason above, then run the same command again"
        severity = "bad" if status == "failed" else "watch"
        return Diagnosis("no_steps", severity, "no training step was made", words, rule, remedy)
    if status == "failed":
        words = f"It ended with an error{': ' + reason if reason else ''}. The numbers describe what came before it."
        remedy = "mend the cause and run the same command with --resume"
        return Diagnosis("failed", "bad", f"the run failed at step {number(step)}", words, rule, remedy)
    if status in ("stopped", "running"):
        ended = "has not ended" if status == "running" else f"was stopped{': ' + reason if reason else ''}"
        words = f"It {ended}. Every number is of an unfinished run, whose learning rate had not come to its end."
        title = f"the run is unfinished: step {number(step)} of {number(steps)}"
        return Diagnosis("unfinished", "watch", title, words, rule, "run the same command with --resume")
    took = f" in {duration(c.facts['seconds'])}" if is_number(c.facts.get("seconds")) else ""
    words = f"Ended{took}: {reason}." if reason else f"All {number(steps)} steps were made{took}."
    return Diagnosis("ended", "good", f"finished after {number(step)} steps", words, rule)


def finite(c: Curves) -> Diagnosis | None:
    """Did loss and gradient stay finite, and did training not run away?"""
    rule = f"every loss and gradient norm is finite, and the last tenth's loss is at most {DIVERGED} times the first"
    for row in (*c.train, *c.held_out):
        broken = [k for k in ("loss", "grad_norm") if k in row and not is_number(row[k])]
        if broken:
            title = f"{broken[0]} is not finite at step {row.get('step')}"
            words = "Training broke down there; nothing after it means anything."
            remedy = f"{c.lower_lr()}; use fp32 if the run was in half precision"
            return Diagnosis("diverged", "bad", title, words, rule, remedy, whole(row.get("step")))
    losses = [v for _, v in c.points("train", "loss")]
    if not losses:
        return None
    first, last = losses[0], tail_mean(losses)
    # on rollouts the loss is that of new answers each time, and says little
    if len(losses) >= 10 and first > 0 and last > DIVERGED * first and not c.rollouts:
        title = f"the training loss rose from {number(first)} to {number(last)}"
        words = "The optimiser is moving away from what it should minimise: its steps are too large."
        return Diagnosis("diverged", "bad", title, words, rule, c.lower_lr(), evidence={"first": first, "last": last})
    return Diagnosis("finite", "good", "loss and gradients stayed finite", "No NaN or infinity was logged.", rule)


def first_loss(c: Curves) -> Diagnosis | None:
    """Is the first loss the objective's known value at policy = reference (unless the reference is another model)?"""
    objective = c.facts.get("objective")
    expected = objective.get("at_reference") if isinstance(objective, Mapping) else None
    seen = [v for s, v in c.points("eval", "loss") if s == 0] + [v for s, v in c.points("train", "loss") if s <= 1]
    if not is_number(expected) or not _starts_at_reference(c.facts) or not seen:
        return None
    worst = max(seen, key=lambda v: abs(v - expected))
    rule = f"|first loss − value at policy = reference| ≤ {FIRST_LOSS_TOLERANCE}"
    evidence = {"expected": expected, "first": worst}
    if abs(worst - expected) <= FIRST_LOSS_TOLERANCE:
        words = f"With the policy equal to its reference the loss must be {number(expected)}, and it is."
        title = f"the first loss is {number(worst)}, as it must be"
        return Diagnosis("first_loss", "good", title, words, rule, step=0, evidence=evidence)
    return Diagnosis(
        "first_loss_off",
        "bad",
        f"the first loss is {number(worst)}, not {number(expected)}",
        "Before the first update the policy equals its reference, so the loss is known in advance. It differs, so "
        "policy and reference do not see the same thing: other weights, dropout, another precision, another text.",
        rule,
        "check the reference model and its cache, switch dropout off, and use one precision for both",
        0,
        evidence,
    )


def _starts_at_reference(facts: Mapping[str, Any]) -> bool:
    """Whether policy and reference are one before training: a fact of the run.

    Runs of before there was that fact tell it by the reference's name and by the kind of the adapter, since a fresh one
    with virtual tokens is not the identity.
    """
    known = facts.get("starts_at_reference")
    if isinstance(known, bool):
        return known
    model = facts.get("model")
    kind = model.get("adapter") if isinstance(model, Mapping) else None
    return kind not in _VIRTUAL and not str(facts.get("reference", "")).startswith("the model ")
