"""Checks of what the policy writes, and of how steady its gradients were."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

from afzal.health.curves import Curves, Diagnosis, interval_of, noise
from afzal.text import interval, is_number, number, plural, setting

LENGTH_WATCH = 1.25  # ratio of mean sample lengths, either way
LENGTH_BAD = 2.0
LENGTH_CORRELATION = 0.5
SURE = 3.0  # standard errors of a change in samples
EOS_FALL, EOS_LEFT = 0.2, 0.5  # absolute fall and share left: both
SPIKE = 10.0  # times the median of the 20 gradient norms before it
SPIKE_OVERALL = 3.0  # and times the median of all
SPIKE_NOISE = 6.0  # and standard deviations of the norms' logarithm above the median
CLIP_SHARE, CLIP_FACTOR = 0.95, 20.0  # share of norms above the limit, and their median over it: both

Estimate = tuple[float, float]  # value and standard error


def lengths(c: Curves) -> Diagnosis | None:
    """Did the policy learn to write longer or shorter, and does its reward follow length?"""
    sampled, correlation = _sampled(c, "length"), _length_correlation(c)
    rules = [
        f"mean sample length changed by a factor above {LENGTH_WATCH} either way (bad: {LENGTH_BAD}) and by more than "
        f"{SURE:.0f} standard errors"
    ]
    if correlation is not None:
        rules.append(
            f"the 95% interval of the correlation between margin and length difference on held-out pairs lies beyond "
            f"{LENGTH_CORRELATION} in either direction"
        )
    rule = ", or ".join(rules if sampled else rules[1:])
    remedy = f"balance lengths in the data (`afzal check` shows the bias), or raise {c.named('beta')}"
    if sampled and _drifted(*sampled, LENGTH_WATCH):
        before, after = sampled[0][0], sampled[1][0]
        direction = "longer" if after > before else "shorter"
        return Diagnosis(
            "length_drift",
            "bad" if _drifted(*sampled, LENGTH_BAD) else "watch",
            f"responses became {direction}: {number(before, 3)} to {number(after, 3)} tokens",
            f"Samples are {number(after / before, 3)} times as long as before. Part of what was learned is length, "
            "which people and judges reward without meaning to.",
            rule,
            remedy,
            evidence={"before": before, "after": after},
        )
    if (
        correlation is not None
        and min(abs(correlation[1]), abs(correlation[2])) > LENGTH_CORRELATION
        and correlation[1] * correlation[2] > 0
    ):
        estimate = f"{number(correlation[0], 2)} {interval(*correlation[1:], 2)}"
        title = f"the reward follows length: correlation {estimate}"
        direction = "longer" if correlation[0] > 0 else "shorter"
        text = f"On held-out pairs the {c.subject} gives the {direction} response the larger reward, whatever it says."
        return Diagnosis("length_drift", "watch", title, text, rule, remedy, evidence={"correlation": correlation[0]})
    if (sampled is None or _all_cut(c)) and correlation is None:
        return None
    sentences = []
    if sampled is not None and not _all_cut(c):
        sentences.append(f"Samples went from {number(sampled[0][0], 3)} to {number(sampled[1][0], 3)} tokens.")
    if correlation is not None:
        sentences.append(
            f"Margin and length difference correlate at {number(correlation[0], 2)} {interval(*correlation[1:], 2)}."
        )
    title = "no length drift beyond chance" if sampled else "the reward does not follow length alone"
    return Diagnosis("length", "good", title, " ".join(sentences), rule)


def _length_correlation(c: Curves) -> tuple[float, float, float] | None:
    """Correlation of margin and length difference at the last evaluation, with its interval."""
    name = "rewards/length_correlation"
    if not c.held_out or not is_number(value := c.held_out[-1].get(name)):
        return None
    ends = interval_of(c.held_out[-1], name)
    return (value, *ends) if ends else None


def endings(c: Curves) -> Diagnosis | None:
    """Does the policy still end its responses?"""
    sampled = _sampled(c, "eos_rate")
    if sampled is None:
        return None
    before, after = sampled[0][0], sampled[1][0]
    if _all_cut(c):
        return None
    rule = (
        f"the share of samples that end with EOS fell by more than {EOS_FALL}, by more than {SURE:.0f} standard "
        f"errors, and to less than {EOS_LEFT:.0%} of its former value"
    )
    evidence = {"before": before, "after": after}
    noise_limit = SURE * math.hypot(sampled[0][1], sampled[1][1])
    if before - after <= max(EOS_FALL, noise_limit) or after >= EOS_LEFT * before:
        text = f"{before:.0%} of samples ended with EOS before training, {after:.0%} after."
        return Diagnosis("endings", "good", "responses still end", text, rule, evidence=evidence)
    return Diagnosis(
        "eos_collapsed",
        "bad",
        f"the model forgot how to stop: {before:.0%} of samples ended with EOS before, now {after:.0%}",
        "Responses run into the token limit: the end token was not trained, or the policy drifted too far.",
        rule,
        f"make sure that every row ends with one EOS (`afzal check --show`), {c.lower_lr()}",
        evidence=evidence,
    )


def gradients(c: Curves) -> Diagnosis | None:
    """Do gradient norms before clipping have spikes, or does the limit decide every step?"""
    points = c.points("train", "grad_norm")
    if len(points) < 10:
        return None
    values = [v for _, v in points]
    typical, limit = median(values), c.setting("max_grad_norm")
    limit = math.inf if limit == 0 else limit  # 0: nothing is clipped
    factor = math.exp(SPIKE_NOISE * noise([math.log(v) for v in values if v > 0]))
    spikes = [
        (s, v)
        for i, (s, v) in enumerate(points)
        if i >= 10 and _is_spike(v, values[max(0, i - 20) : i], typical, factor)
    ]
    rule = (
        f"a norm above {SPIKE:.0f} times the median of the 20 before it, above that median by {SPIKE_NOISE:.0f} "
        f"standard deviations of the norms' logarithm, and above {SPIKE_OVERALL:.0f} times the median of all; or "
        f"{CLIP_SHARE:.0%} of norms above max_grad_norm and their median above {CLIP_FACTOR:.0f} times it"
    )
    if spikes:
        step, worst = max(spikes, key=lambda p: p[1])
        title = f"{plural(len(spikes), 'gradient spike')}, the largest at step {step}"
        text = (
            f"The gradient norm reached {number(worst)}; its median is {number(typical)}. A few odd rows can do that."
        )
        remedy = f"look at the rows of step {step}, lengthen the warm-up, or lower {c.named('max_grad_norm')}"
        evidence = {"largest": worst, "median": typical}
        return Diagnosis("gradient_spikes", "watch", title, text, rule, remedy, step, evidence)
    share = sum(v > limit for v in values) / len(values) if is_number(limit) else 0.0
    if is_number(limit) and share >= CLIP_SHARE and typical > CLIP_FACTOR * limit:
        title = f"{share:.0%} of the steps were clipped, the median norm {number(typical / limit, 2)} times the limit"
        text = (
            "The limit, not the gradient, sets the length of every step, so loud batches count no more than quiet ones."
        )
        remedy = f"raise {c.named('max_grad_norm')} to about {setting(float(f'{typical:.1g}'))}, and lower lr with it"
        evidence = {"share": share, "median": typical, "limit": limit}
        return Diagnosis("always_clipped", "watch", title, text, rule, remedy, evidence=evidence)
    title = f"no gradient spikes{f', and {share:.0%} of the steps were clipped' if share else ''}"
    limit_text = f" The limit max_grad_norm is {setting(limit)}." if share else ""
    text = f"Median gradient norm {number(typical)}, largest {number(max(values))}.{limit_text}"
    return Diagnosis("gradients", "good", title, text, rule, evidence={"median": typical, "share": share})


def _sampled(c: Curves, name: str) -> tuple[Estimate, Estimate] | None:
    """Values before and after training: from the samples on disk, else from evaluations (error: the disk's, or 0)."""
    samples = c.facts.get("samples")
    stages = [samples.get(s) for s in ("before", "after")] if isinstance(samples, Mapping) else []
    estimates = [
        (s[name], s.get(f"{name}_se", 0.0)) for s in stages if isinstance(s, Mapping) and is_number(s.get(name))
    ]
    if len(estimates) == 2:
        return estimates[0], estimates[1]
    points, error = [v for _, v in c.points("eval", f"samples/{name}")], estimates[0][1] if estimates else 0.0
    return ((points[0], error), (points[-1], error)) if len(points) > 1 else None


def _all_cut(c: Curves) -> bool:
    """Whether no sample ever ended with EOS, so that their length is only the limit."""
    ended = _sampled(c, "eos_rate")
    return ended is not None and ended[0][0] == ended[1][0] == 0


def _drifted(before: Estimate, after: Estimate, limit: float) -> bool:
    if before[0] <= 0 or abs(after[0] - before[0]) <= SURE * math.hypot(before[1], after[1]):
        return False
    return not 1 / limit <= after[0] / before[0] <= limit


def _is_spike(value: float, recent: Sequence[float], typical: float, factor: float) -> bool:
    return value > max(SPIKE, factor) * median(recent) and value > SPIKE_OVERALL * typical
