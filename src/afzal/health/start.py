"""Check whether the run ended, its numbers stayed finite, and it started at the right loss."""

from __future__ import annotations

from collections.abc import Sequence

from afzal.health.curves import Curves, Diagnosis, noise, step_number
from afzal.text import duration, is_number, number

FIRST_LOSS_TOLERANCE = 5e-4  # in the loss's own unit; wide enough for bf16
DIVERGED = 1.2  # last loss over the first
SURE = 4.0  # standard errors
LEAST_STEPS = 6  # logged updates needed to estimate their noise


def run_ended(c: Curves) -> Diagnosis | None:
    """Did the run finish, or do its numbers describe only a part?"""
    rule = "status is finished, and at least one training step was taken"
    status, step, steps = (c.facts.get(k) for k in ("status", "step", "steps"))
    reason = "" if c.facts.get("stop_reason") == "finished" else str(c.facts.get("stop_reason") or "")
    if not c.train:
        text = f"There is no training line in metrics.jsonl{': ' + reason if reason else ''}."
        remedy = "check the status and the reason above, then run the same command again"
        severity = "bad" if status == "failed" else "watch"
        return Diagnosis("no_steps", severity, "no training step was taken", text, rule, remedy)
    if status == "failed":
        text = f"It ended with an error{': ' + reason if reason else ''}. The numbers describe the part before it."
        remedy = "fix the cause and run the same command with --resume"
        return Diagnosis("failed", "bad", f"the run failed at step {number(step)}", text, rule, remedy)
    if status in ("stopped", "running"):
        ended = "has not ended" if status == "running" else f"was stopped{': ' + reason if reason else ''}"
        text = f"It {ended}. All numbers are from an unfinished run, whose learning rate had not reached its end."
        title = f"the run is unfinished: step {number(step)} of {number(steps)}"
        return Diagnosis("unfinished", "watch", title, text, rule, "run the same command with --resume")
    duration_text = f" in {duration(c.facts['seconds'])}" if is_number(c.facts.get("seconds")) else ""
    text = f"Ended{duration_text}: {reason}." if reason else f"All {number(steps)} steps were taken{duration_text}."
    return Diagnosis("ended", "good", f"finished after {number(step)} steps", text, rule)


def finite(c: Curves) -> Diagnosis | None:
    """Did loss and gradient stay finite, and did training not diverge?"""
    rule = (
        f"every loss and gradient norm is finite, and the mean loss of the last fifth of the updates is not above the "
        f"start by {DIVERGED - 1:.0%} and by {SURE:.0f} standard errors of their noise (nor the last held-out loss by "
        f"{DIVERGED - 1:.0%})"
    )
    for row in (*c.train, *c.held_out):
        broken = [k for k in ("loss", "grad_norm") if k in row and not is_number(row[k])]
        if broken:
            title = f"{broken[0]} is not finite at step {row.get('step')}"
            text = "Training broke down there; nothing after it means anything."
            remedy = f"{c.lower_lr()}; use fp32 if the run was in half precision"
            step = step_number(row.get("step"))
            return Diagnosis("diverged", "bad", title, text, rule, remedy, step, change=c.times_lr(1 / 3))
    if not c.points("train", "loss"):
        return None
    rise = _diverging_loss(c)
    if rise is None:
        return Diagnosis("finite", "good", "loss and gradients stayed finite", "No NaN or infinity was logged.", rule)
    kind, first, last = rise
    title = f"the {kind} loss rose from {number(first)} to {number(last)}"
    text = "The optimiser is moving away from what it should minimise: its steps are too large."
    evidence = {"first": first, "last": last}
    change = c.times_lr(1 / 3)
    return Diagnosis("diverged", "bad", title, text, rule, c.lower_lr(), evidence=evidence, change=change)


def _diverging_loss(c: Curves) -> tuple[str, float, float] | None:
    """The loss that diverged, with its first and last value; None if none did."""
    if not c.training_loss_is_one_curve:
        return None
    train, held_out = ([v for _, v in c.points(kind, "loss")] for kind in ("train", "eval"))
    if len(train) >= LEAST_STEPS:
        size = max(3, len(train) // 5)
        first, first_error = _start_of_training(c, train, held_out, size)
        last, error = sum(train[-size:]) / size, noise(train) / size**0.5
        noise_limit = SURE * (error**2 + first_error**2) ** 0.5
        if first > 0 and last - first > max((DIVERGED - 1) * first, noise_limit):
            return "training", first, last
        if last < first:  # held-out rows that do not follow are for another check
            return None
    if len(held_out) > 1 and held_out[0] > 0 and held_out[-1] > DIVERGED * held_out[0]:
        return "held-out", held_out[0], held_out[-1]
    return None


def _start_of_training(c: Curves, train: Sequence[float], held_out: Sequence[float], size: int) -> tuple[float, float]:
    """The loss at the start of training, and its standard error: known from the objective, else the lower of the first
    held-out loss and the mean over the first updates."""
    start = c.known_start()
    if start is not None:
        return start, 0.0
    mean, error = sum(train[:size]) / size, noise(train) / size**0.5
    at_start = [v for s, v in c.points("eval", "loss") if s == 0]
    return (at_start[0], error) if at_start and at_start[0] < mean else (mean, error)


def first_loss(c: Curves) -> Diagnosis | None:
    """Is the first loss the objective's known value at policy = reference (unless the reference is another model)?"""
    expected = c.known_start()
    losses = [v for s, v in c.points("eval", "loss") if s == 0] + [v for s, v in c.points("train", "loss") if s <= 1]
    if expected is None or not losses:
        return None
    worst = max(losses, key=lambda v: abs(v - expected))
    rule = f"|first loss − value at policy = reference| ≤ {FIRST_LOSS_TOLERANCE}"
    evidence = {"expected": expected, "first": worst}
    if abs(worst - expected) <= FIRST_LOSS_TOLERANCE:
        text = f"With the policy equal to its reference the loss must be {number(expected)}, and it is."
        title = f"the first loss is {number(worst)}, as it must be"
        return Diagnosis("first_loss", "good", title, text, rule, step=0, evidence=evidence)
    return Diagnosis(
        "first_loss_off",
        "bad",
        f"the first loss is {number(worst)}, not {number(expected)}",
        "Before the first update the policy equals its reference, so the loss is known in advance. It differs, so "
        "policy and reference do not see the same thing: different weights, dropout, precision or text.",
        rule,
        "check the reference model and its cache, switch dropout off, and use one precision for both",
        0,
        evidence,
    )
