"""What the policy writes, and how evenly the optimiser moved it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

from afzal.report.health.curves import Curves, Diagnosis
from afzal.report.text import is_number, number, plural, setting

LENGTH_WATCH = 1.25  # ratio of mean sample lengths, either way
LENGTH_BAD = 2.0
LENGTH_CORRELATION = 0.5
EOS_FALL, EOS_LEFT = 0.2, 0.5  # absolute fall and share left: both
SPIKE = 10.0  # times the median of the 20 gradient norms before it
SPIKE_OVERALL = 3.0  # and times the median of all
CLIP_SHARE, CLIP_FACTOR = 0.95, 20.0  # share of norms above the limit, and their median over it: both

Estimate = tuple[float, float]  # value and standard error


def lengths(c: Curves) -> Diagnosis | None:
    """Did the policy learn to write longer or shorter, and does its reward follow length?"""
    sampled = _sampled(c, "length")
    correlation = [v for _, v in c.points("eval", "rewards/length_correlation")]
    rule = (
        f"mean sample length changed by more than {LENGTH_WATCH} times either way (bad: {LENGTH_BAD}) and by more than "
        f"two standard errors, or margin and length difference correlate above {LENGTH_CORRELATION} on held-out pairs"
    )
    remedy = f"balance lengths in the data (`afzal check` shows the bias), or raise {c.named('beta')}"
    if sampled and _drifted(*sampled, LENGTH_WATCH):
        before, after = sampled[0][0], sampled[1][0]
        way = "longer" if after > before else "shorter"
        return Diagnosis(
            "length_drift",
            "bad" if _drifted(*sampled, LENGTH_BAD) else "watch",
            f"responses became {way}: {number(before, 3)} to {number(after, 3)} tokens",
            f"Samples have {number(after / before, 3)} times the length they had. Part of what was learned is length, "
            "which people and judges reward without meaning to.",
            rule,
            remedy,
            evidence={"before": before, "after": after},
        )
    if correlation and abs(correlation[-1]) > LENGTH_CORRELATION:
        title = f"the reward follows length: correlation {number(correlation[-1], 2)}"
        words = "On held-out pairs the reward margin goes with the difference in length."
        evidence = {"correlation": correlation[-1]}
        return Diagnosis("length_drift", "watch", title, words, rule, remedy, evidence=evidence)
    if sampled is None or _all_cut(c):
        return None
    words = f"Samples went from {number(sampled[0][0], 3)} to {number(sampled[1][0], 3)} tokens."
    return Diagnosis("length", "good", "response length held steady", words, rule)


def endings(c: Curves) -> Diagnosis | None:
    """Does the policy still end its responses?"""
    sampled = _sampled(c, "eos_rate")
    if sampled is None:
        return None
    before, after = sampled[0][0], sampled[1][0]
    if _all_cut(c):
        return None
    rule = (
        f"the share of samples that end by themselves fell by more than {EOS_FALL}, by more than two standard "
        "errors, and to less than half"
    )
    evidence = {"before": before, "after": after}
    noise = 2 * math.hypot(sampled[0][1], sampled[1][1])
    if before - after <= max(EOS_FALL, noise) or after >= EOS_LEFT * before:
        words = f"{before:.0%} of samples ended by themselves before, {after:.0%} after."
        return Diagnosis("endings", "good", "responses end as they did", words, rule, evidence=evidence)
    return Diagnosis(
        "eos_collapsed",
        "bad",
        f"the model forgot how to stop: {before:.0%} of samples ended by themselves, now {after:.0%}",
        "Responses run into the token limit: the end token was not trained, or the policy drifted too far.",
        rule,
        f"see that every row ends with one EOS (`afzal check --show`), {c.lower_lr()}",
        evidence=evidence,
    )


def gradients(c: Curves) -> Diagnosis | None:
    """Gradient norms before clipping: single spikes, or a limit that decides every step."""
    points = c.points("train", "grad_norm")
    if len(points) < 10:
        return None
    values = [v for _, v in points]
    usual, limit = median(values), c.setting("max_grad_norm")
    spikes = [(s, v) for i, (s, v) in enumerate(points) if i >= 10 and _is_spike(v, values[max(0, i - 20) : i], usual)]
    rule = (
        f"a norm above {SPIKE:.0f} times the median of the 20 before it and {SPIKE_OVERALL:.0f} times that of all, "
        f"or {CLIP_SHARE:.0%} of norms above max_grad_norm and their median above {CLIP_FACTOR:.0f} times it"
    )
    if spikes:
        step, worst = max(spikes, key=lambda p: p[1])
        title = f"{plural(len(spikes), 'gradient spike')}, the largest at step {step}"
        words = f"The gradient norm reached {number(worst)}; its median is {number(usual)}. A few odd rows can do that."
        remedy = f"look at the rows of step {step}, lengthen the warm-up, or lower {c.named('max_grad_norm')}"
        evidence = {"largest": worst, "median": usual}
        return Diagnosis("gradient_spikes", "watch", title, words, rule, remedy, step, evidence)
    share = sum(v > limit for v in values) / len(values) if is_number(limit) else 0.0
    if is_number(limit) and share >= CLIP_SHARE and usual > CLIP_FACTOR * limit:
        title = f"{share:.0%} of the steps were clipped, the median norm {number(usual / limit, 2)} times the limit"
        words = "The limit, not the gradient, decides the length of every step, so loud batches count as quiet ones."
        remedy = f"raise {c.named('max_grad_norm')} to about {setting(float(f'{usual:.1g}'))}, and lower lr with it"
        evidence = {"share": share, "median": usual, "limit": limit}
        return Diagnosis("always_clipped", "watch", title, words, rule, remedy, evidence=evidence)
    words = f"Median gradient norm {number(usual)}, largest {number(max(values))}."
    return Diagnosis("gradients", "good", "gradients are even", words, rule, evidence={"median": usual})


def _sampled(c: Curves, name: str) -> tuple[Estimate, Estimate] | None:
    """Before and after: from the samples on disk, else from the evaluations (with the disk's error, or none)."""
    samples = c.facts.get("samples")
    stages = [samples.get(s) for s in ("before", "after")] if isinstance(samples, Mapping) else []
    known = [(s[name], s.get(f"{name}_se", 0.0)) for s in stages if isinstance(s, Mapping) and is_number(s.get(name))]
    if len(known) == 2:
        return known[0], known[1]
    points, error = [v for _, v in c.points("eval", f"samples/{name}")], known[0][1] if known else 0.0
    return ((points[0], error), (points[-1], error)) if len(points) > 1 else None


def _all_cut(c: Curves) -> bool:
    """No sample ever ended by itself, so that their length is the limit's and says nothing."""
    ended = _sampled(c, "eos_rate")
    return ended is not None and ended[0][0] == ended[1][0] == 0


def _drifted(before: Estimate, after: Estimate, limit: float) -> bool:
    if before[0] <= 0 or abs(after[0] - before[0]) <= 2 * math.hypot(before[1], after[1]):
        return False
    return not 1 / limit <= after[0] / before[0] <= limit


def _is_spike(value: float, recent: Sequence[float], usual: float) -> bool:
    return value > SPIKE * median(recent) and value > SPIKE_OVERALL * usual
